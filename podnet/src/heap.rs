//! Free memory of the heap.

/// Returns free memory to the kernel. glibc keeps it for later allocations: tens of MiB after the programs have been
/// loaded or the first lists read, and nothing later needs that much.
pub fn trim() {
    #[cfg(target_env = "gnu")]
    // SAFETY: has no requirements, and doesn't touch memory in use.
    unsafe {
        libc::malloc_trim(0);
    }
}
