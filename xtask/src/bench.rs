//! `cargo xtask bench`: the benchmarks, from the release build.

use std::ffi::OsString;
use std::fs;

use anyhow::{Context, Result};

use crate::build;
use crate::command::exec;
use crate::setup::{self, Purpose};
use crate::workspace::Workspace;

pub(crate) fn run(workspace: &Workspace, args: &[OsString]) -> Result<()> {
    setup::ensure(workspace, Purpose::Bench)?;
    let built = build::with_benchmarks(workspace)?;
    // Created here, so that it belongs to the user and not to root.
    let results = workspace.target.join("bench");
    fs::create_dir_all(&results).with_context(|| format!("cannot create {}", results.display()))?;
    let mut bench = built.as_root("podnet-bench")?;
    if !args.iter().any(|argument| argument.to_string_lossy().starts_with("--out")) {
        bench.arg("--out").arg(results);
    }
    exec(bench.args(args))
}
