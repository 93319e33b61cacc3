//! Paths of the programs under test.

use std::env;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, anyhow};

/// Environment variable with the directory of `podnet` and `podnet-cni`, set by `cargo xtask`.
pub const BIN_DIR: &str = "PODNET_BIN_DIR";

/// Path of [`Binaries::later`] relative to that directory; `cargo xtask test` builds it.
pub const LATER: &str = "later/podnet";

/// Programs that a lab runs.
#[derive(Clone, Debug)]
pub struct Binaries {
    /// Daemon and command line tool.
    pub podnet: PathBuf,
    /// The CNI plugin.
    pub plugin: PathBuf,
    /// A possible later version of the daemon, with other table layouts, if it was built.
    pub later: Option<PathBuf>,
    /// The lab's own program, with the agent.
    pub lab: PathBuf,
    /// Static release build of the same program, which can run in an otherwise empty container.
    pub contained: PathBuf,
}

impl Binaries {
    /// Finds the programs: in [`BIN_DIR`], or else beside the running program or, for a test in `target/*/deps`, one
    /// level up.
    pub fn find() -> Result<Self> {
        let exe = env::current_exe().context("where is this program?")?;
        let near: Vec<&Path> = exe.ancestors().skip(1).take(2).collect();
        let chosen = env::var_os(BIN_DIR).map(PathBuf::from);
        let first_in = |dirs: &[&Path], name: &str| dirs.iter().map(|dir| dir.join(name)).find(|path| path.is_file());
        let tested = |name: &str| {
            let dirs = chosen.as_deref().map_or(near.clone(), |dir| vec![dir]);
            first_in(&dirs, name).ok_or_else(|| {
                anyhow!("there is no {name} in {dirs:?}: run `cargo xtask build`, or set {BIN_DIR} to where it is")
            })
        };
        // The agent's protocol has no versions, so prefer the program of the same build.
        let lab = first_in(&near, "podnet-lab").map_or_else(|| tested("podnet-lab"), Ok)?;
        let contained = tested("podnet-lab")?;
        let later = tested(LATER).ok();
        Ok(Self { podnet: tested("podnet")?, plugin: tested("podnet-cni")?, later, lab, contained })
    }
}
