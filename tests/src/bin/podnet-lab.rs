//! `podnet-lab`: the demonstration and the interactive lab; also the program of the lab's agents, supervisors and
//! containers.

use std::env;
use std::ffi::OsString;
use std::path::PathBuf;
use std::process::{self, ExitCode};

use anyhow::Result;
use clap::{Parser, Subcommand};
use podnet_tests::{demo, lab, verifier};

#[derive(Debug, Parser)]
#[command(about = "A cluster of network namespaces on this machine, with podnet on each node", version)]
struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Demonstrate and check podnet's features; exit status 1 if a check fails.
    Demo {
        /// Write the results to this file as JSON.
        #[arg(long, value_name = "FILE")]
        json: Option<PathBuf>,
        /// Keep the cluster running; the last lines of the output show how to enter and how to stop it.
        #[arg(long)]
        keep: bool,
    },
    /// Load every eBPF program and show the verifier's statistics; exit status 1 if one is rejected.
    Programs {
        /// Print one JSON object per line instead of a table.
        #[arg(long)]
        json: bool,
        /// Load them, as the process that is watched.
        #[arg(long, hide = true)]
        load: bool,
    },
    /// Start the demonstration's cluster and open a shell on its first node.
    Shell,
    /// What holds a node's namespaces; started by the lab.
    #[command(hide = true)]
    Agent {
        /// Host name.
        name: String,
        /// Directory that becomes /run; without it the namespaces are ready.
        run: Option<PathBuf>,
    },
    /// Start a program in a process namespace of its own, once for each line of standard input; started by the lab.
    #[command(hide = true)]
    Supervise {
        /// The program and its arguments.
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        program: Vec<OsString>,
    },
    /// The first process of a process namespace; started by the supervisor.
    #[command(hide = true)]
    Init,
    /// What containers of the tests do.
    #[command(hide = true)]
    Pod {
        #[command(subcommand)]
        command: lab::Program,
    },
}

fn main() -> Result<ExitCode> {
    match Args::parse().command {
        Command::Demo { json, keep } => {
            let options = demo::Options { json, keep };
            let pass = if keep { demo::run_detached(&options) } else { demo::run(&options) }?;
            Ok(if pass { ExitCode::SUCCESS } else { ExitCode::FAILURE })
        }
        Command::Programs { load: true, .. } => verifier::load().map(|()| ExitCode::SUCCESS),
        Command::Programs { json, .. } => programs(json),
        Command::Shell => {
            let status = demo::shell()?;
            Ok(status.code().and_then(|code| u8::try_from(code).ok()).map_or(ExitCode::FAILURE, ExitCode::from))
        }
        Command::Agent { name, run } => {
            lab::serve_agent(&name, run.as_deref())?;
            Ok(ExitCode::SUCCESS)
        }
        Command::Supervise { program } => lab::supervise(&program).map(|()| ExitCode::SUCCESS),
        Command::Init => lab::serve_init().map(|()| ExitCode::SUCCESS),
        Command::Pod { command } => command.run().map(|()| ExitCode::SUCCESS),
    }
}

/// Shows the verifier's statistics of each program as they arrive.
fn programs(json: bool) -> Result<ExitCode> {
    let mut loader = process::Command::new(env::current_exe()?);
    loader.args(["programs", "--load"]);
    let mut refused = 0;
    verifier::examine(loader, |program| {
        refused += u32::from(program.refused.is_some());
        if json {
            println!("{}", serde_json::to_string(program).expect("plain values are JSON"));
        } else {
            let verifier::Figures { name, processed, states, stack, seconds, refused } = program;
            let refused = refused.as_ref().map(|reason| format!("  REFUSED: {reason}")).unwrap_or_default();
            println!(
                "{name:<22} {processed:>7} instructions {states:>6} states {seconds:>7.3} s  stack {stack}{refused}"
            );
        }
    })?;
    Ok(if refused == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}
