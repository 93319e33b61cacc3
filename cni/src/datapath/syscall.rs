//! bpf(2).

use std::io;

/// A command of bpf(2) (`enum bpf_cmd`) with its attributes, some of which the kernel writes.
///
/// # Safety
/// `attr` must be the command's part of `union bpf_attr`, and pointers in it valid for the call.
pub unsafe fn bpf<T>(command: libc::c_int, attr: &mut T) -> io::Result<libc::c_int> {
    // SAFETY: the pointer and the size are those of a live value; the caller guarantees the rest.
    let result = unsafe { libc::syscall(libc::SYS_bpf, command, std::ptr::from_mut(attr), size_of::<T>()) };
    match libc::c_int::try_from(result) {
        Ok(value) if value >= 0 => Ok(value),
        _ => Err(io::Error::last_os_error()),
    }
}
