//! The daemon's socket, `<runDir>/podnet.sock`: commands ask the running daemon, which answers from memory.
//!
//! ```text
//! command ── request ──→ server ── question ──→ daemon's event loop
//!         ←─ answers ───        ←─ snapshot ───
//!                               ←─ dropped packets (broadcast) ── task that reads the ring buffer
//! ```
//! Requests and answers are lines of JSON ([`Request`], [`Answer`]). Only root can access the socket, and it is
//! read-only: no request changes anything. The server has a thread of its own, so a client can only delay other
//! clients; the event loop merely takes snapshots. Commands that find no daemon read the pinned tables and
//! `status.json` instead.

mod bind;
mod client;
mod dropped;
mod policies;
mod protocol;
mod question;
mod serve;
mod server;

pub use bind::path;
pub use client::{AskError, Client, Followed, Report};
pub use dropped::Dropped;
pub use policies::{
    DeniedPackets, DenyingRule, NamedRule, PeerView, PodAnswer, PodFacts, PodPolicies, PodRules, PolicyDetail,
    PolicyFacts, PolicyProblems, PolicySummary, PortView, RuleView, TierView,
};
pub use protocol::{Answer, Explanation, ExternalAddresses, Pending, Request, Stream, Subject};
pub use question::{AddressPage, Explainable, PolicyPage, Question, Unsynced};
pub use server::Server;
