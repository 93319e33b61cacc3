//! Detection of kernel features that the programs depend on.

use std::{
    fs::File,
    io::{self, Read as _, Seek as _, SeekFrom},
    path::Path,
};

use bytemuck::{Pod, Zeroable};

use super::instructions;

/// The kernel's own BTF.
const KERNEL_TYPES: &str = "/sys/kernel/btf/vmlinux";

/// `struct btf_header` of linux/btf.h.
#[repr(C)]
#[derive(Clone, Copy, Pod, Zeroable)]
struct Header {
    magic: u16,
    version: u8,
    flags: u8,
    length: u32,
    types: [u32; 2],
    strings_at: u32,
    strings_length: u32,
}

/// Whether a FIB lookup returns the source address (Linux 6.7, or an older kernel with a backport).
pub(super) fn route_source() -> bool {
    knows(Path::new(KERNEL_TYPES), "BPF_FIB_LOOKUP_SRC").unwrap_or_else(|error| {
        tracing::warn!("cannot read {KERNEL_TYPES}: {error}; masqueraded packets get the node's first address");
        false
    })
}

/// Whether socket programs may choose the error of a rejected call (`bpf_set_retval` at `connect` and `sendmsg`,
/// Linux 6.1). Linux 5.18 to 6.0 have the helper, but not at these hooks: so the check loads a program that calls it.
pub fn socket_errno() -> bool {
    /// `enum bpf_prog_type` and `enum bpf_attach_type` of linux/bpf.h.
    const BPF_PROG_TYPE_CGROUP_SOCK_ADDR: u32 = 18;
    const BPF_CGROUP_INET4_CONNECT: u32 = 10;
    /// `r1 = 0; call bpf_set_retval; r0 = 1; exit`.
    const PROGRAM: [[u8; 8]; 4] = [
        [0xb7, 1, 0, 0, 0, 0, 0, 0],
        [0x85, 0, 0, 0, 187, 0, 0, 0],
        [0xb7, 0, 0, 0, 1, 0, 0, 0],
        [0x95, 0, 0, 0, 0, 0, 0, 0],
    ];
    instructions::load(BPF_PROG_TYPE_CGROUP_SOCK_ADDR, BPF_CGROUP_INET4_CONNECT, "", &PROGRAM).is_ok()
}

/// Whether a name occurs in BTF data.
fn knows(path: &Path, name: &str) -> io::Result<bool> {
    let mut file = File::open(path)?;
    let mut header = Header::zeroed();
    file.read_exact(bytemuck::bytes_of_mut(&mut header))?;
    file.seek(SeekFrom::Start(u64::from(header.length) + u64::from(header.strings_at)))?;
    let mut strings = Vec::new();
    file.take(header.strings_length.into()).read_to_end(&mut strings)?;
    Ok(strings.split(|byte| *byte == 0).any(|string| string == name.as_bytes()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_found_in_the_strings_only() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("btf");
        let strings = b"\0int\0BPF_FIB_LOOKUP_SRC\0";
        let types = *b"NOT_A_NAME\0\0";
        let header = Header {
            magic: 0xeb9f,
            version: 1,
            flags: 0,
            length: 24,
            types: [0, types.len() as u32],
            strings_at: types.len() as u32,
            strings_length: strings.len() as u32,
        };
        std::fs::write(&path, [bytemuck::bytes_of(&header), &types, strings].concat()).unwrap();
        for (name, known) in [("BPF_FIB_LOOKUP_SRC", true), ("BPF_FIB_LOOKUP", false), ("NOT_A_NAME", false)] {
            assert_eq!(knows(&path, name).unwrap(), known, "{name}");
        }
        assert!(knows(&directory.path().join("none"), "x").is_err());
        assert!(knows(Path::new(KERNEL_TYPES), "task_struct").unwrap_or(true));
    }
}
