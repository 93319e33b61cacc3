//! Hooks and their slots in program arrays, generations, and the packet mark.

/// A hook: the place where a dispatcher is attached. The numbers are slots of the program arrays and never change.
#[repr(u32)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Hook {
    /// TC ingress of the host end of a pod's veth pair: packets sent by the pod.
    FromPod = 0,
    /// TC egress of the host end: packets to the pod that come from the host's stack.
    ToPod = 1,
    /// TC ingress of an uplink or the tunnel.
    FromUplink = 2,
    /// TC egress of an uplink or the tunnel.
    ToUplink = 3,
    /// TC ingress of podnet1, the far end of podnet0, to which the host's routes to services point.
    FromHost = 4,
    /// XDP of an uplink.
    UplinkXdp = 5,
    /// TC egress of the loopback interface: packets from processes of the host to the host's own addresses.
    FromLoopback = 6,
    /// TC egress of an uplink whose frames start with the IP header: WireGuard, TUN and other devices without Ethernet.
    ToRaw = 7,
    /// TC ingress of such an uplink. It has no stages: its packets get an Ethernet header and continue at
    /// [`Hook::FromUplink`].
    FromRaw = 80,
}

impl Hook {
    /// All hooks.
    pub const ALL: [Self; 9] = [
        Self::FromPod,
        Self::ToPod,
        Self::FromUplink,
        Self::ToUplink,
        Self::FromHost,
        Self::UplinkXdp,
        Self::FromLoopback,
        Self::ToRaw,
        Self::FromRaw,
    ];

    /// Name of the program and of its pin.
    pub const fn name(self) -> &'static str {
        match self {
            Self::FromPod => "from_pod",
            Self::ToPod => "to_pod",
            Self::FromUplink => "from_uplink",
            Self::ToUplink => "to_uplink",
            Self::FromHost => "from_host",
            Self::UplinkXdp => "uplink_xdp",
            Self::FromLoopback => "from_loopback",
            Self::ToRaw => "to_raw",
            Self::FromRaw => "from_raw",
        }
    }
}

/// Number of slots per generation in a program array.
pub const GENERATION_SLOTS: u32 = 128;
/// Number of generations in a program array: the current one and the next.
pub const GENERATIONS: u32 = 2;
/// Key of the socket hooks in `origins`; its other keys are generations.
pub const SOCKET_ORIGIN: u32 = GENERATIONS;

/// Packet mark set on packets that a hook sends out of an interface, or answers at a pod's host end, so that egress
/// hooks skip them.
pub const MARK_DONE: u32 = 0x0070_0000;
