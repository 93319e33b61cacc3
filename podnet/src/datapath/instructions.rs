//! Programs of a few instructions, which the daemon makes itself: to find out what the kernel can do, and to ask it.

use std::{
    io,
    os::fd::{FromRawFd as _, OwnedFd},
};

use podnet_cni::datapath::bpf;

/// `enum bpf_cmd` of linux/bpf.h.
const BPF_PROG_LOAD: libc::c_int = 5;

/// What loading a program takes of `union bpf_attr`.
#[repr(C)]
struct LoadAttr {
    prog_type: u32,
    insn_cnt: u32,
    insns: u64,
    license: u64,
    log: [u32; 4],
    kern_version: u32,
    prog_flags: u32,
    prog_name: [u8; 16],
    prog_ifindex: u32,
    expected_attach_type: u32,
}

/// Loads a program of a type (`enum bpf_prog_type`), for a place to attach it (`enum bpf_attach_type`), of which the kernel
/// shows at most 15 bytes of its name. It is gone with its descriptor.
///
/// # Errors
/// The kernel's refusal.
pub(super) fn load(kind: u32, attach: u32, name: &str, instructions: &[[u8; 8]]) -> io::Result<OwnedFd> {
    let mut prog_name = [0; 16];
    prog_name[..15].iter_mut().zip(name.bytes()).for_each(|(place, byte)| *place = byte);
    let mut attr = LoadAttr {
        prog_type: kind,
        insn_cnt: instructions.len() as u32,
        insns: instructions.as_ptr() as u64,
        license: c"GPL".as_ptr() as u64,
        log: [0; 4],
        kern_version: 0,
        prog_flags: 0,
        prog_name,
        prog_ifindex: 0,
        expected_attach_type: attach,
    };
    // SAFETY: the attribute is of the command's shape, and what it points to outlives the call.
    let fd = unsafe { bpf(BPF_PROG_LOAD, &mut attr) }?;
    // SAFETY: the call has just returned this descriptor, and nothing else has it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}
