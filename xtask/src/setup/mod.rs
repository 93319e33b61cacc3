//! `cargo xtask setup`, and the set-up at the start of every other command: missing tools are installed.
//!
//! System packages come from the system's package manager; the rest stays with the toolchain or under `target/tools`.
//! If nothing is missing, set-up takes a few file look-ups and calls of rustc, so a second run is over at once.

pub(crate) mod apt;
mod bpf_linker;
mod purpose;
pub(crate) mod rust_src;
mod system;
mod tell;

use anyhow::Result;

use crate::workspace::Workspace;
pub(crate) use purpose::Purpose;

/// Installs the missing tools for the purpose.
pub(crate) fn ensure(workspace: &Workspace, purpose: Purpose) -> Result<()> {
    system::ensure(purpose)?;
    rust_src::ensure(workspace)?;
    bpf_linker::ensure(workspace)
}
