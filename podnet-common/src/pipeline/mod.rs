//! The packet pipeline: what every hook does with a packet, generic over where packets and tables live.
//!
//! A packet that belongs to a flow takes the fast path of [`enter`]: one look-up in `conntrack` says how to rewrite it and
//! where to send it. Any other is judged once: [`classify`] says what it is for, `admit` whether that is allowed. A packet
//! that begins a flow goes on through [`begin`] (`balance`, `source`, `next_hop`, [`insert`]) to [`send`]; one that
//! needs none is forwarded, answered or left to the stack.
//!
//! Each stage is a program of its own, reached by a tail call ([`Action::Tail`]). What a stage has found out is handed to
//! the next in a record of [`Handover`], so that nothing is looked up twice. All reads of a packet come before the first
//! write, so that none leaves half-rewritten.

mod admit;
mod answer;
mod balance;
mod begin;
mod classify;
mod direct;
mod enter;
mod external;
mod family;
mod forward;
mod frontend;
mod handover;
mod headers;
mod icmp;
mod insert;
mod loopback;
mod next_hop;
mod rewrite;
mod scope;
mod sctp;
mod send;
mod shares;
mod socket;
mod source;
mod track;

pub use answer::{error, reject};
pub use balance::mix;
pub use begin::begin;
pub use classify::classify;
pub use direct::DirectPath;
pub use enter::{enter, express};
pub use external::external;
pub use handover::Handover;
pub use icmp::{icmp, quotation};
pub use insert::insert;
pub use loopback::loopback;
pub use next_hop::CachedRoute;
pub use sctp::sctp;
pub use send::send;
pub use socket::{Call, SocketCtx, connect, peer, sendmsg};
pub use track::track;

use bytemuck::{Pod, Zeroable};

use crate::{
    addr::{Addr, IfIndex, Mac},
    layout::{
        Affinity, AffinityKey, Backend, Config, CtEntry, Endpoint, FragmentKey, FragmentPorts, Frontend, FrontendKey,
        Hook, Interface, Network, NetworkKind, Out, Sandbox, ServiceClient, SockKey, SockPeer, Tuple,
    },
    verdict::{Counter, Reason},
};

/// How a packet leaves the node, or this hook of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Egress {
    /// The kind of way; never [`Out::Stack`].
    pub out: Out,
    /// The interface.
    pub ifindex: IfIndex,
    /// Where the neighbour table is asked for a MAC ([`Out::Uplink`], [`Out::Via`]): the next hop, which may be of another
    /// family than the packet (RFC 5549). Else none.
    pub hop: Addr,
}

/// What is to be done with the packet. Drops, refusals and answers have been counted.
///
/// It is no enum with payloads: where the compiler merges paths of several variants it copies what only some of them have, and
/// the verifier refuses to copy what has no value on the path at hand.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Verdict {
    /// What.
    pub action: Action,
    /// Why, if it is dropped or refused.
    pub reason: Reason,
    /// Which stage goes on.
    pub stage: Stage,
    /// How it leaves; of an answer, by which interface.
    pub egress: Egress,
}

/// What is to be done with a packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Action {
    /// Not ours, or the stack's to finish: it goes on as if the hook weren't there.
    Pass,
    /// It ends here, for [`Verdict::reason`].
    Drop,
    /// It leaves by [`Verdict::egress`].
    Forward,
    /// Another stage goes on with it: [`Verdict::stage`].
    Tail,
    /// It is refused for [`Verdict::reason`]: the stage [`Stage::answering`] that makes the answer of it.
    Reject,
    /// It has become the answer to its sender and leaves by the interface that it came in by.
    Answer,
    /// It was refused, and nothing can be answered to it.
    Unanswered,
}

impl Verdict {
    /// [`Action::Pass`].
    pub const PASS: Self = Self::only(Action::Pass);
    /// [`Action::Unanswered`].
    pub const UNANSWERED: Self = Self::only(Action::Unanswered);

    #[inline(always)]
    const fn only(action: Action) -> Self {
        let egress = Egress { out: Out::Stack, ifindex: IfIndex(0), hop: Addr::NONE };
        Self { action, reason: Reason::Internal, stage: Stage::Track, egress }
    }

    /// [`Action::Drop`].
    #[inline(always)]
    pub const fn drop(reason: Reason) -> Self {
        Self { reason, ..Self::only(Action::Drop) }
    }

    /// [`Action::Reject`].
    #[inline(always)]
    pub const fn reject(reason: Reason) -> Self {
        Self { reason, ..Self::only(Action::Reject) }
    }

    /// [`Action::Tail`].
    #[inline(always)]
    pub const fn tail(stage: Stage) -> Self {
        Self { stage, ..Self::only(Action::Tail) }
    }

    /// [`Action::Forward`].
    #[inline(always)]
    pub const fn forward(egress: Egress) -> Self {
        Self { egress, ..Self::only(Action::Forward) }
    }

    /// [`Action::Answer`], by an interface.
    #[inline(always)]
    pub const fn answer(ifindex: IfIndex) -> Self {
        Self { egress: Egress { out: Out::Link, ifindex, hop: Addr::NONE }, ..Self::only(Action::Answer) }
    }

    /// Counts what ends or answers a packet. Each stage's last step.
    #[inline(always)]
    fn counted<At: Place, T: Tables>(self, t: &T) -> Self {
        if let Action::Drop | Action::Reject = self.action {
            t.report(At::HOOK, self.reason);
        }
        self
    }
}

/// Runs a stage on what was handed over to it.
#[inline(always)]
fn staged<At: Place, T: Tables>(t: &T, stage: impl FnOnce(&mut Handover) -> Verdict) -> Verdict {
    t.handover(stage).unwrap_or(Verdict::drop(Reason::Internal)).counted::<At, T>(t)
}

/// Declares the stages once: number, name at the end of their programs' names, documentation.
macro_rules! stages {
    ($($(#[$doc:meta])* $name:ident = $number:literal, $text:literal;)*) => {
        /// The programs behind a hook's first one. The numbers are slots of the program arrays, for the first hook: see
        /// [`Stage::slot`].
        #[repr(u32)]
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        pub enum Stage { $($(#[$doc])* $name = $number,)* }

        impl Stage {
            /// All of them.
            pub const ALL: &[Self] = &[$(Self::$name,)*];

            /// The end of its programs' names, behind the hook's name.
            pub const fn name(self) -> &'static str {
                match self { $(Self::$name => $text,)* }
            }
        }
    };
}

stages! {
    /// [`track`](track()).
    Track = 8, "track";
    /// [`reject`].
    Reject = 16, "reject";
    /// [`icmp`](icmp()).
    Icmp = 24, "icmp";
    /// [`error`].
    Error = 32, "error";
    /// [`begin`](begin()).
    Begin = 40, "begin";
    /// [`insert`](insert()).
    Insert = 48, "insert";
    /// [`classify`](classify()).
    Classify = 56, "classify";
    /// [`sctp`](sctp()).
    Sctp = 64, "sctp";
    /// [`send`](send()).
    Send = 72, "send";
    // 80 is `Hook::FromRaw`.
    /// [`external`](external()).
    External = 88, "external";
    /// [`quotation`].
    Quotation = 96, "quotation";
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
    /// The next hop: the gateway, or the destination itself on a shared link.
    pub hop: Addr,
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
    /// `nodes`: the longest prefix that holds the address.
    fn prefix(&self, addr: &Addr) -> Option<&Network>;
    /// The same, if that is something of the cluster's.
    #[inline(always)]
    fn network(&self, addr: &Addr) -> Option<&Network> {
        self.prefix(addr).filter(|network| network.kind != NetworkKind::Nothing as u32)
    }
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
    /// Calls `f` with what the stages hand over to each other (`scratch`).
    fn handover<R>(&self, f: impl FnOnce(&mut Handover) -> R) -> Option<R>;
    /// Calls `f` with a slot of `next_hops`, below [`CachedRoute::SLOTS`].
    fn cached_route<R>(&self, slot: u32, f: impl FnOnce(&mut CachedRoute) -> R) -> Option<R>;
    /// Calls `f` with a slot of `direct_paths`, below [`DirectPath::SLOTS`].
    fn direct_path<R>(&self, slot: u32, f: impl FnOnce(&mut DirectPath) -> R) -> Option<R>;
    /// Asks the kernel for the route of a packet that came in at `from`. Whether there is one.
    fn route(&self, from: IfIndex, src: &Addr, dst: &Addr, route: &mut Route) -> bool;
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
    /// Counts a packet that is dropped or refused at a hook, and puts it into `events` where there is room.
    fn report(&self, hook: Hook, reason: Reason);
}

/// A hook as a type, so that each program holds only its own hook's code.
pub trait Place {
    /// The hook.
    const HOOK: Hook;
    /// Packets are on their way out of the host's stack, which has routed them.
    const EGRESS: bool = matches!(Self::HOOK, Hook::ToPod | Hook::ToUplink | Hook::ToRaw);
    /// Packets come from a pod of this node.
    const FROM_POD: bool = matches!(Self::HOOK, Hook::FromPod);
    /// Packets come from processes of this host.
    const FROM_HOST: bool = matches!(Self::HOOK, Hook::FromHost);
    /// Packets come in from outside the node, past the stack's ingress.
    const FROM_UPLINK: bool = matches!(Self::HOOK, Hook::FromUplink);

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
