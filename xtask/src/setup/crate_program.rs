//! Programs from crates.io, in pinned versions. Cargo builds each once, under `target/tools`, without optimisations:
//! that takes half of the time, and the programs are run for seconds. bpf-linker's own work is done by the compiler's
//! LLVM.

use std::fs;
use std::path::PathBuf;
use std::process::Command;

use anyhow::{Context, Result};

use super::tell::announce;
use crate::command::{output, run};
use crate::workspace::Workspace;

/// A crate with one program, which has the crate's name.
pub(super) struct CrateProgram {
    pub(super) name: &'static str,
    pub(super) version: &'static str,
}

impl CrateProgram {
    /// Path of the program, which is built if it is missing or has another version.
    pub(super) fn ensure(&self, workspace: &Workspace) -> Result<PathBuf> {
        let Self { name, version } = *self;
        let program = workspace.tools().join("bin").join(name);
        if program.exists() && self.is_wanted(&output(Command::new(&program).arg("--version")).unwrap_or_default()) {
            return Ok(program);
        }
        announce(&format!("{name} {version} (cargo builds it once; a few minutes)"));
        let build = workspace.tools().join(format!("{name}-build"));
        let mut cargo = workspace.cargo();
        cargo
            .args(["install", name, "--version", version, "--profile", "dev", "--locked", "--force", "--root"])
            .arg(workspace.tools())
            .arg("--target-dir")
            .arg(&build);
        run(&mut cargo)
            .with_context(|| format!("{name} cannot be built; it needs gcc and access to the crate registry"))?;
        // Kept until here, so that an interrupted build can be resumed.
        fs::remove_dir_all(&build).with_context(|| format!("cannot remove {}", build.display()))?;
        Ok(program)
    }

    fn is_wanted(&self, version: &str) -> bool {
        version.split_whitespace().any(|word| word == self.version)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn another_version_is_replaced() {
        let program = CrateProgram { name: "bpf-linker", version: "0.10.3" };
        assert!(program.is_wanted("bpf-linker 0.10.3\n"));
        assert!(!program.is_wanted("bpf-linker 0.10.30\n"));
        assert!(!program.is_wanted(""));
    }
}
