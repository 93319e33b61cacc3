//! The benchmarks of podnet; see `podnet_tests::bench`.

use std::path::PathBuf;

use anyhow::Result;
use clap::Parser;
use podnet_tests::bench::{self, Options, worker};

/// Benchmarks podnet against plain routing, kube-proxy's rules and the reference plugins in the same run.
#[derive(Parser)]
#[command(version)]
struct Arguments {
    /// Run fewer rounds: results in a few minutes, without verdicts.
    #[arg(long)]
    quick: bool,
    /// Write the results to this file as JSON, too.
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// Directory for the report, its plots and results.json.
    #[arg(long, value_name = "DIRECTORY", default_value = "target/bench")]
    out: PathBuf,
    /// eBPF object of another build with the same tables: `ns_per_packet` also measures its programs, alternating with
    /// those of this build, in the rows `ns_per_packet/before/…`.
    #[arg(long, value_name = "OBJECT")]
    before: Option<PathBuf>,
    /// Run only rows whose name contains this string, and their baselines.
    filter: Option<String>,
}

fn main() -> Result<()> {
    // Workers, which generate load inside namespaces, are this program.
    if std::env::args().nth(1).as_deref() == Some(worker::ARGUMENT) {
        return worker::main();
    }
    let Arguments { quick, json, out, before, filter } = Arguments::parse();
    bench::run(&Options { quick, json, filter, out, before })
}
