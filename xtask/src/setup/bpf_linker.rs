//! bpf-linker, which links eBPF objects with the LLVM of the pinned compiler.

use super::crate_program::CrateProgram;

/// Versions from 0.11 on need an LLVM installed on the system.
pub(super) const BPF_LINKER: CrateProgram = CrateProgram { name: "bpf-linker", version: "0.10.3" };
