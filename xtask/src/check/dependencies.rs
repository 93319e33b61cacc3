//! The dependencies, checked by cargo-deny against `deny.toml`: licences, sources, versions and advisories.

use std::ffi::OsStr;
use std::path::Path;
use std::process::{Command, Stdio};

use anyhow::{Context, Result};

use crate::command::run;
use crate::setup;
use crate::workspace::Workspace;

/// cargo-deny's default database.
const ADVISORIES: &str = "https://github.com/RustSec/advisory-db";
/// Enough to clone it over a slow line.
const SECONDS_FOR_ADVISORIES: u32 = 120;

pub(super) fn dependencies(workspace: &Workspace) -> Result<()> {
    let program = setup::cargo_deny(workspace)?;
    let check =
        |what: &[&str]| run(Command::new(&program).args(["--locked", "check"]).args(what).current_dir(&workspace.root));
    check(&["bans", "licenses", "sources"])?;
    // The database is on another server than the crates, which a network that suffices to build podnet need not reach.
    if succeeds_within(SECONDS_FOR_ADVISORIES, program.as_os_str(), &["fetch", "db"], &workspace.root)? {
        check(&["advisories"])
    } else {
        println!("LEFT OUT: advisories (the database at {ADVISORIES} can't be reached)");
        Ok(())
    }
}

/// Whether a command succeeds, without input and messages, in this time.
fn succeeds_within(seconds: u32, program: &OsStr, arguments: &[&str], directory: &Path) -> Result<bool> {
    // `timeout` ends the program's children as well, such as the git that cargo-deny starts.
    let mut timeout = Command::new("timeout");
    timeout.arg(seconds.to_string()).arg(program).args(arguments).current_dir(directory);
    // git asks for passwords on the terminal, wherever its input comes from.
    timeout.env("GIT_TERMINAL_PROMPT", "0").stdin(Stdio::null()).stderr(Stdio::null());
    Ok(timeout.status().context("cannot start timeout")?.success())
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, Instant};

    use super::*;

    #[test]
    fn a_slow_server_is_not_waited_for() {
        let within =
            |seconds, script: &str| succeeds_within(seconds, "sh".as_ref(), &["-c", script], Path::new("/")).unwrap();
        assert!(within(60, "true"));
        assert!(!within(60, "false"));
        let start = Instant::now();
        assert!(!within(1, "sleep 600 & wait"));
        assert!(start.elapsed() < Duration::from_secs(300));
    }
}
