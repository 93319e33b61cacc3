//! `cargo xtask setup`, and the set-up that every other command begins with: what is missing for it is installed.
//!
//! System packages come from the system's package manager; the rest stays with the toolchain or under `target/tools`.
//! Finding out that nothing is missing takes a few file look-ups and calls of rustc, so a second run is over at once.

pub(crate) mod apt;
mod bpf_linker;
mod purpose;
pub(crate) mod rust_src;
mod system;
mod tell;

use anyhow::Result;

use crate::workspace::Workspace;
pub(crate) use purpose::Purpose;

/// Installs what is missing for the purpose.
pub(crate) fn ensure(workspace: &Workspace, purpose: Purpose) -> Result<()> {
    system::ensure(purpose)?;
    rust_src::ensure(workspace)?;
    bpf_linker::ensure(workspace)
}
