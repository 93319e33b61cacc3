//! All tables in memory, for the pipeline, reconciliation and commands alike, so that one test can write tables, send
//! packets through them and read the results.

mod policies;

use std::{
    io,
    ops::{Deref, DerefMut},
};

use podnet_common::{
    addr::{Addr, IfIndex, Mac},
    layout::{
        Affinity, AffinityKey, Backend, Config, CtEntry, Endpoint, Frontend, FrontendKey, Hook, Interface, Network,
        Prefix, SourceRange, Tuple,
    },
    simulator::HostTables,
    tables::{self, Table},
    verdict::{COUNTERS, COUNTERS_BASE},
};

use super::inspect::{View, ViewError};
use super::node_tables::NODES_ADVICE;
use crate::{
    compile::{BackendId, Segment},
    entry_counts::EntryCounts,
    mirror::{Entries, TableError},
    reconcile::{KeepAffinity, Tables},
};

/// The tables, with capacities and failures like the kernel's. The pipeline runs over [`HostTables`], to which this
/// dereferences.
#[derive(Clone, Debug)]
pub struct MemoryTables {
    host: HostTables,
    /// Capacity of `frontends`.
    pub frontends_max: usize,
    /// Number of slots.
    pub slots_max: u32,
    /// Capacity of `backends`.
    pub backends_max: u32,
    /// Capacity of `source_ranges`.
    pub source_ranges_max: usize,
    /// Capacity of `policy_rules`.
    pub policy_rules_max: usize,
    /// Capacity of `policy_peers`.
    pub policy_peers_max: usize,
    /// Number of writes that succeed before the next one fails, repeatedly: with 3, every fourth write fails. `None`:
    /// all succeed.
    pub fail_every: Option<u32>,
    /// Number of writes that succeed before all others fail.
    pub writes_left: Option<u32>,
    /// Number of writes tried.
    pub writes: u32,
    /// Hooks missing at an interface; all others are attached.
    pub missing: Vec<(Hook, IfIndex)>,
    /// The socket hooks are not attached.
    pub sockets_missing: bool,
}

impl Default for MemoryTables {
    /// Empty tables with the kernel's default capacities.
    fn default() -> Self {
        let capacities =
            [tables::FRONTENDS.table(), tables::SLOTS.table(), tables::BACKENDS.table()].map(Table::capacity);
        Self::new(capacities[0], capacities[1], capacities[2])
    }
}

impl From<HostTables> for MemoryTables {
    /// Tables with these contents and the kernel's default capacities.
    fn from(host: HostTables) -> Self {
        Self { host, ..Self::default() }
    }
}

impl Deref for MemoryTables {
    type Target = HostTables;

    fn deref(&self) -> &HostTables {
        &self.host
    }
}

impl DerefMut for MemoryTables {
    fn deref_mut(&mut self) -> &mut HostTables {
        &mut self.host
    }
}

impl MemoryTables {
    /// Empty tables with these capacities.
    pub fn new(frontends_max: usize, slots: usize, backends: usize) -> Self {
        Self {
            host: HostTables::default(),
            frontends_max,
            slots_max: slots as u32,
            backends_max: backends as u32,
            source_ranges_max: tables::SOURCE_RANGES.capacity(),
            policy_rules_max: tables::POLICY_RULES.capacity(),
            policy_peers_max: tables::POLICY_PEERS.capacity(),
            fail_every: None,
            writes_left: None,
            writes: 0,
            missing: Vec::new(),
            sockets_missing: false,
        }
    }

    /// The same with this capacity of `source_ranges`.
    #[must_use]
    pub fn with_source_ranges(self, source_ranges_max: usize) -> Self {
        Self { source_ranges_max, ..self }
    }

    /// The backends that a reader of this frontend finds, including unwritten ones.
    pub fn resolve(&self, frontend: &Frontend) -> Vec<Backend> {
        let slots = frontend.slot_base..frontend.slot_base + frontend.slot_count;
        slots.map(|slot| self.backend_at(self.slot_at(slot))).collect()
    }

    fn slot_at(&self, slot: u32) -> u32 {
        self.host.slots.get(&slot).copied().unwrap_or_default()
    }

    fn backend_at(&self, id: u32) -> Backend {
        self.host.backends.get(&id).copied().unwrap_or_default()
    }

    fn write(&mut self, table: &'static str, operation: &'static str) -> Result<(), TableError> {
        self.writes += 1;
        let fails = self.fail_every.is_some_and(|every| self.writes.is_multiple_of(every + 1));
        if fails || self.writes_left == Some(0) {
            return Err(TableError::Io { table, operation, source: io::Error::from_raw_os_error(libc::EBUSY) });
        }
        self.writes_left.iter_mut().for_each(|left| *left -= 1);
        Ok(())
    }
}

impl Tables for MemoryTables {
    fn capacity(&self) -> EntryCounts {
        let [frontends, source_ranges] = [self.frontends_max, self.source_ranges_max].map(|length| length as u32);
        EntryCounts::of_tables(frontends, self.slots_max, self.backends_max, source_ranges)
    }

    fn frontends(&self) -> Result<Vec<(FrontendKey, Frontend)>, TableError> {
        Ok(self.host.frontends.iter().map(|(key, value)| (*key, *value)).collect())
    }

    fn slots(&self, segment: Segment) -> Result<Vec<BackendId>, TableError> {
        Ok((segment.base..segment.base + segment.count).map(|slot| BackendId(self.slot_at(slot))).collect())
    }

    fn backends(&self, first: BackendId, count: u32) -> Result<Vec<Backend>, TableError> {
        Ok((first.0..first.0 + count).map(|id| self.backend_at(id)).collect())
    }

    fn put_frontend(&mut self, key: &FrontendKey, value: &Frontend) -> Result<(), TableError> {
        self.write("frontends", "write to")?;
        if self.host.frontends.len() >= self.frontends_max && !self.host.frontends.contains_key(key) {
            return Err(TableError::FRONTENDS_FULL);
        }
        self.host.frontends.insert(*key, *value);
        Ok(())
    }

    fn delete_frontend(&mut self, key: &FrontendKey) -> Result<(), TableError> {
        self.write("frontends", "delete from")?;
        self.host.frontends.remove(key);
        Ok(())
    }

    fn put_slots(&mut self, slots: &[u32], ids: &[BackendId]) -> Result<(), TableError> {
        let failed = self.write("slots", "write to");
        // A failed call may have written some of them.
        let written = if failed.is_ok() { ids.len() } else { ids.len() / 2 };
        self.host.slots.extend(slots.iter().copied().zip(ids[..written].iter().map(|id| id.0)));
        failed
    }

    fn put_backends(&mut self, ids: &[BackendId], backends: &[Backend]) -> Result<(), TableError> {
        let failed = self.write("backends", "write to");
        let written = if failed.is_ok() { ids.len() } else { ids.len() / 2 };
        self.host.backends.extend(ids[..written].iter().map(|id| id.0).zip(backends.iter().copied()));
        failed
    }

    fn source_ranges(&self) -> Result<Vec<SourceRange>, TableError> {
        Ok(self.host.source_ranges.iter().copied().collect())
    }

    fn put_source_range(&mut self, range: &SourceRange) -> Result<(), TableError> {
        self.write("source_ranges", "write to")?;
        if self.host.source_ranges.len() >= self.source_ranges_max && !self.host.source_ranges.contains(range) {
            return Err(TableError::SOURCE_RANGES_FULL);
        }
        self.host.source_ranges.insert(*range);
        Ok(())
    }

    fn delete_source_range(&mut self, range: &SourceRange) -> Result<(), TableError> {
        self.write("source_ranges", "delete from")?;
        self.host.source_ranges.remove(range);
        Ok(())
    }

    fn prune_affinity(&mut self, keep: &KeepAffinity<'_>) -> Result<usize, TableError> {
        let failed = self.write("affinity", "pruning");
        let affinity = self.host.affinity.get_mut();
        let before = affinity.len();
        // A failed call may have deleted some of them.
        let mut left = if failed.is_ok() { before } else { before / 2 };
        affinity.retain(|key, value| {
            let gone = left > 0 && !keep(key, value);
            left = left.saturating_sub(1);
            !gone
        });
        failed.map(|()| before - affinity.len())
    }
}

impl Entries<Prefix, Network> for MemoryTables {
    fn list(&self) -> Result<Vec<(Prefix, Network)>, TableError> {
        Ok(self.host.networks.iter().map(|(prefix, network)| (*prefix, *network)).collect())
    }

    fn put(&mut self, prefix: &Prefix, network: &Network) -> Result<(), TableError> {
        self.write("nodes", "write to")?;
        if self.host.networks.len() >= tables::NODES.capacity() && !self.host.networks.contains_key(prefix) {
            return Err(TableError::Full { table: "nodes", advice: NODES_ADVICE });
        }
        self.host.networks.insert(*prefix, *network);
        Ok(())
    }

    fn delete(&mut self, prefix: &Prefix) -> Result<(), TableError> {
        self.write("nodes", "delete from")?;
        self.host.networks.remove(prefix);
        Ok(())
    }
}

impl Entries<Mac, ()> for MemoryTables {
    fn list(&self) -> Result<Vec<(Mac, ())>, TableError> {
        Ok(self.host.peers.iter().map(|mac| (*mac, ())).collect())
    }

    fn put(&mut self, mac: &Mac, (): &()) -> Result<(), TableError> {
        self.write("peers", "write to")?;
        self.host.peers.insert(*mac);
        Ok(())
    }

    fn delete(&mut self, mac: &Mac) -> Result<(), TableError> {
        self.write("peers", "delete from")?;
        self.host.peers.remove(mac);
        Ok(())
    }
}

impl Entries<IfIndex, Interface> for MemoryTables {
    fn list(&self) -> Result<Vec<(IfIndex, Interface)>, TableError> {
        Ok(self.host.interfaces.iter().map(|(ifindex, interface)| (*ifindex, *interface)).collect())
    }

    fn put(&mut self, ifindex: &IfIndex, interface: &Interface) -> Result<(), TableError> {
        self.write("interfaces", "write to")?;
        self.host.interfaces.insert(*ifindex, *interface);
        Ok(())
    }

    fn delete(&mut self, ifindex: &IfIndex) -> Result<(), TableError> {
        self.write("interfaces", "delete from")?;
        self.host.interfaces.remove(ifindex);
        Ok(())
    }
}

fn copied<'a, K: Copy + 'a, V: Copy + 'a>(entries: impl IntoIterator<Item = (&'a K, &'a V)>) -> Vec<(K, V)> {
    entries.into_iter().map(|(key, value)| (*key, *value)).collect()
}

impl View for MemoryTables {
    fn frontends(&self) -> Result<Vec<(FrontendKey, Frontend)>, ViewError> {
        Ok(copied(&self.host.frontends))
    }

    fn slots(&self, base: u32, count: u32) -> Result<Vec<u32>, ViewError> {
        Ok((base..base + count).map(|slot| self.slot_at(slot)).collect())
    }

    fn backend(&self, id: u32) -> Result<Backend, ViewError> {
        Ok(self.backend_at(id))
    }

    fn endpoints(&self) -> Result<Vec<(Addr, Endpoint)>, ViewError> {
        Ok(copied(&self.host.endpoints))
    }

    fn conntrack(&self, visit: &mut dyn FnMut(&Tuple, &CtEntry)) -> Result<(), ViewError> {
        self.host.conntrack.borrow().iter().for_each(|(tuple, entry)| visit(tuple, entry));
        Ok(())
    }

    fn networks(&self) -> Result<Vec<(Prefix, Network)>, ViewError> {
        Ok(copied(&self.host.networks))
    }

    fn interfaces(&self) -> Result<Vec<(IfIndex, Interface)>, ViewError> {
        Ok(copied(&self.host.interfaces))
    }

    fn source_ranges(&self) -> Result<Vec<SourceRange>, ViewError> {
        Ok(self.host.source_ranges.iter().copied().collect())
    }

    fn affinity(&self) -> Result<Vec<(AffinityKey, Affinity)>, ViewError> {
        Ok(copied(&*self.host.affinity.borrow()))
    }

    fn snat_ports(&self) -> Result<Vec<u16>, ViewError> {
        Ok(self.host.snat_ports.clone())
    }

    fn counters(&self) -> Result<Vec<u64>, ViewError> {
        let mut counters = vec![0; COUNTERS];
        self.host.counters.borrow().iter().for_each(|(counter, count)| counters[*counter as usize] = *count);
        let drops = self.host.drops.borrow();
        drops.iter().for_each(|(reason, count)| counters[(COUNTERS_BASE + *reason as u32) as usize] = *count);
        Ok(counters)
    }

    fn config(&self) -> Result<Config, ViewError> {
        Ok(self.host.config)
    }

    fn generation(&self) -> Result<u32, ViewError> {
        Ok(1)
    }

    fn count(&self, table: Table) -> Result<u64, ViewError> {
        Ok(self.policy_entries(table) as u64)
    }

    fn capacity(&self, table: Table) -> Result<u32, ViewError> {
        let capacity = Tables::capacity(self);
        Ok(match table {
            table if table == tables::FRONTENDS.table() => capacity.frontends,
            table if table == tables::SLOTS.table() => capacity.slots,
            table if table == tables::BACKENDS.table() => capacity.backends,
            table if table == tables::SOURCE_RANGES.table() => capacity.source_ranges,
            table if table == tables::CONNTRACK.table() => {
                self.host.conntrack_max.map_or(table.capacity(), |max| max) as u32
            }
            table => table.capacity() as u32,
        })
    }

    fn attached(&self, hook: Hook, ifindex: IfIndex) -> Result<bool, ViewError> {
        Ok(!self.missing.contains(&(hook, ifindex)))
    }

    fn sockets_attached(&self) -> bool {
        !self.sockets_missing
    }
}

#[cfg(test)]
pub(crate) mod samples {
    //! Entries for tests of commands.

    use std::net::{IpAddr, SocketAddr};

    use podnet_common::addr::{Port, Proto};
    use podnet_common::layout::{NetworkKind, Out};

    use super::*;
    use crate::compile::ServiceNames;

    /// Names of the services 1 and 2, and of a pod's host ports, 4.
    pub(crate) fn names() -> ServiceNames {
        let dir = tempfile::tempdir().unwrap();
        let text = r#"{"schema":1,"next":5,"services":{
            "1":{"namespace":"default","name":"web","port":"http"},
            "2":{"namespace":"default","name":"dns","port":""},
            "4":{"namespace":"default","name":"dns hostPort","port":""}}}"#;
        std::fs::write(ServiceNames::path(dir.path()), text).unwrap();
        ServiceNames::read(dir.path()).unwrap()
    }

    impl MemoryTables {
        /// Adds a service port with its backends.
        pub(crate) fn service(
            &mut self,
            id: u32,
            at: &str,
            proto: Proto,
            flags: u16,
            backends: &[&str],
        ) -> FrontendKey {
            let key = self.frontend(id, at, proto, FrontendKey::ANY, flags, backends);
            self.frontends.entry(FrontendKey::address(key.addr)).or_default();
            key
        }

        /// Adds an entry of a frontend for one kind of client. A backend named twice gets two slots.
        pub(crate) fn frontend(
            &mut self,
            id: u32,
            at: &str,
            proto: Proto,
            scope: u8,
            flags: u16,
            backends: &[&str],
        ) -> FrontendKey {
            let at: SocketAddr = at.parse().unwrap();
            let slot_base = self.slots.len() as u32;
            for backend in backends {
                let to: SocketAddr = backend.parse().unwrap();
                let backend = Backend { addr: to.ip().into(), port: Port::new(to.port()), proto, _pad: 0 };
                let known = self.backends.iter().find(|(_, known)| **known == backend).map(|(id, _)| *id);
                let (id, slot) = (known.unwrap_or(self.backends.len() as u32), self.slots.len() as u32);
                self.backends.insert(id, backend);
                self.slots.insert(slot, id);
            }
            let key = FrontendKey { addr: at.ip().into(), port: Port::new(at.port()), proto, scope };
            let slot_count = backends.len() as u32;
            self.frontends.insert(key, Frontend { service: id, slot_base, slot_count, flags, ..Frontend::default() });
            key
        }

        /// Adds an entry of `nodes`.
        pub(crate) fn network(&mut self, cidr: &str, kind: NetworkKind, node: &str, flags: u16) {
            let cidr: ipnetwork::IpNetwork = cidr.parse().unwrap();
            let node = node.parse::<IpAddr>().unwrap().into();
            let network = Network { kind: kind as u32, node, flags, ..Network::default() };
            self.networks.insert(Prefix::new(cidr.ip(), cidr.prefix()), network);
        }

        /// Adds both halves of a flow, and returns the key of the first.
        pub(crate) fn flow(&mut self, service: u32, proto: Proto, flow: [&str; 4], flags: u8, last_seen: u32) -> Tuple {
            let (forward, there, reply, back) = flow_entries(service, proto, flow, flags, last_seen);
            self.conntrack.get_mut().extend([(forward, there), (reply, back)]);
            forward
        }

        /// The entry of a flow.
        pub(crate) fn entry(&mut self, key: &Tuple) -> &mut CtEntry {
            self.conntrack.get_mut().get_mut(key).unwrap()
        }

        /// Adds the single entry of a flow forwarded to another node: client, frontend, client, node.
        pub(crate) fn one_way(&mut self, service: u32, proto: Proto, flow: [&str; 4], last_seen: u32) {
            let (tuple, mut entry, ..) = flow_entries(service, proto, flow, CtEntry::ONE_WAY, last_seen);
            entry.out = Out::Via as u8;
            self.conntrack.get_mut().insert(tuple, entry);
        }

        /// Adds a local pod's address.
        pub(crate) fn endpoint(&mut self, ip: &str, ifindex: u32) {
            let ip: IpAddr = ip.parse().unwrap();
            let (mac, host_mac) = (Mac([2, 0, 0, 0, 0, 1]), Mac([2, 0, 0, 0, 0, 2]));
            let endpoint = Endpoint { ifindex: IfIndex(ifindex), mtu: 1500, mac, host_mac, ..Endpoint::default() };
            self.endpoints.insert(ip.into(), endpoint);
        }
    }

    /// The two entries of a flow given as client, frontend, source after translation, backend.
    fn flow_entries(
        service: u32,
        proto: Proto,
        flow: [&str; 4],
        flags: u8,
        last_seen: u32,
    ) -> (Tuple, CtEntry, Tuple, CtEntry) {
        let [client, frontend, source, backend] = flow.map(|text| {
            let at: SocketAddr = text.parse().unwrap();
            (Addr::from(at.ip()), Port::new(at.port()))
        });
        let forward = Tuple { src: client.0, sport: client.1, dst: frontend.0, dport: frontend.1, proto, _pad: [0; 3] };
        let rewrites = |differs, flag| if differs { flag } else { 0 };
        let rewritten =
            rewrites(source != client, CtEntry::REWRITE_SRC) | rewrites(backend != frontend, CtEntry::REWRITE_DST);
        let there = CtEntry {
            src: source.0,
            sport: source.1,
            dst: backend.0,
            dport: backend.1,
            service,
            flags: flags | rewritten,
            last_seen,
            ..CtEntry::default()
        };
        let reply = there.reply_key(proto);
        let back = there.reverse(&forward);
        (forward, there, reply, back)
    }
}
