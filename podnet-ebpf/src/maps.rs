//! The tables as maps. Their names in lower case are their pins' names.

use aya_ebpf::{
    bindings::bpf_redir_neigh,
    btf_maps::{Array, HashMap, LpmTrie, LruHashMap, PerCpuArray, ProgramArray, RingBuf},
    macros::btf_map,
};
use podnet_common::{
    addr::{Addr, IfIndex},
    layout::{
        Affinity, AffinityKey, Backend, Config, CtEntry, Endpoint, Event, FragmentKey, FragmentPorts, Frontend,
        FrontendKey, GENERATION_SLOTS, GENERATIONS, Interface, Network, Peer, SOCKET_ORIGIN, Sandbox, Scratch,
        ServiceClient, SockKey, SockPeer, Tuple, capacity, holders,
    },
    pipeline::Route,
    verdict::{COUNTERS as COUNTERS_LEN, Counter, Reason},
};

/// Memory for asking the routing table, which is more than the stack has room for.
#[repr(C)]
pub(crate) struct Fib {
    /// `bpf_fib_lookup` in words.
    pub question: [u32; 16],
    /// What it answered.
    pub route: Route,
    /// The next hop that it answered, or another one to send to.
    pub hop: NextHop,
}

/// Flag of hash tables whose entries take memory as they come (`BPF_F_NO_PREALLOC`): only the daemon adds any.
const AS_NEEDED: usize = 1;

/// `bpf_redir_neigh`: an address in the neighbour table of an interface.
#[repr(C)]
pub(crate) struct NextHop {
    /// `AF_INET` or `AF_INET6`.
    pub family: u32,
    /// The address; of IPv4 the first word.
    pub addr: [u32; 4],
}

const _: () = assert!(size_of::<NextHop>() == size_of::<bpf_redir_neigh>());

/// Size of the program arrays.
const PROGRAMS: usize = (GENERATION_SLOTS * GENERATIONS) as usize;

#[btf_map]
pub(crate) static PROGRAMS_TC: ProgramArray<PROGRAMS> = ProgramArray::new();
#[btf_map]
pub(crate) static PROGRAMS_XDP: ProgramArray<PROGRAMS> = ProgramArray::new();
#[btf_map]
pub(crate) static GENERATION: Array<u32, 1> = Array::new();
#[btf_map]
pub(crate) static ENDPOINTS: HashMap<Addr, Endpoint, { capacity::ENDPOINTS }> = HashMap::new();
#[btf_map]
pub(crate) static SANDBOXES: HashMap<u64, Sandbox, { capacity::SANDBOXES }> = HashMap::new();
#[btf_map]
pub(crate) static COUNTERS: PerCpuArray<u64, COUNTERS_LEN> = PerCpuArray::new();

/// Which object the programs of each generation come from, and those at the sockets. It is the daemon's: no program reads it.
#[btf_map]
pub(crate) static ORIGINS: Array<u64, { SOCKET_ORIGIN as usize + 1 }> = Array::new();

#[btf_map]
pub(crate) static CONFIG: Array<Config, 1> = Array::new();
#[btf_map]
pub(crate) static FRONTENDS: HashMap<FrontendKey, Frontend, { capacity::FRONTENDS }, AS_NEEDED> = HashMap::new();
#[btf_map]
pub(crate) static SLOTS: Array<u32, { capacity::SLOTS }> = Array::new();
#[btf_map]
pub(crate) static BACKENDS: Array<Backend, { capacity::BACKENDS }> = Array::new();
#[btf_map]
pub(crate) static CONNTRACK: HashMap<Tuple, CtEntry, { capacity::CONNTRACK }> = HashMap::new();
#[btf_map]
pub(crate) static HOLDERS: Array<u32, { holders::LEN }> = Array::new();
#[btf_map]
pub(crate) static NODES: LpmTrie<Addr, Network, { capacity::NODES }> = LpmTrie::new();
#[btf_map]
pub(crate) static INTERFACES: HashMap<IfIndex, Interface, { capacity::INTERFACES }> = HashMap::new();
#[btf_map]
pub(crate) static SNAT_PORTS: Array<u32, { capacity::SNAT_PORTS }> = Array::new();
#[btf_map]
pub(crate) static AFFINITY: LruHashMap<AffinityKey, Affinity, { capacity::AFFINITY }> = LruHashMap::new();
#[btf_map]
pub(crate) static SOURCE_RANGES: LpmTrie<ServiceClient, u32, { capacity::SOURCE_RANGES }> = LpmTrie::new();
#[btf_map]
pub(crate) static FRAGMENTS: LruHashMap<FragmentKey, FragmentPorts, { capacity::FRAGMENTS }> = LruHashMap::new();
#[btf_map]
pub(crate) static PEERS: HashMap<Peer, u32, { capacity::PEERS }> = HashMap::new();
#[btf_map]
pub(crate) static SOCK_REVERSE: LruHashMap<SockKey, SockPeer, { capacity::SOCK_REVERSE }> = LruHashMap::new();
#[btf_map]
pub(crate) static CLOCK: Array<u32, 1> = Array::new();
#[btf_map]
pub(crate) static SCRATCH: PerCpuArray<Scratch, 1> = PerCpuArray::new();
#[btf_map]
pub(crate) static FIB: PerCpuArray<Fib, 1> = PerCpuArray::new();
#[btf_map]
pub(crate) static EVENTS: RingBuf<Event, { capacity::EVENTS }> = RingBuf::new();

/// Adds one to a counter.
#[inline(always)]
pub(crate) fn count(counter: Counter) {
    add(counter as u32);
}

/// Counts a drop.
#[inline(always)]
pub(crate) fn count_drop(reason: Reason) {
    add(podnet_common::verdict::COUNTERS_BASE + reason as u32);
}

#[inline(always)]
fn add(index: u32) {
    if let Some(counter) = COUNTERS.get_ptr_mut(index) {
        // SAFETY: a per-CPU slot, and programs of one CPU don't interrupt each other here.
        unsafe { *counter += 1 };
    }
}
