//! The `podnet` program: see [`podnet::cli`].

use std::process::ExitCode;

use clap::Parser as _;

fn main() -> ExitCode {
    podnet::cli::run(podnet::cli::Cli::parse())
}
