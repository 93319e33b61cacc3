//! IPv4 (RFC 791) and ICMP (RFC 792).

use core::mem::offset_of;

use super::{Control, Family, FragmentKind, Layer3, V4, is_tracked};
use crate::{
    addr::{Addr, Proto},
    checksum,
    packet::{ETH, Ipv4, Packet},
    pipeline::answer,
};

impl Family for V4 {
    type Header = Ipv4;
    const V6: bool = false;
    const ICMP: Proto = Proto::ICMP;

    // Destination unreachable, time exceeded, parameter problem (RFC 792). Source quench and redirects are not
    // translated.
    #[inline(always)]
    fn control(kind: u8) -> Control {
        match kind {
            3 | 11 | 12 => Control::Error,
            8 => Control::EchoRequest,
            0 => Control::EchoReply,
            _ => Control::Other,
        }
    }

    const ECHO_REPLY: u8 = 0;
    const UNREACHABLE: [u8; 2] = [3, 3];
    const TOO_BIG: [u8; 2] = [3, 4];
    const EXCEEDED: [u8; 2] = [11, 0];

    // The MTU is in the lower half (RFC 1191, section 4).
    #[inline(always)]
    fn too_big(mtu: u32) -> u32 {
        mtu.to_be()
    }

    #[inline(always)]
    fn quoted_transport<P: Packet>(_: &P, _: usize, h: &Ipv4) -> Option<(Proto, usize)> {
        let len = (h.version_ihl & 0xf) as usize * 4;
        let first = u16::from_be(h.fragment) & 0x1fff == 0;
        (is_tracked::<Self>(h.proto) && len >= 20 && first).then_some((Proto(h.proto), len))
    }

    #[inline(always)]
    fn locate<P: Packet>(p: &P, h: &Ipv4) -> Option<Layer3> {
        let ihl = (h.version_ihl & 0xf) as usize * 4;
        let total = u16::from_be(h.total_len) as usize;
        // GSO packets may exceed the field's range; it is then zero (BIG TCP).
        let contradiction = total != 0 && (total < ihl || total + ETH > p.frame_len() as usize);
        if h.version_ihl >> 4 != 4 || ihl < 20 || contradiction {
            return None;
        }
        // More-fragments flag and fragment offset (RFC 791, section 3.1).
        let field = u16::from_be(h.fragment);
        let fragment = FragmentKind::new(field & 0x2000 != 0, field & 0x1fff != 0);
        Some(Layer3 { l4: ETH + ihl, proto: h.proto, fragment, id: h.id as u32 })
    }

    #[inline(always)]
    fn src(h: &Ipv4) -> Addr {
        Addr::v4(h.src)
    }

    #[inline(always)]
    fn dst(h: &Ipv4) -> Addr {
        Addr::v4(h.dst)
    }

    #[inline(always)]
    fn ttl(h: &Ipv4) -> u8 {
        h.ttl
    }

    #[inline(always)]
    fn set_ttl(h: &mut Ipv4, ttl: u8) {
        let old = u16::from_ne_bytes([h.ttl, h.proto]) as u32;
        let new = u16::from_ne_bytes([ttl, h.proto]) as u32;
        h.ttl = ttl;
        h.checksum = checksum::apply(h.checksum, checksum::difference(old, new));
    }

    #[inline(always)]
    fn dont_fragment(h: &Ipv4) -> bool {
        h.fragment & 0x4000u16.to_be() != 0
    }

    #[inline(always)]
    fn end(h: &Ipv4, frame_len: u32) -> u32 {
        let total = u16::from_be(h.total_len) as u32;
        if total == 0 { frame_len } else { ETH as u32 + total }
    }

    #[inline(always)]
    fn set_src(h: &mut Ipv4, addr: &Addr) -> u64 {
        let difference = checksum::difference(h.src, addr.0[3]);
        h.src = addr.0[3];
        difference
    }

    #[inline(always)]
    fn set_dst(h: &mut Ipv4, addr: &Addr) -> u64 {
        let difference = checksum::difference(h.dst, addr.0[3]);
        h.dst = addr.0[3];
        difference
    }

    #[inline(always)]
    fn update_checksum(h: &mut Ipv4, difference: u64) {
        h.checksum = checksum::apply(h.checksum, difference);
    }

    #[inline(always)]
    fn mapped(_: &Addr) -> bool {
        false
    }

    #[inline(always)]
    fn write<P: Packet>(p: &mut P, h: &Ipv4, src: bool, dst: bool) -> Option<()> {
        let [high, low] = h.checksum.to_ne_bytes();
        p.store(ETH + offset_of!(Ipv4, ttl), &u32::from_ne_bytes([h.ttl, h.proto, high, low]))?;
        if src {
            p.store(ETH + offset_of!(Ipv4, src), &h.src)?;
        }
        if dst {
            p.store(ETH + offset_of!(Ipv4, dst), &h.dst)?;
        }
        Some(())
    }

    #[inline(always)]
    fn answer(h: &Ipv4, proto: Proto, len: u16) -> Ipv4 {
        let mut answer = Ipv4 {
            version_ihl: 0x45,
            tos: 0,
            total_len: (20 + len).to_be(),
            id: 0,
            fragment: 0x4000u16.to_be(),
            ttl: 64,
            proto: proto.0,
            checksum: 0,
            src: h.dst,
            dst: h.src,
        };
        answer.checksum = !checksum::fold16(Self::sum(&answer));
        answer
    }

    #[inline(always)]
    fn quote(h: &Ipv4, _: Proto) -> Ipv4 {
        Ipv4 { version_ihl: 0x45, ..*h }
    }

    #[inline(always)]
    fn sum(h: &Ipv4) -> u64 {
        answer::sum(&bytemuck::cast::<Ipv4, [u32; 5]>(*h))
    }

    #[inline(always)]
    fn to_words(h: &Ipv4, words: &mut [u32; 10]) {
        [words[0], words[1], words[2], words[3], words[4]] = bytemuck::cast(*h);
    }

    #[inline(always)]
    fn from_words(words: &[u32; 10]) -> Ipv4 {
        let [a, b, c, d, e, ..] = *words;
        bytemuck::cast([a, b, c, d, e])
    }
}
