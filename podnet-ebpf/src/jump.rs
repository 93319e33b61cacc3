//! Tail calls to slots that are known at compile time.

/// The generation of which these programs are the stages. A packet ends in the generation in which it began, even if
/// another is switched to meanwhile: each has memory of its own for what one stage hands over to the next.
// Set by the loader.
#[unsafe(no_mangle)]
static OWN_GENERATION: u32 = 0;

/// The number of this object's own generation.
#[inline(always)]
pub(crate) fn own_generation() -> u32 {
    // SAFETY: a constant of the object.
    unsafe { (&raw const OWN_GENERATION).read_volatile() }
}

/// Tail-calls a slot of a generation of a program array; execution continues if the slot is empty.
///
/// The slot is a constant in each call, so the kernel turns the call into a direct jump (`BPF_TAIL_CALL` with a known
/// index, which `prog_array_map_poke_run` patches). An index in a register would cost an indirect branch, and with it a
/// retpoline.
macro_rules! jump {
    ($programs:expr, $ctx:expr, $generation:expr, $slot:expr) => {
        if $generation == 0 {
            to_slot!($programs, $ctx, $slot);
        } else {
            to_slot!($programs, $ctx, podnet_common::layout::GENERATION_SLOTS + $slot);
        }
    };
}

// In assembly, because the compiler merges calls that differ only in the slot into one with the slot in a register.
macro_rules! to_slot {
    ($programs:expr, $ctx:expr, $slot:expr) => {
        // SAFETY: a successful tail call doesn't return; a failed one clobbers the argument registers and r0 only.
        unsafe {
            core::arch::asm!(
                "r3 = {slot}",
                "call 12", // bpf_tail_call
                slot = const $slot,
                in("r1") aya_ebpf::EbpfContext::as_ptr($ctx),
                in("r2") &raw const $programs,
                lateout("r0") _,
                lateout("r1") _,
                lateout("r2") _,
                out("r3") _,
                lateout("r4") _,
                lateout("r5") _,
            );
        }
    };
}
