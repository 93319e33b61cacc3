//! The eBPF object built into this binary.

use nix::unistd::{SysconfVar, sysconf};

include!(concat!(env!("OUT_DIR"), "/object.rs"));

/// Returns the object's pages to the kernel, which reads them again from the program's file if they are needed: once
/// the programs are loaded, they are not.
pub fn release() {
    let (Some(object), Ok(Some(page))) = (OBJECT, sysconf(SysconfVar::PAGE_SIZE)) else { return };
    let (page, at) = (page as usize, object.as_ptr() as usize);
    // Whole pages only: the others have other data, too.
    let (start, end) = (at.next_multiple_of(page), (at + object.len()) / page * page);
    if start < end {
        // SAFETY: the object is constant data, so its pages never differ from the file that they are read from again.
        unsafe { libc::madvise(start as *mut libc::c_void, end - start, libc::MADV_DONTNEED) };
    }
}
