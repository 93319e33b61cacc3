//! `cargo xtask setup`, and the set-up at the start of every other command: missing tools are installed.
//!
//! System packages come from the system's package manager; the rest stays with the toolchain or under `target/tools`.
//! If nothing is missing, set-up takes a few file look-ups and calls of rustc, so a second run is over at once.

pub(crate) mod apt;
mod bpf_linker;
mod cargo_deny;
mod crate_program;
mod purpose;
pub(crate) mod rust_src;
mod system;
mod tell;

use std::path::PathBuf;

use anyhow::Result;

use crate::workspace::Workspace;
use bpf_linker::BPF_LINKER;
use cargo_deny::CARGO_DENY;
pub(crate) use purpose::Purpose;

/// Installs the missing tools for the purpose.
pub(crate) fn ensure(workspace: &Workspace, purpose: Purpose) -> Result<()> {
    system::ensure(purpose)?;
    rust_src::ensure(workspace)?;
    BPF_LINKER.ensure(workspace).map(drop)
}

/// Installs the missing tools of every command.
pub(crate) fn everything(workspace: &Workspace) -> Result<()> {
    ensure(workspace, Purpose::Bench)?;
    cargo_deny(workspace).map(drop)
}

/// Path of cargo-deny, which is installed if it is missing.
pub(crate) fn cargo_deny(workspace: &Workspace) -> Result<PathBuf> {
    CARGO_DENY.ensure(workspace)
}
