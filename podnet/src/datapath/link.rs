//! BPF links by bpf(2), as far as aya doesn't offer them for pinned programs and links; and the driver of an
//! interface.

use std::{
    ffi::CString,
    io,
    os::{
        fd::{AsFd, AsRawFd as _, FromRawFd as _, OwnedFd},
        unix::ffi::OsStrExt as _,
    },
    path::Path,
};

use nix::sys::socket::{AddressFamily, SockFlag, SockType, socket};
use podnet_cni::datapath::bpf;
use podnet_common::addr::IfIndex;

/// `enum bpf_cmd` of linux/bpf.h.
const BPF_OBJ_PIN: libc::c_int = 6;
const BPF_OBJ_GET_INFO_BY_FD: libc::c_int = 15;
const BPF_LINK_CREATE: libc::c_int = 28;
const BPF_LINK_UPDATE: libc::c_int = 29;
const BPF_LINK_DETACH: libc::c_int = 34;
/// `enum bpf_attach_type` of linux/bpf.h.
const BPF_XDP: u32 = 37;
/// `XDP_FLAGS_SKB_MODE` and `XDP_FLAGS_DRV_MODE` of linux/if_link.h.
const SKB_MODE: u32 = 1 << 1;
const DRV_MODE: u32 = 1 << 2;

/// Where an XDP program runs in the kernel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// In the driver.
    Native,
    /// In the generic receive path.
    Generic,
}

impl Mode {
    pub(super) const ALL: [Self; 2] = [Self::Native, Self::Generic];

    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Native => "native",
            Self::Generic => "generic",
        }
    }
}

/// Attaches an XDP program to an interface.
pub(super) fn create_xdp(program: &OwnedFd, ifindex: IfIndex, mode: Mode) -> io::Result<OwnedFd> {
    #[repr(C)]
    struct Attr {
        prog_fd: u32,
        target_ifindex: u32,
        attach_type: u32,
        flags: u32,
    }
    let flags = if mode == Mode::Native { DRV_MODE } else { SKB_MODE };
    let mut attr = Attr { prog_fd: program.as_raw_fd() as u32, target_ifindex: ifindex.0, attach_type: BPF_XDP, flags };
    // SAFETY: the attribute has the layout of the command, without pointers.
    let fd = unsafe { bpf(BPF_LINK_CREATE, &mut attr) }?;
    // SAFETY: the call has just returned this descriptor, and it has no other owner.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// Pins a link.
pub(super) fn pin(link: &OwnedFd, path: &Path) -> io::Result<()> {
    #[repr(C)]
    struct Attr {
        pathname: u64,
        bpf_fd: u32,
        file_flags: u32,
    }
    let text = CString::new(path.as_os_str().as_bytes())?;
    let mut attr = Attr { pathname: text.as_ptr() as u64, bpf_fd: link.as_raw_fd() as u32, file_flags: 0 };
    // SAFETY: the attribute has the layout of the command, and the path outlives the call.
    unsafe { bpf(BPF_OBJ_PIN, &mut attr) }.map(drop)
}

/// Replaces the program of a link.
pub(super) fn update(link: &OwnedFd, program: impl AsFd) -> io::Result<()> {
    #[repr(C)]
    struct Attr {
        link_fd: u32,
        new_prog_fd: u32,
        flags: u32,
        old_prog_fd: u32,
    }
    let mut attr = Attr {
        link_fd: link.as_raw_fd() as u32,
        new_prog_fd: program.as_fd().as_raw_fd() as u32,
        flags: 0,
        old_prog_fd: 0,
    };
    // SAFETY: the attribute has the layout of the command, without pointers.
    unsafe { bpf(BPF_LINK_UPDATE, &mut attr) }.map(drop)
}

/// Detaches a link, even if other descriptors or pins hold it.
pub(super) fn detach(link: &OwnedFd) -> io::Result<()> {
    let mut fd = link.as_raw_fd() as u32;
    // SAFETY: the command reads only this number of the attribute.
    unsafe { bpf(BPF_LINK_DETACH, &mut fd) }.map(drop)
}

/// Id of the cgroup that a link is attached to, and of the link's program.
pub(super) fn cgroup(link: &OwnedFd) -> io::Result<(u64, u32)> {
    target(link)
}

/// The interface that an XDP link is attached to; 0 once it is gone.
pub(super) fn interface(link: &OwnedFd) -> io::Result<IfIndex> {
    // The first half of the field, in either byte order.
    let [a, b, c, d, ..] = target(link)?.0.to_ne_bytes();
    Ok(IfIndex(u32::from_ne_bytes([a, b, c, d])))
}

/// The type-specific part of `struct bpf_link_info` (for a cgroup its id, for XDP an interface index in the first
/// half), and the program's id.
fn target(link: &OwnedFd) -> io::Result<(u64, u32)> {
    #[repr(C)]
    #[derive(Default)]
    struct Info {
        kind: u32,
        id: u32,
        prog_id: u32,
        _pad: u32,
        target: u64,
        _attach_type: u64,
    }
    #[repr(C)]
    struct Attr {
        fd: u32,
        len: u32,
        info: u64,
    }
    let mut info = Info::default();
    let mut attr =
        Attr { fd: link.as_raw_fd() as u32, len: size_of::<Info>() as u32, info: std::ptr::from_mut(&mut info) as u64 };
    // SAFETY: the attribute has the layout of the command, and the structure that it points to is live.
    unsafe { bpf(BPF_OBJ_GET_INFO_BY_FD, &mut attr) }?;
    Ok((info.target, info.prog_id))
}

/// Driver name of an interface (`ETHTOOL_GDRVINFO`).
pub(super) fn driver(interface: &str) -> io::Result<String> {
    /// linux/sockios.h, linux/ethtool.h.
    const SIOCETHTOOL: libc::Ioctl = 0x8946;
    const ETHTOOL_GDRVINFO: u32 = 3;
    /// `struct ethtool_drvinfo`.
    #[repr(C)]
    struct Info {
        command: u32,
        driver: [u8; 32],
        _rest: [u8; 160],
    }
    let mut info = Info { command: ETHTOOL_GDRVINFO, driver: [0; 32], _rest: [0; 160] };
    // SAFETY: plain data, for which all zeros is a valid value.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    // The last byte stays zero.
    for (to, from) in request.ifr_name.iter_mut().take(libc::IFNAMSIZ - 1).zip(interface.bytes()) {
        *to = from as libc::c_char;
    }
    request.ifr_ifru.ifru_data = std::ptr::from_mut(&mut info).cast();
    let socket = socket(AddressFamily::Inet, SockType::Datagram, SockFlag::SOCK_CLOEXEC, None)?;
    // SAFETY: the request and the structure that it points to are live, and have the layout of the command.
    if unsafe { libc::ioctl(socket.as_raw_fd(), SIOCETHTOOL, &raw mut request) } != 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(info.driver.iter().take_while(|byte| **byte != 0).map(|byte| char::from(*byte)).collect())
}
