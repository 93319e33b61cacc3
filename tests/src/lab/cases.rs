//! Several cases on one lab: starting a lab takes seconds, since the kernel examines the programs of every node.

use std::panic::{self, AssertUnwindSafe};
use std::time::Instant;

use anyhow::{Result, ensure};

use super::Lab;

/// A case: its name, and what it does on a site.
pub type Case<S> = (&'static str, fn(&S) -> Result<()>);

/// Runs cases one after another, also after one has failed. Each finds no manifests but the Nodes'; what else a case
/// changes it sets right itself.
///
/// # Errors
/// Some cases failed: their names and errors.
pub fn run_cases<S>(site: &S, lab: &Lab, cases: &[Case<S>]) -> Result<()> {
    let mut failures = Vec::new();
    for (name, case) in cases {
        let start = Instant::now();
        let result = panic::catch_unwind(AssertUnwindSafe(|| case(site)));
        let seconds = start.elapsed().as_secs_f64();
        match result {
            Ok(Ok(())) => println!("case {name} ... ok, {seconds:.1} s"),
            Ok(Err(error)) => failures.push(format!("case {name} after {seconds:.1} s: {error:?}")),
            // The panic's message has been printed where it happened.
            Err(_) => failures.push(format!("case {name} after {seconds:.1} s: panicked")),
        }
        lab.clear()?;
    }
    ensure!(failures.is_empty(), "{} of {} cases failed:\n{}", failures.len(), cases.len(), failures.join("\n"));
    Ok(())
}

/// Runs functions of a site, whose lab is its field `lab`, as [`run_cases`](crate::lab::run_cases) does, under their own names.
#[macro_export]
macro_rules! cases {
    ($site:expr, $($case:ident),+ $(,)?) => {{
        let site = $site;
        $crate::lab::run_cases(&site, &site.lab, &[$((stringify!($case), $case as fn(&_) -> _)),+])
    }};
}
