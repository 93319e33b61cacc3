//! `podnet-lab`: the demonstration and the interactive lab; also the program of the lab's agents.

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Result;
use clap::{Parser, Subcommand};
use podnet_tests::{demo, lab};

#[derive(Debug, Parser)]
#[command(about = "A cluster of network namespaces on this machine, with podnet on each node", version)]
struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Show what podnet does and check it; exit status 1 if anything is off.
    Demo {
        /// Write what was seen to this file, as JSON.
        #[arg(long, value_name = "FILE")]
        json: Option<PathBuf>,
        /// Leave the cluster up; the last lines say how to get in and how to end it.
        #[arg(long)]
        keep: bool,
    },
    /// Bring the demonstration's cluster up and open a shell on its first node.
    Shell,
    /// What holds a node's namespaces; started by the lab.
    #[command(hide = true)]
    Agent {
        /// Host name.
        name: String,
        /// Directory that becomes /run; without it the namespaces are ready.
        run: Option<PathBuf>,
    },
}

fn main() -> Result<ExitCode> {
    match Args::parse().command {
        Command::Demo { json, keep } => {
            let options = demo::Options { json, keep };
            let pass = if keep { demo::run_detached(&options) } else { demo::run(&options) }?;
            Ok(if pass { ExitCode::SUCCESS } else { ExitCode::FAILURE })
        }
        Command::Shell => {
            let status = demo::shell()?;
            Ok(status.code().and_then(|code| u8::try_from(code).ok()).map_or(ExitCode::FAILURE, ExitCode::from))
        }
        Command::Agent { name, run } => {
            lab::serve_agent(&name, run.as_deref())?;
            Ok(ExitCode::SUCCESS)
        }
    }
}
