//! Runs a program once, on a frame that is never sent (`BPF_PROG_TEST_RUN`).

use std::{
    io,
    os::fd::{AsRawFd as _, BorrowedFd},
};

use podnet_cni::datapath::bpf;

/// `enum bpf_cmd` of linux/bpf.h.
const BPF_PROG_TEST_RUN: libc::c_int = 10;

/// Part of `union bpf_attr` for running a program.
#[repr(C)]
#[derive(Default)]
struct RunAttr {
    prog_fd: u32,
    retval: u32,
    data_size_in: u32,
    data_size_out: u32,
    data_in: u64,
    data_out: u64,
    repeat: u32,
    duration: u32,
    ctx_size_in: u32,
    ctx_size_out: u32,
    ctx_in: u64,
    ctx_out: u64,
    flags: u32,
    cpu: u32,
    batch_size: u32,
    _pad: u32,
}

/// Runs a program in the network namespace of the calling thread. Returns its return value.
///
/// # Errors
/// The kernel's error.
pub(super) fn run(program: BorrowedFd<'_>, frame: &[u8]) -> io::Result<u32> {
    call(program, frame, &mut [])
}

/// Same, for a program that changes the bytes of the frame, but not its length.
///
/// # Errors
/// The kernel's error.
pub(super) fn run_mut<const LEN: usize>(program: BorrowedFd<'_>, frame: &mut [u8; LEN]) -> io::Result<u32> {
    call(program, &frame.clone(), frame)
}

/// `out` must be empty, or as long as the frame.
fn call(program: BorrowedFd<'_>, frame: &[u8], out: &mut [u8]) -> io::Result<u32> {
    let mut attr = RunAttr {
        prog_fd: program.as_raw_fd() as u32,
        data_size_in: frame.len() as u32,
        data_size_out: out.len() as u32,
        data_in: frame.as_ptr() as u64,
        data_out: if out.is_empty() { 0 } else { out.as_mut_ptr() as u64 },
        repeat: 1,
        ..RunAttr::default()
    };
    // SAFETY: the attribute has the layout of the command, and both buffers are live and have the given sizes.
    unsafe { bpf(BPF_PROG_TEST_RUN, &mut attr) }?;
    Ok(attr.retval)
}
