//! The packet pipeline: what every hook does with a packet, generic over the packet and over the tables.
//!
//! A packet of an established flow takes the fast path in [`enter()`]: one lookup in `conntrack` tells how to rewrite
//! it and where to send it. Any other packet is classified ([`classify()`]) and admitted (`admit`), once each. A packet
//! that begins a flow continues with [`begin()`] (`balance`, `source`, `next_hop`), [`insert()`] and [`send()`]; one
//! that needs no flow is forwarded, answered or left to the host's stack.
//!
//! Each stage is a program of its own, reached by a tail call ([`Action::Tail`]). A stage hands its findings to the
//! next in a record of [`Handover`], so nothing is looked up twice. All reads of a packet precede the first write, so
//! no packet leaves half-rewritten.
//!
//! Attachment, tail calls and redirects are left to the callers: the eBPF object and the simulator.

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

/// Egress of a forwarded packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Egress {
    /// Kind of egress; never [`Out::Stack`].
    pub out: Out,
    /// Egress interface.
    pub ifindex: IfIndex,
    /// Next hop to look up in the neighbour table ([`Out::Uplink`], [`Out::Via`]), possibly of another family than the
    /// packet (RFC 5549). Otherwise none.
    pub hop: Addr,
}

/// Outcome of a stage. Drops, rejects and answers have been counted.
///
/// Not an enum with payloads: where paths of several variants merge, the compiler copies payloads that only some of
/// them have, and the verifier rejects copies of uninitialised memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Verdict {
    /// Action to take.
    pub action: Action,
    /// Reason of [`Action::Drop`] and [`Action::Reject`].
    pub reason: Reason,
    /// Next stage, of [`Action::Tail`].
    pub stage: Stage,
    /// Egress of [`Action::Forward`]; of [`Action::Answer`] the interface only.
    pub egress: Egress,
}

/// Action to take on a packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Action {
    /// Continue as if the hook weren't there: the packet is none of podnet's, or the host's stack completes its
    /// processing.
    Pass,
    /// Drop the packet, for [`Verdict::reason`].
    Drop,
    /// Forward the packet to [`Verdict::egress`].
    Forward,
    /// Continue in another stage, [`Verdict::stage`].
    Tail,
    /// Reject the packet, for [`Verdict::reason`]: continue in the stage that turns it into an answer,
    /// [`Stage::answering`].
    Reject,
    /// Send the packet, which has become the answer to its sender, out of the interface on which it arrived.
    Answer,
    /// Drop a rejected packet to which no answer is possible.
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

    /// [`Action::Answer`], out of `ifindex`.
    #[inline(always)]
    pub const fn answer(ifindex: IfIndex) -> Self {
        Self { egress: Egress { out: Out::Link, ifindex, hop: Addr::NONE }, ..Self::only(Action::Answer) }
    }

    /// Counts drops and rejects. Last step of every stage.
    #[inline(always)]
    fn counted<At: HookPoint, T: Tables>(self, t: &T) -> Self {
        if let Action::Drop | Action::Reject = self.action {
            t.report(At::HOOK, self.reason);
        }
        self
    }
}

/// Runs a stage on the records handed over to it.
#[inline(always)]
fn run_stage<At: HookPoint, T: Tables>(t: &T, stage: impl FnOnce(&mut Handover) -> Verdict) -> Verdict {
    t.handover(stage).unwrap_or(Verdict::drop(Reason::Internal)).counted::<At, T>(t)
}

/// Declares the stages once: slot number, suffix of the program names, documentation.
macro_rules! stages {
    ($($(#[$doc:meta])* $name:ident = $number:literal, $text:literal;)*) => {
        /// The stages: programs behind the first program of a hook. The number of a stage is its slot for the first
        /// hook; see [`Stage::slot`].
        #[repr(u32)]
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        pub enum Stage { $($(#[$doc])* $name = $number,)* }

        impl Stage {
            /// All stages.
            pub const ALL: &[Self] = &[$(Self::$name,)*];

            /// Suffix of its programs' names, after the name of the hook.
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
    /// Stage that answers packets rejected for `reason`.
    pub const fn answering(reason: Reason) -> Self {
        match reason {
            Reason::TtlExceeded | Reason::TooBig => Self::Error,
            _ => Self::Reject,
        }
    }

    /// Slot of this stage at a hook, relative to the first slot of a generation.
    pub const fn slot(self, hook: Hook) -> u32 {
        self as u32 + hook as u32
    }
}

/// Failed insertion into `conntrack`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum InsertError {
    /// The key exists.
    Exists,
    /// The table is full.
    Full,
}

/// Result of a routing table lookup.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Pod, Zeroable)]
pub struct Route {
    /// Egress interface.
    pub ifindex: IfIndex,
    /// MTU of the path in bytes, without the Ethernet header.
    pub mtu: u32,
    /// MACs of the next hop and of the egress interface, as in [`CtEntry::macs`]. Zeros while the neighbour is
    /// unresolved; non-zero placeholders on interfaces without MACs.
    pub macs: [u32; 3],
    /// Source address that the host would use, or none if unknown.
    pub src: Addr,
    /// Next hop: the gateway, or the destination itself if it is on the link.
    pub hop: Addr,
}

/// The tables as the pipeline uses them, implemented over BPF maps in the kernel and in memory on the host.
pub trait Tables {
    /// Current time in [ticks](crate::time), as of the last [`Self::advance`]. Reading the clock for every packet would
    /// cost more than this lookup.
    fn now(&self) -> u32;
    /// Reads the clock and updates the time that [`Self::now`] returns.
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
    /// `nodes`: longest prefix that contains the address.
    fn prefix(&self, addr: &Addr) -> Option<&Network>;
    /// Same as [`Self::prefix`], but only for ranges of the cluster.
    #[inline(always)]
    fn network(&self, addr: &Addr) -> Option<&Network> {
        self.prefix(addr).filter(|network| network.kind != NetworkKind::Nothing as u32)
    }
    /// Calls `f` with an entry of `conntrack`, if it exists.
    fn flow<R>(&self, key: &Tuple, f: impl FnOnce(&mut CtEntry) -> R) -> Option<R>;
    /// Inserts an entry into `conntrack`; fails if the key exists or the table is full.
    fn insert_flow(&self, key: &Tuple, entry: &CtEntry) -> Result<(), InsertError>;
    /// Removes an entry from `conntrack`.
    fn remove_flow(&self, key: &Tuple);
    /// `holders`: count in a slot.
    fn held(&self, slot: u32) -> u32;
    /// Adds to the count in a slot of `holders`.
    fn add_held(&self, slot: u32, entries: u32);
    /// Calls `f` with the records handed over between stages (`scratch`).
    fn handover<R>(&self, f: impl FnOnce(&mut Handover) -> R) -> Option<R>;
    /// Calls `f` with a slot of `next_hops`; `None` unless it is below [`CachedRoute::SLOTS`].
    fn cached_route<R>(&self, slot: u32, f: impl FnOnce(&mut CachedRoute) -> R) -> Option<R>;
    /// Calls `f` with a slot of `direct_paths`; `None` unless it is below [`DirectPath::SLOTS`].
    fn direct_path<R>(&self, slot: u32, f: impl FnOnce(&mut DirectPath) -> R) -> Option<R>;
    /// Looks up the kernel's route for a packet received on `from` and writes it to `route`. False if there is none.
    fn route(&self, from: IfIndex, src: &Addr, dst: &Addr, route: &mut Route) -> bool;
    /// `snat_ports`, by index: a port in host byte order.
    fn snat_port(&self, index: u32) -> Option<u32>;
    /// `affinity`.
    fn affinity(&self, key: &AffinityKey) -> Option<Affinity>;
    /// Inserts or replaces an entry of `affinity`.
    fn set_affinity(&self, key: &AffinityKey, value: &Affinity);
    /// Whether `source_ranges` contains this client.
    fn in_source_ranges(&self, client: &ServiceClient) -> bool;
    /// `fragments`.
    fn fragment(&self, key: &FragmentKey) -> Option<FragmentPorts>;
    /// Inserts or replaces an entry of `fragments`.
    fn set_fragment(&self, key: &FragmentKey, ports: &FragmentPorts);
    /// Whether `peers` contains this MAC.
    fn is_peer(&self, mac: &Mac) -> bool;
    /// `sandboxes`: the pod with this network namespace cookie.
    fn sandbox(&self, netns_cookie: u64) -> Option<&Sandbox>;
    /// `sock_reverse`.
    fn sock_peer(&self, key: &SockKey) -> Option<SockPeer>;
    /// Inserts or replaces an entry of `sock_reverse`. False if there is no room.
    fn set_sock_peer(&self, key: &SockKey, peer: &SockPeer) -> bool;
    /// Increments a counter.
    fn count(&self, counter: Counter);
    /// Increments the drop counter of a reason.
    fn count_drop(&self, reason: Reason);
    /// Counts a packet dropped or rejected at a hook, and reports it in `events` if there is room.
    fn report(&self, hook: Hook, reason: Reason);
}

/// A hook as a type, so that each program contains only the code of its own hook.
pub trait HookPoint {
    /// The hook.
    const HOOK: Hook;
    /// Packets leave the host's stack, which has routed them.
    const EGRESS: bool = matches!(Self::HOOK, Hook::ToPod | Hook::ToUplink | Hook::ToRaw);
    /// Packets come from a pod on this node.
    const FROM_POD: bool = matches!(Self::HOOK, Hook::FromPod);
    /// Packets come from processes of the host.
    const FROM_HOST: bool = matches!(Self::HOOK, Hook::FromHost);
    /// Packets arrive from outside the node, before the host's stack.
    const FROM_UPLINK: bool = matches!(Self::HOOK, Hook::FromUplink);

    /// Value of [`CtEntry::in_ifindex`] for an interface at this hook: packets that the stack sends out of an interface
    /// must not match those received on it, whose source is checked.
    #[inline(always)]
    fn side(ifindex: IfIndex) -> IfIndex {
        if Self::EGRESS { IfIndex(!ifindex.0) } else { ifindex }
    }
}

macro_rules! hook_points {
    ($($name:ident)*) => { $(
        #[doc = concat!("[`Hook::", stringify!($name), "`] as a type.")]
        pub struct $name;
        impl HookPoint for $name {
            const HOOK: Hook = Hook::$name;
        }
    )* };
}

hook_points! { FromPod ToPod FromUplink ToUplink FromHost UplinkXdp FromLoopback ToRaw }
