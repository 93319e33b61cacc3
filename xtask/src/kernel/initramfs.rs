//! The guest's file system: programs with their libraries, modules, and the script of init.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result};

use super::cpio::Archive;
use super::modules::Module;
use crate::command::{find, run};

/// The guest's first process.
const INIT: &str = include_str!("init.sh");
/// Programs of this machine that init and the tests use.
const PROGRAMS: [&str; 4] = ["sh", "busybox", "ip", "tc"];
/// busybox applets in the guest.
const APPLETS: [&str; 16] = [
    "cat", "grep", "hostname", "insmod", "ls", "mkdir", "mount", "poweroff", "rm", "sleep", "stty", "sync", "timeout",
    "true", "umount", "uname",
];

/// A file for the guest.
pub(super) struct File<'a> {
    /// Path in the guest.
    pub(super) path: String,
    /// Path on this machine.
    pub(super) file: &'a Path,
}

/// The part of the file system that is common to all kernels: programs, test programs, and the calls of init. Programs
/// are stripped in `scratch`.
pub(super) fn base(files: &[File<'_>], phases: &str, scratch: &Path) -> Result<Vec<u8>> {
    let mut archive = Archive::default();
    // In case the kernel opens its console before init has mounted /dev.
    archive.device("/dev/console", (5, 1));
    archive.file("/init", INIT.as_bytes());
    archive.file("/phases", phases.as_bytes());
    let mut libraries = BTreeSet::new();
    for name in PROGRAMS {
        let program = find(name).with_context(|| format!("there is no {name}"))?;
        libraries.extend(libraries_of(&program)?);
        archive.file(&format!("/bin/{name}"), &read(&program)?);
    }
    for name in APPLETS {
        archive.link(&format!("/bin/{name}"), "busybox");
    }
    for File { path, file } in files {
        libraries.extend(libraries_of(file)?);
        archive.file(path, &stripped(file, scratch)?);
    }
    for library in libraries {
        archive.file(&library.to_string_lossy(), &read(&library)?);
    }
    Ok(archive.finish())
}

/// The kernel's part, to be appended to the common one.
pub(super) fn of_kernel(modules: &[Module]) -> Vec<u8> {
    let mut archive = Archive::default();
    let order: String = modules.iter().map(|(name, _)| format!("{name}\n")).collect();
    archive.file("/modules/order", order.as_bytes());
    for (name, content) in modules {
        archive.file(&format!("/modules/{name}.ko"), content);
    }
    archive.finish()
}

fn read(path: &Path) -> Result<Vec<u8>> {
    fs::read(path).with_context(|| format!("cannot read {}", path.display()))
}

/// A program without its symbols, the largest part of it. The embedded eBPF object is not changed.
fn stripped(program: &Path, scratch: &Path) -> Result<Vec<u8>> {
    if program.extension().is_some_and(|extension| extension == "o") || program.ends_with("podnet-ebpf") {
        return read(program);
    }
    let copy = scratch.join("stripped");
    run(Command::new("strip").arg("-o").arg(&copy).arg(program))?;
    let content = read(&copy);
    fs::remove_file(&copy).with_context(|| format!("cannot remove {}", copy.display()))?;
    content
}

/// Shared libraries of a program, and its loader. Static programs have none.
fn libraries_of(program: &Path) -> Result<Vec<PathBuf>> {
    let known = Command::new("ldd").arg(program).output().context("cannot start ldd")?;
    // ldd fails for static programs, and for files that are not programs.
    Ok(if known.status.success() { libraries_in(&String::from_utf8_lossy(&known.stdout)) } else { Vec::new() })
}

/// Paths in the output of `ldd`: lines with `name => path (address)`, or `path (address)` for the loader.
fn libraries_in(text: &str) -> Vec<PathBuf> {
    let path = |line: &str| {
        let path = line.split_once(" => ").map_or(line, |(_, path)| path).trim().split(' ').next()?.to_owned();
        path.starts_with('/').then_some(path.into())
    };
    text.lines().filter_map(path).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn libraries_are_parsed_from_ldd() {
        let text = "\tlinux-vdso.so.1 (0x00007ffc)\n\
                    \tlibc.so.6 => /lib/x86_64-linux-gnu/libc.so.6 (0x00007f)\n\
                    \tlibnone.so => not found\n\
                    \t/lib64/ld-linux-x86-64.so.2 (0x00007f)\n";
        let expected = ["/lib/x86_64-linux-gnu/libc.so.6", "/lib64/ld-linux-x86-64.so.2"].map(PathBuf::from);
        assert_eq!(libraries_in(text), expected);
        assert!(libraries_in("\tstatically linked\n").is_empty());
    }

    #[test]
    fn programs_called_by_init_are_included() {
        for applet in ["insmod", "mount", "timeout", "poweroff", "stty", "sync", "hostname", "uname"] {
            assert!(INIT.contains(applet) && APPLETS.contains(&applet), "{applet}");
        }
    }
}
