//! The socket hooks: what they would do with the system call by which a process sends its packet.

use std::net::IpAddr;

use podnet_common::addr::{Addr, Port, Proto};
use podnet_common::layout::{Frontend, FrontendKey};
use podnet_common::packet::Tcp;
use podnet_common::pipeline::{self, Call};
use podnet_common::simulator::HostSocket;

use super::facts;
use super::record::{Fact, Traced};
use super::report::{Choice, SocketStep};
use super::summary::Summary;
use super::tracer::{Node, Process, Sender, Tracer};
use crate::cli::output::socket;
use crate::datapath::inspect::ViewError;

/// Outcome of a socket hook.
pub(super) enum Socket {
    Untouched,
    Translated(SocketStep, (IpAddr, u16)),
    Refused(SocketStep),
}

impl<N: Node> Tracer<'_, N> {
    /// What a socket hook would do with the system call of a process.
    pub(super) fn socket(&self, sender: Sender, process: Process, packet: &Summary) -> Result<Socket, ViewError> {
        let opens = packet.tcp_flags.is_some_and(|flags| flags == Tcp::SYN);
        let call = match packet.proto {
            Proto::TCP if opens => "connect",
            Proto::UDP if !process.connected => "sendmsg",
            _ => return Ok(Socket::Untouched),
        };
        if !self.view.sockets_attached() || packet.fragment.is_some() {
            return Ok(Socket::Untouched);
        }
        let netns_cookie = match sender {
            Sender::Host => self.config().netns_cookie,
            Sender::Pod(_) => match self.node.netns_cookie(&packet.src.into())? {
                Some(cookie) => cookie,
                None => return Ok(Socket::Untouched),
            },
            Sender::Outside(_) => return Ok(Socket::Untouched),
        };
        let tables = Traced::new(self.node);
        let before = HostSocket {
            addr: packet.dst.into(),
            port: packet.dport(),
            proto: packet.proto,
            bound: process.bound,
            connected: process.connected,
            // A new socket, unknown to all tables; and an arbitrary value for the random number.
            cookie: u64::MAX,
            netns_cookie,
            random: 0,
            chooses_errno: crate::datapath::socket_errno(),
        };
        let mut after = before;
        let verdict = if call == "connect" {
            pipeline::connect(&mut after, &tables)
        } else {
            pipeline::sendmsg(&mut after, &tables)
        };
        let facts = tables.into_facts();
        let mut step = SocketStep {
            call,
            look_ups: facts.iter().filter_map(|fact| facts::look_up(fact, self.names)).collect(),
            backend: None,
            verdict: String::new(),
        };
        if let Call::Refuse { service } = verdict {
            step.verdict =
                format!("the call fails with ECONNREFUSED: {} has no endpoints", self.names.service(service));
            return Ok(Socket::Refused(step));
        }
        if (before.addr, before.port) == (after.addr, after.port) {
            return Ok(Socket::Untouched);
        }
        step.backend = self.chosen(&facts, after.addr, after.port)?;
        step.verdict = format!("destination replaced with {}", socket(after.addr, after.port));
        Ok(Socket::Translated(step, (after.addr.into(), after.port.get())))
    }

    fn chosen(&self, facts: &[Fact], addr: Addr, port: Port) -> Result<Option<Choice>, ViewError> {
        let frontend = facts.iter().rev().find_map(|fact| match fact {
            Fact::Frontend(key, Some(found)) if *key != FrontendKey::address(key.addr) => Some(*found),
            _ => None,
        });
        let Some(Frontend { .. }) = frontend else { return Ok(None) };
        let frontend = frontend.unwrap_or_default();
        let (of, more) = facts::shares(self.view, &frontend, self.names)?;
        let by = if frontend.slot_count == 1 { "the only backend" } else { "a random backend per socket" }.to_owned();
        let backend = format!("{}", socket(addr, port));
        Ok(Some(Choice { backend, by, of, more }))
    }
}
