//! Kinds of addresses, independent of the tables.

use crate::addr::{Addr, Proto};

/// Whether an address is 0.0.0.0 or `::`, which is never a valid destination (RFC 1122, section 3.2.1.3; RFC 4291,
/// section 2.5.2).
#[inline(always)]
pub(super) fn unspecified(addr: &Addr) -> bool {
    addr.same(&Addr::v4(0)) || addr.is_none()
}

/// Whether an address is multicast or broadcast (RFC 1112, section 4; RFC 4291, section 2.7).
#[inline(always)]
pub(super) fn multicast(addr: &Addr) -> bool {
    let [four, ..] = addr.0[3].to_ne_bytes();
    let [six, ..] = addr.0[0].to_ne_bytes();
    (addr.is_v4() && four >= 224) || six == 0xff
}

/// Whether addresses are invalid on a link between hosts (RFC 1812, section 5.3.7; RFC 4291, sections 2.5.2 and 2.5.3).
/// A host without an address may send to multicast and broadcast addresses (DHCP, duplicate address detection).
#[inline(always)]
pub(super) fn martian(src: &Addr, dst: &Addr) -> bool {
    if src.is_v4() {
        let [from, ..] = src.0[3].to_ne_bytes();
        let [to, ..] = dst.0[3].to_ne_bytes();
        return from == 127 || from >= 224 || to == 127 || (from == 0 && to < 224);
    }
    let [from, ..] = src.0[0].to_ne_bytes();
    let [to, ..] = dst.0[0].to_ne_bytes();
    let loopback = src.same(&Addr::LOOPBACK_V6) || dst.same(&Addr::LOOPBACK_V6);
    loopback || from == 0xff || (src.is_none() && to != 0xff)
}

/// Whether an IPv6 packet is link-local: neighbour discovery, duplicate address detection, multicast listener discovery
/// (RFC 4861, RFC 4862, RFC 3810). Such a packet has a link-local source or none, and is never for a pod.
#[inline(always)]
pub(super) fn link(src: &Addr, dst: &Addr, proto: Proto) -> bool {
    let [first, second, ..] = dst.0[0].to_ne_bytes();
    let to_link = link_local(dst) || (first == 0xff && second & 0xf <= 2);
    to_link && (link_local(src) || (src.is_none() && proto == Proto::ICMPV6))
}

/// Whether an IPv4 address is link-local (RFC 3927).
#[inline(always)]
pub(super) fn link_local_v4(addr: &Addr) -> bool {
    let [first, second, ..] = addr.0[3].to_ne_bytes();
    addr.is_v4() && first == 169 && second == 254
}

/// Whether an IPv6 address is link-local (RFC 4291, section 2.5.6).
#[inline(always)]
pub(super) fn link_local(addr: &Addr) -> bool {
    let [first, second, ..] = addr.0[0].to_ne_bytes();
    first == 0xfe && second & 0xc0 == 0x80
}
