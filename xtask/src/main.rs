//! `cargo xtask`: sets up what is missing, builds, tests, and starts the demonstration, the lab and the benchmarks.
//!
//! One module a command. Depends on none of podnet's own crates: it builds their programs and starts them.
#![forbid(unsafe_code)]

mod bench;
mod build;
mod check;
mod command;
mod demo;
mod frames;
mod image;
mod kernel;
mod lab;
mod setup;
mod strip;
mod tally;
mod test;
mod workspace;

use std::ffi::OsString;
use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Args, Parser, Subcommand};

use crate::workspace::Workspace;

/// Set up, build, test and try podnet.
#[derive(Parser)]
#[command(bin_name = "cargo xtask")]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Install the missing prerequisites of the other commands.
    Setup,
    /// Build the eBPF object and the static programs podnet (with the object in it), podnet-cni and podnet-lab.
    Build {
        /// Build with optimizations.
        #[arg(long)]
        release: bool,
    },
    /// Build a container image with the static programs, as an archive that runtimes can import without a registry.
    Image {
        /// Output file [default: target/image/podnet.tar]
        #[arg(long, value_name = "FILE")]
        out: Option<PathBuf>,
    },
    /// Run all tests: unit tests, privileged tests as root, and, without a filter, Linux 6.1 in a virtual machine.
    Test {
        /// Run only tests whose names contain this string.
        filter: Option<String>,
        /// Run the kernel-dependent tests in a virtual machine with this kernel instead: 5.15, 5.19, 6.1, 6.8, 6.11,
        /// 6.12, newest, or all; can be repeated.
        #[arg(long = "kernel", value_name = "VERSION")]
        kernels: Vec<String>,
    },
    /// Run every check other than the tests: the workspace's rules, rustfmt, clippy, rustdoc and cargo-deny.
    Check,
    /// Demonstrate podnet in a cluster of network namespaces.
    #[command(disable_help_flag = true)]
    Demo(PassedOn),
    /// Start the same cluster and open a shell in it.
    #[command(disable_help_flag = true)]
    Lab(PassedOn),
    /// Benchmark podnet against plain routing, kube-proxy's rules and the reference plugins.
    #[command(disable_help_flag = true)]
    Bench(PassedOn),
}

/// Arguments for the program that the command starts; `--help` lists them.
#[derive(Args)]
struct PassedOn {
    #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
    args: Vec<OsString>,
}

fn main() -> ExitCode {
    let cli = Cli::parse();
    let done = Workspace::find().and_then(|workspace| match cli.command {
        Command::Setup => setup::everything(&workspace).map(|()| println!("All prerequisites are installed.")),
        Command::Build { release } => build::run(&workspace, release),
        Command::Image { out } => image::run(&workspace, out),
        Command::Test { filter, kernels } => test::run(&workspace, filter.as_deref(), &kernels),
        Command::Check => check::run(&workspace),
        Command::Demo(passed) => demo::run(&workspace, &passed.args),
        Command::Lab(passed) => lab::run(&workspace, &passed.args),
        Command::Bench(passed) => bench::run(&workspace, &passed.args),
    });
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}
