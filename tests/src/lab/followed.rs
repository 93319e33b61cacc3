//! Dropped packets as the daemon reports them.

use std::{
    io::{BufRead as _, BufReader, Write as _},
    os::unix::net::UnixStream,
    time::Duration,
};

use anyhow::{Context, Result};
use podnet::socket;
use serde_json::Value;

use super::Node;

/// Time limit for a report.
const PATIENCE: Duration = Duration::from_secs(20);

impl Node {
    /// The first packet that is dropped for a reason while something is done, as `podnet drops --follow -o json` shows
    /// it.
    ///
    /// # Errors
    /// What is done fails, or no such packet is reported.
    pub fn first_drop(&self, reason: &str, work: impl FnOnce() -> Result<()>) -> Result<Value> {
        let mut stream = UnixStream::connect(socket::path(&self.run_dir()))?;
        stream.set_read_timeout(Some(PATIENCE))?;
        stream.write_all(b"{\"follow\":\"drops\"}\n")?;
        let mut lines = BufReader::new(stream).lines();
        lines.next().context("the daemon has closed the socket")??;
        work()?;
        for line in lines {
            let line: Value = serde_json::from_str(&line.with_context(|| format!("no packet is dropped: {reason}"))?)?;
            if line["drop"]["reason"] == reason {
                return Ok(line["drop"].clone());
            }
        }
        anyhow::bail!("the daemon has closed the socket")
    }
}
