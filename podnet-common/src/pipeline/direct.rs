//! Direct paths: cached forwarding of packets that need no flow, such as those between pods that use each other's
//! addresses.
//!
//! What is known about one packet applies to all others between the same addresses, within one tick on one CPU.

use crate::{
    addr::{Addr, IfIndex, Mac},
    hash::hash_pair,
    layout::Out,
    packet::{Ethernet, Packet, Tcp},
    verdict::Reason,
};

use super::{
    DirectPath, Egress, HookPoint, Stage, Tables, Verdict, admit,
    family::{Family, Parsed},
    handover::Departure,
    headers::Headers,
    rewrite::fits,
};

/// Forwards a packet by its direct path, or leaves it to [`Stage::Classify`]. Packets that open a connection are always
/// classified.
#[inline(always)]
pub(super) fn forward<At: HookPoint, F: Family, P: Packet, T: Tables>(
    p: &mut P,
    t: &T,
    ethernet: &Ethernet,
    v: &Parsed<F>,
) -> Verdict {
    // At egress hooks the stack has found the path.
    if At::EGRESS || v.icmp_error || v.tcp_flags & (Tcp::SYN | Tcp::ACK) == Tcp::SYN {
        return Verdict::tail(Stage::Classify);
    }
    // The stored time may stand still if no flow begins and no daemon runs.
    let now = t.advance();
    let settings = settings(t);
    let verdict = t.direct_path(hash_pair(&v.tuple.src, &v.tuple.dst) % DirectPath::SLOTS, |path| {
        let here = (path.tick ^ now) | (path.from.0 ^ p.ifindex().0) | (path.settings ^ settings);
        let pair = path.src.difference(&v.tuple.src) | path.dst.difference(&v.tuple.dst);
        if here | pair != 0 || path.mac != ethernet.src || !fits::<F, P>(p, v, path.mtu) {
            return Verdict::tail(Stage::Classify);
        }
        // Among packets to the node, only those of the tunnel have a path: other ports may be a service's.
        if path.out == Out::Stack as u32 {
            let tunnelled = admit::is_tunnel_packet::<T>(t, &v.tuple);
            return if tunnelled { Verdict::PASS } else { Verdict::tail(Stage::Classify) };
        }
        let mut header = v.header;
        F::decrement_ttl(&mut header);
        if F::write(p, &header, false, false).is_none() || p.store(0, &path.macs).is_none() {
            return Verdict::drop(Reason::PacketWriteFailed);
        }
        let out = Out::from_number(path.out as u8);
        Verdict::forward(Egress { out, ifindex: path.ifindex, hop: Addr::NONE })
    });
    match verdict {
        Some(verdict) => verdict,
        None => Verdict::tail(Stage::Classify),
    }
}

/// Stores the path of an admitted packet.
#[inline(always)]
pub(super) fn store<T: Tables>(
    t: &T,
    from: IfIndex,
    mac: Mac,
    packet: &Headers,
    departure: &Departure,
    mtu: u32,
    macs: &[u32; 3],
) {
    let (src, dst) = (packet.tuple.src, packet.tuple.dst);
    t.direct_path(hash_pair(&src, &dst) % DirectPath::SLOTS, |path| {
        *path = DirectPath {
            tick: t.now(),
            from,
            src,
            dst,
            mac,
            _pad: 0,
            out: departure.out_with_macs(),
            ifindex: departure.ifindex,
            mtu,
            settings: settings(t),
            macs: *macs,
        };
    });
}

/// The settings that decide whether packets are admitted.
#[inline(always)]
fn settings<T: Tables>(t: &T) -> u32 {
    t.config().map_or(0, |config| config.flags)
}
