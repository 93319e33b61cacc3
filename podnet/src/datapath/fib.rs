//! FIB lookups as the programs make them, by `bpf_fib_lookup`. Netlink can't imitate the helper, since it checks
//! sources that the helper doesn't. A program of a few instructions calls it. It is attached nowhere, runs on a frame
//! of its own that is never sent, and ends with its descriptor.

use std::{
    io,
    os::fd::{AsFd as _, OwnedFd},
};

use podnet_common::{
    addr::{Addr, IfIndex},
    fib::FibLookup,
    layout::{Config, Interface},
    packet::ETH,
    pipeline::Route,
};

use super::{instructions, test_run};

/// `enum bpf_prog_type` of linux/bpf.h.
const BPF_PROG_TYPE_SCHED_CLS: u32 = 3;

/// Length of the frame: the lookup's parameters after an Ethernet header.
const FRAME: usize = ETH + size_of::<FibLookup>();

/// A program that looks up routes in the network namespace of the calling thread.
pub(super) struct FibProgram {
    program: OwnedFd,
    config: Config,
}

impl FibProgram {
    /// Loads the program for a node with this configuration.
    pub(super) fn load(config: &Config) -> io::Result<Self> {
        let insns = instructions(FibLookup::flags(config));
        let program = instructions::load(BPF_PROG_TYPE_SCHED_CLS, 0, "podnet_trace_fi", &insns)?;
        Ok(Self { program, config: *config })
    }

    /// Route of a packet that arrived on `from`, and the return value of the helper. `None`: the node has no route by
    /// which it would forward the packet.
    pub(super) fn route<'t>(
        &self,
        from: IfIndex,
        src: &Addr,
        dst: &Addr,
        interface: impl Fn(&IfIndex) -> Option<&'t Interface>,
    ) -> io::Result<(Option<Route>, i64)> {
        let mut question = FibLookup::default();
        question.ask(from, src, dst, &self.config);
        let mut frame = [0u8; FRAME];
        frame[ETH..].copy_from_slice(bytemuck::bytes_of(&question));
        let result = i64::from(test_run::run_mut(self.program.as_fd(), &mut frame)? as i32);
        let answer: FibLookup = bytemuck::pod_read_unaligned(&frame[ETH..]);
        let mut route = Route::default();
        let found = answer.answer(result, dst, &self.config, interface, &mut route);
        Ok((found.then_some(route), result))
    }
}

/// Copies the parameters from the frame to the stack, calls `bpf_fib_lookup`, copies them back, and returns its
/// return value.
fn instructions(flags: u32) -> Vec<[u8; 8]> {
    const LEN: i32 = size_of::<FibLookup>() as i32;
    const LOAD_BYTES: i32 = 26;
    const STORE_BYTES: i32 = 9;
    const FIB_LOOKUP: i32 = 69;
    // `struct bpf_insn`: opcode, registers (source and destination), offset, immediate.
    let insn = |opcode: u8, dst: u8, src: u8, immediate: i32| {
        let [a, b, c, d] = immediate.to_le_bytes();
        [opcode, src << 4 | dst, 0, 0, a, b, c, d]
    };
    let copy = |dst, src| insn(0xbf, dst, src, 0);
    let set = |dst, value| insn(0xb7, dst, 0, value);
    let stack = |dst| [copy(dst, 10), insn(0x07, dst, 0, -LEN)];
    let call = |helper| insn(0x85, 0, 0, helper);
    let mut program = vec![copy(6, 1), set(2, ETH as i32)];
    program.extend(stack(3));
    program.extend([set(4, LEN), call(LOAD_BYTES), copy(1, 6)]);
    program.extend(stack(2));
    program.extend([set(3, LEN), set(4, flags as i32), call(FIB_LOOKUP), copy(7, 0), copy(1, 6), set(2, ETH as i32)]);
    program.extend(stack(3));
    program.extend([set(4, LEN), set(5, 0), call(STORE_BYTES), copy(0, 7), insn(0x95, 0, 0, 0)]);
    program
}
