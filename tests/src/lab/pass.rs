//! An XDP program that passes all packets. A veth in native XDP can transmit only to a peer that has a program as well:
//! the kernel does not wake other peers (`veth_xdp_flush`), and transmitted packets would wait for the next packet on
//! another path.

use std::io;
use std::os::fd::{AsRawFd as _, FromRawFd as _, OwnedFd};

use anyhow::{Context, Result};
use podnet_cni::datapath::bpf;

use super::Place;

/// `enum bpf_cmd`, `enum bpf_prog_type`, `enum bpf_attach_type` and the flags of linux/bpf.h and linux/if_link.h.
const BPF_PROG_LOAD: libc::c_int = 5;
const BPF_LINK_CREATE: libc::c_int = 28;
const BPF_PROG_TYPE_XDP: u32 = 6;
const BPF_XDP: u32 = 37;
const XDP_FLAGS_DRV_MODE: u32 = 1 << 2;

/// `r0 = XDP_PASS; exit`.
const PASS: [[u8; 8]; 2] = [[0xb7, 0, 0, 0, 2, 0, 0, 0], [0x95, 0, 0, 0, 0, 0, 0, 0]];

impl Place {
    /// Attaches the program to an interface until the returned value is dropped.
    pub(super) fn pass_in_xdp(&self, ifname: &str) -> Result<OwnedFd> {
        let ifindex = self.ifindex(ifname)? as u32;
        // Interfaces are looked up in the thread's network namespace.
        let link = self.netns().run(|| attach(&load()?, ifindex))?;
        link.with_context(|| format!("{}: cannot attach XDP to {ifname}", self.name()))
    }
}

fn load() -> io::Result<OwnedFd> {
    #[repr(C)]
    struct Attr {
        prog_type: u32,
        insn_cnt: u32,
        insns: u64,
        license: u64,
    }
    let (insns, license) = (PASS.as_ptr() as u64, c"GPL".as_ptr() as u64);
    let mut attr = Attr { prog_type: BPF_PROG_TYPE_XDP, insn_cnt: PASS.len() as u32, insns, license };
    // SAFETY: the attribute has the layout of the command, and its pointers refer to static data.
    unsafe { bpf(BPF_PROG_LOAD, &mut attr) }.map(own)
}

fn attach(program: &OwnedFd, ifindex: u32) -> io::Result<OwnedFd> {
    let mut attr = [program.as_raw_fd() as u32, ifindex, BPF_XDP, XDP_FLAGS_DRV_MODE];
    // SAFETY: the attribute has the layout of the command, without pointers.
    unsafe { bpf(BPF_LINK_CREATE, &mut attr) }.map(own)
}

fn own(fd: libc::c_int) -> OwnedFd {
    // SAFETY: the call has just returned this descriptor, and nothing else uses it.
    unsafe { OwnedFd::from_raw_fd(fd) }
}
