//! The benchmarks of podnet; see `podnet_tests::bench`.

use std::path::PathBuf;

use anyhow::Result;
use clap::Parser;
use podnet_tests::bench::{self, Options, worker};

/// Measures podnet against plain routing, kube-proxy's rules and the reference plugins, all in the same run.
#[derive(Parser)]
#[command(version)]
struct Arguments {
    /// Fewer rounds: figures in a few minutes, without verdicts.
    #[arg(long)]
    quick: bool,
    /// Also write the results as JSON to this file.
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// Directory for the report, its plots and results.json.
    #[arg(long, value_name = "DIRECTORY", default_value = "target/bench")]
    out: PathBuf,
    /// Another build's eBPF object, with the same tables: `ns_per_packet` also measures its programs, in turn with this
    /// build's, as rows `ns_per_packet/before/…`.
    #[arg(long, value_name = "OBJECT")]
    before: Option<PathBuf>,
    /// Only rows whose name contains this, and what they are compared with.
    filter: Option<String>,
}

fn main() -> Result<()> {
    // The load inside namespaces is made by this program, started again.
    if std::env::args().nth(1).as_deref() == Some(worker::ARGUMENT) {
        return worker::main();
    }
    let Arguments { quick, json, out, before, filter } = Arguments::parse();
    bench::run(&Options { quick, json, filter, out, before })
}
