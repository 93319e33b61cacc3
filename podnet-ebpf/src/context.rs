//! Packets at TC and XDP hooks.
//!
//! The verifier requires a comparison of the same pointer with the packet's end before every access, so each load and
//! store has its own bounds check.

use aya_ebpf::{
    EbpfContext as _,
    bindings::{BPF_F_MARK_MANGLED_0, BPF_F_PSEUDO_HDR},
    helpers::generated::bpf_skb_change_tail,
    programs::{TcContext, XdpContext},
};
use bytemuck::Pod;
use podnet_common::{
    addr::IfIndex,
    checksum::{self, fold32},
    packet::{ETH, Ethernet, Packet},
};

/// `gso_size` of a packet whose segments have individual lengths.
const GSO_BY_FRAGS: u32 = 0xffff;

/// Reads a value at `offset` from `data`, if it ends before `end`.
#[inline(always)]
fn load<T: Pod>(data: usize, end: usize, offset: usize) -> Option<T> {
    let at = data + offset;
    if at + size_of::<T>() > end {
        return None;
    }
    // SAFETY: within the packet, and every bit pattern is a valid `T`. The address may be unaligned for `T`: supported
    // targets allow unaligned loads; for others the verifier would reject them.
    Some(unsafe { *(at as *const T) })
}

/// Writes a value at `offset` from `data`, if it ends before `end`.
#[inline(always)]
fn store<T: Pod>(data: usize, end: usize, offset: usize, value: &T) -> Option<()> {
    let at = data + offset;
    if at + size_of::<T>() > end {
        return None;
    }
    // SAFETY: as in `load`; while a program runs, the packet belongs to it.
    unsafe { *(at as *mut T) = *value };
    Some(())
}

/// Hides the origin of an offset from the compiler, which might otherwise split a sum and compute one pointer for the
/// bounds check and another for the access. The verifier can't see that the two are equal.
#[inline(always)]
fn opaque(mut offset: usize) -> usize {
    // SAFETY: moves a register to itself. An instruction is required here, for BTF line information.
    unsafe { core::arch::asm!("{0} = {0}", inout(reg) offset, options(pure, nomem, nostack, preserves_flags)) };
    offset
}

/// A packet at a TC hook. `MISSING` is the number of bytes of the Ethernet header that its frames lack: none or all.
pub(crate) struct TcPacket<'a, const MISSING: usize> {
    ctx: &'a TcContext,
    data: usize,
    end: usize,
    /// See [`TcPacket::position`].
    mask: usize,
}

/// Mask for header offsets in a frame. Their sum with other offsets must stay within the verifier's limit of 0xffff.
static OFFSETS: usize = 0x7fff;

impl<'a, const MISSING: usize> TcPacket<'a, MISSING> {
    #[inline(always)]
    pub(crate) fn new(ctx: &'a TcContext) -> Self {
        // SAFETY: a static. Volatile, so that the compiler can't assume the value.
        let mask = if MISSING == 0 { 0 } else { unsafe { (&raw const OFFSETS).read_volatile() } };
        Self { data: ctx.data(), end: ctx.data_end(), mask, ctx }
    }

    /// Position in the frame of an offset that includes an Ethernet header. The mask keeps the compiler from first
    /// adding the offset to a pointer and then subtracting the missing bytes, which the verifier rejects.
    #[inline(always)]
    fn position(&self, offset: usize) -> usize {
        if MISSING == 0 { offset } else { (offset - MISSING) & self.mask }
    }

    /// Reloads the packet's pointers, which the verifier invalidates after helper calls that may move the packet.
    #[inline(always)]
    fn reload(&mut self) {
        let skb = self.ctx.skb.skb;
        // SAFETY: the context is valid while the program runs. Volatile, to get fresh pointers.
        unsafe {
            self.data = (&raw const (*skb).data).read_volatile() as usize;
            self.end = (&raw const (*skb).data_end).read_volatile() as usize;
        }
    }
}

impl<const MISSING: usize> Packet for TcPacket<'_, MISSING> {
    #[inline(always)]
    fn frame_len(&self) -> u32 {
        self.ctx.len() + MISSING as u32
    }

    #[inline(always)]
    fn ifindex(&self) -> IfIndex {
        // SAFETY: the context is valid while the program runs.
        IfIndex(unsafe { (*self.ctx.skb.skb).ifindex })
    }

    #[inline(always)]
    fn tagged(&self) -> bool {
        // SAFETY: as above.
        unsafe { (*self.ctx.skb.skb).vlan_present != 0 }
    }

    #[inline(always)]
    fn segment_len(&self, headers: u32) -> u32 {
        // SAFETY: as above.
        let gso_size = unsafe { (*self.ctx.skb.skb).gso_size };
        match gso_size {
            0 => self.frame_len() - ETH as u32,
            // GSO of SCTP: each segment has been made to fit the path MTU.
            GSO_BY_FRAGS => headers,
            size => size + headers,
        }
    }

    #[inline(always)]
    fn pull(&mut self, n: u32) {
        let n = n - MISSING as u32;
        let len = self.ctx.len();
        // A short linear packet needs no helper call.
        if self.data + n as usize > self.end && self.end - self.data < len as usize {
            // A failure shows in the loads that follow.
            let _ = self.ctx.pull_data(if n < len { n } else { len });
            self.reload();
        }
    }

    #[inline(always)]
    fn renew(&mut self) {
        self.reload();
    }

    #[inline(always)]
    fn load<T: Pod>(&self, offset: usize) -> Option<T> {
        if offset < MISSING {
            // SAFETY: as above. The two bytes of the field are in network byte order.
            let ethertype = unsafe { (*self.ctx.skb.skb).protocol } as u16;
            let header = Ethernet { ethertype, ..Ethernet::default() };
            return bytemuck::try_pod_read_unaligned(bytemuck::bytes_of(&header)).ok();
        }
        load(self.data, self.end, self.position(offset))
    }

    #[inline(always)]
    fn store<T: Pod>(&mut self, offset: usize, value: &T) -> Option<()> {
        if offset < MISSING { None } else { store(self.data, self.end, self.position(offset), value) }
    }

    // With CHECKSUM_PARTIAL, the field contains only the uncomplemented sum of the pseudo header; otherwise it is the
    // checksum of the segment, and with CHECKSUM_COMPLETE the skb has a sum as well. Only the helper knows which. The
    // way it has applied the difference of the pseudo header shows whether the field covers the data, which usually
    // saves a second call.
    #[inline(always)]
    fn update_l4_checksum(&mut self, offset: usize, pseudo: u64, data: u64, udp: bool, _v6: bool) -> Option<()> {
        let flags = if udp { u64::from(BPF_F_MARK_MANGLED_0) } else { 0 };
        let (pseudo, data) = (fold32(pseudo), fold32(data));
        let before: u16 = self.load(opaque(offset))?;
        let field = offset - MISSING;
        self.ctx.l4_csum_replace(field, 0, u64::from(pseudo), flags | u64::from(BPF_F_PSEUDO_HDR)).ok()?;
        self.reload();
        if data == 0 {
            return Some(());
        }
        let after: u16 = self.load(opaque(offset))?;
        let whole = checksum::apply(before, u64::from(pseudo));
        // The helper writes 0xffff for a UDP checksum of zero (RFC 768), which a partial sum may be as well.
        let whole = if udp && whole == 0 { 0xffff } else { whole };
        let partial = !checksum::apply(!before, u64::from(pseudo));
        if after == whole && after != partial {
            let new = checksum::apply(after, u64::from(data));
            return self.store(opaque(offset), &if udp && new == 0 { 0xffff } else { new });
        }
        if after != partial || after == whole {
            self.ctx.l4_csum_replace(field, 0, u64::from(data), flags).ok()?;
            self.reload();
        }
        Some(())
    }

    #[inline(always)]
    fn resize(&mut self, len: u32) -> Option<()> {
        let len = len - MISSING as u32;
        // SAFETY: the context is valid while the program runs.
        let result = unsafe { bpf_skb_change_tail(self.ctx.skb.skb, len, 0) };
        let pulled = self.ctx.pull_data(len);
        self.reload();
        (result == 0 && pulled.is_ok()).then_some(())
    }
}

/// A packet at an XDP hook.
pub(crate) struct XdpPacket<'a> {
    ctx: &'a XdpContext,
}

impl<'a> XdpPacket<'a> {
    #[inline(always)]
    pub(crate) fn new(ctx: &'a XdpContext) -> Self {
        Self { ctx }
    }
}

impl Packet for XdpPacket<'_> {
    #[inline(always)]
    fn frame_len(&self) -> u32 {
        (self.ctx.data_end() - self.ctx.data()) as u32
    }

    #[inline(always)]
    fn ifindex(&self) -> IfIndex {
        IfIndex(self.ctx.ingress_ifindex() as u32)
    }

    // XDP runs before the kernel removes VLAN tags, so they are among the frame's bytes.
    #[inline(always)]
    fn tagged(&self) -> bool {
        false
    }

    #[inline(always)]
    fn segment_len(&self, _: u32) -> u32 {
        self.frame_len() - ETH as u32
    }

    #[inline(always)]
    fn pull(&mut self, _: u32) {}

    // No pointers are kept.
    #[inline(always)]
    fn renew(&mut self) {}

    #[inline(always)]
    fn load<T: Pod>(&self, offset: usize) -> Option<T> {
        load(self.ctx.data(), self.ctx.data_end(), offset)
    }

    #[inline(always)]
    fn store<T: Pod>(&mut self, offset: usize, value: &T) -> Option<()> {
        store(self.ctx.data(), self.ctx.data_end(), offset, value)
    }

    #[inline(always)]
    fn update_l4_checksum(&mut self, offset: usize, pseudo: u64, data: u64, udp: bool, _v6: bool) -> Option<()> {
        let old: u16 = self.load(offset)?;
        let new = checksum::apply(old, u64::from(fold32(pseudo)) + u64::from(fold32(data)));
        self.store(offset, &if udp && new == 0 { 0xffff } else { new })
    }

    #[inline(always)]
    fn resize(&mut self, len: u32) -> Option<()> {
        let delta = len as i32 - self.frame_len() as i32;
        // SAFETY: the context is valid while the program runs.
        let result = unsafe { aya_ebpf::helpers::generated::bpf_xdp_adjust_tail(self.ctx.as_ptr().cast(), delta) };
        (result == 0).then_some(())
    }
}
