//! The tables of network policy: `subjects`, and those whose names begin with `policy_`.

use std::{io, os::fd::AsFd as _};

use aya::{
    Ebpf,
    maps::{Array, HashMap, IterableMap as _, LpmTrie, MapData, MapError, lpm_trie::Key},
};
use bytemuck::Pod;
use podnet_cni::datapath::Plain;
use podnet_common::{
    addr::Addr,
    layout::{PolicyDenial, PolicyPod, PolicyRule, PolicyVerdict, Prefix, ProtoPort, Subject},
    tables::{POLICY_BLOCKS, POLICY_DENIALS, POLICY_PEERS, POLICY_PODS, POLICY_PORTS, POLICY_RULES, SUBJECTS, Table},
};

use super::{
    batch,
    error::Error,
    maps::take,
    table_error::{errno, failed, gone_is_fine, refused},
};
use crate::mirror::{Counts, Entries, TableError};

/// The tables of network policy.
pub struct PolicyTables {
    subjects: HashMap<MapData, Plain<Addr>, Plain<Subject>>,
    pods: Array<MapData, Plain<PolicyPod>>,
    peers: HashMap<MapData, Plain<Addr>, u32>,
    blocks: LpmTrie<MapData, Plain<Addr>, u32>,
    ports: Array<MapData, u32>,
    rules: HashMap<MapData, Plain<PolicyRule>, Plain<PolicyVerdict>>,
    denials: HashMap<MapData, Plain<PolicyDenial>, u64>,
}

impl PolicyTables {
    /// Takes them out of the loaded object.
    pub(super) fn take(ebpf: &mut Ebpf) -> Result<Self, Error> {
        Ok(Self {
            subjects: take(ebpf, SUBJECTS)?,
            pods: take(ebpf, POLICY_PODS)?,
            peers: take(ebpf, POLICY_PEERS)?,
            blocks: take(ebpf, POLICY_BLOCKS)?,
            ports: take(ebpf, POLICY_PORTS)?,
            rules: take(ebpf, POLICY_RULES)?,
            denials: take(ebpf, POLICY_DENIALS)?,
        })
    }
}

impl PolicyTables {
    /// Empties `policy_pods`, before programs that read it may run: a daemon of a version without this table may have
    /// written `subjects` since.
    pub(super) fn forget_pods(&mut self) -> Result<(), Error> {
        let failed = |error: io::Error| Error::Batch { operation: "empty", name: POLICY_PODS.name(), source: error };
        let slots: Vec<u32> = (0..POLICY_PODS.capacity() as u32).collect();
        let empty = vec![PolicyPod::default(); slots.len()];
        batch::update(self.pods.map().fd().as_fd(), &slots, &empty).map_err(failed)
    }
}

/// Remedy if a table is full. All sizes are fixed.
pub const POLICIES_ADVICE: &str =
    "its size is fixed: use fewer or simpler network policies, or fewer pods as their peers";

/// The error of a write to a full table; `None` for other errors.
fn full(table: Table, errno: Option<i32>) -> Option<TableError> {
    let full = matches!(errno, Some(libc::E2BIG | libc::ENOSPC | libc::ENOMEM));
    full.then(|| TableError::Full { table: table.name(), advice: POLICIES_ADVICE })
}

fn written(table: Table) -> impl Fn(MapError) -> TableError {
    move |error| full(table, errno(&error)).unwrap_or_else(|| failed(table.name(), "write to")(error))
}

fn deleted(table: Table, result: Result<(), MapError>) -> Result<(), TableError> {
    gone_is_fine(result).map_err(failed(table.name(), "delete from"))
}

/// Writes entries by one system call.
fn write_all<K: Pod, V: Pod>(table: Table, map: &MapData, entries: &[(K, V)]) -> Result<(), TableError> {
    let (keys, values): (Vec<K>, Vec<V>) = entries.iter().copied().unzip();
    batch::update(map.fd().as_fd(), &keys, &values)
        .map_err(|error| full(table, error.raw_os_error()).unwrap_or_else(|| refused(table.name(), "write to")(error)))
}

/// Deletes entries of a hash table by one system call.
fn delete_all<K: Pod>(table: Table, map: &MapData, keys: &[K]) -> Result<(), TableError> {
    batch::delete(map.fd().as_fd(), keys).map(drop).map_err(refused(table.name(), "delete from"))
}

fn listed<K: Pod, V: Pod>(table: Table, map: &MapData) -> Result<Vec<(K, V)>, TableError> {
    let mut entries = Vec::new();
    let visit = |key: &K, value: &V| entries.push((*key, *value));
    batch::for_each(map.fd().as_fd(), visit).map_err(refused(table.name(), "list"))?;
    Ok(entries)
}

impl Entries<Addr, Subject> for PolicyTables {
    fn list(&self) -> Result<Vec<(Addr, Subject)>, TableError> {
        listed(SUBJECTS.table(), self.subjects.map())
    }

    fn put(&mut self, pod: &Addr, subject: &Subject) -> Result<(), TableError> {
        self.subjects.insert(Plain(*pod), Plain(*subject), 0).map_err(written(SUBJECTS.table()))
    }

    fn delete(&mut self, pod: &Addr) -> Result<(), TableError> {
        deleted(SUBJECTS.table(), self.subjects.remove(&Plain(*pod)))
    }
}

impl Entries<u32, PolicyPod> for PolicyTables {
    fn list(&self) -> Result<Vec<(u32, PolicyPod)>, TableError> {
        let slots = listed(POLICY_PODS.table(), self.pods.map())?;
        Ok(slots.into_iter().filter(|(_, pod)| *pod != PolicyPod::default()).collect())
    }

    fn put(&mut self, slot: &u32, pod: &PolicyPod) -> Result<(), TableError> {
        self.pods.set(*slot, Plain(*pod), 0).map_err(written(POLICY_PODS.table()))
    }

    fn delete(&mut self, slot: &u32) -> Result<(), TableError> {
        self.put(slot, &PolicyPod::default())
    }
}

impl Entries<Addr, u32> for PolicyTables {
    fn list(&self) -> Result<Vec<(Addr, u32)>, TableError> {
        listed(POLICY_PEERS.table(), self.peers.map())
    }

    fn put(&mut self, pod: &Addr, class: &u32) -> Result<(), TableError> {
        self.peers.insert(Plain(*pod), class, 0).map_err(written(POLICY_PEERS.table()))
    }

    fn delete(&mut self, pod: &Addr) -> Result<(), TableError> {
        deleted(POLICY_PEERS.table(), self.peers.remove(&Plain(*pod)))
    }

    fn put_all(&mut self, entries: &[(Addr, u32)]) -> Result<(), TableError> {
        write_all(POLICY_PEERS.table(), self.peers.map(), entries)
    }

    fn delete_all(&mut self, keys: &[Addr]) -> Result<(), TableError> {
        delete_all(POLICY_PEERS.table(), self.peers.map(), keys)
    }
}

impl Entries<Prefix, u32> for PolicyTables {
    fn list(&self) -> Result<Vec<(Prefix, u32)>, TableError> {
        listed(POLICY_BLOCKS.table(), self.blocks.map())
    }

    fn put(&mut self, prefix: &Prefix, class: &u32) -> Result<(), TableError> {
        let key = Key::new(prefix.len, Plain(prefix.addr));
        self.blocks.insert(&key, class, 0).map_err(written(POLICY_BLOCKS.table()))
    }

    fn delete(&mut self, prefix: &Prefix) -> Result<(), TableError> {
        deleted(POLICY_BLOCKS.table(), self.blocks.remove(&Key::new(prefix.len, Plain(prefix.addr))))
    }
}

impl Entries<ProtoPort, u32> for PolicyTables {
    fn list(&self) -> Result<Vec<(ProtoPort, u32)>, TableError> {
        let entries = listed(POLICY_PORTS.table(), self.ports.map())?.into_iter();
        Ok(entries
            .filter(|(_, class)| *class != 0)
            .filter_map(|(index, class)| Some((ProtoPort::at(index)?, class)))
            .collect())
    }

    fn put(&mut self, port: &ProtoPort, class: &u32) -> Result<(), TableError> {
        self.put_all(&[(*port, *class)])
    }

    fn delete(&mut self, port: &ProtoPort) -> Result<(), TableError> {
        self.delete_all(&[*port])
    }

    fn put_all(&mut self, entries: &[(ProtoPort, u32)]) -> Result<(), TableError> {
        let entries: Vec<(u32, u32)> = entries.iter().map(|(port, class)| (port.index(), *class)).collect();
        write_all(POLICY_PORTS.table(), self.ports.map(), &entries)
    }

    fn delete_all(&mut self, ports: &[ProtoPort]) -> Result<(), TableError> {
        self.put_all(&ports.iter().map(|port| (*port, 0)).collect::<Vec<_>>())
    }
}

impl Entries<PolicyRule, PolicyVerdict> for PolicyTables {
    fn list(&self) -> Result<Vec<(PolicyRule, PolicyVerdict)>, TableError> {
        listed(POLICY_RULES.table(), self.rules.map())
    }

    fn put(&mut self, rule: &PolicyRule, verdict: &PolicyVerdict) -> Result<(), TableError> {
        self.rules.insert(Plain(*rule), Plain(*verdict), 0).map_err(written(POLICY_RULES.table()))
    }

    fn delete(&mut self, rule: &PolicyRule) -> Result<(), TableError> {
        deleted(POLICY_RULES.table(), self.rules.remove(&Plain(*rule)))
    }

    fn put_all(&mut self, entries: &[(PolicyRule, PolicyVerdict)]) -> Result<(), TableError> {
        write_all(POLICY_RULES.table(), self.rules.map(), entries)
    }

    fn delete_all(&mut self, keys: &[PolicyRule]) -> Result<(), TableError> {
        delete_all(POLICY_RULES.table(), self.rules.map(), keys)
    }
}

impl Entries<PolicyDenial, ()> for PolicyTables {
    fn list(&self) -> Result<Vec<(PolicyDenial, ())>, TableError> {
        Ok(self.counts()?.into_iter().map(|(denial, _)| (denial, ())).collect())
    }

    /// The count of an existing entry stays.
    fn put(&mut self, denial: &PolicyDenial, (): &()) -> Result<(), TableError> {
        let put =
            batch::insert_bytes(self.denials.map().fd().as_fd(), bytemuck::bytes_of(denial), bytemuck::bytes_of(&0u64));
        put.map_err(|error| {
            let refused = |error| refused(POLICY_DENIALS.name(), "write to")(error);
            full(POLICY_DENIALS.table(), error.raw_os_error()).unwrap_or_else(|| refused(error))
        })
    }

    fn delete(&mut self, denial: &PolicyDenial) -> Result<(), TableError> {
        deleted(POLICY_DENIALS.table(), self.denials.remove(&Plain(*denial)))
    }
}

impl Counts<PolicyDenial> for PolicyTables {
    fn counts(&self) -> Result<Vec<(PolicyDenial, u64)>, TableError> {
        listed(POLICY_DENIALS.table(), self.denials.map())
    }
}
