//! bpf-linker, which links eBPF objects with the LLVM of the pinned compiler. Built once, under `target/tools`.

use std::fs;
use std::process::Command;

use anyhow::{Context, Result};

use super::tell::announce;
use crate::command::{output, run};
use crate::workspace::Workspace;

/// Versions from 0.11 on need an LLVM installed on the system.
const VERSION: &str = "0.10.3";

pub(super) fn ensure(workspace: &Workspace) -> Result<()> {
    let program = workspace.tools().join("bin/bpf-linker");
    if program.exists() && is_wanted(&output(Command::new(&program).arg("--version")).unwrap_or_default()) {
        return Ok(());
    }
    announce(&format!("bpf-linker {VERSION} (cargo builds it once; a few minutes)"));
    let build = workspace.tools().join("bpf-linker-build");
    let mut cargo = workspace.cargo();
    cargo
        .args(["install", "bpf-linker", "--version", VERSION, "--locked", "--force", "--root"])
        .arg(workspace.tools())
        .arg("--target-dir")
        .arg(&build);
    run(&mut cargo).context("bpf-linker cannot be built; it needs gcc and access to the crate registry")?;
    // Kept until here, so that an interrupted build can be resumed.
    fs::remove_dir_all(&build).with_context(|| format!("cannot remove {}", build.display()))
}

fn is_wanted(version: &str) -> bool {
    version.split_whitespace().any(|word| word == VERSION)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn another_version_is_replaced() {
        assert!(is_wanted("bpf-linker 0.10.3\n"));
        assert!(!is_wanted("bpf-linker 0.10.30\n"));
        assert!(!is_wanted(""));
    }
}
