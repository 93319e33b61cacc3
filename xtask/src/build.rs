//! `cargo xtask build`: the eBPF object, then the programs with the object in the daemon.
//!
//! The two have target directories of their own: RUSTC_BOOTSTRAP, which the object needs for build-std, makes build
//! scripts run again, so sharing one would rebuild nearly everything each time. The programs are built for a named
//! target for the same reason: a plain `cargo test`, which has no object, leaves them alone.
//!
//! What is optimised is the same in every checkout, byte for byte: [`remapped`] replaces the paths in it.

use std::ffi::OsStr;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::{env, fs};

use anyhow::{Context, Result, ensure};

use crate::command::{self, as_root, output};
use crate::frames;
use crate::setup::{self, Purpose, rust_src};
use crate::strip;
use crate::workspace::Workspace;

const OBJECT_TARGET: &str = "bpfel-unknown-none";

/// The programs that ship. Cargo gives dependencies the features that the packages of one call want together, so these
/// are never built in one call with others: the harness must not change them.
const SHIPPED: [&str; 2] = ["--package=podnet", "--package=podnet-cni"];

/// The lab's program, and the benchmarks beside it, without what their package needs for other purposes.
const LAB: [&str; 3] = ["--package=podnet-tests", "--no-default-features", "--bin=podnet-lab"];
const BENCH: [&str; 4] = ["--package=podnet-tests", "--no-default-features", "--features=bench", "--bins"];

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
    let built = build(workspace, &LAB, release)?;
    println!("eBPF object: {}\nprograms:    {}", built.object.display(), built.programs.display());
    Ok(())
}

/// The release build, for the commands that use the lab.
pub(crate) fn release(workspace: &Workspace) -> Result<Built> {
    build(workspace, &LAB, true)
}

/// The release build with the benchmarks.
pub(crate) fn with_benchmarks(workspace: &Workspace) -> Result<Built> {
    build(workspace, &BENCH, true)
}

/// The daemon as a later version could be, whose tables have other layouts: tests upgrade to it and roll back from it.
/// It is put beside the programs of the release build, which has to be made after it, since both leave their daemon in
/// the same place.
pub(crate) fn later(workspace: &Workspace) -> Result<()> {
    let object = build_object(workspace, "later", &["--features=later-layouts"])?;
    // Compiled quickly: the optimised daemon is the one beside it.
    let quickly = ["--config", "profile.release.package.podnet.opt-level=0"];
    let arguments = [&SHIPPED[..], &["--bin=podnet", "--features=podnet/later-layouts"], &quickly].concat();
    let programs = build_programs(workspace, &object, &arguments, true)?;
    let later = programs.join("later");
    fs::create_dir_all(&later)?;
    fs::copy(programs.join("podnet"), later.join("podnet")).context("cannot copy the daemon with later layouts")?;
    Ok(())
}

/// The programs that ship, from the release build, for the image.
pub(crate) fn shipped(workspace: &Workspace) -> Result<Built> {
    build_shipped(workspace, true)
}

fn build(workspace: &Workspace, harness: &[&str], release: bool) -> Result<Built> {
    let built = build_shipped(workspace, release)?;
    build_programs(workspace, &built.object, harness, release)?;
    Ok(built)
}

fn build_shipped(workspace: &Workspace, release: bool) -> Result<Built> {
    let object = build_object(workspace, "release", &[])?;
    let programs = build_programs(workspace, &object, &[&SHIPPED[..], &["--bins"]].concat(), release)?;
    Ok(Built { object, programs })
}

/// Builds programs with the object and returns where they are.
fn build_programs(workspace: &Workspace, object: &Path, arguments: &[&str], release: bool) -> Result<PathBuf> {
    let target = host_target()?;
    let users = env::var("RUSTFLAGS").ok();
    // Not for a debugger, which looks for the sources at the paths in the program.
    let reproducible = if release { reproducible(workspace)? } else { Vec::new() };
    let mut cargo = workspace.cargo();
    cargo
        .args(["build", "--target", &target])
        .args(arguments)
        .args(release.then_some("--release"))
        .env("CARGO_ENCODED_RUSTFLAGS", static_flags(users.as_deref(), &reproducible))
        .env("PODNET_EBPF_OBJECT", object);
    command::run(&mut cargo)?;
    Ok(workspace.target.join(target).join(if release { "release" } else { "debug" }))
}

/// The user's flags, those for programs that run anywhere, without a libc of the machine's, and further ones.
/// Set as CARGO_ENCODED_RUSTFLAGS, which no other setting overrides.
fn static_flags(users: Option<&str>, further: &[String]) -> String {
    let users = users.unwrap_or_default().split_whitespace();
    let further = further.iter().map(String::as_str);
    users.chain(["-Ctarget-feature=+crt-static"]).chain(further).collect::<Vec<_>>().join("\x1f")
}

/// Flags by which a program doesn't depend on where it was built. The debug information of assembler code in crates
/// names cargo's registry, and no flag replaces that, so it is left out.
fn reproducible(workspace: &Workspace) -> Result<Vec<String>> {
    Ok([remapped(workspace)?, vec!["-Cstrip=debuginfo".to_owned()]].concat())
}

/// Flags that replace the directories of the sources in panic messages and debug information.
fn remapped(workspace: &Workspace) -> Result<Vec<String>> {
    let home = env::var_os("CARGO_HOME").map(PathBuf::from).or_else(|| Some(env::home_dir()?.join(".cargo")));
    let registry = home.context("neither CARGO_HOME nor HOME is set")?.join("registry/src");
    let [in_toolchain, unpacked] = rust_src::libraries(workspace)?;
    // The compiler takes the last one that fits: the target directory and what is in it may be in the workspace's.
    let directories = [
        (&workspace.root, "podnet"),
        (&workspace.target, "target"),
        (&registry, "registry"),
        (&in_toolchain, "library"),
        (&unpacked, "library"),
    ];
    let flag = |(from, to): (&PathBuf, _)| {
        Ok(format!("--remap-path-prefix={}={to}", from.to_str().context("a path is not UTF-8")?))
    };
    directories.into_iter().map(flag).collect()
}

/// Builds the object, and returns its path: in a directory of this name, beside the yardstick.
fn build_object(workspace: &Workspace, name: &str, arguments: &[&str]) -> Result<PathBuf> {
    command::run(cargo_for_object(workspace, "build")?.args(arguments).env("PATH", tools_first(workspace)?))?;
    let built = workspace.target.join("ebpf").join(OBJECT_TARGET).join("release");
    let object = built.join("podnet-ebpf");
    ensure!(fs::exists(&object)?, "cargo built no {}", object.display());
    println!("deepest stack: {}", frames::check(&object)?);
    let stripped = workspace.target.join("objects").join(name);
    fs::create_dir_all(&stripped)?;
    for name in ["podnet-ebpf", "yardstick"] {
        strip::strip(&built.join(name), &stripped.join(name))?;
    }
    Ok(stripped.join("podnet-ebpf"))
}

/// A call of cargo for the eBPF crate, without the linker.
pub(crate) fn cargo_for_object(workspace: &Workspace, subcommand: &str) -> Result<Command> {
    let mut cargo = workspace.cargo();
    cargo
        .args([subcommand, "--package=podnet-ebpf", "--release", "-Zbuild-std=core", "--target", OBJECT_TARGET])
        .arg("--target-dir")
        .arg(workspace.target.join("ebpf"))
        .env("RUSTC_BOOTSTRAP", "1")
        .env("CARGO_ENCODED_RUSTFLAGS", object_flags(env::consts::ARCH, &remapped(workspace)?));
    if let Some(source) = rust_src::unpacked(workspace)? {
        cargo.env("__CARGO_TESTS_ONLY_SRC_ROOT", source);
    }
    Ok(cargo)
}

/// Debug information and BTF, and the machine's architecture, which aya-ebpf's register layouts depend on.
///
/// The last two flags avoid calls, which cost 32 bytes of stack each (see [`frames`]). Without them, LLVM calls a
/// function for every `memset` and `memmove`, be it of three bytes, and for closures whose cost is near its threshold
/// (225): which of them even depends on the directory of the sources, by which it orders functions.
fn object_flags(arch: &str, further: &[String]) -> String {
    let arch = format!("--cfg=bpf_target_arch=\"{arch}\"");
    let flags = [
        &arch,
        "-Cdebuginfo=2",
        "-Clink-arg=--btf",
        "-Clink-arg=--disable-expand-memcpy-in-order",
        "-Clink-arg=--llvm-args=-inline-threshold=500",
    ];
    flags.into_iter().chain(further.iter().map(String::as_str)).collect::<Vec<_>>().join("\x1f")
}

/// The search path, the project's own bpf-linker first.
fn tools_first(workspace: &Workspace) -> Result<std::ffi::OsString> {
    let path = env::var_os("PATH").unwrap_or_default();
    let directories = [workspace.tools().join("bin")].into_iter().chain(env::split_paths(&path));
    env::join_paths(directories).context("the project's path cannot be on PATH")
}

/// The target that this compiler builds for by default.
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
        assert_eq!(static_flags(None, &[]), "-Ctarget-feature=+crt-static");
        assert_eq!(
            static_flags(Some(" -Dwarnings  -g"), &["-Copt-level=1".to_owned()]),
            "-Dwarnings\x1f-g\x1f-Ctarget-feature=+crt-static\x1f-Copt-level=1"
        );
    }

    #[test]
    fn every_directory_of_sources_is_replaced() {
        let workspace = Workspace::find().unwrap();
        let flags = remapped(&workspace).unwrap();
        let shown = |path: &str| {
            let found = flags.iter().rev().find_map(|flag| {
                let (from, to) = flag.strip_prefix("--remap-path-prefix=")?.rsplit_once('=')?;
                Some(format!("{to}{}", path.strip_prefix(from)?))
            });
            found.unwrap_or_else(|| path.to_owned())
        };
        let main = workspace.root.join("podnet/src/main.rs");
        assert_eq!(shown(main.to_str().unwrap()), "podnet/podnet/src/main.rs");
        let generated = workspace.target.join("release/build/out/object.rs");
        assert_eq!(shown(generated.to_str().unwrap()), "target/release/build/out/object.rs");
        for library in rust_src::libraries(&workspace).unwrap() {
            assert_eq!(shown(library.join("core/src/lib.rs").to_str().unwrap()), "library/core/src/lib.rs");
        }
        assert!(flags.iter().any(|flag| flag.ends_with("/registry/src=registry")), "{flags:?}");
    }
}
