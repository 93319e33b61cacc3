//! Attacks by files: something else in the place of one, or something broken in it.

use std::fs::{self, File};
use std::os::unix::fs::symlink;
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail, ensure};
use nix::sys::stat::Mode;
use nix::unistd::mkfifo;
use serde::Deserialize;

use super::Site;

/// An attack by a file.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Attack {
    /// The file, below the node's directories: `run/…`, `state/…`, `manifests/…`, or `config.yaml`.
    at: String,
    /// What is put there.
    put: Put,
    /// Whether the daemon runs meanwhile; else it is started afterwards.
    #[serde(default)]
    live: bool,
    /// What the log says.
    #[serde(default)]
    logs: Vec<String>,
    /// What is told, each by some warning.
    #[serde(default)]
    warns: Vec<String>,
    /// Whether the daemon starts.
    #[serde(default = "yes")]
    starts: bool,
}

fn yes() -> bool {
    true
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
enum Put {
    /// A named pipe.
    Pipe,
    Directory,
    Socket,
    /// A link to a device without end.
    Device,
    /// A link to itself.
    Loop,
    /// A link to nothing.
    Dangling,
    /// A file of a terabyte, without a block on the disk.
    Huge,
    Text(String),
    /// What was there, but for its last half.
    Half,
    /// Nothing.
    Nothing,
}

impl Attack {
    pub(super) fn name(&self) -> &str {
        &self.at
    }
}

pub(super) fn attack(site: &Site, attack: &Attack) -> Result<()> {
    let node = site.node();
    let path = path(site, &attack.at)?;
    let logged = node.log().len();
    if !attack.live {
        node.stop_daemon()?;
    }
    // What an earlier attack has left may have no end.
    let is_file = fs::symlink_metadata(&path).is_ok_and(|data| data.is_file());
    let before = is_file.then(|| fs::read(&path)).transpose()?;
    put(&path, &attack.put, before.as_deref())?;
    let outcome = (|| {
        if attack.starts {
            if !attack.live {
                node.start_daemon()?;
            }
            site.logs(logged, &attack.logs)?;
            site.warns(&attack.warns)?;
            // What nobody reads any more may be there still.
            site.holds()?;
            return site.makes_pods();
        }
        let refused = node.start_daemon();
        ensure!(refused.is_err(), "it starts");
        site.logs(logged, &attack.logs)
    })();
    remove(&path)?;
    if let Some(before) = before {
        fs::write(&path, before)?;
    }
    outcome.with_context(|| format!("{:?}", attack.put))?;
    if attack.starts { Ok(()) } else { node.start_daemon().context("what was there before") }
}

fn path(site: &Site, at: &str) -> Result<PathBuf> {
    let node = site.node();
    Ok(match at.split_once('/') {
        Some(("run", rest)) => node.run_dir().join(rest),
        Some(("state", rest)) => node.state_dir().join(rest),
        Some(("manifests", rest)) => node.manifest_dir().join(rest),
        None if at == "config.yaml" => node.config_file(),
        _ => bail!("{at} is below none of the node's directories"),
    })
}

fn put(path: &Path, what: &Put, before: Option<&[u8]>) -> Result<()> {
    remove(path)?;
    match what {
        Put::Pipe => mkfifo(path, Mode::from_bits_truncate(0o600))?,
        Put::Directory => fs::create_dir(path)?,
        Put::Socket => drop(UnixListener::bind(path)?),
        Put::Device => symlink("/dev/zero", path)?,
        Put::Loop => symlink(path, path)?,
        Put::Dangling => symlink("nothing", path)?,
        Put::Huge => File::create(path)?.set_len(1 << 40)?,
        Put::Text(text) => fs::write(path, text)?,
        Put::Half => {
            let before = before.with_context(|| format!("{} isn't there", path.display()))?;
            fs::write(path, &before[..before.len() / 2])?;
        }
        Put::Nothing => {}
    }
    Ok(())
}

/// Removes whatever is there.
fn remove(path: &Path) -> Result<()> {
    let Ok(data) = fs::symlink_metadata(path) else { return Ok(()) };
    if data.is_dir() {
        fs::remove_dir_all(path)?
    } else {
        fs::remove_file(path)?
    }
    Ok(())
}
