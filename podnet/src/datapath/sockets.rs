//! Socket hooks, attached to a cgroup by pinned links. A new daemon puts its programs into the existing links
//! (`BPF_LINK_UPDATE`), so every connection in between is translated.

use std::{
    fs::{self, File},
    io,
    os::unix::fs::MetadataExt as _,
    path::{Path, PathBuf},
};

use aya::{
    Ebpf,
    programs::{
        CgroupAttachMode, CgroupSockAddr, ProgramError,
        links::{FdLink, LinkError},
    },
};
use podnet_cni::{
    datapath::{PinDir, open_pin},
    text::refusal,
};
use podnet_common::layout::SOCKET_ORIGIN;
use thiserror::Error;

use super::{
    cgroup::{self, CgroupError},
    kernel, link,
    load_error::LoadError,
    origins::Origins,
};

/// Names of the programs in the object.
const PROGRAMS: [&str; 8] =
    ["connect4", "connect6", "sendmsg4", "sendmsg6", "recvmsg4", "recvmsg6", "getpeername4", "getpeername6"];

/// Errors of the socket hooks.
#[derive(Debug, Error)]
pub enum SocketError {
    /// There is no cgroup to attach to.
    #[error(transparent)]
    Cgroup(#[from] CgroupError),
    /// A program can't be loaded or attached.
    #[error(
        "cannot load or attach {name}: {reason}. Services are translated per packet instead; set `socketLB: off` to \
         run without these programs"
    )]
    Program {
        /// The program.
        name: &'static str,
        /// The cause in a line: see `kernel::refusal`.
        reason: String,
    },
    /// The origin of the programs can't be determined.
    #[error(transparent)]
    Origin(#[from] LoadError),
    /// A link can't be pinned, opened or changed.
    #[error("cannot pin the link of {name} at {path}: {}", refusal(.source.as_ref()))]
    Link {
        /// The program.
        name: &'static str,
        /// The pin.
        path: PathBuf,
        /// The cause.
        source: Box<dyn std::error::Error + Send + Sync>,
    },
}

fn pin(pins: &PinDir, name: &str) -> PathBuf {
    pins.links().join(format!("sock_{name}"))
}

/// Attaches the socket hooks to a cgroup, or replaces the programs of an earlier daemon.
pub(super) fn attach(ebpf: &mut Ebpf, pins: &PinDir, cgroup: &Path, origins: &mut Origins) -> Result<(), SocketError> {
    let directory = cgroup::open(cgroup)?;
    // The id of a cgroup is the inode number of its directory.
    let id = directory.metadata().map_err(|source| CgroupError::Open { path: cgroup.to_owned(), source })?.ino();
    if let Some(ids) = programs(pins, id)
        && origins.is_ours(SOCKET_ORIGIN, &ids)?
    {
        return Ok(());
    }
    origins.note_after(SOCKET_ORIGIN, || {
        PROGRAMS.into_iter().try_for_each(|name| attach_one(ebpf, pins, name, &directory, id))?;
        // If a link is missing by then, the next check finds ids that differ.
        Ok(programs(pins, id).unwrap_or_default())
    })
}

/// Ids of the programs attached to a cgroup, if all are attached.
fn programs(pins: &PinDir, cgroup: u64) -> Option<Vec<u32>> {
    let id = |name| match link::cgroup(&open_pin(&pin(pins, name)).ok()?) {
        Ok((of, program)) if of == cgroup => Some(program),
        _ => None,
    };
    PROGRAMS.into_iter().map(id).collect()
}

/// Ids of the programs in the pinned links, at any cgroup.
pub(super) fn program_ids(pins: &PinDir) -> Vec<u32> {
    let id = |name| Some(link::cgroup(&open_pin(&pin(pins, name)).ok()?).ok()?.1);
    PROGRAMS.into_iter().filter_map(id).collect()
}

fn attach_one(
    ebpf: &mut Ebpf,
    pins: &PinDir,
    name: &'static str,
    cgroup: &File,
    cgroup_id: u64,
) -> Result<(), SocketError> {
    let failed = |source: ProgramError| SocketError::Program { name, reason: kernel::refusal(&source) };
    let path = pin(pins, name);
    let unkept =
        |source: Box<dyn std::error::Error + Send + Sync>| SocketError::Link { name, path: path.clone(), source };
    let program: &mut CgroupSockAddr =
        ebpf.program_mut(name).ok_or(ProgramError::NotLoaded).map_err(failed)?.try_into().map_err(failed)?;
    // A daemon may attach hooks more than once, but loads each program once.
    if program.fd().is_err() {
        program.load().map_err(failed)?;
    }
    if path.exists() {
        let link = open_pin(&path).map_err(|e| unkept(Box::new(e)))?;
        if link::cgroup(&link).is_ok_and(|(id, _)| id == cgroup_id) {
            return link::update(&link, program.fd().map_err(failed)?).map_err(|e| unkept(Box::new(e)));
        }
        // The configuration names another cgroup. Removing the pin detaches the old link.
        fs::remove_file(&path).map_err(|e| unkept(Box::new(e)))?;
    }
    let id = program.attach(cgroup, CgroupAttachMode::Single).map_err(failed)?;
    let link = program.take_link(id).map_err(failed)?;
    let link: FdLink = link.try_into().map_err(|e: LinkError| unkept(Box::new(e)))?;
    link.pin(&path).map_err(|e| unkept(Box::new(e)))?;
    Ok(())
}

/// Detaches the socket hooks, if there are any.
pub fn detach(pins: &PinDir) -> io::Result<()> {
    for name in PROGRAMS {
        match fs::remove_file(pin(pins, name)) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
    }
    Ok(())
}

/// Whether the hooks are attached.
pub fn attached(pins: &PinDir) -> bool {
    PROGRAMS.iter().all(|name| pin(pins, name).exists())
}
