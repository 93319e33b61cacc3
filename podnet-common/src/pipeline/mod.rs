//! The packet pipeline: what every hook does with a packet, generic over where packets and tables live.
//!
//! A packet enters at a hook ([`enter`]). The hot path is one look-up in `conntrack`: an established flow's entry says
//! how to rewrite the packet and where to send it. Whatever is rarer leaves by [`Verdict::Tail`] and comes back in a
//! program of its own: [`begin`] and [`insert`] make flows; [`track`] follows TCP's state, refreshes a flow's entries once a tick and
//! knows fragments; [`reject`] answers in the service's name, [`error`] for the way to it; [`icmp`] translates errors about
//! translated packets. Packets that belong to no flow go `direct`.
//!
//! All reads of a packet come before the first write, so that none leaves half-rewritten.

mod begin;
mod checks;
mod direct;
mod family;
mod flow;
mod frontend;
mod hot;
mod icmp;
mod insert;
mod loopback;
mod reject;
mod sctp;
mod send;
mod shares;
mod socket;

pub use begin::{begin, mix};
pub use direct::alone;
pub use flow::track;
pub use hot::{enter, express};
pub use icmp::icmp;
pub use insert::insert;
pub use loopback::loopback;
pub use reject::{error, reject};
pub use sctp::sctp;
pub use send::send;
pub use socket::{Call, SocketCtx, connect, peer, sendmsg};

use bytemuck::{Pod, Zeroable};

use crate::{
    addr::{Addr, IfIndex, Mac},
    layout::{
        Affinity, AffinityKey, Backend, Config, CtEntry, Endpoint, FragmentKey, FragmentPorts, Frontend, FrontendKey,
        Hook, Interface, Network, Out, Sandbox, Scratch, ServiceClient, SockKey, SockPeer, Tuple,
    },
    verdict::{Counter, Reason},
};

/// What is to be done with the packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// Not ours, or the stack's to finish: it goes on as if the hook weren't there.
    Pass,
    /// It ends here, counted.
    Drop(Reason),
    /// It leaves by that way through that interface.
    Forward(Out, IfIndex),
    /// Another stage goes on with it.
    Tail(Stage),
    /// Counted like a drop, and answered by the stage [`Stage::answering`] the reason.
    Reject(Reason),
}

/// The programs behind a hook's first one.
#[repr(u32)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stage {
    /// [`track`].
    Track = 8,
    /// [`reject`].
    Reject = 16,
    /// [`icmp`].
    Icmp = 24,
    /// [`error`].
    Error = 32,
    /// [`begin`].
    Begin = 40,
    /// [`insert`].
    Insert = 48,
    /// [`alone`].
    Direct = 56,
    /// [`sctp`].
    Sctp = 64,
    /// [`send`].
    Send = 72,
}

impl Stage {
    /// The stage that answers what is refused for a reason.
    pub const fn answering(reason: Reason) -> Self {
        match reason {
            Reason::TtlExceeded | Reason::TooBig => Self::Error,
            _ => Self::Reject,
        }
    }

    /// Slot of this stage of a hook in a generation of the program array.
    pub const fn slot(self, hook: Hook) -> u32 {
        self as u32 + hook as u32
    }
}

/// Why an insertion failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum InsertError {
    /// The key is taken.
    Exists,
    /// There is no room.
    Full,
}

/// What the routing table says of a destination.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Pod, Zeroable)]
pub struct Route {
    /// The interface towards it.
    pub ifindex: IfIndex,
    /// What that way takes, in bytes.
    pub mtu: u32,
    /// The next hop's MAC and the interface's own, as [`CtEntry::macs`]; zeros while the neighbour is unknown, and anything
    /// else where frames have no MACs.
    pub macs: [u32; 3],
    /// The source address that the host itself would use, or none if nothing tells it.
    pub src: Addr,
}

/// The tables as the pipeline uses them.
pub trait Tables {
    /// Time in [ticks](crate::time), as it was when it was last advanced: reading the clock itself would cost every
    /// packet more than its look-up of the time does.
    fn now(&self) -> u32;
    /// Reads the clock, and lets every later [`Self::now`] see it.
    fn advance(&self) -> u32;
    /// `config`.
    fn config(&self) -> Option<&Config>;
    /// `interfaces`.
    fn interface(&self, ifindex: &IfIndex) -> Option<&Interface>;
    /// `frontends`.
    fn frontend(&self, key: &FrontendKey) -> Option<&Frontend>;
    /// `slots`.
    fn slot(&self, index: u32) -> Option<u32>;
    /// `backends`.
    fn backend(&self, id: u32) -> Option<&Backend>;
    /// `endpoints`.
    fn endpoint(&self, addr: &Addr) -> Option<&Endpoint>;
    /// `nodes`: the longest prefix that holds the address, if that is something of the cluster's.
    fn network(&self, addr: &Addr) -> Option<&Network>;
    /// `nodes`: whether the address is an external one of some service ([`Network::SERVICE_ADDRESS`]).
    fn is_service_address(&self, addr: &Addr) -> bool;
    /// Calls `f` with the entry of `conntrack`, if there is one.
    fn flow<R>(&self, key: &Tuple, f: impl FnOnce(&mut CtEntry) -> R) -> Option<R>;
    /// Adds an entry to `conntrack`.
    fn insert_flow(&self, key: &Tuple, entry: &CtEntry) -> Result<(), InsertError>;
    /// Removes an entry from `conntrack`.
    fn remove_flow(&self, key: &Tuple);
    /// `holders`: what a place there counts.
    fn held(&self, place: u32) -> u32;
    /// Adds to what a place in `holders` counts.
    fn hold(&self, place: u32, entries: u32);
    /// Calls `f` with memory for the making of a flow, which is more than a program's stack has room for.
    fn scratch<R>(&self, f: impl FnOnce(&mut Scratch) -> R) -> Option<R>;
    /// The kernel's route for a packet that came in at `from`. What was returned before is no longer valid then.
    fn route(&self, from: IfIndex, src: &Addr, dst: &Addr) -> Option<&Route>;
    /// `snat_ports`, by its index.
    fn snat_port(&self, index: u32) -> Option<u32>;
    /// `affinity`.
    fn affinity(&self, key: &AffinityKey) -> Option<Affinity>;
    /// Adds or replaces an entry of `affinity`.
    fn set_affinity(&self, key: &AffinityKey, value: &Affinity);
    /// Whether `source_ranges` has a range with this client.
    fn in_source_ranges(&self, client: &ServiceClient) -> bool;
    /// `fragments`.
    fn fragment(&self, key: &FragmentKey) -> Option<FragmentPorts>;
    /// Adds or replaces an entry of `fragments`.
    fn set_fragment(&self, key: &FragmentKey, ports: &FragmentPorts);
    /// Whether `peers` has a node with this MAC.
    fn is_peer(&self, mac: &Mac) -> bool;
    /// `sandboxes`: the pod with this network namespace, by its cookie.
    fn sandbox(&self, netns_cookie: u64) -> Option<&Sandbox>;
    /// `sock_reverse`.
    fn sock_peer(&self, key: &SockKey) -> Option<SockPeer>;
    /// Adds or replaces an entry of `sock_reverse`. False: there is no room for it.
    fn set_sock_peer(&self, key: &SockKey, peer: &SockPeer) -> bool;
    /// Adds one to a counter.
    fn count(&self, counter: Counter);
    /// Adds one to the drops for a reason.
    fn count_drop(&self, reason: Reason);
}

/// A hook as a type, so that each program holds only its own hook's code.
pub trait Place {
    /// The hook.
    const HOOK: Hook;
    /// Packets are on their way out of the host's stack, which has routed them.
    const EGRESS: bool = matches!(Self::HOOK, Hook::ToPod | Hook::ToUplink | Hook::ToRaw);

    /// External addresses of services are told from others here; elsewhere they are as if no service had them.
    const EXTERNAL: bool = matches!(Self::HOOK, Hook::FromUplink | Hook::FromHost);

    /// An interface as entries know it: what the stack sends out of one is not what comes in by it, whose source is
    /// checked.
    #[inline(always)]
    fn side(ifindex: IfIndex) -> IfIndex {
        if Self::EGRESS { IfIndex(!ifindex.0) } else { ifindex }
    }
}

macro_rules! places {
    ($($name:ident)*) => { $(
        #[doc = concat!("[`Hook::", stringify!($name), "`] as a type.")]
        pub struct $name;
        impl Place for $name {
            const HOOK: Hook = Hook::$name;
        }
    )* };
}

places! { FromPod ToPod FromUplink ToUplink FromHost UplinkXdp FromLoopback ToRaw }
