//! Checks by other programs: rustfmt, clippy and rustdoc, with warnings denied.
//!
//! The eBPF crate is for another target, so clippy is called for it separately; it has no public items to document.

use anyhow::Result;

use crate::build::cargo_for_object;
use crate::command::run;
use crate::setup::rust_src;
use crate::workspace::Workspace;

const HOST_CRATES: [&str; 2] = ["--workspace", "--exclude=podnet-ebpf"];

pub(super) fn format(workspace: &Workspace) -> Result<()> {
    run(workspace.cargo().args(["fmt", "--all", "--check"]))
}

pub(super) fn lints(workspace: &Workspace) -> Result<()> {
    run(workspace.cargo().arg("clippy").args(HOST_CRATES).args(["--all-targets", "--", "-Dwarnings"]))?;
    rust_src::ensure(workspace)?;
    run(cargo_for_object(workspace, "clippy")?.args(["--", "-Dwarnings"]))
}

pub(super) fn documentation(workspace: &Workspace) -> Result<()> {
    run(workspace.cargo().arg("doc").args(HOST_CRATES).arg("--no-deps").env("RUSTDOCFLAGS", "-Dwarnings"))
}
