//! The pipeline's tables, over BPF maps and the kernel's routing table.

use aya_ebpf::{
    bindings::{BPF_NOEXIST, bpf_fib_lookup},
    btf_maps::lpm_trie::Key,
    cty::c_void,
    helpers::generated as helpers,
};
use podnet_common::{
    addr::{Addr, IfIndex, Mac, Proto},
    fib::FibLookup,
    layout::{
        Affinity, AffinityKey, Backend, Config, CtEntry, Endpoint, FragmentKey, FragmentPorts, Frontend, FrontendKey,
        Hook, Interface, Network, Peer, PolicyDenial, PolicyPod, PolicyRule, PolicyVerdict, ProtoPort, Sandbox,
        ServiceClient, SockKey, SockPeer, Subject, Tuple,
    },
    pipeline::{CachedRoute, DirectPath, Handover, InsertError, Route, Tables},
    time,
    verdict::{Counter, Reason},
};

use crate::{events, maps, policy};

/// Errno of an insertion into a full hash map.
const E2BIG: i32 = -7;
const ENOMEM: i32 = -12;

// Functions on rare paths are not inlined: each inlined key would occupy stack of its own, and there are only 512
// bytes.

const _: () = assert!(size_of::<bpf_fib_lookup>() == size_of::<FibLookup>());

/// The tables, for the packet or call of a context. `EVENTS`: the context is that of a TC program, so drops are
/// reported in `events`.
pub(crate) struct Maps<const EVENTS: bool> {
    pub(crate) ctx: *mut c_void,
}

impl<const EVENTS: bool> Tables for Maps<EVENTS> {
    #[inline(always)]
    fn now(&self) -> u32 {
        maps::CLOCK.get(0).copied().unwrap_or_default()
    }

    #[inline(always)]
    fn advance(&self) -> u32 {
        // SAFETY: no arguments, no effects.
        let now = time::ticks(unsafe { helpers::bpf_ktime_get_coarse_ns() });
        if let Some(clock) = maps::CLOCK.get_ptr_mut(0) {
            // SAFETY: one word, to which all CPUs write the same value or one that is a tick older.
            unsafe {
                if *clock != now {
                    *clock = now;
                }
            }
        }
        now
    }

    #[inline(always)]
    fn config(&self) -> Option<&Config> {
        maps::CONFIG.get(0)
    }

    // SAFETY, for the references below: the memory of an entry stays valid until the program ends (RCU). A concurrent
    // reuse of the entry is inherent in kernel hash tables, and all values are plain data.

    #[inline(always)]
    fn frontend(&self, key: &FrontendKey) -> Option<&Frontend> {
        // SAFETY: see above.
        unsafe { maps::FRONTENDS.get(key) }
    }

    #[inline(always)]
    fn slot(&self, index: u32) -> Option<u32> {
        maps::SLOTS.get(index).copied()
    }

    #[inline(always)]
    fn backend(&self, id: u32) -> Option<&Backend> {
        maps::BACKENDS.get(id)
    }

    #[inline(always)]
    fn endpoint(&self, addr: &Addr) -> Option<&Endpoint> {
        // SAFETY: see above.
        unsafe { maps::ENDPOINTS.get(addr) }
    }

    #[inline(never)]
    fn prefix(&self, addr: &Addr) -> Option<&Network> {
        maps::NODES.get(&Key::new(128, *addr))
    }

    #[inline(always)]
    fn interface(&self, ifindex: &IfIndex) -> Option<&Interface> {
        // SAFETY: see above.
        unsafe { maps::INTERFACES.get(ifindex) }
    }

    #[inline(always)]
    fn flow<R>(&self, key: &Tuple, f: impl FnOnce(&mut CtEntry) -> R) -> Option<R> {
        let entry = maps::CONNTRACK.get_ptr_mut(key)?;
        // SAFETY: see above. Two CPUs may write an entry concurrently; each field then has the value of one of them.
        Some(f(unsafe { &mut *entry }))
    }

    #[inline(always)]
    fn insert_flow(&self, key: &Tuple, entry: &CtEntry) -> Result<(), InsertError> {
        match maps::CONNTRACK.insert(key, entry, u64::from(BPF_NOEXIST)) {
            Ok(()) => Ok(()),
            Err(E2BIG | ENOMEM) => Err(InsertError::Full),
            Err(_) => Err(InsertError::Exists),
        }
    }

    #[inline(always)]
    fn remove_flow(&self, key: &Tuple) {
        // The entry may be gone already.
        let _ = maps::CONNTRACK.remove(key);
    }

    #[inline(always)]
    fn held(&self, slot: u32) -> u32 {
        maps::HOLDERS.get(slot).copied().unwrap_or_default()
    }

    #[inline(always)]
    fn add_held(&self, slot: u32, entries: u32) {
        if let Some(count) = maps::HOLDERS.get_ptr_mut(slot) {
            // SAFETY: a word of the map. Concurrent additions may be lost, until a sweep of the daemon corrects the
            // count.
            unsafe { *count = (*count).wrapping_add(entries) };
        }
    }

    #[inline(always)]
    fn handover<R>(&self, f: impl FnOnce(&mut Handover) -> R) -> Option<R> {
        let handover = maps::SCRATCH.get_ptr_mut(0)?;
        // SAFETY: per-CPU memory, and packet programs on one CPU don't interrupt each other.
        Some(f(unsafe { &mut *handover }))
    }

    #[inline(always)]
    fn cached_route<R>(&self, slot: u32, f: impl FnOnce(&mut CachedRoute) -> R) -> Option<R> {
        let route = maps::NEXT_HOPS.get_ptr_mut(slot)?;
        // SAFETY: as above.
        Some(f(unsafe { &mut *route }))
    }

    #[inline(always)]
    fn direct_path<R>(&self, slot: u32, f: impl FnOnce(&mut DirectPath) -> R) -> Option<R> {
        let path = maps::DIRECT_PATHS.get_ptr_mut(slot)?;
        // SAFETY: as above.
        Some(f(unsafe { &mut *path }))
    }

    #[inline(always)]
    fn route(&self, from: IfIndex, src: &Addr, dst: &Addr, route: &mut Route) -> bool {
        let (Some(memory), Some(config)) = (maps::FIB.get_ptr_mut(0), self.config()) else { return false };
        // SAFETY: per-CPU memory, and packet programs on one CPU don't interrupt each other.
        let fib = unsafe { &mut *memory };
        fib.ask(from, src, dst, config);
        let (question, len) = (core::ptr::from_mut(fib).cast(), size_of::<FibLookup>() as i32);
        // SAFETY: the context is that of the running program, and the size is that of the structure.
        let answer = unsafe { helpers::bpf_fib_lookup(self.ctx, question, len, FibLookup::flags(config)) };
        fib.answer(answer, dst, config, |ifindex| self.interface(ifindex), route)
    }

    #[inline(always)]
    fn snat_port(&self, index: u32) -> Option<u32> {
        maps::SNAT_PORTS.get(index).copied()
    }

    #[inline(always)]
    fn affinity(&self, key: &AffinityKey) -> Option<Affinity> {
        // SAFETY: see above.
        unsafe { maps::AFFINITY.get(key) }.copied()
    }

    #[inline(always)]
    fn set_affinity(&self, key: &AffinityKey, value: &Affinity) {
        // If the kernel has no memory for it, only affinity is lost.
        let _ = maps::AFFINITY.insert(key, value, 0);
    }

    #[inline(always)]
    fn in_source_ranges(&self, client: &ServiceClient) -> bool {
        maps::SOURCE_RANGES.get(&Key::new(160, *client)).is_some()
    }

    #[inline(always)]
    fn subject(&self, addr: &Addr) -> Option<Subject> {
        // SAFETY: see above.
        unsafe { maps::SUBJECTS.get(addr) }.copied()
    }

    #[inline(always)]
    fn policy_pod(&self, link: IfIndex) -> Option<&PolicyPod> {
        maps::POLICY_PODS.get(PolicyPod::slot(link))
    }

    #[inline(always)]
    fn policy_peer(&self, addr: &Addr) -> Option<u32> {
        // SAFETY: see above.
        unsafe { maps::POLICY_PEERS.get(addr) }.copied()
    }

    #[inline(always)]
    fn policy_block(&self, addr: &Addr) -> Option<u32> {
        maps::POLICY_BLOCKS.get(&Key::new(128, *addr)).copied()
    }

    #[inline(always)]
    fn policy_port(&self, port: &ProtoPort) -> Option<u32> {
        maps::POLICY_PORTS.get(port.index()).copied()
    }

    #[inline(always)]
    fn policy_rule(&self, rule: &PolicyRule) -> Option<PolicyVerdict> {
        policy::rule(rule)
    }

    #[inline(always)]
    fn denied_by(&self, set: u32, class: u32, ports: u32, proto: Proto, exempt: bool) -> u32 {
        policy::policy_denied_by(set, class, ports, proto.0 as u32, exempt as u32)
    }

    #[inline(always)]
    fn count_denial(&self, denial: &PolicyDenial) {
        if let Some(packets) = maps::POLICY_DENIALS.get_ptr_mut(denial) {
            // The target has no `AtomicU64::fetch_add`.
            // SAFETY: adds to a value of the map, which is aligned to 8 bytes.
            unsafe { core::arch::asm!("lock *(u64 *)({0} + 0) += {1}", in(reg) packets, in(reg) 1u64) };
        }
    }

    #[inline(always)]
    fn fragment(&self, key: &FragmentKey) -> Option<FragmentPorts> {
        // SAFETY: see above.
        unsafe { maps::FRAGMENTS.get(key) }.copied()
    }

    #[inline(always)]
    fn set_fragment(&self, key: &FragmentKey, ports: &FragmentPorts) {
        // If it fails, later fragments are dropped and counted.
        let _ = maps::FRAGMENTS.insert(key, ports, 0);
    }

    #[inline(always)]
    fn is_peer(&self, mac: &Mac) -> bool {
        // SAFETY: see above.
        unsafe { maps::PEERS.get(Peer { mac: *mac, _pad: [0; 2] }) }.is_some()
    }

    #[inline(always)]
    fn count(&self, counter: Counter) {
        maps::count(counter);
    }

    #[inline(always)]
    fn sandbox(&self, netns_cookie: u64) -> Option<&Sandbox> {
        // SAFETY: see above.
        unsafe { maps::SANDBOXES.get(netns_cookie) }
    }

    #[inline(always)]
    fn sock_peer(&self, key: &SockKey) -> Option<SockPeer> {
        // SAFETY: see above.
        unsafe { maps::SOCK_REVERSE.get(key) }.copied()
    }

    #[inline(always)]
    fn set_sock_peer(&self, key: &SockKey, peer: &SockPeer) -> bool {
        maps::SOCK_REVERSE.insert(key, peer, 0).is_ok()
    }

    #[inline(always)]
    fn count_drop(&self, reason: Reason) {
        maps::count_drop(reason);
    }

    #[inline(always)]
    fn report(&self, hook: Hook, reason: Reason) {
        self.count_drop(reason);
        if EVENTS {
            events::report(self.ctx, hook, reason);
        }
    }
}
