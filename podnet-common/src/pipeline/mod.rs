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
mod caches;
mod class;
mod classify;
mod direct;
mod enter;
mod external;
mod family;
mod forward;
mod frontend;
mod handover;
mod headers;
mod hook_point;
mod icmp;
mod insert;
mod loopback;
mod next_hop;
mod policy;
mod rewrite;
pub mod rules;
mod run;
mod scope;
mod sctp;
mod send;
mod shares;
mod socket;
mod source;
mod stage;
mod tables;
mod track;
mod verdict;

pub use answer::{error, reject};
pub use begin::begin;
pub use caches::{CachedRoute, DirectPath, Route};
pub use classify::classify;
pub use enter::{enter, express};
pub use external::external;
pub use handover::Handover;
pub use hook_point::{FromHost, FromLoopback, FromPod, FromUplink, HookPoint, ToPod, ToRaw, ToUplink, UplinkXdp};
pub use icmp::{icmp, quotation};
pub use insert::insert;
pub use loopback::loopback;
pub(crate) use policy::denies_flow;
pub use sctp::sctp;
pub use send::send;
pub use socket::{Call, SocketCtx, connect, peer, sendmsg};
pub use stage::Stage;
pub use tables::{InsertError, Tables};
pub use track::track;
pub use verdict::{Action, Egress, Verdict};
