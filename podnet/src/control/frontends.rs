//! The frontends of services and host ports: the desired tables, and each owner's share of them.

use podnet_common::layout::FrontendKey;

use super::shares::Shares;
use crate::compile::{Desired, ServiceNames};
use crate::config::Config;
use crate::frontend::{Frontend, Owner};
use crate::mirror::TableError;
use crate::reconcile::{GRACE, Reconciler, Tables};

#[derive(Debug)]
pub(super) struct Frontends {
    pub(super) desired: Desired,
    pub(super) reconciler: Reconciler,
    pub(super) shares: Shares,
}

impl Frontends {
    /// Adopts the contents of the tables.
    pub(super) fn adopt(config: &Config, names: ServiceNames, tables: &dyn Tables) -> Result<Self, TableError> {
        Ok(Self {
            desired: Desired::default(),
            reconciler: Reconciler::adopt(tables, names, config.maglev_table_size, GRACE)?,
            shares: Shares::new(tables.capacity()),
        })
    }

    /// Makes room for this number of owners.
    pub(super) fn reserve(&mut self, owners: usize) {
        self.desired.reserve(owners);
        self.shares.reserve(owners);
    }

    /// Replaces the frontends of an owner. Returns the keys whose entries may have changed, ascending.
    pub(super) fn set(&mut self, owner: &Owner, frontends: Vec<Frontend>) -> Vec<FrontendKey> {
        let changed = self.desired.set(owner, frontends);
        self.reconciler.mark(changed.iter().copied());
        changed
    }

    /// Recomputes the shares. Returns the owners whose limits have changed.
    pub(super) fn settle_shares(&mut self) -> Vec<Owner> {
        self.shares.settle(|| self.desired.backends())
    }
}
