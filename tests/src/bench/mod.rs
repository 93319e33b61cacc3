//! The benchmarks: podnet's figures, each relative to a baseline measured in the same run.
//!
//! Because machines are noisy, no figure is reported as an absolute value only. A suite is a list of variants that are
//! measured in turn, in short slices, round after round; the order is reversed every other round, so that drift and
//! after-effects affect both sides of a pair equally. See [`stats`] for the evaluation of samples, and [`goals`] for
//! the figures to reach.
//!
//! | suite | rows |
//! |---|---|
//! | [`nanoseconds`] | `ns_per_packet`: the programs alone |
//! | [`policies`] | `ns_per_packet/policy`: the same under network policies |
//! | [`policy_changes`] | `control/policy…`: from changed objects of network policy to the tables |
//! | [`paths`] | `tcp_stream`, `tcp_rr`, `tcp_crr`, `udp_flows` through every topology |
//! | [`outside`] | the same with an external client |
//! | [`cni`] | `cni_add`, `cni_del` and similar rows |
//! | [`collection`] | `conntrack`: sweeps of a large connection table |
//! | [`objects`] | `control`: from parsed objects to tables |
//! | [`control`] | `control`: from files to tables, in the daemon |
//! | [`scale`] | `scale`: the daemon in a large cluster, with the Kubernetes API |
//!
//! Deliberately absent: absolute records, tuning of the machine (frequency, isolated processors), and tools that users
//! do not have.

pub mod chain;
pub mod cni;
pub mod collection;
pub mod control;
pub mod flows;
pub mod goals;
pub mod kube_proxy;
pub mod nanoseconds;
pub mod objects;
mod options;
pub mod outside;
pub mod paths;
pub mod plot;
pub mod policies;
pub mod policy_changes;
pub mod report;
pub mod results;
pub mod rig;
pub mod rounds;
pub mod scale;
pub mod services;
pub mod stats;
pub mod tables;
pub mod topology;
pub mod traffic;
pub mod worker;

use anyhow::{Result, bail};

pub use options::Options;
use results::Results;
use topology::Topologies;

/// Runs the suites, writes the report and prints it. If the run is interrupted, the lab's signal handlers and the end
/// of its processes remove what it has built.
pub fn run(options: &Options) -> Result<()> {
    if !nix::unistd::geteuid().is_root() {
        bail!("benchmarks create network namespaces and need root: use `cargo xtask bench`, which runs sudo");
    }
    let mut results = Results::default();
    if options.quick {
        results.note("Quick run: too few rounds for a verdict.");
    }
    // Partial results are useful even if the rest fails.
    let measured = measure(options, &mut results);
    if let Err(error) = &measured {
        results.note(format!("The run was aborted: {error:#}."));
    }
    if results.is_empty() {
        measured?;
        bail!("no row's name contains {:?}: see the table in docs/benchmarks", options.filter.as_deref().unwrap_or(""));
    }
    let verdicts = goals::evaluate(&results);
    let machine = report::machine();
    results.write(&options.out, options.json.as_deref(), &verdicts, &machine)?;
    println!("{}", results.markdown(&verdicts, &machine, &[]));
    println!("Report, plots and results.json are in {}", options.out.display());
    measured
}

fn measure(options: &Options, results: &mut Results) -> Result<()> {
    nanoseconds::run(options, results)?;
    policies::run(options, results)?;
    {
        let topologies = Topologies::default();
        paths::run(options, &topologies, results)?;
        outside::run(options, &topologies, results)?;
    }
    cni::run(options, results)?;
    collection::run(options, results)?;
    objects::run(options, results)?;
    policy_changes::run(options, results)?;
    control::run(options, results)?;
    scale::run(options, results)
}
