//! Checks that the eBPF object's programs fit the stack of every supported kernel.
//!
//! The verifier allows 512 bytes of stack for a program and the functions that it calls: it adds up the frames along
//! every call chain, each rounded up (`check_max_stack_depth` in kernel/bpf/verifier.c). Before Linux 6.9 it rounds to
//! 32 bytes and counts an empty frame as 32; later kernels round to 16, so an object that loads here may be rejected
//! elsewhere. Computing the same sum from the object requires no kernel and takes milliseconds.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::{fmt, fs};

use anyhow::{Context, Result, bail, ensure};
use object::read::elf::ElfFile64;
use object::{
    Endianness, Object as _, ObjectSection as _, ObjectSymbol as _, RelocationTarget, SectionIndex, SectionKind,
    SymbolKind, SymbolSection,
};

/// Maximum stack of a call chain in bytes. The kernel allows 512; the rest is a reserve, so that a small change of the
/// compiler or the source breaks the developer's build rather than a user's node.
const ALLOWED: u32 = 480;
/// Rounding of each frame by the verifier, and its minimum, in bytes.
const ROUNDING: u32 = 32;
/// Maximum stack in bytes of the callers of a function that makes a tail call.
const BEFORE_TAIL_CALL: u32 = 256;

/// Size of an instruction, in bytes.
const INSTRUCTION: u64 = 8;
/// The frame pointer.
const R10: u8 = 10;

/// A program, or a function called by programs.
struct Function {
    name: String,
    /// Bytes below the frame pointer that it uses.
    frame: u32,
    /// Functions that it calls.
    calls: BTreeSet<usize>,
    /// Whether it makes tail calls.
    tail_calls: bool,
    /// Whether the kernel loads it as a program of its own.
    program: bool,
}

/// A call chain, starting with a program.
#[derive(Debug, PartialEq, Eq)]
struct Chain {
    /// Names, and frames in bytes before rounding.
    links: Vec<(String, u32)>,
    /// Total stack as counted by the verifier.
    depth: u32,
}

impl fmt::Display for Chain {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (place, (name, frame)) in self.links.iter().enumerate() {
            let arrow = if place == 0 { "" } else { " → " };
            write!(f, "{arrow}{name} {frame}")?;
        }
        write!(f, ": {} bytes", self.depth)
    }
}

/// Checks an object and returns a description of its deepest call chain.
///
/// # Errors
/// The object cannot be read, or a chain is deeper than [`ALLOWED`]; the error lists each such program with its frames.
pub(crate) fn check(object: &Path) -> Result<String> {
    let bytes = fs::read(object).with_context(|| format!("cannot read {}", object.display()))?;
    let functions = functions(&bytes).with_context(|| format!("cannot parse {}", object.display()))?;
    let chains = deepest(&functions)?;
    let refused: Vec<_> = chains.iter().filter(|chain| chain.depth > ALLOWED).map(Chain::to_string).collect();
    if !refused.is_empty() {
        bail!(
            "these programs use more than {ALLOWED} bytes of stack (frames rounded up to {ROUNDING}, as before Linux \
             6.9):\n  {}\nMove variables into the per-CPU scratch map, or split a frame",
            refused.join("\n  ")
        );
    }
    let late = late_tail_calls(&functions);
    ensure!(late.is_empty(), "tail calls with more than {BEFORE_TAIL_CALL} bytes of stack in use: {}", late.join(", "));
    let deepest = chains.iter().max_by_key(|chain| chain.depth).context("the object has no programs")?;
    Ok(deepest.to_string())
}

/// Reads all functions of an object.
fn functions(bytes: &[u8]) -> Result<Vec<Function>> {
    let elf = ElfFile64::<Endianness>::parse(bytes)?;
    let code: BTreeMap<_, _> =
        elf.sections().filter(|section| section.kind() == SectionKind::Text).map(|s| (s.index().0, s)).collect();
    let mut symbols = Vec::new();
    for symbol in elf.symbols().filter(|symbol| symbol.kind() == SymbolKind::Text) {
        let SymbolSection::Section(SectionIndex(section)) = symbol.section() else { continue };
        if code.contains_key(&section) && symbol.size() != 0 {
            symbols.push((section, symbol.address(), symbol.size(), symbol.name()?.to_owned()));
        }
    }
    symbols.sort();
    let starts: BTreeMap<(usize, u64), usize> =
        symbols.iter().enumerate().map(|(number, (section, at, ..))| ((*section, *at), number)).collect();
    let at = |section: usize, address: u64| {
        starts.get(&(section, address)).copied().context("a call does not target a function")
    };

    // Targets of calls and function addresses that the linker has left as relocations.
    let mut targets = BTreeMap::new();
    for (index, section) in &code {
        for (offset, relocation) in section.relocations() {
            let RelocationTarget::Symbol(symbol) = relocation.target() else { continue };
            let symbol = elf.symbol_by_index(symbol)?;
            if let SymbolSection::Section(SectionIndex(target)) = symbol.section()
                && code.contains_key(&target)
            {
                targets.insert((*index, offset), (target, symbol.address(), symbol.kind()));
            }
        }
    }

    let mut functions = Vec::new();
    for (section, start, size, name) in &symbols {
        let data = code[section].data_range(*start, *size)?.context("a function exceeds its section")?;
        let mut function = Function {
            name: shortened(name),
            frame: 0,
            calls: BTreeSet::new(),
            tail_calls: false,
            program: code[section].name()? != ".text",
        };
        let mut frame = Frame::default();
        for (place, bytes) in data.chunks_exact(INSTRUCTION as usize).enumerate() {
            let instruction = Instruction::read(bytes);
            let offset = start + place as u64 * INSTRUCTION;
            frame.follow(&instruction);
            function.tail_calls |= instruction.is_tail_call();
            match targets.get(&(*section, offset)) {
                // The immediate value is the offset in the section, in instructions, minus one.
                Some((target, _, SymbolKind::Section)) if instruction.is_call() => {
                    let address = i64::from(instruction.immediate + 1) * INSTRUCTION as i64;
                    function.calls.insert(at(*target, address as u64)?);
                }
                Some((target, address, _)) => drop(function.calls.insert(at(*target, *address)?)),
                None if instruction.is_call() => {
                    let address = offset as i64 + i64::from(instruction.immediate + 1) * INSTRUCTION as i64;
                    function.calls.insert(at(*section, address as u64)?);
                }
                None => {}
            }
        }
        function.frame = frame.size;
        functions.push(function);
    }
    Ok(functions)
}

/// One instruction (Documentation/bpf/standardization/instruction-set.rst), little endian.
struct Instruction {
    code: u8,
    destination: u8,
    source: u8,
    offset: i16,
    immediate: i32,
}

impl Instruction {
    /// `bytes` has the length [`INSTRUCTION`].
    fn read(bytes: &[u8]) -> Self {
        Self {
            code: bytes[0],
            destination: bytes[1] & 0xf,
            source: bytes[1] >> 4,
            offset: i16::from_le_bytes([bytes[2], bytes[3]]),
            immediate: i32::from_le_bytes([bytes[4], bytes[5], bytes[6], bytes[7]]),
        }
    }

    /// A call of another function of the object (`BPF_PSEUDO_CALL`).
    fn is_call(&self) -> bool {
        self.code == 0x85 && self.source == 1
    }

    /// A call of the helper `bpf_tail_call`.
    fn is_tail_call(&self) -> bool {
        self.code == 0x85 && self.source == 0 && self.immediate == 12
    }

    /// The base register of a memory access, if it is one.
    fn base(&self) -> Option<u8> {
        match self.code & 7 {
            // BPF_LDX; BPF_ST and BPF_STX.
            1 => Some(self.source),
            2 | 3 => Some(self.destination),
            _ => None,
        }
    }
}

/// Computes the frame of a function by following its instructions in their order in memory. The compiler takes the
/// address of a variable by copying r10 and adding to the copy in the next instruction, so this order is sufficient.
#[derive(Default)]
struct Frame {
    /// Bytes below r10.
    size: u32,
    /// Registers that contain r10 plus this offset.
    pointers: BTreeMap<u8, i32>,
}

impl Frame {
    fn follow(&mut self, instruction: &Instruction) {
        if let Some(base) = instruction.base() {
            let pointer = if base == R10 { Some(0) } else { self.pointers.get(&base).copied() };
            self.reach(pointer.map(|pointer| pointer + i32::from(instruction.offset)));
        }
        match instruction.code {
            // BPF_ALU64 | BPF_MOV | BPF_X
            0xbf if instruction.source == R10 => drop(self.pointers.insert(instruction.destination, 0)),
            0xbf => match self.pointers.get(&instruction.source).copied() {
                Some(pointer) => drop(self.pointers.insert(instruction.destination, pointer)),
                None => drop(self.pointers.remove(&instruction.destination)),
            },
            // BPF_ALU64 | BPF_ADD | BPF_K
            0x07 => {
                if let Some(pointer) = self.pointers.get_mut(&instruction.destination) {
                    *pointer += instruction.immediate;
                    let reached = *pointer;
                    self.reach(Some(reached));
                }
            }
            // A call invalidates r0 to r5.
            0x85 => self.pointers.retain(|register, _| *register > 5),
            code if matches!(code & 7, 0 | 1 | 4 | 7) => drop(self.pointers.remove(&instruction.destination)),
            _ => {}
        }
    }

    fn reach(&mut self, pointer: Option<i32>) {
        self.size = self.size.max(pointer.map_or(0, |pointer| pointer.min(0).unsigned_abs()));
    }
}

/// A frame as counted by the verifier.
fn rounded(frame: u32) -> u32 {
    frame.max(1).next_multiple_of(ROUNDING)
}

/// The deepest call chain of each program.
fn deepest(functions: &[Function]) -> Result<Vec<Chain>> {
    let programs = functions.iter().enumerate().filter(|(_, function)| function.program);
    programs.map(|(number, _)| below(functions, number, &mut Vec::new())).collect()
}

fn below(functions: &[Function], number: usize, above: &mut Vec<usize>) -> Result<Chain> {
    let function = &functions[number];
    ensure!(!above.contains(&number), "{} calls itself", function.name);
    above.push(number);
    let mut deepest = Chain { links: Vec::new(), depth: 0 };
    for callee in &function.calls {
        let chain = below(functions, *callee, above)?;
        if chain.depth > deepest.depth {
            deepest = chain;
        }
    }
    above.pop();
    deepest.links.insert(0, (function.name.clone(), function.frame));
    deepest.depth += rounded(function.frame);
    Ok(deepest)
}

/// Functions that make tail calls and are called with too much of the stack in use.
fn late_tail_calls(functions: &[Function]) -> Vec<String> {
    fn walk(functions: &[Function], number: usize, used: u32, late: &mut BTreeSet<String>) {
        for callee in &functions[number].calls {
            let used = used + rounded(functions[number].frame);
            if functions[*callee].tail_calls && used > BEFORE_TAIL_CALL {
                late.insert(functions[*callee].name.clone());
            }
            walk(functions, *callee, used, late);
        }
    }
    let mut late = BTreeSet::new();
    for (number, _) in functions.iter().enumerate().filter(|(_, function)| function.program) {
        walk(functions, number, 0, &mut late);
    }
    late.into_iter().collect()
}

/// Last part of a mangled name: `_RINvNtNt…8pipeline6direct7answersNt…` becomes `direct::answers`, which is enough to
/// find it.
fn shortened(name: &str) -> String {
    if !name.starts_with("_R") {
        return name.to_owned();
    }
    format!("{:#}", rustc_demangle::demangle(name))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn function(name: &str, frame: u32, calls: &[usize], program: bool) -> Function {
        Function { name: name.into(), frame, calls: calls.iter().copied().collect(), tail_calls: false, program }
    }

    #[test]
    fn frames_add_up_as_before_linux_6_9() {
        let functions = [
            function("from_pod_enter", 368, &[1, 2], true),
            function("answers", 136, &[2], false),
            function("memset", 0, &[], false),
        ];
        let chains = deepest(&functions).unwrap();
        assert_eq!(chains[0].to_string(), "from_pod_enter 368 → answers 136 → memset 0: 576 bytes");
        assert_eq!(chains.len(), 1, "what is called is no program");
    }

    #[test]
    fn recursion_is_rejected() {
        assert!(deepest(&[function("a", 8, &[1], true), function("b", 8, &[0], false)]).is_err());
    }

    #[test]
    fn tail_call_deep_in_the_stack_is_found() {
        let mut functions = vec![function("enter", 260, &[1], true), function("stage", 8, &[], false)];
        assert!(late_tail_calls(&functions).is_empty());
        functions[1].tail_calls = true;
        assert_eq!(late_tail_calls(&functions), ["stage"]);
        functions[0].frame = 250;
        assert!(late_tail_calls(&functions).is_empty());
    }

    fn frame_of(instructions: &[[u8; 8]]) -> u32 {
        let mut frame = Frame::default();
        instructions.iter().for_each(|bytes| frame.follow(&Instruction::read(bytes)));
        frame.size
    }

    #[test]
    fn frame_extends_to_the_lowest_address_accessed_or_passed_on() {
        // *(u64 *)(r10 - 24) = r1
        assert_eq!(frame_of(&[[0x7b, 0x1a, 0xe8, 0xff, 0, 0, 0, 0]]), 24);
        // r2 = r10; r2 += -116; r3 = r2; *(u8 *)(r3 - 4) = r1
        let taken = [
            [0xbf, 0xa2, 0, 0, 0, 0, 0, 0],
            [0x07, 0x02, 0, 0, 0x8c, 0xff, 0xff, 0xff],
            [0xbf, 0x23, 0, 0, 0, 0, 0, 0],
            [0x73, 0x13, 0xfc, 0xff, 0, 0, 0, 0],
        ];
        assert_eq!(frame_of(&taken[..2]), 116);
        assert_eq!(frame_of(&taken), 120);
        // r2 = r10; r2 = 5 (no longer a pointer); r2 += -300
        let forgotten = [
            [0xbf, 0xa2, 0, 0, 0, 0, 0, 0],
            [0xb7, 0x02, 0, 0, 5, 0, 0, 0],
            [0x07, 0x02, 0, 0, 0xd4, 0xfe, 0xff, 0xff],
        ];
        assert_eq!(frame_of(&forgotten), 0);
        // Access to a packet through r1 does not affect the frame.
        assert_eq!(frame_of(&[[0x71, 0x12, 0x9c, 0xff, 0, 0, 0, 0]]), 0);
    }
}
