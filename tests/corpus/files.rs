//! Attacks by files: an unexpected file type or broken content in place of a file.

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
    /// The file, relative to the node's directories: `run/…`, `state/…`, `manifests/…`, or `config.yaml`.
    at: String,
    /// The replacement.
    put: Put,
    /// Whether the daemon keeps running; otherwise it is stopped and then started.
    #[serde(default)]
    live: bool,
    /// Expected texts in the log.
    #[serde(default)]
    logs: Vec<String>,
    /// Expected texts of warnings.
    #[serde(default)]
    warns: Vec<String>,
    /// Whether the daemon is expected to start.
    #[serde(default = "yes")]
    starts: bool,
}

fn yes() -> bool {
    true
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
enum Put {
    /// Named pipe.
    Pipe,
    Directory,
    Socket,
    /// Symbolic link to an endless device.
    Device,
    /// Symbolic link to itself.
    Loop,
    /// Dangling symbolic link.
    Dangling,
    /// Sparse file of 1 TiB.
    Huge,
    Text(String),
    /// First half of the previous content.
    Half,
    /// No file.
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
    // Only regular files are read: a file left by an earlier attack may be endless.
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
            // Before anything replaces the file.
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

/// Removes any file or directory at this path.
fn remove(path: &Path) -> Result<()> {
    let Ok(data) = fs::symlink_metadata(path) else { return Ok(()) };
    if data.is_dir() {
        fs::remove_dir_all(path)?
    } else {
        fs::remove_file(path)?
    }
    Ok(())
}
