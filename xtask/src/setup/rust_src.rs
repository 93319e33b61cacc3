//! Source of `core`, which must be compiled for the eBPF target.
//!
//! It is the toolchain's component rust-src. If rustup cannot download that, Debian's package of the same release is
//! unpacked under `target/tools`, from the system's mirror; the system does not change.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, anyhow, ensure};

use super::apt::{self, Apt, DebianArchive, Source};
use super::tell::announce;
use crate::command::{output, run};
use crate::workspace::Workspace;

/// Debian's package with the source of the pinned compiler's release.
const PACKAGE: &str = "rust-src=1.95.0+dfsg1-2~bpo13+1";
const SUITE: &str = "trixie-backports";
/// The part of the package that is used: a sixth of it.
const LIBRARY: &str = "usr/src/rustc-1.95.0/library";

/// Path of the library source for cargo, after set-up, unless the toolchain has its own.
pub(crate) fn unpacked(workspace: &Workspace) -> Result<Option<PathBuf>> {
    if toolchain_has_it()? {
        return Ok(None);
    }
    Ok(Some(unpacked_at(workspace)))
}

/// Where the library source may be: the toolchain's, and the package's.
pub(crate) fn libraries(workspace: &Workspace) -> Result<[PathBuf; 2]> {
    Ok([in_toolchain()?, unpacked_at(workspace)])
}

pub(crate) fn ensure(workspace: &Workspace) -> Result<()> {
    if toolchain_has_it()? || has_core(&unpacked_at(workspace)) {
        return Ok(());
    }
    announce("rustup component add rust-src");
    let Err(by_rustup) = run(Command::new("rustup").args(["component", "add", "rust-src"])) else {
        return Ok(());
    };
    announce(&format!("rustup could not add it; using Debian's package {PACKAGE} instead"));
    unpack_package(workspace).map_err(|by_package| {
        anyhow!(
            "the compiler's library source is missing, and both ways to install it failed.\n  \
             rustup: {by_rustup:#}\n  Debian: {by_package:#}\n\
             Run `rustup component add rust-src` where the network allows it, then this command again."
        )
    })
}

fn toolchain_has_it() -> Result<bool> {
    Ok(has_core(&in_toolchain()?))
}

fn in_toolchain() -> Result<PathBuf> {
    let sysroot = output(Command::new("rustc").args(["--print", "sysroot"]))?;
    Ok(Path::new(sysroot.trim_end()).join("lib/rustlib/src/rust/library"))
}

fn has_core(library: &Path) -> bool {
    library.join("core/Cargo.toml").exists()
}

fn unpacked_at(workspace: &Workspace) -> PathBuf {
    workspace.tools().join("rust-src").join(LIBRARY)
}

/// Downloads and unpacks the package with a separate apt configuration.
fn unpack_package(workspace: &Workspace) -> Result<()> {
    let directory = workspace.tools().join("apt");
    let mirror = apt::system_mirror(DebianArchive::Main)?.context("the package sources contain no Debian mirror")?;
    let apt = Apt::new(directory.clone(), &[Source::debian(mirror, SUITE)])?;
    apt.update()?;
    apt.unpack(&[PACKAGE], &directory)?;
    ensure!(has_core(&directory.join(LIBRARY)), "{PACKAGE} has no {LIBRARY}/core");
    // Renamed when complete, so that an interrupted run does not leave an incomplete directory.
    let library = unpacked_at(workspace);
    fs::create_dir_all(library.parent().context("the library is in a directory")?)
        .and_then(|()| fs::rename(directory.join(LIBRARY), &library))
        .with_context(|| format!("cannot create {}", library.display()))?;
    fs::remove_dir_all(&directory).with_context(|| format!("cannot remove {}", directory.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn package_matches_the_pinned_compiler() {
        let pinned = include_str!("../../../rust-toolchain.toml");
        let channel = pinned.lines().find_map(|line| line.strip_prefix("channel = ")).unwrap().trim_matches('"');
        assert!(PACKAGE.starts_with(&format!("rust-src={channel}+")), "{PACKAGE} is not for {channel}");
        assert!(LIBRARY.contains(&format!("rustc-{channel}/")), "{LIBRARY} is not for {channel}");
    }
}
