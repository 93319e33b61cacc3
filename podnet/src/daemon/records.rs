//! The plugin's records as they were read: each once, since a record never changes when its pod is ready. So the daemon
//! still knows them when somebody damages or removes their files.

use std::collections::BTreeSet;
use std::net::IpAddr;

use podnet_cni::record::{Record, RecordName, State};
use podnet_cni::store::{Content, Store, StoreError};
use podnet_common::addr::IfIndex;

/// The records of pods that are ready, those that came first first.
#[derive(Debug, Default)]
pub(super) struct Records {
    ready: Vec<(RecordName, Record)>,
    /// Those whose files have gone. Their pods have too, unless their links say otherwise.
    gone: Vec<Record>,
}

impl Records {
    /// Looks at the directory again.
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
            // One that is unreadable is repair's to write again, and one may have gone meanwhile.
            if let Ok(Some(Content::Valid(record))) = store.read(name) {
                found.push((name.clone(), *record));
            }
        }
        ready.extend(found);
        self.ready = ready;
        Ok(())
    }

    /// All of them.
    pub(super) fn iter(&self) -> impl Iterator<Item = &Record> {
        self.ready.iter().map(|(_, record)| record)
    }

    /// Those whose files have gone since the last time.
    pub(super) fn gone(&self) -> &[Record] {
        &self.gone
    }

    /// All that were read, also those whose files have gone, for repair to write again.
    pub(super) fn known(&self) -> Vec<Record> {
        self.iter().chain(&self.gone).cloned().collect()
    }

    /// Forgets those whose files have gone: it has been looked after their links.
    pub(super) fn forget_gone(&mut self) {
        self.gone.clear();
    }

    /// The links of those with these addresses.
    pub(super) fn links_to(&self, addresses: &BTreeSet<IpAddr>) -> impl Iterator<Item = IfIndex> {
        let has = |record: &&Record| record.ips.iter().any(|ip| addresses.contains(ip));
        self.iter().filter(has).map(|record| IfIndex(record.host_ifindex))
    }

    /// The names of those with these links.
    pub(super) fn of_links(&self, links: &BTreeSet<IfIndex>) -> Vec<RecordName> {
        let with = |(_, record): &&(RecordName, Record)| links.contains(&IfIndex(record.host_ifindex));
        self.ready.iter().filter(with).map(|(name, _)| name.clone()).collect()
    }
}
