//! The pinned datapath as the plugin uses it, and what the daemon shares with it: where things are pinned, how a
//! dispatcher is attached to a link, and the tables that the plugin writes.
//!
//! A dispatcher is attached without a link object, to pods' host ends as a clsact filter and to other links at TCX
//! (BPF_PROG_ATTACH; a clsact filter on kernels before 6.6): so it lives exactly as long as the device, and no process
//! and no pin has to keep it there.

pub mod clsact;
mod tables;

use std::io;
use std::os::fd::{AsRawFd as _, FromRawFd as _, OwnedFd};
use std::path::{Path, PathBuf};

use aya::maps::MapError;
use nix::sys::socket::{AddressFamily, SockFlag, SockType, socket};
use podnet_common::addr::IfIndex;
use podnet_common::layout::{
    FIRST_TABLES, FROZEN, Hook, LATER_TABLES, PIN_ROOT,
    tables::{Class, Table},
};
use thiserror::Error;

pub use tables::{Endpoints, Sandboxes};

/// Why the datapath could not be used.
#[derive(Debug, Error)]
pub enum DatapathError {
    /// Nothing is pinned there.
    #[error("{} is not pinned", path.display())]
    NotPinned {
        /// The pin.
        path: PathBuf,
    },
    /// A pin could not be opened.
    #[error("can't open {}: {source}", path.display())]
    Open {
        /// The pin.
        path: PathBuf,
        /// The cause.
        source: io::Error,
    },
    /// A program could not be attached or detached.
    #[error("can't {what} {} {} link {}: {source}", program.display(), direction.preposition(), ifindex.0)]
    Attach {
        /// Attach or detach.
        what: &'static str,
        /// The program's pin.
        program: PathBuf,
        /// The link.
        ifindex: IfIndex,
        /// Where on the link.
        direction: Direction,
        /// The cause.
        source: io::Error,
    },
    /// The kernel does not tell a namespace's cookie.
    #[error("can't read the cookie of the pod's network namespace, which needs Linux 5.14: {0}")]
    Cookie(#[source] io::Error),
    /// A table refused an operation.
    #[error("can't {what} in the table {table}: {source}")]
    Table {
        /// The operation.
        what: String,
        /// Which table.
        table: &'static str,
        /// The cause.
        source: MapError,
    },
}

/// What is pinned where: `<bpffs>/podnet`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PinDir {
    root: PathBuf,
}

impl PinDir {
    /// Of a bpffs mount.
    pub fn new(bpffs: &Path) -> Self {
        Self { root: bpffs.join(PIN_ROOT) }
    }

    /// The directory of all pins.
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// The directory of what never changes its layout.
    pub fn frozen(&self) -> PathBuf {
        self.root.join(FROZEN)
    }

    /// A hook's dispatcher.
    pub fn hook(&self, hook: Hook) -> PathBuf {
        self.frozen().join(hook.name())
    }

    /// The directories of all other tables: those of first versions, and those of later ones.
    pub fn tables(&self) -> [PathBuf; 2] {
        [self.root.join(FIRST_TABLES), self.root.join(LATER_TABLES)]
    }

    /// A table, with this version's layout.
    pub fn table(&self, table: impl Into<Table>) -> PathBuf {
        let table = table.into();
        let [first, later] = self.tables();
        match table.version() {
            _ if table.class() == Class::Frozen => self.frozen().join(table.name()),
            1 => first.join(table.name()),
            version => later.join(format!("{}_v{version}", table.name())),
        }
    }

    /// The versions of a table that are pinned.
    pub fn versions(&self, table: impl Into<Table>) -> Vec<(u32, PathBuf)> {
        let table = table.into();
        if table.class() == Class::Frozen {
            return Vec::new();
        }
        let [first, later] = self.tables();
        let first = Some(first.join(table.name())).filter(|pin| pin.exists()).map(|pin| (1, pin));
        let of_table = |pin: &PathBuf| {
            let rest = pin.file_name()?.to_str()?.strip_prefix(table.name())?;
            rest.strip_prefix("_v")?.parse().ok()
        };
        let later = std::fs::read_dir(later).into_iter().flatten().flatten().map(|entry| entry.path());
        first.into_iter().chain(later.filter_map(|pin| Some((of_table(&pin)?, pin)))).collect()
    }

    /// The directory of links that need a pin.
    pub fn links(&self) -> PathBuf {
        self.root.join("links")
    }
}

/// Plain data as aya wants it, whose trait can't be implemented for types of other crates.
#[repr(transparent)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Plain<T>(pub T);

// SAFETY: transparent over a type that is plain data without padding.
unsafe impl<T: bytemuck::Pod> aya::Pod for Plain<T> {}

/// Where on a link a program runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Direction {
    /// Packets that come in by the link.
    Ingress,
    /// Packets that go out by it.
    Egress,
}

impl Direction {
    fn preposition(self) -> &'static str {
        match self {
            Self::Ingress => "to the ingress of",
            Self::Egress => "to the egress of",
        }
    }

    /// `enum bpf_attach_type` of linux/bpf.h: BPF_TCX_INGRESS, BPF_TCX_EGRESS.
    fn tcx(self) -> u32 {
        match self {
            Self::Ingress => 46,
            Self::Egress => 47,
        }
    }
}

/// `struct` of `union bpf_attr` for BPF_PROG_ATTACH and BPF_PROG_DETACH.
#[repr(C)]
#[derive(Default)]
struct AttachAttr {
    target_ifindex: u32,
    attach_bpf_fd: u32,
    attach_type: u32,
    attach_flags: u32,
    replace_bpf_fd: u32,
    relative_fd: u32,
    expected_revision: u64,
}

/// `struct` of `union bpf_attr` for BPF_OBJ_GET.
#[repr(C)]
#[derive(Default)]
struct ObjectAttr {
    pathname: u64,
    bpf_fd: u32,
    file_flags: u32,
}

/// A command of bpf(2) (`enum bpf_cmd`) with its attributes, some of which the kernel writes.
///
/// # Safety
/// `attr` must be the command's part of `union bpf_attr`, and pointers in it valid for the call.
pub unsafe fn bpf<T>(command: libc::c_int, attr: &mut T) -> io::Result<libc::c_int> {
    // SAFETY: the pointer and the size are those of a live value; the rest is the caller's promise.
    let result = unsafe { libc::syscall(libc::SYS_bpf, command, std::ptr::from_mut(attr), size_of::<T>()) };
    match libc::c_int::try_from(result) {
        Ok(value) if value >= 0 => Ok(value),
        _ => Err(io::Error::last_os_error()),
    }
}

fn open_error(path: &Path, source: io::Error) -> DatapathError {
    let path = path.to_owned();
    match source.kind() {
        io::ErrorKind::NotFound => DatapathError::NotPinned { path },
        _ => DatapathError::Open { path, source },
    }
}

/// A pinned object (BPF_OBJ_GET).
pub fn open_pin(path: &Path) -> Result<OwnedFd, DatapathError> {
    use std::os::unix::ffi::OsStrExt as _;
    let text = std::ffi::CString::new(path.as_os_str().as_bytes()).map_err(|e| open_error(path, e.into()))?;
    let mut attr = ObjectAttr { pathname: text.as_ptr() as u64, ..ObjectAttr::default() };
    // SAFETY: BPF_OBJ_GET is 7; the path outlives the call.
    let fd = unsafe { bpf(7, &mut attr) }.map_err(|e| open_error(path, e))?;
    // SAFETY: the call has just returned this descriptor, and nobody else has it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// Attaches a pinned program to a link of the caller's namespace, as the last of those there. It stays until the link
/// goes. Nothing happens when it is there already.
pub fn attach_tc(program: &Path, ifindex: IfIndex, direction: Direction) -> Result<(), DatapathError> {
    let fd = open_pin(program)?;
    match tcx(BPF_PROG_ATTACH, &fd, ifindex, direction) {
        Ok(()) => Ok(()),
        Err(e) if e.raw_os_error() == Some(libc::EEXIST) => Ok(()),
        // No such attach type: a kernel before 6.6.
        Err(e) if e.raw_os_error() == Some(libc::EINVAL) => clsact::attach(program, ifindex, direction).map(drop),
        Err(e) => Err(e),
    }
    .map_err(|source| attach_error("attach", program, ifindex, direction, source))
}

/// Detaches a program that [`attach_tc`] attached. Nothing happens when it is not there.
pub fn detach_tc(program: &Path, ifindex: IfIndex, direction: Direction) -> Result<(), DatapathError> {
    let fd = open_pin(program)?;
    match tcx(BPF_PROG_DETACH, &fd, ifindex, direction) {
        Ok(()) => Ok(()),
        Err(e) if e.raw_os_error() == Some(libc::ENOENT) => Ok(()),
        Err(e) if e.raw_os_error() == Some(libc::EINVAL) => clsact::detach_program(program, ifindex, direction),
        Err(e) => Err(e),
    }
    .map_err(|source| attach_error("detach", program, ifindex, direction, source))
}

/// `enum bpf_cmd` of linux/bpf.h.
const BPF_PROG_ATTACH: libc::c_int = 8;
const BPF_PROG_DETACH: libc::c_int = 9;

fn tcx(command: libc::c_int, program: &OwnedFd, ifindex: IfIndex, direction: Direction) -> io::Result<()> {
    let mut attr = AttachAttr {
        target_ifindex: ifindex.0,
        attach_bpf_fd: program.as_raw_fd() as u32,
        attach_type: direction.tcx(),
        ..AttachAttr::default()
    };
    // SAFETY: both commands take these attributes, and there is no pointer in them.
    unsafe { bpf(command, &mut attr) }.map(drop)
}

fn attach_error(
    what: &'static str,
    program: &Path,
    ifindex: IfIndex,
    direction: Direction,
    source: io::Error,
) -> DatapathError {
    DatapathError::Attach { what, program: program.to_owned(), ifindex, direction, source }
}

/// Whether everything that the plugin needs is pinned.
pub fn ready(pins: &PinDir) -> Result<(), DatapathError> {
    for hook in [Hook::FromPod, Hook::ToPod] {
        open_pin(&pins.hook(hook))?;
    }
    Endpoints::open(pins)?;
    Sandboxes::open(pins).map(drop)
}

/// The hooks of a pod's host end.
const POD_HOOKS: [(Hook, Direction); 2] = [(Hook::FromPod, Direction::Ingress), (Hook::ToPod, Direction::Egress)];

/// Attaches the dispatchers to a pod's host end. Says whether one was not attached already.
///
/// As clsact filters on every kernel: each attachment to TCX waits for a grace period of RCU under the lock of all
/// network configuration, 20 ms on an idle machine, and a pod needs two.
pub fn attach_pod(pins: &PinDir, host_end: IfIndex) -> Result<bool, DatapathError> {
    POD_HOOKS.into_iter().try_fold(false, |any, (hook, direction)| {
        let program = pins.hook(hook);
        // Told apart from what the attachment itself may lack.
        open_pin(&program)?;
        let attached = clsact::attach(&program, host_end, direction)
            .map_err(|source| attach_error("attach", &program, host_end, direction, source))?;
        Ok(any || attached)
    })
}

/// Detaches them. Nothing happens where they are not attached.
pub fn detach_pod(pins: &PinDir, host_end: IfIndex) -> Result<(), DatapathError> {
    POD_HOOKS.into_iter().try_for_each(|(hook, direction)| {
        clsact::detach(host_end, direction)
            .map_err(|source| attach_error("detach", &pins.hook(hook), host_end, direction, source))
    })
}

/// The cookie of the calling thread's network namespace, by which a socket's program knows whose process it serves
/// (`SO_NETNS_COOKIE`, Linux 5.14). It is never used again while the kernel runs.
pub fn netns_cookie() -> io::Result<u64> {
    let socket = socket(AddressFamily::Inet, SockType::Datagram, SockFlag::SOCK_CLOEXEC, None)?;
    let mut cookie = 0u64;
    let mut len = size_of::<u64>() as libc::socklen_t;
    // SAFETY: the value and its length are alive and of the option's size.
    let result = unsafe {
        libc::getsockopt(
            socket.as_raw_fd(),
            libc::SOL_SOCKET,
            libc::SO_NETNS_COOKIE,
            std::ptr::from_mut(&mut cookie).cast(),
            &raw mut len,
        )
    };
    if result == 0 { Ok(cookie) } else { Err(io::Error::last_os_error()) }
}

#[cfg(test)]
mod tests {
    use podnet_common::layout::tables;

    use super::*;

    #[test]
    fn pins_are_where_the_daemon_puts_them() {
        let pins = PinDir::new(Path::new("/sys/fs/bpf"));
        assert_eq!(pins.hook(Hook::FromPod), Path::new("/sys/fs/bpf/podnet/hooks/from_pod"));
        assert_eq!(pins.table(tables::ENDPOINTS), Path::new("/sys/fs/bpf/podnet/hooks/endpoints"));
        assert_eq!(pins.table(tables::CONNTRACK), Path::new("/sys/fs/bpf/podnet/v2/conntrack"));
        assert_eq!(pins.links(), Path::new("/sys/fs/bpf/podnet/links"));
    }

    #[test]
    fn a_missing_pin_is_named() {
        let dir = tempfile::tempdir().unwrap();
        let pins = PinDir::new(dir.path());
        for error in [ready(&pins).unwrap_err(), attach_pod(&pins, IfIndex(1)).unwrap_err()] {
            assert!(
                matches!(&error, DatapathError::NotPinned { path } if path.ends_with("podnet/hooks/from_pod")),
                "{error:?}"
            );
        }
        assert!(matches!(Endpoints::open(&pins).unwrap_err(), DatapathError::NotPinned { .. }));
        assert!(matches!(Sandboxes::open(&pins).unwrap_err(), DatapathError::NotPinned { .. }));
    }
}
