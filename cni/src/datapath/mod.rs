//! The plugin's access to the pinned datapath, shared with the daemon: the paths of pins, attachment of dispatchers to
//! links, and the tables that the plugin writes.
//!
//! A dispatcher is attached without a link object: to pods' host ends as a clsact filter, to other links at TCX
//! (BPF_PROG_ATTACH; a clsact filter on kernels before 6.6). So it stays attached exactly as long as the device exists,
//! and neither a process nor a pin has to hold it.

pub mod clsact;
mod direction;
mod error;
mod pins;
mod plain;
mod syscall;
mod tables;

use std::io;
use std::os::fd::{AsRawFd as _, OwnedFd};
use std::path::Path;

use nix::sys::socket::{AddressFamily, SockFlag, SockType, socket};
use podnet_common::addr::IfIndex;
use podnet_common::layout::Hook;

pub use direction::Direction;
pub use error::DatapathError;
pub use pins::{PinDir, open_pin};
pub use plain::Plain;
pub use syscall::bpf;
pub use tables::{Endpoints, Sandboxes, Subjects};

use crate::netlink::Netlink;
use error::attach_error;

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

/// Attaches a pinned program to a link of the caller's namespace, after those that are attached already, until the link
/// is deleted. No error if it is attached already.
pub fn attach_tc(program: &Path, ifindex: IfIndex, direction: Direction) -> Result<(), DatapathError> {
    let failed = |source| attach_error("attach", program, ifindex, direction, source);
    match tcx(BPF_PROG_ATTACH, &open_pin(program)?, ifindex, direction) {
        Ok(()) => Ok(()),
        Err(e) if e.raw_os_error() == Some(libc::EEXIST) => Ok(()),
        // Attach type unknown: a kernel before 6.6.
        Err(e) if e.raw_os_error() == Some(libc::EINVAL) => {
            let mut netlink = Netlink::open().map_err(|e| failed(io::Error::other(e)))?;
            clsact::attach(&mut netlink, ifindex, &[(program, direction)]).map(drop)
        }
        Err(e) => Err(failed(e)),
    }
}

/// Detaches a program that [`attach_tc`] attached. No error if it is not attached.
pub fn detach_tc(program: &Path, ifindex: IfIndex, direction: Direction) -> Result<(), DatapathError> {
    match tcx(BPF_PROG_DETACH, &open_pin(program)?, ifindex, direction) {
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

/// Checks that everything the plugin needs is pinned.
pub fn ready(pins: &PinDir) -> Result<(), DatapathError> {
    for hook in [Hook::FromPod, Hook::ToPod] {
        open_pin(&pins.hook(hook))?;
    }
    Endpoints::open(pins)?;
    Sandboxes::open(pins).map(drop)
}

/// The hooks of a pod's host end.
const POD_HOOKS: [(Hook, Direction); 2] = [(Hook::FromPod, Direction::Ingress), (Hook::ToPod, Direction::Egress)];

/// Attaches the dispatchers to a pod's host end, in the socket's namespace. Returns whether one was missing.
///
/// They are clsact filters on every kernel: attachment to TCX waits for an RCU grace period under RTNL, about 20 ms on
/// an idle machine, and a pod needs two.
pub fn attach_pod(netlink: &mut Netlink, pins: &PinDir, host_end: IfIndex) -> Result<bool, DatapathError> {
    let [from_pod, to_pod] = POD_HOOKS.map(|(hook, direction)| (pins.hook(hook), direction));
    clsact::attach(netlink, host_end, &[(&from_pod.0, from_pod.1), (&to_pod.0, to_pod.1)])
}

/// The first hook of a pod's host end, in the socket's namespace, without its dispatcher.
pub fn missing_hook(netlink: &mut Netlink, pins: &PinDir, host_end: IfIndex) -> Result<Option<Hook>, DatapathError> {
    for (hook, direction) in POD_HOOKS {
        let pin = pins.hook(hook);
        let failed = |source| attach_error("find", &pin, host_end, direction, source);
        let program = clsact::id(&pin).map_err(failed)?;
        let filters = netlink.filters(host_end, direction).map_err(|error| failed(io::Error::other(error)))?;
        if !filters.contains(&program) {
            return Ok(Some(hook));
        }
    }
    Ok(None)
}

/// Detaches the dispatchers from a link of the caller's namespace. No error if they are not attached.
pub fn detach_pod(pins: &PinDir, host_end: IfIndex) -> Result<(), DatapathError> {
    POD_HOOKS.into_iter().try_for_each(|(hook, direction)| {
        clsact::detach(host_end, direction)
            .map_err(|source| attach_error("detach", &pins.hook(hook), host_end, direction, source))
    })
}

/// The cookie of the calling thread's network namespace, by which the socket hooks identify the pod of a process
/// (`SO_NETNS_COOKIE`, Linux 5.14). The kernel does not reuse cookies until the next boot.
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
    use podnet_common::tables;

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
        let mut netlink = Netlink::open().unwrap();
        for error in [ready(&pins).unwrap_err(), attach_pod(&mut netlink, &pins, IfIndex(1)).unwrap_err()] {
            assert!(
                matches!(&error, DatapathError::NotPinned { path } if path.ends_with("podnet/hooks/from_pod")),
                "{error:?}"
            );
        }
        assert!(matches!(Endpoints::open(&pins).unwrap_err(), DatapathError::NotPinned { .. }));
        assert!(matches!(Sandboxes::open(&pins).unwrap_err(), DatapathError::NotPinned { .. }));
    }
}
