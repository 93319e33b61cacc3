//! Packets as TC and XDP see them.
//!
//! The verifier wants every access behind a comparison of the same pointer with the packet's end, so each load and
//! store makes its own.

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

/// `gso_size` of a packet whose segments have lengths of their own.
const GSO_BY_FRAGS: u32 = 0xffff;

/// Reads a value at `offset` behind `data`, if it ends before `end`.
#[inline(always)]
fn load<T: Pod>(data: usize, end: usize, offset: usize) -> Option<T> {
    let at = data + offset;
    if at + size_of::<T>() > end {
        return None;
    }
    // SAFETY: within the packet, and every bit pattern is a `T`. The address may be unaligned for `T`: the targets'
    // loads don't mind, and the kernel's verifier refuses them where they do.
    Some(unsafe { *(at as *const T) })
}

/// Writes a value at `offset` behind `data`, if it ends before `end`.
#[inline(always)]
fn store<T: Pod>(data: usize, end: usize, offset: usize, value: &T) -> Option<()> {
    let at = data + offset;
    if at + size_of::<T>() > end {
        return None;
    }
    // SAFETY: as in `load`; packets of a program are its own while it runs.
    unsafe { *(at as *mut T) = *value };
    Some(())
}

/// Hides an offset's origin from the compiler. Otherwise it may split a sum, and compute one pointer for the bounds check
/// and another for the access, whose equality the verifier can't see.
#[inline(always)]
fn opaque(mut offset: usize) -> usize {
    // SAFETY: a register is moved to itself. BTF line information needs an instruction here.
    unsafe { core::arch::asm!("{0} = {0}", inout(reg) offset, options(pure, nomem, nostack, preserves_flags)) };
    offset
}

/// A packet at a TC hook. `MISSING` is how many bytes its frame lacks of an Ethernet header: none, or all.
pub(crate) struct TcPacket<'a, const MISSING: usize> {
    ctx: &'a TcContext,
    data: usize,
    end: usize,
    /// See [`TcPacket::place`].
    mask: usize,
}

/// Offsets of headers in a frame are less. What is added to them must stay below what the verifier allows, 0xffff.
static OFFSETS: usize = 0x7fff;

impl<'a, const MISSING: usize> TcPacket<'a, MISSING> {
    #[inline(always)]
    pub(crate) fn new(ctx: &'a TcContext) -> Self {
        // SAFETY: a static. Volatile, so that the compiler doesn't know the value.
        let mask = if MISSING == 0 { 0 } else { unsafe { (&raw const OFFSETS).read_volatile() } };
        Self { data: ctx.data(), end: ctx.data_end(), mask, ctx }
    }

    /// Where in the frame something is that has an offset in a frame with an Ethernet header. The mask keeps the compiler
    /// from adding the offset to an address first and taking off what is missing then: the verifier refuses the access.
    #[inline(always)]
    fn place(&self, offset: usize) -> usize {
        if MISSING == 0 { offset } else { (offset - MISSING) & self.mask }
    }

    /// Helpers that may move the packet make the verifier forget its pointers.
    #[inline(always)]
    fn reload(&mut self) {
        let skb = self.ctx.skb.skb;
        // SAFETY: the context is valid while the program runs. Volatile, so that these are new pointers.
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
            // SCTP's, each of which was made for the way's MTU.
            GSO_BY_FRAGS => headers,
            size => size + headers,
        }
    }

    #[inline(always)]
    fn pull(&mut self, n: u32) {
        let n = n - MISSING as u32;
        let len = self.ctx.len();
        // A short packet that is linear needs no call of the helper.
        if self.data + n as usize > self.end && self.end - self.data < len as usize {
            // Whether it worked shows in the loads that follow.
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
            // SAFETY: as above. The helpers' word has the two bytes of the field as they are on the wire.
            let ethertype = unsafe { (*self.ctx.skb.skb).protocol } as u16;
            let header = Ethernet { ethertype, ..Ethernet::default() };
            return bytemuck::try_pod_read_unaligned(bytemuck::bytes_of(&header)).ok();
        }
        load(self.data, self.end, self.place(offset))
    }

    #[inline(always)]
    fn store<T: Pod>(&mut self, offset: usize, value: &T) -> Option<()> {
        if offset < MISSING { None } else { store(self.data, self.end, self.place(offset), value) }
    }

    // With CHECKSUM_PARTIAL the field holds the sum of the pseudo header only, uncomplemented; otherwise it is the checksum of
    // the segment, and with CHECKSUM_COMPLETE the skb has a sum as well. Only the helper knows which. How it has applied
    // the pseudo header's difference tells whether the field covers the data, which usually spares a second call.
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

    // Before the kernel has made anything of the frame, tags are among its bytes.
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

    // Nothing is kept here.
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
