//! The workspace in cargo's view: its root, its target directory and its packages.

use std::env;
use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result};
use serde_json::Value;

use crate::command::output;

/// Parts of the output of `cargo metadata`.
pub(crate) struct Workspace {
    pub(crate) root: PathBuf,
    /// The target directory from cargo's configuration.
    pub(crate) target: PathBuf,
    pub(crate) packages: Vec<Package>,
}

/// A member of the workspace.
pub(crate) struct Package {
    pub(crate) name: String,
    /// Names of its dependencies, of every kind.
    pub(crate) dependencies: Vec<String>,
    /// Directory of its manifest, relative to the workspace's root.
    pub(crate) directory: PathBuf,
}

impl Workspace {
    /// The workspace in which this program was built.
    pub(crate) fn find() -> Result<Self> {
        let here = Path::new(env!("CARGO_MANIFEST_DIR"));
        let metadata = output(cargo(here).args(["metadata", "--no-deps", "--format-version=1"]))?;
        Self::parse(&metadata).context("unexpected output of `cargo metadata`")
    }

    fn parse(metadata: &str) -> Result<Self> {
        let metadata: Value = serde_json::from_str(metadata)?;
        let root = PathBuf::from(text(&metadata["workspace_root"])?);
        let packages = list(&metadata["packages"])?
            .iter()
            .map(|package| {
                let manifest = Path::new(text(&package["manifest_path"])?);
                let directory = manifest.parent().and_then(|directory| directory.strip_prefix(&root).ok());
                Ok(Package {
                    name: text(&package["name"])?.to_owned(),
                    dependencies: list(&package["dependencies"])?
                        .iter()
                        .map(|dependency| Ok(text(&dependency["name"])?.to_owned()))
                        .collect::<Result<_>>()?,
                    directory: directory.context("a package outside the workspace")?.to_owned(),
                })
            })
            .collect::<Result<_>>()?;
        Ok(Self { target: text(&metadata["target_directory"])?.into(), root, packages })
    }

    /// A cargo command in the workspace's root.
    pub(crate) fn cargo(&self) -> Command {
        cargo(&self.root)
    }

    /// Directory of tools installed for this project only.
    pub(crate) fn tools(&self) -> PathBuf {
        self.target.join("tools")
    }
}

/// A cargo command without the variables that cargo set for this program; they would make build scripts run again.
fn cargo(directory: &Path) -> Command {
    let mut command = Command::new(env::var_os("CARGO").unwrap_or_else(|| OsString::from("cargo")));
    command.current_dir(directory);
    for (name, _) in env::vars_os() {
        let name_text = name.to_string_lossy();
        if name_text.starts_with("CARGO_PKG_") || name_text.starts_with("CARGO_MANIFEST_") {
            command.env_remove(&name);
        }
    }
    command
}

fn text(value: &Value) -> Result<&str> {
    value.as_str().context("a text is missing")
}

fn list(value: &Value) -> Result<&Vec<Value>> {
    value.as_array().context("a list is missing")
}
