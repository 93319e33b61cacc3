//! `cargo xtask build`: the eBPF object, then the programs with the object in the daemon.
//!
//! The two have target directories of their own: RUSTC_BOOTSTRAP, which the object needs for build-std, makes build
//! scripts run again, so sharing one would rebuild nearly everything each time. The programs are built for a named
//! target for the same reason: a plain `cargo test`, which has no object, leaves them alone.

use std::ffi::OsStr;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::{env, fs};

use anyhow::{Context, Result, ensure};

use crate::command::{self, as_root, output};
use crate::frames;
use crate::setup::{self, Purpose, rust_src};
use crate::workspace::Workspace;

const OBJECT_TARGET: &str = "bpfel-unknown-none";

/// What was built.
pub(crate) struct Built {
    pub(crate) object: PathBuf,
    /// The directory of the programs.
    pub(crate) programs: PathBuf,
}

impl Built {
    /// A call of one of the programs as root; it finds the others and the object by its environment.
    pub(crate) fn as_root(&self, program: &str) -> Result<Command> {
        as_root(self.programs.join(program), self.environment())
    }

    /// What the lab, the tests and the benchmarks want to know.
    pub(crate) fn environment(&self) -> [(&'static str, &OsStr); 2] {
        [("PODNET_BIN_DIR", self.programs.as_os_str()), ("PODNET_EBPF_OBJECT", self.object.as_os_str())]
    }
}

pub(crate) fn run(workspace: &Workspace, release: bool) -> Result<()> {
    setup::ensure(workspace, Purpose::Build)?;
    let built = build(workspace, release)?;
    println!("eBPF object: {}\nprograms:    {}", built.object.display(), built.programs.display());
    Ok(())
}

/// The release build, for the commands that start one of its programs.
pub(crate) fn release(workspace: &Workspace) -> Result<Built> {
    build(workspace, true)
}

/// The daemon as a later version could be, whose tables have other layouts: tests upgrade to it and roll back from it.
/// It is put beside the programs of the release build, which has to be made after it, since both leave their daemon in
/// the same place.
pub(crate) fn later(workspace: &Workspace) -> Result<()> {
    let object = build_object(workspace, &["--features=later-layouts"])?;
    let packages = ["podnet", "podnet-cni", "podnet-tests"];
    let arguments = ["--bin=podnet", "--features=podnet/later-layouts"];
    let programs = build_programs(workspace, &object, &packages, &arguments, &workspace.target, true)?;
    let later = programs.join("later");
    fs::create_dir_all(&later)?;
    fs::copy(programs.join("podnet"), later.join("podnet")).context("cannot copy the daemon with later layouts")?;
    Ok(())
}

/// The directory of the optimised programs for the image. They have a target directory of their own: with the tests
/// beside them, cargo builds what all depend on with more features, and each build would undo the other's.
pub(crate) fn image_programs(workspace: &Workspace) -> Result<PathBuf> {
    let object = build_object(workspace, &[])?;
    let directory = workspace.target.join("image/build");
    build_programs(workspace, &object, &["podnet", "podnet-cni"], &["--bins"], &directory, true)
}

fn build(workspace: &Workspace, release: bool) -> Result<Built> {
    let object = build_object(workspace, &[])?;
    let packages = ["podnet", "podnet-cni", "podnet-tests"];
    let programs = build_programs(workspace, &object, &packages, &["--bins"], &workspace.target, release)?;
    Ok(Built { object, programs })
}

/// Builds the packages' programs below a target directory and returns where they are.
fn build_programs(
    workspace: &Workspace,
    object: &Path,
    packages: &[&str],
    arguments: &[&str],
    directory: &Path,
    release: bool,
) -> Result<PathBuf> {
    let target = host_target()?;
    let mut cargo = workspace.cargo();
    cargo
        .args(["build", "--target", &target])
        .args(arguments)
        .args(packages.iter().map(|package| format!("--package={package}")))
        .args(release.then_some("--release"))
        .arg("--target-dir")
        .arg(directory)
        .env("CARGO_ENCODED_RUSTFLAGS", static_flags(env::var("RUSTFLAGS").ok().as_deref()))
        .env("PODNET_EBPF_OBJECT", object);
    command::run(&mut cargo)?;
    Ok(directory.join(target).join(if release { "release" } else { "debug" }))
}

/// The user's flags and those for programs that run anywhere, without a libc of the machine's.
/// Set as CARGO_ENCODED_RUSTFLAGS, which no other setting overrides.
fn static_flags(users: Option<&str>) -> String {
    let mut flags: Vec<_> = users.unwrap_or_default().split_whitespace().collect();
    flags.push("-Ctarget-feature=+crt-static");
    flags.join("\x1f")
}

fn build_object(workspace: &Workspace, arguments: &[&str]) -> Result<PathBuf> {
    let directory = workspace.target.join("ebpf");
    let mut cargo = workspace.cargo();
    cargo
        .args(["build", "--package=podnet-ebpf", "--release", "-Zbuild-std=core", "--target", OBJECT_TARGET])
        .args(arguments)
        .arg("--target-dir")
        .arg(&directory)
        .env("RUSTC_BOOTSTRAP", "1")
        .env("CARGO_ENCODED_RUSTFLAGS", object_flags(env::consts::ARCH))
        .env("PATH", tools_first(workspace)?);
    if let Some(source) = rust_src::unpacked(workspace)? {
        cargo.env("__CARGO_TESTS_ONLY_SRC_ROOT", source);
    }
    command::run(&mut cargo)?;
    let object = directory.join(OBJECT_TARGET).join("release/podnet-ebpf");
    ensure!(fs::exists(&object)?, "cargo built no {}", object.display());
    println!("deepest stack: {}", frames::check(&object)?);
    Ok(object)
}

/// Debug information and BTF, and the machine's architecture, which aya-ebpf's register layouts depend on.
///
/// Without the last flag LLVM makes a call of every `memset` and `memmove`, be it of three bytes, and a call costs 32
/// bytes of stack (see [`frames`]).
fn object_flags(arch: &str) -> String {
    let arch = format!("--cfg=bpf_target_arch=\"{arch}\"");
    [&arch, "-Cdebuginfo=2", "-Clink-arg=--btf", "-Clink-arg=--disable-expand-memcpy-in-order"].join("\x1f")
}

/// The search path, the project's own bpf-linker first.
fn tools_first(workspace: &Workspace) -> Result<std::ffi::OsString> {
    let path = env::var_os("PATH").unwrap_or_default();
    let directories = [workspace.tools().join("bin")].into_iter().chain(env::split_paths(&path));
    env::join_paths(directories).context("the project's path cannot be on PATH")
}

/// The target that this compiler builds for by itself.
fn host_target() -> Result<String> {
    let version = output(Command::new("rustc").arg("-vV"))?;
    let host = version.lines().find_map(|line| line.strip_prefix("host: "));
    Ok(host.context("`rustc -vV` names no host")?.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_users_flags_stay_beside_the_static_ones() {
        assert_eq!(static_flags(None), "-Ctarget-feature=+crt-static");
        assert_eq!(static_flags(Some(" -Dwarnings  -g")), "-Dwarnings\x1f-g\x1f-Ctarget-feature=+crt-static");
    }
}
