//! Hooks, and where their programs are: generations, slots, the mark of packets that are done.

/// A hook: where a dispatcher is attached. The numbers are slots of the program arrays, and frozen.
#[repr(u32)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Hook {
    /// TC ingress of a pod's host-side veth: packets that the pod sends.
    FromPod = 0,
    /// TC egress of the same: packets to the pod that come through the host's stack.
    ToPod = 1,
    /// TC ingress of an uplink or the tunnel.
    FromUplink = 2,
    /// TC egress of an uplink or the tunnel.
    ToUplink = 3,
    /// TC ingress of podnet1, the far end of podnet0, where the host's routes to services lead.
    FromHost = 4,
    /// XDP of an uplink.
    UplinkXdp = 5,
    /// TC egress of the loopback interface: what the host's processes send to the host's own addresses.
    FromLoopback = 6,
    /// TC egress of an uplink whose frames begin with the IP header: WireGuard, TUN and other devices without Ethernet.
    ToRaw = 7,
    /// TC ingress of such an uplink. It has no stages: with a header before them its packets go on at
    /// [`Hook::FromUplink`].
    FromRaw = 80,
}

impl Hook {
    /// All of them.
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

    /// The program's and the pin's name.
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

/// Slots that one generation takes in a program array.
pub const GENERATION_SLOTS: u32 = 128;
/// Generations that a program array has room for: the current one and the next.
pub const GENERATIONS: u32 = 2;
/// The key of the socket hooks in `origins`, whose other keys are the generations.
pub const SOCKET_ORIGIN: u32 = GENERATIONS;

/// Mark that from_pod sets on packets that it sends out of an uplink, so that to_uplink leaves them alone.
pub const MARK_DONE: u32 = 0x0070_0000;
