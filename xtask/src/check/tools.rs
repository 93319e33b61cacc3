//! Checks by other programs: rustfmt, clippy and rustdoc, with warnings denied.
//!
//! Clippy and rustdoc cover the crates for the host. The eBPF crate is for another target; its build has its own
//! checks.

use anyhow::Result;

use crate::command::run;
use crate::workspace::Workspace;

const HOST_CRATES: [&str; 2] = ["--workspace", "--exclude=podnet-ebpf"];

pub(super) fn format(workspace: &Workspace) -> Result<()> {
    run(workspace.cargo().args(["fmt", "--all", "--check"]))
}

pub(super) fn lints(workspace: &Workspace) -> Result<()> {
    run(workspace.cargo().arg("clippy").args(HOST_CRATES).args(["--all-targets", "--", "-Dwarnings"]))
}

pub(super) fn documentation(workspace: &Workspace) -> Result<()> {
    run(workspace.cargo().arg("doc").args(HOST_CRATES).arg("--no-deps").env("RUSTDOCFLAGS", "-Dwarnings"))
}
