//! Requests to the daemon. If it doesn't answer, commands show the kernel's tables and the daemon's last report, and
//! say so on standard error.

use std::path::Path;

use anyhow::{Result, anyhow, bail};

use super::follow;
use super::output::{Format, complain, write};
use crate::datapath::view::interface_name;
use crate::socket::{AskError, Client};

/// Asks the daemon. If there is no answer, prints the reason and returns it.
///
/// # Errors
/// [`AskError::NotRoot`]: without root the command couldn't read the tables either.
pub(super) fn ask<T>(
    run_dir: &Path,
    question: impl FnOnce(&mut Client) -> Result<T, AskError>,
) -> Result<Result<T, AskError>> {
    match Client::connect(run_dir).and_then(|mut client| question(&mut client)) {
        Err(error @ AskError::NotRoot { .. }) => Err(error.into()),
        Err(error) => {
            complain(&format!("{error}: showing the kernel's tables and the daemon's last report"));
            Ok(Err(error))
        }
        Ok(answer) => Ok(Ok(answer)),
    }
}

/// Asks the daemon for what only it knows, which `what` names.
///
/// # Errors
/// The request fails or is refused.
pub(super) fn ask_only<T>(
    run_dir: &Path,
    what: &str,
    question: impl FnOnce(&mut Client) -> Result<T, AskError>,
) -> Result<T> {
    Client::connect(run_dir).and_then(|mut client| question(&mut client)).map_err(|error| match error {
        AskError::Down { .. } => anyhow!("{error}: {what} are known to the daemon only; start it, or check --run-dir"),
        error => error.into(),
    })
}

/// Prints dropped packets as they are reported, until standard output is closed.
///
/// # Errors
/// No daemon answers (only the daemon reads the ring buffer), or it ends.
pub(super) fn follow_drops(run_dir: &Path, format: Format) -> Result<()> {
    let reports = Client::connect(run_dir)?.follow_drops()?;
    if format == Format::Table && !write(follow::HEADER)? {
        return Ok(());
    }
    for report in reports {
        if !write(&follow::line(&report?, format, interface_name)?)? {
            return Ok(());
        }
    }
    bail!("the daemon has closed the connection, probably because it has stopped: check `podnet status`")
}
