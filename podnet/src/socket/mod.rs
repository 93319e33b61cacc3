//! The daemon's socket, `<runDir>/podnet.sock`: commands ask the running daemon, which answers from memory.
//!
//! ```text
//! command ── request ──→ server ── question ──→ daemon's event loop
//!         ←─ answers ───        ←─ snapshot ───
//!                               ←─ dropped packets (broadcast) ── task that reads the ring buffer
//! ```
//! Requests and answers are lines of JSON ([`Request`], [`Answer`]). The socket is root's and read-only: no request changes
//! anything. The server has a thread of its own, so that a client can delay other clients at most; the event loop only
//! takes snapshots. Commands that find no daemon read the pinned tables and `status.json` instead.

mod bind;
mod client;
mod dropped;
mod protocol;
mod question;
mod serve;
mod server;

pub use bind::path;
pub use client::{AskError, Client, Followed, Report};
pub use dropped::Dropped;
pub use protocol::{Answer, Explanation, ExternalAddresses, Pending, Request, Stream, Subject};
pub use question::{AddressPage, Explainable, Question};
pub use server::Server;
