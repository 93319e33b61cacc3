//! Direct paths: packets between addresses that exchange them without a flow, as pods do that use each other's addresses.
//! What has been found out about one such packet counts for the others of the same tick on the same processor.

use bytemuck::{Pod, Zeroable};

use crate::{
    addr::{Addr, IfIndex, Mac},
    layout::Out,
    packet::{Ethernet, Packet, Tcp},
    verdict::Reason,
};

use super::{
    Egress, Place, Stage, Tables, Verdict, admit,
    balance::hash_pair,
    family::{Family, Parsed},
    handover::Departure,
    headers::Headers,
    rewrite::fits,
};

/// `direct_paths` (per-CPU array of [`DirectPath::SLOTS`]): how packets between two addresses leave. A place may be taken by
/// any other pair.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Pod, Zeroable)]
pub struct DirectPath {
    /// When it was found, in [ticks](crate::time).
    tick: u32,
    /// The interface by which the packets come in.
    from: IfIndex,
    /// Their source.
    src: Addr,
    /// Their destination.
    dst: Addr,
    /// Who sends them here.
    mac: Mac,
    /// Zero.
    _pad: u16,
    /// How they leave: an [`Out`] as a number; [`Out::Stack`] for the tunnel's packets.
    out: u32,
    /// By which interface.
    ifindex: IfIndex,
    /// What it takes, in bytes without the Ethernet header.
    mtu: u32,
    /// Their MACs then, as [`CtEntry::macs`](crate::layout::CtEntry::macs).
    macs: [u32; 3],
}

impl DirectPath {
    /// How many a processor has.
    pub const SLOTS: u32 = 256;
}

/// Forwards a packet of no flow by a known path, or leaves it to [`Stage::Classify`], as all that open a connection.
#[inline(always)]
pub(super) fn known<At: Place, F: Family, P: Packet, T: Tables>(
    p: &mut P,
    t: &T,
    ethernet: &Ethernet,
    v: &Parsed<F>,
) -> Verdict {
    // At egress hooks the stack has found the path.
    if At::EGRESS || v.icmp_error || v.tcp_flags & (Tcp::SYN | Tcp::ACK) == Tcp::SYN {
        return Verdict::tail(Stage::Classify);
    }
    // The clock may stand still where no flow begins and no daemon runs.
    let now = t.advance();
    let verdict = t.direct_path(hash_pair(&v.tuple.src, &v.tuple.dst) % DirectPath::SLOTS, |path| {
        let here = (path.tick ^ now) | (path.from.0 ^ p.ifindex().0);
        let pair = path.src.difference(&v.tuple.src) | path.dst.difference(&v.tuple.dst);
        if here | pair != 0 || path.mac != ethernet.src || !fits::<F, P>(p, v, path.mtu) {
            return Verdict::tail(Stage::Classify);
        }
        // Of what is for the node only the tunnel's packets have a path: other ports may be services'.
        if path.out == Out::Stack as u32 {
            let tunnelled = admit::tunnelled::<T>(t, &v.tuple);
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

/// Notes the path of an admitted packet, by which others leave with these MACs.
#[inline(always)]
pub(super) fn note<T: Tables>(
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
            macs: *macs,
        };
    });
}
