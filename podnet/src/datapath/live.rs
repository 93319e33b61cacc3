//! The pinned tables as [`Tables`] of the pipeline, for simulating its decisions. An entry is read from the kernel at
//! its first use and doesn't change afterwards. Writes of the pipeline stay in memory; the kernel's tables are never
//! changed.

use std::{
    cell::{Cell, OnceCell, RefCell},
    collections::HashMap,
    hash::{BuildHasher as _, BuildHasherDefault, DefaultHasher, Hash},
    path::Path,
};

use bytemuck::Pod;
use nix::time::{ClockId, clock_gettime};
use podnet_cni::datapath::PinDir;
use podnet_common::{
    addr::{Addr, IfIndex, Mac},
    fib::result,
    layout::{
        Affinity, AffinityKey, Backend, Config, CtEntry, Endpoint, FragmentKey, FragmentPorts, Frontend, FrontendKey,
        Hook, Interface, Network, Peer, PolicyDenial, PolicyPod, PolicyRule, PolicyVerdict, Prefix, ProtoPort, Sandbox,
        ServiceClient, SockKey, SockPeer, SourceRange, Subject, Tuple, holders,
    },
    pipeline::{CachedRoute, DirectPath, Handover, InsertError, Route, Tables},
    tables, time,
    verdict::{Counter, Reason},
};

use super::inspect::ViewError;
use super::{
    fib::FibProgram,
    view::{Pinned, open_pinned},
};

/// The opened tables of a node.
pub struct Source {
    config: Pinned<u32, Config>,
    clock: Pinned<u32, u32>,
    frontends: Pinned<FrontendKey, Frontend>,
    slots: Pinned<u32, u32>,
    backends: Pinned<u32, Backend>,
    endpoints: Pinned<Addr, Endpoint>,
    networks: Pinned<Prefix, Network>,
    interfaces: Pinned<IfIndex, Interface>,
    conntrack: Pinned<Tuple, CtEntry>,
    conntrack_max: u32,
    holders: Pinned<u32, u32>,
    snat_ports: Pinned<u32, u32>,
    affinity: Pinned<AffinityKey, Affinity>,
    source_ranges: Pinned<SourceRange, u32>,
    subjects: Pinned<Addr, Subject>,
    policy_pods: Pinned<u32, PolicyPod>,
    policy_peers: Pinned<Addr, u32>,
    policy_blocks: Pinned<Prefix, u32>,
    policy_ports: Pinned<u32, u32>,
    policy_rules: Pinned<PolicyRule, PolicyVerdict>,
    fragments: Pinned<FragmentKey, FragmentPorts>,
    peers: Pinned<Peer, u32>,
    sandboxes: Pinned<u64, Sandbox>,
    sock_reverse: Pinned<SockKey, SockPeer>,
}

impl Source {
    /// Opens the tables pinned in a BPF file system.
    ///
    /// # Errors
    /// [`ViewError::NotPinned`] if any of them doesn't exist.
    pub fn open(bpffs: &Path) -> Result<Self, ViewError> {
        let pins = PinDir::new(bpffs);
        let conntrack = open_pinned(&pins, tables::CONNTRACK)?;
        Ok(Self {
            config: open_pinned(&pins, tables::CONFIG)?,
            clock: open_pinned(&pins, tables::CLOCK)?,
            frontends: open_pinned(&pins, tables::FRONTENDS)?,
            slots: open_pinned(&pins, tables::SLOTS)?,
            backends: open_pinned(&pins, tables::BACKENDS)?,
            endpoints: open_pinned(&pins, tables::ENDPOINTS)?,
            networks: open_pinned(&pins, tables::NODES)?,
            interfaces: open_pinned(&pins, tables::INTERFACES)?,
            conntrack_max: conntrack.capacity()?,
            conntrack,
            holders: open_pinned(&pins, tables::HOLDERS)?,
            snat_ports: open_pinned(&pins, tables::SNAT_PORTS)?,
            affinity: open_pinned(&pins, tables::AFFINITY)?,
            source_ranges: open_pinned(&pins, tables::SOURCE_RANGES)?,
            subjects: open_pinned(&pins, tables::SUBJECTS)?,
            policy_pods: open_pinned(&pins, tables::POLICY_PODS)?,
            policy_peers: open_pinned(&pins, tables::POLICY_PEERS)?,
            policy_blocks: open_pinned(&pins, tables::POLICY_BLOCKS)?,
            policy_ports: open_pinned(&pins, tables::POLICY_PORTS)?,
            policy_rules: open_pinned(&pins, tables::POLICY_RULES)?,
            fragments: open_pinned(&pins, tables::FRAGMENTS)?,
            peers: open_pinned(&pins, tables::PEERS)?,
            sandboxes: open_pinned(&pins, tables::SANDBOXES)?,
            sock_reverse: open_pinned(&pins, tables::SOCK_REVERSE)?,
        })
    }

    /// A view of the tables as they are from now on.
    ///
    /// # Errors
    /// The node's configuration can't be read, or the kernel rejects the program for FIB lookups.
    pub fn look(&self) -> Result<Live<'_>, ViewError> {
        let config = self.config.look_up(&0)?.unwrap_or_default();
        Ok(Live {
            source: self,
            fib: FibProgram::load(&config).map_err(ViewError::Routes)?,
            config,
            now: Cell::new(None),
            frontends: Memo::default(),
            slots: Memo::default(),
            backends: Memo::default(),
            endpoints: Memo::default(),
            networks: Memo::default(),
            interfaces: Memo::default(),
            snat_ports: Memo::default(),
            source_ranges: Memo::default(),
            subjects: Memo::default(),
            policy_pods: Memo::default(),
            policy_peers: Memo::default(),
            policy_blocks: Memo::default(),
            policy_ports: Memo::default(),
            policy_rules: Memo::default(),
            peers: Memo::default(),
            sandboxes: Memo::default(),
            routes: Memo::default(),
            conntrack: RefCell::default(),
            holders: RefCell::default(),
            affinity: RefCell::default(),
            fragments: RefCell::default(),
            sock_reverse: RefCell::default(),
            handover: RefCell::default(),
            next_hops: RefCell::default(),
            failed: RefCell::default(),
        })
    }
}

/// Why a node doesn't forward a packet: a return value of `bpf_fib_lookup`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NoWay {
    /// Blackhole route: packets are dropped silently.
    Blackhole,
    /// Unreachable route.
    Unreachable,
    /// Prohibited by a route or a rule.
    Prohibited,
    /// The destination is the node itself or a broadcast address, or there is no route.
    NotForwarded,
    /// Forwarding is off on the input interface.
    ForwardingOff,
    /// Any other return value, or none.
    Unknown,
}

impl NoWay {
    fn of(answer: i64) -> Self {
        match answer {
            result::BLACKHOLE => Self::Blackhole,
            result::UNREACHABLE => Self::Unreachable,
            result::PROHIBIT => Self::Prohibited,
            result::NOT_FORWARDED => Self::NotForwarded,
            result::FORWARDING_OFF => Self::ForwardingOff,
            _ => Self::Unknown,
        }
    }
}

/// The tables at one moment, or at several if a simulation takes longer.
pub struct Live<'s> {
    source: &'s Source,
    config: Config,
    fib: FibProgram,
    now: Cell<Option<u32>>,
    frontends: Memo<FrontendKey, Frontend>,
    slots: Memo<u32, u32>,
    backends: Memo<u32, Backend>,
    endpoints: Memo<Addr, Endpoint>,
    networks: Memo<Addr, Network>,
    interfaces: Memo<IfIndex, Interface>,
    snat_ports: Memo<u32, u32>,
    source_ranges: Memo<ServiceClient, u32>,
    subjects: Memo<Addr, Subject>,
    policy_pods: Memo<u32, PolicyPod>,
    policy_peers: Memo<Addr, u32>,
    policy_blocks: Memo<Addr, u32>,
    policy_ports: Memo<ProtoPort, u32>,
    policy_rules: Memo<PolicyRule, PolicyVerdict>,
    peers: Memo<Mac, u32>,
    sandboxes: Memo<u64, Sandbox>,
    routes: Memo<(IfIndex, Addr, Addr), (Option<Route>, i64)>,
    conntrack: RefCell<HashMap<Tuple, Option<CtEntry>>>,
    holders: RefCell<HashMap<u32, u32>>,
    affinity: RefCell<HashMap<AffinityKey, Option<Affinity>>>,
    fragments: RefCell<HashMap<FragmentKey, Option<FragmentPorts>>>,
    sock_reverse: RefCell<HashMap<SockKey, Option<SockPeer>>>,
    handover: RefCell<Handover>,
    next_hops: RefCell<HashMap<u32, CachedRoute>>,
    failed: RefCell<Option<ViewError>>,
}

impl Live<'_> {
    /// Reports the first error since the last call. Decisions made in between may be wrong.
    ///
    /// # Errors
    /// The first error.
    pub fn check(&self) -> Result<(), ViewError> {
        self.failed.take().map_or(Ok(()), Err)
    }

    /// Route of a packet that arrives on `from`, as from [`Tables::route`].
    ///
    /// # Errors
    /// Why the node doesn't forward it.
    pub fn way(&self, from: IfIndex, src: &Addr, dst: &Addr) -> Result<&Route, NoWay> {
        let answer = self.routes.get(&(from, *src, *dst), || {
            let answer = self.fib.route(from, src, dst, |ifindex| self.interface(ifindex));
            answer.map_or_else(|error| self.fails(ViewError::Routes(error)), Some)
        });
        match answer {
            Some((Some(way), _)) => Ok(way),
            Some((None, result)) => Err(NoWay::of(*result)),
            None => Err(NoWay::Unknown),
        }
    }

    /// Cookie of the network namespace of the pod with this address; `None` if it is no pod of this node whose
    /// sockets are translated.
    ///
    /// # Errors
    /// [`ViewError::Table`] if `sandboxes` can't be read.
    pub fn netns_cookie(&self, addr: &Addr) -> Result<Option<u64>, ViewError> {
        let sandboxes = self.source.sandboxes.entries()?;
        Ok(sandboxes.into_iter().find(|(_, pod)| pod.v4 == *addr || pod.v6 == *addr).map(|(cookie, _)| cookie))
    }

    /// An entry as in the kernel.
    fn read<K: Pod, V: Pod>(&self, table: &Pinned<K, V>, key: &K) -> Option<V> {
        table.look_up(key).unwrap_or_else(|error| self.fails(error))
    }

    fn fails<T>(&self, error: ViewError) -> Option<T> {
        self.failed.borrow_mut().get_or_insert(error);
        None
    }

    /// An entry as in the kernel, or as written since.
    fn read_over<K: Pod + Eq + Hash, V: Pod>(
        &self,
        written: &RefCell<HashMap<K, Option<V>>>,
        table: &Pinned<K, V>,
        key: &K,
    ) -> Option<V> {
        *written.borrow_mut().entry(*key).or_insert_with(|| self.read(table, key))
    }
}

impl Tables for Live<'_> {
    fn now(&self) -> u32 {
        self.now.get().or_else(|| self.read(&self.source.clock, &0)).unwrap_or_default()
    }

    fn advance(&self) -> u32 {
        // The clock of the programs: `bpf_ktime_get_coarse_ns`. It always exists.
        let nanoseconds = clock_gettime(ClockId::CLOCK_MONOTONIC_COARSE)
            .map_or(0, |t| t.tv_sec() as u64 * 1_000_000_000 + t.tv_nsec() as u64);
        let now = time::ticks(nanoseconds);
        self.now.set(Some(now));
        now
    }

    fn config(&self) -> Option<&Config> {
        Some(&self.config)
    }

    fn interface(&self, ifindex: &IfIndex) -> Option<&Interface> {
        self.interfaces.get(ifindex, || self.read(&self.source.interfaces, ifindex))
    }

    fn frontend(&self, key: &FrontendKey) -> Option<&Frontend> {
        self.frontends.get(key, || self.read(&self.source.frontends, key))
    }

    fn slot(&self, index: u32) -> Option<u32> {
        self.slots.get(&index, || self.read(&self.source.slots, &index)).copied()
    }

    fn backend(&self, id: u32) -> Option<&Backend> {
        self.backends.get(&id, || self.read(&self.source.backends, &id))
    }

    fn endpoint(&self, addr: &Addr) -> Option<&Endpoint> {
        self.endpoints.get(addr, || self.read(&self.source.endpoints, addr))
    }

    fn prefix(&self, addr: &Addr) -> Option<&Network> {
        self.networks.get(addr, || self.read(&self.source.networks, &Prefix { len: 128, addr: *addr }))
    }

    fn flow<R>(&self, key: &Tuple, f: impl FnOnce(&mut CtEntry) -> R) -> Option<R> {
        let read = || self.read(&self.source.conntrack, key);
        let mut entry = (*self.conntrack.borrow_mut().entry(*key).or_insert_with(read))?;
        let result = f(&mut entry);
        if let Some(Some(stored)) = self.conntrack.borrow_mut().get_mut(key) {
            *stored = entry;
        }
        Some(result)
    }

    fn insert_flow(&self, key: &Tuple, entry: &CtEntry) -> Result<(), InsertError> {
        if self.flow(key, |_| ()).is_some() {
            return Err(InsertError::Exists);
        }
        // The kernel doesn't tell the number of entries of a hash table; this is the programs' count.
        if self.held(holders::ALL) >= self.source.conntrack_max {
            return Err(InsertError::Full);
        }
        self.conntrack.borrow_mut().insert(*key, Some(*entry));
        Ok(())
    }

    fn remove_flow(&self, key: &Tuple) {
        self.conntrack.borrow_mut().insert(*key, None);
    }

    fn held(&self, slot: u32) -> u32 {
        let read = || self.read(&self.source.holders, &slot).unwrap_or_default();
        *self.holders.borrow_mut().entry(slot).or_insert_with(read)
    }

    fn add_held(&self, slot: u32, entries: u32) {
        let held = self.held(slot);
        self.holders.borrow_mut().insert(slot, held.wrapping_add(entries));
    }

    fn handover<R>(&self, f: impl FnOnce(&mut Handover) -> R) -> Option<R> {
        Some(f(&mut self.handover.borrow_mut()))
    }

    // Caches are per CPU: it is as if another CPU had handled the earlier packets.
    fn cached_route<R>(&self, slot: u32, f: impl FnOnce(&mut CachedRoute) -> R) -> Option<R> {
        (slot < CachedRoute::SLOTS).then(|| f(self.next_hops.borrow_mut().entry(slot).or_default()))
    }

    // Always empty, so that every packet takes the slow path.
    fn direct_path<R>(&self, slot: u32, f: impl FnOnce(&mut DirectPath) -> R) -> Option<R> {
        (slot < DirectPath::SLOTS).then(|| f(&mut DirectPath::default()))
    }

    fn route(&self, from: IfIndex, src: &Addr, dst: &Addr, route: &mut Route) -> bool {
        self.way(from, src, dst).map(|way| *route = *way).is_ok()
    }

    fn snat_port(&self, index: u32) -> Option<u32> {
        self.snat_ports.get(&index, || self.read(&self.source.snat_ports, &index)).copied()
    }

    fn affinity(&self, key: &AffinityKey) -> Option<Affinity> {
        self.read_over(&self.affinity, &self.source.affinity, key)
    }

    fn set_affinity(&self, key: &AffinityKey, value: &Affinity) {
        self.affinity.borrow_mut().insert(*key, Some(*value));
    }

    fn in_source_ranges(&self, client: &ServiceClient) -> bool {
        let key = SourceRange { len: 160, data: *client };
        self.source_ranges.get(client, || self.read(&self.source.source_ranges, &key)).is_some()
    }

    fn subject(&self, addr: &Addr) -> Option<Subject> {
        self.subjects.get(addr, || self.read(&self.source.subjects, addr)).copied()
    }

    fn policy_pod(&self, link: IfIndex) -> Option<&PolicyPod> {
        let slot = PolicyPod::slot(link);
        self.policy_pods.get(&slot, || self.read(&self.source.policy_pods, &slot))
    }

    fn policy_peer(&self, addr: &Addr) -> Option<u32> {
        self.policy_peers.get(addr, || self.read(&self.source.policy_peers, addr)).copied()
    }

    fn policy_block(&self, addr: &Addr) -> Option<u32> {
        let key = Prefix { len: 128, addr: *addr };
        self.policy_blocks.get(addr, || self.read(&self.source.policy_blocks, &key)).copied()
    }

    fn policy_port(&self, port: &ProtoPort) -> Option<u32> {
        let read = || self.read(&self.source.policy_ports, &port.index()).filter(|class| *class != 0);
        self.policy_ports.get(port, read).copied()
    }

    fn policy_rule(&self, rule: &PolicyRule) -> Option<PolicyVerdict> {
        self.policy_rules.get(rule, || self.read(&self.source.policy_rules, rule)).copied()
    }

    fn fragment(&self, key: &FragmentKey) -> Option<FragmentPorts> {
        self.read_over(&self.fragments, &self.source.fragments, key)
    }

    fn set_fragment(&self, key: &FragmentKey, ports: &FragmentPorts) {
        self.fragments.borrow_mut().insert(*key, Some(*ports));
    }

    fn is_peer(&self, mac: &Mac) -> bool {
        let key = Peer { mac: *mac, _pad: [0; 2] };
        self.peers.get(mac, || self.read(&self.source.peers, &key)).is_some()
    }

    fn sandbox(&self, netns_cookie: u64) -> Option<&Sandbox> {
        self.sandboxes.get(&netns_cookie, || self.read(&self.source.sandboxes, &netns_cookie))
    }

    fn sock_peer(&self, key: &SockKey) -> Option<SockPeer> {
        self.read_over(&self.sock_reverse, &self.source.sock_reverse, key)
    }

    fn set_sock_peer(&self, key: &SockKey, peer: &SockPeer) -> bool {
        self.sock_reverse.borrow_mut().insert(*key, Some(*peer));
        true
    }

    // The simulation must not change the kernel's counters.
    fn count_denial(&self, _denial: &PolicyDenial) {}

    fn count(&self, _counter: Counter) {}

    fn count_drop(&self, _reason: Reason) {}

    fn report(&self, _hook: Hook, _reason: Reason) {}
}

/// Values read so far, by key. References to them stay valid while more are read.
struct Memo<K, V> {
    chains: Box<[Chain<K, V>]>,
}

/// Entries with the same hash of the key.
type Chain<K, V> = OnceCell<Box<Known<K, V>>>;

struct Known<K, V> {
    key: K,
    value: Option<V>,
    next: Chain<K, V>,
}

impl<K, V> Default for Memo<K, V> {
    fn default() -> Self {
        const CHAINS: usize = 256;
        Self { chains: (0..CHAINS).map(|_| OnceCell::new()).collect() }
    }
}

impl<K: Copy + Eq + Hash, V> Memo<K, V> {
    /// The value of a key, read at the first call.
    fn get(&self, key: &K, read: impl FnOnce() -> Option<V>) -> Option<&V> {
        let hash = BuildHasherDefault::<DefaultHasher>::default().hash_one(key);
        let mut chain = &self.chains[hash as usize % self.chains.len()];
        while let Some(known) = chain.get() {
            if known.key == *key {
                return known.value.as_ref();
            }
            chain = &known.next;
        }
        let value = read();
        chain.get_or_init(|| Box::new(Known { key: *key, value, next: OnceCell::new() })).value.as_ref()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn references_to_values_stay_valid_while_more_are_read() {
        let memo = Memo::default();
        let first = memo.get(&0u32, || Some(0u32)).unwrap();
        for key in 1..10_000 {
            assert_eq!(memo.get(&key, || (key % 3 != 0).then_some(key)).is_some(), key % 3 != 0);
        }
        assert_eq!(first, &0);
        assert_eq!(memo.get(&7, || panic!("it is known")), Some(&7));
        assert_eq!(memo.get(&9, || panic!("it is known to be missing")), None);
    }
}
