//! `cargo xtask setup`, and the set-up that every other command begins with: what is missing for it is installed.
//!
//! System packages come from the system's package manager; the rest stays with the toolchain or under `target/tools`.
//! Finding out that nothing is missing takes a few file look-ups and calls of rustc, so a second run is over at once.

pub(crate) mod apt;
mod bpf_linker;
pub(crate) mod rust_src;
mod system;

use anyhow::Result;

use crate::workspace::Workspace;

/// What the tools are for. Each purpose needs what those before it need.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Purpose {
    /// Compile the eBPF object and the programs.
    Build,
    /// Run the lab.
    Lab,
    /// Boot other kernels in virtual machines.
    Kernel,
    /// Run the tests.
    Test,
    /// Measure podnet beside its peers.
    Bench,
}

/// Installs what is missing for the purpose.
pub(crate) fn ensure(workspace: &Workspace, purpose: Purpose) -> Result<()> {
    system::ensure(purpose)?;
    rust_src::ensure(workspace)?;
    bpf_linker::ensure(workspace)
}

/// Tells what set-up does now; the tools it calls print their own progress below.
fn announce(step: &str) {
    eprintln!("==> set-up: {step}");
}
