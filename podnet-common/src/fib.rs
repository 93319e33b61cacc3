//! Routing table lookups by `bpf_fib_lookup`: the query and the interpretation of its result.
//!
//! The datapath and `podnet trace` share this code. Nothing is cached here; `pipeline::next_hop` does that.

use bytemuck::{Pod, Zeroable};

use crate::{
    addr::{Addr, IfIndex, Mac},
    layout::{Config, Interface, macs},
    pipeline::Route,
};

/// `AF_INET`.
const AF_INET: u8 = 2;
/// `AF_INET6`.
const AF_INET6: u8 = 10;
/// `BPF_FIB_LOOKUP_SRC`: the result includes the source address that the host would use (Linux 6.7).
const SOURCE: u32 = 1 << 4;
/// Placeholder MACs for interfaces without link-layer addresses. A redirect to such an interface strips the Ethernet
/// header.
const NO_MACS: [u32; 3] = [0x0000_0002u32.to_le(), 0, 0];

/// Return values of the helper (`BPF_FIB_LKUP_RET_*` in linux/bpf.h).
pub mod result {
    /// Route and neighbour found.
    pub const SUCCESS: i64 = 0;
    /// Blackhole route: drop silently.
    pub const BLACKHOLE: i64 = 1;
    /// Unreachable route.
    pub const UNREACHABLE: i64 = 2;
    /// Prohibited by a route or rule.
    pub const PROHIBIT: i64 = 3;
    /// Local or broadcast destination, or no route.
    pub const NOT_FORWARDED: i64 = 4;
    /// Forwarding is disabled on the ingress interface.
    pub const FORWARDING_OFF: i64 = 5;
    /// Route found, neighbour not resolved yet.
    pub const NO_NEIGHBOUR: i64 = 7;
    /// Route found, but the packet exceeds its MTU.
    pub const TOO_LONG: i64 = 8;
}

/// `struct bpf_fib_lookup` of linux/bpf.h: the query, overwritten by the kernel with the result. Addresses and ports
/// are in network byte order.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Pod, Zeroable)]
pub struct FibLookup {
    /// `AF_INET` or `AF_INET6`: in the query, of the destination; in the result, of the next hop.
    pub family: u8,
    /// IP protocol; unused.
    pub protocol: u8,
    /// Source and destination port; unused.
    pub ports: [u16; 2],
    /// In the query, the packet length to check, in bytes; in the result, the MTU. Host byte order.
    pub len_or_mtu: u16,
    /// In the query, the ingress interface; in the result, the egress interface.
    pub ifindex: IfIndex,
    /// Traffic class or flow label; unused.
    pub flow: u32,
    /// Source address; IPv4 in the first word.
    pub src: [u32; 4],
    /// In the query, the destination; in the result, the next hop. IPv4 in the first word.
    pub dst: [u32; 4],
    /// VLAN protocol and tag; unused.
    pub vlan: u32,
    /// MAC of the egress interface.
    pub smac: Mac,
    /// MAC of the next hop.
    pub dmac: Mac,
}

const _: () = assert!(size_of::<FibLookup>() == 64);

impl FibLookup {
    /// Flags to pass to the helper.
    #[inline(always)]
    pub const fn flags(config: &Config) -> u32 {
        if config.flags & Config::ROUTE_SOURCE != 0 { SOURCE } else { 0 }
    }

    /// Fills in the query for a packet from `src` to `dst` that was received on `from`.
    #[inline(always)]
    pub fn ask(&mut self, from: IfIndex, src: &Addr, dst: &Addr, config: &Config) {
        *self = Self::default();
        self.ifindex = from;
        // With a non-zero length the kernel reports the MTU of the route and not only that of the interface. That
        // includes path MTUs learned from ICMP errors, which anyone can send and which don't apply to forwarded packets
        // (`ip_dst_mtu_maybe_forward`). So ask only if some route has an MTU of its own.
        self.len_or_mtu = (config.route_mtu != 0) as u16;
        if dst.is_v4() {
            self.family = AF_INET;
            self.src[0] = src.0[3];
            self.dst[0] = dst.0[3];
        } else {
            self.family = AF_INET6;
            self.src = src.0;
            self.dst = dst.0;
        }
    }

    /// Interprets the result for `dst`; `answer` is the helper's return value. Writes the route to `route` and returns
    /// true, or returns false if this node has no route by which it would forward the packet.
    #[inline(always)]
    pub fn answer<'t>(
        &self,
        answer: i64,
        dst: &Addr,
        config: &Config,
        interface: impl Fn(&IfIndex) -> Option<&'t Interface>,
        route: &mut Route,
    ) -> bool {
        route.ifindex = self.ifindex;
        route.macs = [0; 3];
        // A route is also found if the packet at hand is too long: without a length in the query, the kernel checks the
        // length of that packet.
        route.mtu = if answer == result::SUCCESS || answer == result::TOO_LONG {
            route.macs = macs(self.dmac, self.smac);
            if route.macs == [0; 3] {
                route.macs = NO_MACS;
            }
            (if self.len_or_mtu < config.route_mtu { config.route_mtu } else { self.len_or_mtu }) as u32
        } else if answer == result::NO_NEIGHBOUR {
            // The redirect resolves the neighbour. In this case the kernel returns before it determines the MTU.
            interface(&route.ifindex).map_or(config.mtu, |interface| interface.mtu)
        } else {
            return false;
        };
        // The gateway, if the route has one; an IPv4 route may have an IPv6 gateway (RFC 5549).
        route.hop = if self.family == AF_INET { Addr::v4(self.dst[0]) } else { Addr(self.dst) };
        route.src = if config.flags & Config::ROUTE_SOURCE == 0 {
            interface(&route.ifindex).map_or(Addr::NONE, |interface| *interface.addr(!dst.is_v4()))
        } else if dst.is_v4() {
            Addr::v4(self.src[0])
        } else {
            Addr(self.src)
        };
        true
    }
}
