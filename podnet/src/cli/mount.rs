//! `podnet mount-bpffs`: mounts a BPF file system where there is none, as on nodes that are containers.

use std::fs;
use std::path::Path;

use anyhow::{Context as _, Result};
use nix::mount::{MsFlags, mount};
use nix::sys::statfs::{BPF_FS_MAGIC, statfs};

/// Mounts a BPF file system at a directory, unless there is one already. Returns whether it has mounted one.
pub(super) fn run(directory: &Path) -> Result<bool> {
    let shown = directory.display();
    fs::create_dir_all(directory).with_context(|| format!("cannot create {shown}"))?;
    let there = statfs(directory).with_context(|| format!("cannot access {shown}"))?;
    if there.filesystem_type() == BPF_FS_MAGIC {
        return Ok(false);
    }
    let flags = MsFlags::MS_NOSUID | MsFlags::MS_NODEV | MsFlags::MS_NOEXEC;
    mount(Some("bpf"), directory, Some("bpf"), flags, Some("mode=0700")).with_context(|| {
        format!("cannot mount a BPF file system at {shown}: run this as root; a container must be privileged")
    })?;
    Ok(true)
}
