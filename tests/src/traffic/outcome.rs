//! What becomes of a question, reduced to what a test expects.

use std::fmt;
use std::io::ErrorKind;
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};

use super::{Ask, Transport};
use crate::lab::{Place, eventually};

/// How long an answer may take before it counts as none, where silence is possible.
const SILENCE: Duration = Duration::from_millis(300);
/// And where an answer must come.
const ANSWER: Duration = Duration::from_secs(5);

/// What became of a question.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// It was answered from the address that it was sent to.
    Answer {
        /// Name of the server.
        server: String,
        /// The client as the server sees it.
        seen: IpAddr,
    },
    /// A reset or an ICMP error said that nobody serves there.
    Refused,
    /// Nothing came back.
    Silence,
    /// Something else.
    Other(String),
}

impl Outcome {
    /// An answer.
    pub fn answer(server: &str, seen: IpAddr) -> Self {
        Self::Answer { server: server.to_owned(), seen }
    }

    /// Of a question asked once.
    pub fn of(place: &Place, ask: &Ask) -> Self {
        Self::within(SILENCE, place, ask)
    }

    fn within(timeout: Duration, place: &Place, ask: &Ask) -> Self {
        match ask.clone().connected().timeout(timeout).from(place) {
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
    /// What becomes of a question asked from here.
    pub fn outcome(&self, transport: Transport, to: SocketAddr) -> Outcome {
        Outcome::of(self, &Ask::new(transport, to))
    }

    /// Waits until one of these servers answers a question from here, and then asks twice more; returns whom the last saw.
    ///
    /// # Errors
    /// What came instead, from where to where.
    pub fn reaches(&self, transport: Transport, to: SocketAddr, servers: &[&str]) -> Result<IpAddr> {
        let what = || format!("{transport} from {} to {to}", self.name());
        let ask = |timeout| match Outcome::within(timeout, self, &Ask::new(transport, to)) {
            Outcome::Answer { server, seen } if servers.contains(&&server[..]) => Ok(seen),
            outcome => bail!("{outcome} instead of an answer by {servers:?}"),
        };
        eventually("an answer", || ask(SILENCE)).with_context(what)?;
        ask(ANSWER).and_then(|_| ask(ANSWER)).with_context(what)
    }

    /// Asks a server by ping and both transports, and demands that it sees this address and the asker's own port.
    ///
    /// # Errors
    /// What came instead, from where to where.
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

    /// Exchanges much more than fits a packet, in both directions, by both transports. The first datagram may be lost: its
    /// sender is told of a narrow way, and sends shorter packets then.
    ///
    /// # Errors
    /// What came instead, from where to where.
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

    /// Waits until a question from here meets what is expected, and then asks twice more: flows end and begin, and the
    /// later ones must fare as the first.
    ///
    /// # Errors
    /// What came instead, from where to where.
    pub fn expect(&self, transport: Transport, to: SocketAddr, expected: &Outcome) -> Result<()> {
        let what = || format!("{transport} from {} to {to}", self.name());
        let ask = |timeout| {
            let outcome = Outcome::within(timeout, self, &Ask::new(transport, to));
            ensure!(outcome == *expected, "{outcome} instead of: {expected}");
            Ok(())
        };
        eventually(&expected.to_string(), || ask(SILENCE)).with_context(what)?;
        // What must not be answered has been asked for long enough.
        if matches!(expected, Outcome::Answer { .. }) {
            (0..2).try_for_each(|_| ask(ANSWER)).with_context(what)?;
        }
        Ok(())
    }
}
