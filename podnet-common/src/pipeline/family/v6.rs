//! IPv6 (RFC 8200) and ICMPv6 (RFC 4443).

use core::mem::offset_of;

use super::{Control, Family, FragmentKind, Layer3, V6, is_tracked};
use crate::{
    addr::{Addr, Proto},
    checksum,
    packet::{ETH, Ipv6, Packet},
    pipeline::answer,
};

/// Maximum number of IPv6 extension headers. RFC 8200, section 4.1 expects at most six in a sensible packet; packets
/// with more are treated as malformed.
const EXTENSION_HEADERS: usize = 6;

impl Family for V6 {
    type Header = Ipv6;
    const V6: bool = true;
    const ICMP: Proto = Proto::ICMPV6;

    // All types below 128 are errors (RFC 4443, section 2.1). The defined ones are destination unreachable, packet too
    // big, time exceeded and parameter problem.
    #[inline(always)]
    fn control(kind: u8) -> Control {
        match kind {
            1..=4 => Control::Error,
            128 => Control::EchoRequest,
            129 => Control::EchoReply,
            _ => Control::Other,
        }
    }

    const ECHO_REPLY: u8 = 129;
    const UNREACHABLE: [u8; 2] = [1, 4];
    const TOO_BIG: [u8; 2] = [2, 0];
    const EXCEEDED: [u8; 2] = [3, 0];

    #[inline(always)]
    fn too_big(mtu: u32) -> u32 {
        mtu.to_be()
    }

    #[inline(always)]
    fn quoted_transport<P: Packet>(p: &P, at: usize, h: &Ipv6) -> Option<(Proto, usize)> {
        let (mut proto, mut len) = (h.next_header, size_of::<Ipv6>());
        // A router that has no room for a fragment quotes it. Others don't have the ports.
        if proto == 44 {
            let [next, _, high, low]: [u8; 4] = p.load(at + len)?;
            if high != 0 || low & 0xf8 != 0 {
                return None;
            }
            (proto, len) = (next, len + 8);
        }
        is_tracked::<Self>(proto).then_some((Proto(proto), len))
    }

    #[inline(always)]
    fn locate<P: Packet>(p: &P, h: &Ipv6) -> Option<Layer3> {
        let total = u16::from_be(h.payload_len) as usize + 40;
        if (h.version_flow & 0xf0u32) != 0x60 || total + ETH > p.frame_len() as usize {
            return None;
        }
        let mut found = Layer3 { l4: ETH + 40, proto: h.next_header, fragment: FragmentKind::Unfragmented, id: 0 };
        let mut i = 0;
        while i < EXTENSION_HEADERS {
            match found.proto {
                // Hop-by-hop options, routing, destination options (RFC 8200, section 4).
                0 | 43 | 60 => {
                    let [next, len] = p.load::<[u8; 2]>(found.l4)?;
                    found.proto = next;
                    found.l4 += (len as usize + 1) * 8;
                }
                44 => {
                    let [head, id]: [u32; 2] = p.load(found.l4)?;
                    let [next, _, high, low] = head.to_ne_bytes();
                    found.proto = next;
                    found.id = id;
                    found.l4 += 8;
                    // An atomic fragment (RFC 6946) is not fragmented.
                    found.fragment = FragmentKind::new(low & 1 != 0, high != 0 || low & 0xf8 != 0);
                    // Only the first fragment contains further headers.
                    if found.fragment == FragmentKind::Later {
                        break;
                    }
                }
                _ => break,
            }
            i += 1;
        }
        // A longer chain hides the protocol, on which decisions depend.
        let unfinished = matches!(found.proto, 0 | 43 | 44 | 60) && found.fragment != FragmentKind::Later;
        (!unfinished).then_some(found)
    }

    #[inline(always)]
    fn src(h: &Ipv6) -> Addr {
        Addr(h.src)
    }

    #[inline(always)]
    fn dst(h: &Ipv6) -> Addr {
        Addr(h.dst)
    }

    #[inline(always)]
    fn ttl(h: &Ipv6) -> u8 {
        h.hop_limit
    }

    #[inline(always)]
    fn set_ttl(h: &mut Ipv6, ttl: u8) {
        h.hop_limit = ttl;
    }

    #[inline(always)]
    fn dont_fragment(_: &Ipv6) -> bool {
        true
    }

    #[inline(always)]
    fn end(h: &Ipv6, frame_len: u32) -> u32 {
        let payload = u16::from_be(h.payload_len) as u32;
        if payload == 0 { frame_len } else { ETH as u32 + 40 + payload }
    }

    #[inline(always)]
    fn set_src(h: &mut Ipv6, addr: &Addr) -> u64 {
        let difference = checksum::difference4(h.src, addr.0);
        h.src = addr.0;
        difference
    }

    #[inline(always)]
    fn set_dst(h: &mut Ipv6, addr: &Addr) -> u64 {
        let difference = checksum::difference4(h.dst, addr.0);
        h.dst = addr.0;
        difference
    }

    #[inline(always)]
    fn update_checksum(_: &mut Ipv6, _: u64) {}

    #[inline(always)]
    fn mapped(addr: &Addr) -> bool {
        addr.is_v4()
    }

    #[inline(always)]
    fn write<P: Packet>(p: &mut P, h: &Ipv6, src: bool, dst: bool) -> Option<()> {
        p.store(ETH + offset_of!(Ipv6, hop_limit), &h.hop_limit)?;
        if src {
            p.store(ETH + offset_of!(Ipv6, src), &h.src)?;
        }
        if dst {
            p.store(ETH + offset_of!(Ipv6, dst), &h.dst)?;
        }
        Some(())
    }

    #[inline(always)]
    fn answer(h: &Ipv6, proto: Proto, len: u16) -> Ipv6 {
        Ipv6 {
            version_flow: 0x6000_0000u32.to_be(),
            payload_len: len.to_be(),
            next_header: proto.0,
            hop_limit: 64,
            src: h.dst,
            dst: h.src,
        }
    }

    #[inline(always)]
    fn quote(h: &Ipv6, proto: Proto) -> Ipv6 {
        Ipv6 { next_header: proto.0, ..*h }
    }

    #[inline(always)]
    fn sum(h: &Ipv6) -> u64 {
        answer::sum(&bytemuck::cast::<Ipv6, [u32; 10]>(*h))
    }

    #[inline(always)]
    fn to_words(h: &Ipv6, words: &mut [u32; 10]) {
        *words = bytemuck::cast(*h);
    }

    #[inline(always)]
    fn from_words(words: &[u32; 10]) -> Ipv6 {
        bytemuck::cast(*words)
    }
}
