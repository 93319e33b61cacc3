//! ICMP errors about translated packets: the receiver finds its own packet in the quotation.

use podnet_common::{
    layout::{CtEntry, Hook, NetworkKind},
    pipeline::Tables as _,
};

use super::{Outcome, translation};
use crate::{frame::sum, view::View, world::World};

/// Errors must not be delivered if their sender cannot have seen the quoted packet.
pub fn known(world: &World, o: &Outcome<'_>, packet: &View<'_>) {
    let Some(quoted) = packet.quoted().filter(|_| packet.error()) else { return };
    let (src, dst) = (packet.src.into(), packet.dst.into());
    match o.entry.hook {
        Hook::FromPod => {
            assert!(quoted.tuple.dst == src, "{o}a pod tells of what wasn't sent to it");
            assert!(quoted.tuple.src == dst, "{o}a pod tells another than the one who has sent it");
        }
        Hook::FromUplink => {
            let here = [NetworkKind::LocalPods, NetworkKind::LocalNode];
            let stays = world.kind(&quoted.tuple.dst).is_some_and(|kind| here.contains(&kind));
            assert!(!stays, "{o}what is quoted never left this node");
            let pod = world.tables.endpoint(&dst).is_some();
            assert!(!pod || quoted.tuple.src == dst, "{o}a pod is told of what another has sent");
        }
        _ => {}
    }
}

/// Checks an error about a packet of a known flow; `false` if it is about another packet.
pub fn check(world: &World, o: &Outcome<'_>, packet: &View<'_>) -> bool {
    let Some(quoted) = packet.quoted() else { return false };
    let answer = quoted.tuple.reversed();
    // An echo without identifier has the same tuple in both directions.
    let echo = answer.proto.0 == 1 || answer.proto.0 == 58;
    if echo && answer.sport == answer.dport {
        return true;
    }
    // Only the sender of the quoted packet may receive the error.
    if answer.dst != packet.dst.into() {
        return false;
    }
    let Some(entry) = world.tables.flow(&answer, |entry| *entry) else { return false };
    let Some(output) = View::of(&o.output) else { panic!("{o}it is no packet any more") };
    let Some(seen) = output.quoted() else { panic!("{o}it quotes nothing any more") };
    let (src, dst) = (entry.flags & CtEntry::REWRITE_SRC != 0, entry.flags & CtEntry::REWRITE_DST != 0);
    let sent = if entry.flags & CtEntry::ONE_WAY != 0 { quoted.tuple } else { entry.reply_key(answer.proto) };
    assert!(seen.tuple == sent, "{o}the sender knows nothing of what is quoted: {:?}, not {sent:?}", seen.tuple);
    let mut expected = o.input.to_vec();
    let v6 = packet.v6();
    let of_target = src && answer.src == packet.src.into();
    translation::put_addresses(&mut expected, v6, 14, of_target.then_some(entry.src), dst.then_some(entry.dst));
    // Fields of the quotation verified above, and its checksums.
    let at = packet.l4 + 8;
    let (addresses, ports) = (if v6 { at + 8..at + 40 } else { at + 12..at + 20 }, if echo { 4..6 } else { 0..4 });
    let ports = quoted.l4 + ports.start..quoted.l4 + ports.end;
    let mut fields = vec![addresses, ports];
    if !v6 {
        fields.push(at + 10..at + 12);
        let residue = |frame: &[u8]| sum(&frame[at..quoted.l4]);
        assert!(residue(&o.output) == residue(o.input), "{o}the quoted header's checksum is spoilt");
    }
    let field = match answer.proto.0 {
        6 => Some(16),
        17 => Some(6),
        132 => None,
        _ => Some(2),
    };
    if let Some(field) = field.map(|field| quoted.l4 + field..quoted.l4 + field + 2).filter(|f| f.end <= packet.end) {
        let pseudo = if v6 { at + 8..at + 40 } else { at + 12..at + 20 };
        let pseudo = if answer.proto.0 == 1 { 0..0 } else { pseudo };
        let residue = |frame: &[u8]| sum(&[&frame[pseudo.clone()], &frame[quoted.l4..packet.end & !1]].concat());
        if answer.proto.0 != 17 || o.input[field.clone()] != [0, 0] {
            assert!(residue(&o.output) == residue(o.input), "{o}the quoted checksum is spoilt");
            fields.push(field);
        }
    }
    for field in fields {
        expected[field.clone()].copy_from_slice(&o.output[field]);
    }
    translation::put_way(world, o, packet, &entry.dst, &mut expected);
    translation::same(o, packet, &expected);
    true
}
