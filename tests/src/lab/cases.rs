//! Several test cases on one lab: starting a lab takes seconds, because the kernel verifies the programs of every node.

use std::panic::{self, AssertUnwindSafe};
use std::time::Instant;

use anyhow::{Result, ensure};

use super::Lab;

/// A case: name and function.
pub type Case<S> = (&'static str, fn(&S) -> Result<()>);

/// Runs cases in sequence, continuing after failures. Each case starts with the Nodes' manifests only, and must itself
/// revert all other changes.
///
/// # Errors
/// The names and errors of failed cases.
pub fn run_cases<S>(site: &S, lab: &Lab, cases: &[Case<S>]) -> Result<()> {
    let mut failures = Vec::new();
    for (name, case) in cases {
        let start = Instant::now();
        let result = panic::catch_unwind(AssertUnwindSafe(|| case(site)));
        let seconds = start.elapsed().as_secs_f64();
        match result {
            Ok(Ok(())) => println!("case {name} ... ok, {seconds:.1} s"),
            Ok(Err(error)) => failures.push(format!("case {name} after {seconds:.1} s: {error:?}")),
            // The panic message has already been printed.
            Err(_) => failures.push(format!("case {name} after {seconds:.1} s: panicked")),
        }
        lab.clear()?;
    }
    ensure!(failures.is_empty(), "{} of {} cases failed:\n{}", failures.len(), cases.len(), failures.join("\n"));
    Ok(())
}

/// Runs functions as cases, under their own names, on a site whose field `lab` is its lab; see
/// [`run_cases`](crate::lab::run_cases).
#[macro_export]
macro_rules! cases {
    ($site:expr, $($case:ident),+ $(,)?) => {{
        let site = $site;
        $crate::lab::run_cases(&site, &site.lab, &[$((stringify!($case), $case as fn(&_) -> _)),+])
    }};
}
