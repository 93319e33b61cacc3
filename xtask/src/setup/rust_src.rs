//! The source of `core`, which has to be compiled for the eBPF target.
//!
//! It is the toolchain's component rust-src. Where rustup cannot fetch that, Debian's package of the same release is
//! unpacked under `target/tools`, from the mirror that the system uses; nothing of the system changes.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, anyhow, ensure};

use super::announce;
use crate::command::{find, output, run};
use crate::workspace::Workspace;

/// Debian's package with the source of the pinned compiler's release.
const PACKAGE: &str = "rust-src=1.95.0+dfsg1-2~bpo13+1";
const SUITE: &str = "trixie-backports";
/// What is wanted of it: one part in six.
const LIBRARY: &str = "usr/src/rustc-1.95.0/library";
const KEYRING: &str = "/usr/share/keyrings/debian-archive-keyring.gpg";

/// The library source that cargo has to be pointed at, once set-up is done, where the toolchain has none of its own.
pub(crate) fn unpacked(workspace: &Workspace) -> Result<Option<PathBuf>> {
    if toolchain_has_it()? {
        return Ok(None);
    }
    Ok(Some(unpacked_at(workspace)))
}

pub(super) fn ensure(workspace: &Workspace) -> Result<()> {
    if toolchain_has_it()? || has_core(&unpacked_at(workspace)) {
        return Ok(());
    }
    announce("rustup component add rust-src");
    let Err(by_rustup) = run(Command::new("rustup").args(["component", "add", "rust-src"])) else {
        return Ok(());
    };
    announce(&format!("rustup could not add it; Debian's package {PACKAGE} instead"));
    unpack_package(workspace).map_err(|by_package| {
        anyhow!(
            "the compiler's library source is missing, and neither way to it worked.\n  \
             rustup: {by_rustup:#}\n  Debian: {by_package:#}\n\
             Run `rustup component add rust-src` where the network allows it, then this command again."
        )
    })
}

fn toolchain_has_it() -> Result<bool> {
    let sysroot = output(Command::new("rustc").args(["--print", "sysroot"]))?;
    Ok(has_core(&Path::new(sysroot.trim_end()).join("lib/rustlib/src/rust/library")))
}

fn has_core(library: &Path) -> bool {
    library.join("core/Cargo.toml").exists()
}

fn unpacked_at(workspace: &Workspace) -> PathBuf {
    workspace.tools().join("rust-src").join(LIBRARY)
}

/// Downloads and unpacks the package with an apt configuration of its own.
fn unpack_package(workspace: &Workspace) -> Result<()> {
    ensure!(find("apt-get").is_some() && find("dpkg").is_some(), "this is no Debian system");
    let targets = output(Command::new("apt-get").args(["indextargets", "--format=$(LABEL) $(REPO_URI)"]))?;
    let mirror = debian_mirror(&targets).context("the package sources name no mirror of Debian")?;
    let apt = workspace.tools().join("apt");
    for directory in ["lists/partial", "cache/archives/partial"] {
        fs::create_dir_all(apt.join(directory)).with_context(|| format!("cannot make {}", apt.display()))?;
    }
    let sources = apt.join("sources.list");
    let signed_by = if Path::new(KEYRING).exists() { format!("[signed-by={KEYRING}] ") } else { String::new() };
    fs::write(&sources, format!("deb {signed_by}{mirror} {SUITE} main\n"))
        .with_context(|| format!("cannot write {}", sources.display()))?;
    run(apt_get(&apt).args(["update"]))?;
    run(apt_get(&apt).args(["download", PACKAGE]))?;
    let package = fs::read_dir(&apt)?
        .filter_map(|entry| Some(entry.ok()?.path()))
        .find(|path| path.extension().is_some_and(|extension| extension == "deb"))
        .context("apt-get downloaded no package")?;
    run(Command::new("dpkg").arg("-x").arg(&package).arg(&apt))?;
    ensure!(has_core(&apt.join(LIBRARY)), "{PACKAGE} has no {LIBRARY}/core");
    // Moved when it is complete, so that an interrupted run leaves nothing that looks so.
    let library = unpacked_at(workspace);
    fs::create_dir_all(library.parent().context("the library is in a directory")?)
        .and_then(|()| fs::rename(apt.join(LIBRARY), &library))
        .with_context(|| format!("cannot make {}", library.display()))?;
    fs::remove_dir_all(&apt).with_context(|| format!("cannot remove {}", apt.display()))
}

/// apt-get that knows only the lists and sources in `directory` and downloads to it, as any user.
fn apt_get(directory: &Path) -> Command {
    let mut command = Command::new("apt-get");
    command.current_dir(directory).arg("-oAPT::Sandbox::User=");
    for (option, path) in [
        ("Dir::Etc::SourceList", "sources.list"),
        ("Dir::Etc::SourceParts", "no-such-directory"),
        ("Dir::State::Lists", "lists"),
        ("Dir::Cache", "cache"),
    ] {
        command.arg(format!("-o{option}={}", directory.join(path).display()));
    }
    command
}

/// The first of the system's package sources that is a mirror of Debian's main archive. Sources are known by their label,
/// or by their address as long as no list was ever downloaded.
fn debian_mirror(targets: &str) -> Option<&str> {
    let targets = || targets.lines().filter_map(|line| line.rsplit_once(' '));
    let labelled = targets().find(|(label, _)| *label == "Debian");
    let (_, uri) = labelled.or_else(|| targets().find(|(_, uri)| uri.trim_end_matches('/').ends_with("/debian")))?;
    Some(uri)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_mirror_is_debians_main_archive() {
        let labelled = "Debian-Security http://a.example/debian-security/\n\
                        Docker CE http://b.example/linux/debian/\n\
                        Debian http://c.example/debian/\n";
        assert_eq!(debian_mirror(labelled), Some("http://c.example/debian/"));
        let never_updated = "$(LABEL) http://a.example/debian-security/\n$(LABEL) http://c.example/debian\n";
        assert_eq!(debian_mirror(never_updated), Some("http://c.example/debian"));
        assert_eq!(debian_mirror("Ubuntu http://c.example/ubuntu/\n"), None);
    }

    #[test]
    fn the_package_is_that_of_the_pinned_compiler() {
        let pinned = include_str!("../../../rust-toolchain.toml");
        let channel = pinned.lines().find_map(|line| line.strip_prefix("channel = ")).unwrap().trim_matches('"');
        assert!(PACKAGE.starts_with(&format!("rust-src={channel}+")), "{PACKAGE} is not for {channel}");
        assert!(LIBRARY.contains(&format!("rustc-{channel}/")), "{LIBRARY} is not for {channel}");
    }
}
