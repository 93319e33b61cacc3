//! The outcome of a request, as far as a test compares it.

use std::fmt;
use std::io::ErrorKind;
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};

use super::{Ask, Transport};
use crate::place::Place;
use crate::wait::eventually;

/// Timeout of requests that may get no answer.
const SILENCE: Duration = Duration::from_millis(300);
/// Timeout of requests that must be answered.
const ANSWER: Duration = Duration::from_secs(5);

/// Outcome of a request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// Answered from the address to which it was sent.
    Answer {
        /// Name of the server.
        server: String,
        /// The client's address as seen by the server.
        seen: IpAddr,
    },
    /// Rejected with a reset or an ICMP error.
    Refused,
    /// No answer.
    Silence,
    /// Any other error.
    Other(String),
}

impl Outcome {
    /// An answer.
    pub fn answer(server: &str, seen: IpAddr) -> Self {
        Self::Answer { server: server.to_owned(), seen }
    }

    /// Outcome of a single request.
    pub fn of(place: &Place, ask: &Ask) -> Self {
        Self::within(SILENCE, place, ask)
    }

    fn within(timeout: Duration, place: &Place, ask: &Ask) -> Self {
        match ask.clone().own_port().connected().timeout(timeout).from(place) {
            Ok(answer) => Self::Answer { server: answer.server, seen: answer.seen.ip() },
            Err(error) => match error.kind() {
                ErrorKind::ConnectionRefused => Self::Refused,
                ErrorKind::TimedOut => Self::Silence,
                _ => Self::Other(error.to_string()),
            },
        }
    }
}

impl fmt::Display for Outcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Answer { server, seen } => write!(f, "{server} answers {seen}"),
            Self::Refused => f.write_str("refused"),
            Self::Silence => f.write_str("silence"),
            Self::Other(error) => f.write_str(error),
        }
    }
}

impl Place {
    /// Outcome of a request from here.
    pub fn outcome(&self, transport: Transport, to: SocketAddr) -> Outcome {
        Outcome::of(self, &Ask::new(transport, to))
    }

    /// Waits until one of these servers answers a request from here, then sends two more; returns the client address
    /// seen by the last one.
    ///
    /// # Errors
    /// The other outcome, with source and destination.
    pub fn reaches(&self, transport: Transport, to: SocketAddr, servers: &[&str]) -> Result<IpAddr> {
        let what = || format!("{transport} from {} to {to}", self.name());
        let ask = |timeout| match Outcome::within(timeout, self, &Ask::new(transport, to)) {
            Outcome::Answer { server, seen } if servers.contains(&&server[..]) => Ok(seen),
            outcome => bail!("{outcome} instead of an answer by {servers:?}"),
        };
        eventually("an answer", || ask(SILENCE)).with_context(what)?;
        ask(ANSWER).and_then(|_| ask(ANSWER)).with_context(what)
    }

    /// Contacts a server by ping and both transports, and requires that it sees this address and the client's own port.
    ///
    /// # Errors
    /// The other outcome, with source and destination.
    pub fn is_seen_as(&self, own: IpAddr, to: SocketAddr, server: &str) -> Result<()> {
        let what = || format!("{} → {server} ({to})", self.name());
        self.ping(to.ip()).with_context(|| format!("ping {}", what()))?;
        for transport in Transport::ALL {
            let answer = self.ask(transport, to).with_context(|| format!("{transport} {}", what()))?;
            ensure!(answer.server == server, "{transport} {}: {} answered", what(), answer.server);
            ensure!(answer.seen.ip() == own, "{transport} {}: seen as {} instead of {own}", what(), answer.seen.ip());
            ensure!(answer.seen.port() == answer.local.port(), "{transport} {}: the port changed", what());
        }
        Ok(())
    }

    /// Exchanges much more data than one packet, in both directions, over both transports. The first datagram may be
    /// lost: its sender learns of a narrow link and sends smaller packets from then on.
    ///
    /// # Errors
    /// The other outcome, with source and destination.
    pub fn exchanges_much(&self, to: SocketAddr) -> Result<()> {
        for (transport, there, back) in [
            (Transport::Tcp, 200_000, 0),
            (Transport::Tcp, 0, 200_000),
            (Transport::Udp, 5000, 0),
            (Transport::Udp, 0, 5000),
        ] {
            let ask = Ask::new(transport, to).timeout(Duration::from_secs(1));
            let ask = if there > 0 { ask.payload("y".repeat(there)) } else { ask.reply_of(back) };
            eventually(&format!("{transport} with {there} bytes there and {back} back"), || {
                let answer = ask.clone().from(self)?;
                ensure!(answer.payload.len() == there + back, "{} bytes came", answer.payload.len());
                Ok(())
            })
            .with_context(|| format!("{} with {to}", self.name()))?;
        }
        Ok(())
    }

    /// Waits until a request from here has the expected outcome, then sends two more, which must have it as well, since
    /// they are later flows.
    ///
    /// # Errors
    /// The other outcome, with source and destination.
    pub fn expect(&self, transport: Transport, to: SocketAddr, expected: &Outcome) -> Result<()> {
        let what = || format!("{transport} from {} to {to}", self.name());
        let ask = |timeout| {
            let outcome = Outcome::within(timeout, self, &Ask::new(transport, to));
            ensure!(outcome == *expected, "{outcome} instead of: {expected}");
            Ok(())
        };
        eventually(&expected.to_string(), || ask(SILENCE)).with_context(what)?;
        // Requests that must not be answered have already been repeated often enough.
        if matches!(expected, Outcome::Answer { .. }) {
            (0..2).try_for_each(|_| ask(ANSWER)).with_context(what)?;
        }
        Ok(())
    }
}
