//! `podnet-lab shell`: the demonstration's cluster, and a shell on its first node.

use std::process::{Command, ExitStatus};

use anyhow::{Context, Result};

use super::checks;
use super::cluster::Cluster;
use super::scripts;
use crate::lab::spawn;

/// Starts the cluster, runs the shell on the terminal, and ends the cluster with it.
pub fn shell() -> Result<ExitStatus> {
    println!("starting two nodes and six pods …");
    let mut cluster = Cluster::start()?;
    cluster.add_pods()?;
    cluster.apply_services()?;
    checks::service_up(&cluster)?;
    let shell = scripts::write(&cluster)?;
    let mut child = spawn(Command::new(shell)).context("cannot start the shell")?;
    Ok(child.wait()?)
}
