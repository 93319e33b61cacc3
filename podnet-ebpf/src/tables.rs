//! The pipeline's tables over maps and the kernel's routing table.

use aya_ebpf::{
    bindings::{
        BPF_FIB_LKUP_RET_FRAG_NEEDED, BPF_FIB_LKUP_RET_NO_NEIGH, BPF_FIB_LKUP_RET_SUCCESS, BPF_NOEXIST, bpf_fib_lookup,
    },
    btf_maps::lpm_trie::Key,
    cty::c_void,
    helpers::generated as helpers,
};
use podnet_common::{
    addr::{Addr, IfIndex, Mac},
    layout::{
        Affinity, AffinityKey, Backend, Config, CtEntry, Endpoint, FragmentKey, FragmentPorts, Frontend, FrontendKey,
        Hook, Interface, Network, Peer, Sandbox, ServiceClient, SockKey, SockPeer, Tuple, macs,
    },
    pipeline::{CachedRoute, DirectPath, Handover, InsertError, Route, Tables},
    time,
    verdict::{Counter, Reason},
};

use crate::{events, maps};

/// `AF_INET`.
const AF_INET: u8 = 2;
/// `AF_INET6`.
const AF_INET6: u8 = 10;
/// `BPF_FIB_LOOKUP_SRC`: the answer has the source that the host would use (Linux 6.7).
const FIB_SOURCE: u32 = 1 << 4;
/// What stands for MACs where frames have none. A redirect takes them off again.
const NO_MACS: [u32; 3] = [0x0000_0002u32.to_le(), 0, 0];
/// Errno that a full hash map answers with.
const E2BIG: i32 = -7;
const ENOMEM: i32 = -12;

// What rare paths ask for is not inlined: every key on the stack would keep its place there, and 512 bytes are all.

const _: () = assert!(size_of::<bpf_fib_lookup>() == size_of::<[u32; 16]>());

/// The tables, for the packet of this context. `EVENTS`: it is a TC program's, so that drops are put into `events`.
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
            // SAFETY: one word, which every CPU writes with the same value, or one that is a tick older.
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

    // SAFETY, for the references below: an entry's memory stays valid until the program ends (RCU); that a slot is
    // used again meanwhile is what every reader of a kernel hash table lives with, and the values are plain data.

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
        // SAFETY: see above; two CPUs may write an entry at once, each of whose fields is then one's or the other's.
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
        // That it is gone already is fine.
        let _ = maps::CONNTRACK.remove(key);
    }

    #[inline(always)]
    fn held(&self, place: u32) -> u32 {
        maps::HOLDERS.get(place).copied().unwrap_or_default()
    }

    #[inline(always)]
    fn hold(&self, place: u32, entries: u32) {
        if let Some(count) = maps::HOLDERS.get_ptr_mut(place) {
            // SAFETY: a word of the map. Of two CPUs that add at once one may be forgotten, until the daemon counts anew.
            unsafe { *count = (*count).wrapping_add(entries) };
        }
    }

    #[inline(always)]
    fn handover<R>(&self, f: impl FnOnce(&mut Handover) -> R) -> Option<R> {
        let handover = maps::SCRATCH.get_ptr_mut(0)?;
        // SAFETY: this CPU's own, and packet programs of one CPU don't interrupt each other.
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
        let Some(memory) = maps::FIB.get_ptr_mut(0) else { return false };
        // SAFETY: this CPU's own, of that size, and plain data, for which zeros are valid.
        let fib = unsafe {
            let fib: *mut bpf_fib_lookup = memory.cast();
            fib.write(core::mem::zeroed());
            &mut *fib
        };
        fib.ifindex = from.0;
        let Some(config) = self.config() else { return false };
        // Any length but zero has the kernel tell the route's MTU, not only the interface's. With it come those that the
        // host believes from ICMP errors, which anybody may send, and which don't concern what it forwards
        // (`ip_dst_mtu_maybe_forward`). So it is asked for only where some route is held to one.
        fib.__bindgen_anon_1.tot_len = u16::from(config.route_mtu != 0);
        if dst.is_v4() {
            fib.family = AF_INET;
            fib.__bindgen_anon_3.ipv4_src = src.0[3];
            fib.__bindgen_anon_4.ipv4_dst = dst.0[3];
        } else {
            fib.family = AF_INET6;
            fib.__bindgen_anon_3.ipv6_src = src.0;
            fib.__bindgen_anon_4.ipv6_dst = dst.0;
        }
        let tells_source = config.flags & Config::ROUTE_SOURCE != 0;
        let flags = if tells_source { FIB_SOURCE } else { 0 };
        // SAFETY: the context is the running program's, and the size is the structure's.
        let result = unsafe { helpers::bpf_fib_lookup(self.ctx, fib, size_of::<bpf_fib_lookup>() as i32, flags) };
        route.ifindex = IfIndex(fib.ifindex);
        route.macs = [0; 3];
        let ifindex = route.ifindex;
        // The kernel has found the way also if the packet at hand is too long for it, whose length it looks at if it wasn't
        // told one.
        let found = result == i64::from(BPF_FIB_LKUP_RET_SUCCESS) || result == i64::from(BPF_FIB_LKUP_RET_FRAG_NEEDED);
        route.mtu = if found {
            route.macs = macs(Mac(fib.dmac), Mac(fib.smac));
            if route.macs == [0; 3] {
                route.macs = NO_MACS;
            }
            // SAFETY: written by the helper.
            let mtu = unsafe { fib.__bindgen_anon_1.mtu_result };
            u32::from(if mtu < config.route_mtu { config.route_mtu } else { mtu })
        } else if result == i64::from(BPF_FIB_LKUP_RET_NO_NEIGH) {
            // The neighbour is sought when the packet is redirected; the kernel gives up before the MTU.
            self.interface(&ifindex).map_or(config.mtu, |interface| interface.mtu)
        } else {
            return false;
        };
        // The gateway, if there is one: it may be one of IPv6 on the way to IPv4 (RFC 5549).
        // SAFETY: plain words, written by this function or the helper.
        let words = unsafe { fib.__bindgen_anon_4.ipv6_dst };
        route.hop = if fib.family == AF_INET { Addr::v4(words[0]) } else { Addr(words) };
        route.src = if !tells_source {
            self.interface(&ifindex).map_or(Addr::NONE, |interface| *interface.addr(!dst.is_v4()))
        } else if dst.is_v4() {
            // SAFETY: written by the helper.
            Addr::v4(unsafe { fib.__bindgen_anon_3.ipv4_src })
        } else {
            // SAFETY: written by the helper.
            Addr(unsafe { fib.__bindgen_anon_3.ipv6_src })
        };
        true
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
        // That the kernel has no memory for it costs affinity only.
        let _ = maps::AFFINITY.insert(key, value, 0);
    }

    #[inline(always)]
    fn in_source_ranges(&self, client: &ServiceClient) -> bool {
        maps::SOURCE_RANGES.get(&Key::new(160, *client)).is_some()
    }

    #[inline(always)]
    fn fragment(&self, key: &FragmentKey) -> Option<FragmentPorts> {
        // SAFETY: see above.
        unsafe { maps::FRAGMENTS.get(key) }.copied()
    }

    #[inline(always)]
    fn set_fragment(&self, key: &FragmentKey, ports: &FragmentPorts) {
        // Without it the other fragments are dropped and counted.
        let _ = maps::FRAGMENTS.insert(key, ports, 0);
    }

    #[inline(always)]
    fn is_peer(&self, mac: &Mac) -> bool {
        // SAFETY: see above.
        unsafe { maps::PEERS.get(&Peer { mac: *mac, _pad: [0; 2] }) }.is_some()
    }

    #[inline(always)]
    fn count(&self, counter: Counter) {
        maps::count(counter);
    }

    #[inline(always)]
    fn sandbox(&self, netns_cookie: u64) -> Option<&Sandbox> {
        // SAFETY: see above.
        unsafe { maps::SANDBOXES.get(&netns_cookie) }
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
