//! What the kernel's routing table is asked, and what its answer means (`bpf_fib_lookup`).

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
/// `BPF_FIB_LOOKUP_SRC`: the answer has the source that the host would use (Linux 6.7).
const SOURCE: u32 = 1 << 4;
/// What stands for MACs where frames have none. A redirect takes them off again.
const NO_MACS: [u32; 3] = [0x0000_0002u32.to_le(), 0, 0];

/// What the helper returns (`BPF_FIB_LKUP_RET_*` of linux/bpf.h).
pub mod result {
    /// There is a way.
    pub const SUCCESS: i64 = 0;
    /// A route says that the packet is to be dropped silently.
    pub const BLACKHOLE: i64 = 1;
    /// A route says that there is no way.
    pub const UNREACHABLE: i64 = 2;
    /// A route or a rule forbids it.
    pub const PROHIBIT: i64 = 3;
    /// The packet is for the host itself or for all, or there is no route.
    pub const NOT_FORWARDED: i64 = 4;
    /// The interface where it came in doesn't forward.
    pub const FORWARDING_OFF: i64 = 5;
    /// There is a way, but the neighbour isn't known yet.
    pub const NO_NEIGHBOUR: i64 = 7;
    /// There is a way, but the packet is too long for it.
    pub const TOO_LONG: i64 = 8;
}

/// `struct bpf_fib_lookup` of linux/bpf.h: a question, in which the kernel writes its answer. Words are as they are on the
/// wire.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Pod, Zeroable)]
pub struct FibLookup {
    /// `AF_INET` or `AF_INET6`: of the destination, then of the next hop.
    pub family: u8,
    /// Protocol; unused.
    pub protocol: u8,
    /// Ports; unused.
    pub ports: [u16; 2],
    /// A length to be checked, in bytes, and in the answer what the way takes; in host byte order.
    pub len_or_mtu: u16,
    /// Where the packet came in, then by where it leaves.
    pub ifindex: IfIndex,
    /// Traffic class or flow label; unused.
    pub flow: u32,
    /// Source; of IPv4 the first word.
    pub src: [u32; 4],
    /// Destination, then the next hop.
    pub dst: [u32; 4],
    /// A VLAN's tag; unused.
    pub vlan: u32,
    /// The MAC of the interface by which it leaves.
    pub smac: Mac,
    /// The next hop's.
    pub dmac: Mac,
}

const _: () = assert!(size_of::<FibLookup>() == 64);

impl FibLookup {
    /// The flags of the look-up.
    #[inline(always)]
    pub const fn flags(config: &Config) -> u32 {
        if config.flags & Config::ROUTE_SOURCE != 0 { SOURCE } else { 0 }
    }

    /// Asks for the way of a packet that came in at `from`.
    #[inline(always)]
    pub fn ask(&mut self, from: IfIndex, src: &Addr, dst: &Addr, config: &Config) {
        *self = Self::default();
        self.ifindex = from;
        // Any length but zero has the kernel tell the route's MTU, not only the interface's. With it come those that the
        // host believes from ICMP errors, which anybody may send, and which don't concern what it forwards
        // (`ip_dst_mtu_maybe_forward`). So it is asked for only where some route is held to one.
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

    /// Reads the answer to a question about `dst`. False: there is no way by which this node would send it on.
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
        // The kernel has found the way also if the packet at hand is too long for it, whose length it looks at if it wasn't
        // told one.
        route.mtu = if answer == result::SUCCESS || answer == result::TOO_LONG {
            route.macs = macs(self.dmac, self.smac);
            if route.macs == [0; 3] {
                route.macs = NO_MACS;
            }
            (if self.len_or_mtu < config.route_mtu { config.route_mtu } else { self.len_or_mtu }) as u32
        } else if answer == result::NO_NEIGHBOUR {
            // The neighbour is sought when the packet is redirected; the kernel gives up before the MTU.
            interface(&route.ifindex).map_or(config.mtu, |interface| interface.mtu)
        } else {
            return false;
        };
        // The gateway, if there is one: it may be one of IPv6 on the way to IPv4 (RFC 5549).
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
