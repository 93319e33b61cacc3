//! The plugin's records in memory. Each is read once, since a record never changes once its pod is ready. So the daemon
//! still has them if their files are damaged or removed.

use std::collections::BTreeSet;
use std::net::IpAddr;

use podnet_cni::record::{Record, RecordName, State};
use podnet_cni::store::{Content, Store, StoreError};
use podnet_common::addr::IfIndex;

/// The records of ready pods: those of the first reading by name, later ones behind them.
#[derive(Debug, Default)]
pub(super) struct Records {
    ready: Vec<(RecordName, Record)>,
    /// Records whose files are gone. Their pods are gone too, unless their links still exist.
    gone: Vec<Record>,
}

impl Records {
    /// Reads the directory.
    pub(super) fn refresh(&mut self, store: &Store) -> Result<(), StoreError> {
        let mut names = store.list()?;
        names.retain(|name| name.state == State::Ready);
        let names: BTreeSet<RecordName> = names.into_iter().collect();
        let (mut ready, gone): (Vec<_>, Vec<_>) =
            std::mem::take(&mut self.ready).into_iter().partition(|(name, _)| names.contains(name));
        self.gone.extend(gone.into_iter().map(|(_, record)| record));
        let known: BTreeSet<&RecordName> = ready.iter().map(|(name, _)| name).collect();
        let new: Vec<&RecordName> = names.iter().filter(|name| !known.contains(name)).collect();
        let mut found = Vec::new();
        for name in new {
            // Repair rewrites an unreadable record, and a file may be gone by now.
            if let Ok(Some(Content::Valid(record))) = store.read(name) {
                found.push((name.clone(), *record));
            }
        }
        ready.extend(found);
        self.ready = ready;
        Ok(())
    }

    /// All records.
    pub(super) fn iter(&self) -> impl Iterator<Item = &Record> {
        self.ready.iter().map(|(_, record)| record)
    }

    /// Records whose files have gone since the last call of [`Self::forget_gone`].
    pub(super) fn gone(&self) -> &[Record] {
        &self.gone
    }

    /// All records ever read, including those whose files are gone, so that repair can rewrite them.
    pub(super) fn known(&self) -> Vec<Record> {
        self.iter().chain(&self.gone).cloned().collect()
    }

    /// Forgets records whose files are gone, after their links have been checked.
    pub(super) fn forget_gone(&mut self) {
        self.gone.clear();
    }

    /// Links of the pods with these addresses.
    pub(super) fn links_to(&self, addresses: &BTreeSet<IpAddr>) -> impl Iterator<Item = IfIndex> {
        let has = |record: &&Record| record.ips.iter().any(|ip| addresses.contains(ip));
        self.iter().filter(has).map(|record| IfIndex(record.host_ifindex))
    }

    /// Names of the records with these links.
    pub(super) fn of_links(&self, links: &BTreeSet<IfIndex>) -> Vec<RecordName> {
        let with = |(_, record): &&(RecordName, Record)| links.contains(&IfIndex(record.host_ifindex));
        self.ready.iter().filter(with).map(|(name, _)| name.clone()).collect()
    }
}
