//! The tables of frontends, which services and host ports share: what they should hold, and how much each owner gets.

use std::collections::BTreeSet;

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
    /// Takes over what the tables hold.
    pub(super) fn adopt(config: &Config, names: ServiceNames, tables: &dyn Tables) -> Result<Self, TableError> {
        Ok(Self {
            desired: Desired::default(),
            reconciler: Reconciler::adopt(tables, names, config.maglev_table_size, GRACE)?,
            shares: Shares::new(tables.capacity()),
        })
    }

    /// Puts an owner's frontends in the place of those it had, and gives the keys whose entries may have changed.
    pub(super) fn set(&mut self, owner: &Owner, frontends: Vec<Frontend>) -> BTreeSet<FrontendKey> {
        let changed = self.desired.set(owner, frontends);
        self.reconciler.mark(changed.iter().copied());
        changed
    }

    /// The owners that get more or less of the tables than before.
    pub(super) fn settle_shares(&mut self) -> Vec<Owner> {
        self.shares.settle(|| self.desired.backends())
    }
}
