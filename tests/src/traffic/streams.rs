//! Many simultaneous flows, for changes that must not affect any packet.

use std::net::SocketAddr;
use std::time::Duration;

use anyhow::{Result, ensure};

use super::{Stream, Transport};
use crate::place::Place;
use crate::wait::{eventually, wait_until};

/// A long time for a message to be answered.
const LONG: Duration = Duration::from_millis(100);

/// Running flows of every kind.
#[derive(Debug)]
pub struct Streams(Vec<(String, Stream)>);

impl Streams {
    /// Starts a TCP and a UDP flow for each pair, once its server answers.
    pub fn start(cases: &[(&Place, SocketAddr)]) -> Result<Self> {
        let mut streams = Vec::new();
        for (place, to) in cases {
            for transport in Transport::ALL {
                let what = format!("{transport} from {} to {to}", place.name());
                let stream = eventually(&what, || {
                    place.ask(transport, *to)?;
                    Ok(Stream::start(place, transport, *to, Duration::from_millis(5))?)
                })?;
                streams.push((what, stream));
            }
        }
        Ok(Self(streams))
    }

    /// Waits until every flow has this many more answers.
    pub fn flows(&self, messages: u32) -> Result<()> {
        let start: Vec<u32> = self.0.iter().map(|(_, stream)| stream.answered()).collect();
        for ((what, stream), start) in self.0.iter().zip(start) {
            wait_until(&format!("{what} goes on"), || Ok(stream.answered() >= start + messages))?;
        }
        Ok(())
    }

    /// Requires that no packet was lost and no connection reset. The error also has the flows that waited for long: if
    /// many did, the machine stood still.
    pub fn clean(self) -> Result<()> {
        let reports: Vec<_> = self.0.into_iter().map(|(what, stream)| (what, stream.stop())).collect();
        let all_clean = reports.iter().all(|(_, report)| report.is_clean());
        let told = reports.iter().filter(|(_, report)| !report.is_clean() || report.slowest >= LONG);
        ensure!(all_clean, "flows: {:#?}", told.collect::<Vec<_>>());
        Ok(())
    }
}
