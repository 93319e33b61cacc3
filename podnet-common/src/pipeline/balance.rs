//! Load balancing: which backend a flow to a service gets.

use crate::{
    addr::{Addr, IfIndex},
    hash::{folded, mix},
    layout::{Affinity, AffinityKey, Backend, CtEntry, Frontend, NetworkKind, Tuple},
    packet::Ethernet,
    time,
};

use super::{
    HookPoint, Tables, frontend,
    handover::{Handover, ToQuotation},
    headers::Headers,
    shares,
};

/// Chooses a backend, by the client's affinity if the frontend has it, or by the flow's hash, evenly over many flows.
/// Stores it as the destination of `entry`, whose `last_seen` is the current time. False if a table refers to a missing
/// entry.
#[inline(always)]
pub(super) fn choose<T: Tables>(t: &T, entry: &mut CtEntry, client: &Addr, frontend: &Frontend, hash: u32) -> bool {
    if frontend.affinity != 0 {
        return last_or_new(t, entry, client, frontend, hash);
    }
    by_hash(t, entry, frontend, hash)
}

#[inline(always)]
fn by_hash<T: Tables>(t: &T, entry: &mut CtEntry, frontend: &Frontend, hash: u32) -> bool {
    let Some(Backend { addr, port, .. }) = pick(t, frontend, hash) else { return false };
    (entry.dst, entry.dport) = (*addr, *port);
    true
}

/// Backend selected by a hash, evenly over many hashes. `None` if a table refers to a missing entry.
#[inline(always)]
pub(super) fn pick<'t, T: Tables>(t: &'t T, frontend: &Frontend, hash: u32) -> Option<&'t Backend> {
    let index = ((hash as u64 * frontend.slot_count as u64) >> 32) as u32;
    t.backend(t.slot(frontend.slot_base.wrapping_add(index))?)
}

// Out of line: its key and value take stack.
#[inline(never)]
fn last_or_new<T: Tables>(t: &T, entry: &mut CtEntry, client: &Addr, frontend: &Frontend, hash: u32) -> bool {
    let now = entry.last_seen;
    let key = AffinityKey { client: *client, service: frontend.service };
    match t.affinity(&key) {
        // Another CPU may have stored a later time already.
        Some(last)
            if now.wrapping_sub(last.last_used) as i32 <= time::ticks_of_seconds(frontend.affinity as u64) as i32 =>
        {
            (entry.dst, entry.dport) = (last.addr, last.port);
        }
        _ if by_hash(t, entry, frontend, hash) => {}
        _ => return false,
    }
    t.set_affinity(&key, &Affinity { addr: entry.dst, port: entry.dport, _pad: 0, last_used: now });
    true
}

/// Address of the node of a backend, if that is another node, reachable on the link or through the tunnel. Packets are
/// forwarded to it for direct server return.
#[inline(always)]
pub(super) fn other_node<'t, T: Tables>(t: &'t T, backend: &Addr) -> Option<&'t Addr> {
    let network = t.network(backend)?;
    let remote = network.kind == NetworkKind::RemotePods as u32 || network.kind == NetworkKind::RemoteNode as u32;
    (remote && network.mac.0 != [0; 6] && !network.node.is_none()).then_some(&network.node)
}

/// Creates the entry of the flow that an ICMP error is about, if this node would forward that flow's packets for direct
/// server return, and hands it to [`quotation`](super::quotation). Maglev chooses the same backend on all nodes, so the
/// error reaches the backend whichever node it arrives at.
#[inline(never)]
pub(super) fn forwards_error<At: HookPoint, T: Tables>(t: &T, ethernet: &Ethernet, h: &mut Handover) -> bool {
    let Handover { packet: Headers { tuple, .. }, quotation: ToQuotation { answer }, send: s, .. } = h;
    if t.is_peer(&ethernet.src) || !answer.dst.same(&tuple.dst) {
        return false;
    }
    let Some(Ok(found)) = frontend::find::<At, T>(t, ethernet, answer, 0) else { return false };
    let frontend = found.frontend;
    s.entry = CtEntry {
        last_seen: t.advance(),
        service: frontend.service,
        // Unknown whether the connection is still open.
        flags: CtEntry::ONE_WAY | CtEntry::FIN_BACKEND,
        src: answer.src,
        sport: answer.sport,
        dport: answer.dport,
        ..CtEntry::default()
    };
    if frontend.flags & Frontend::DIRECT_RETURN == 0
        || frontend.slot_count == 0
        || !choose(t, &mut s.entry, &answer.src, frontend, hash(answer))
    {
        return false;
    }
    let Some(node) = other_node(t, &s.entry.dst) else { return false };
    s.entry.dst = *node;
    s.entry.dport = answer.dport;
    if !shares::may_begin::<At, T>(t, &h.quotation.answer, IfIndex(0), &mut h.insert)
        || t.insert_flow(&h.quotation.answer, &h.send.entry).is_err()
    {
        return false;
    }
    shares::count_entries(t, &h.insert, 1);
    true
}

/// Hash of a flow's addresses and ports.
#[inline(always)]
pub(super) fn hash(v: &Tuple) -> u32 {
    let ports = (v.sport.wire() as u32) << 16 | v.dport.wire() as u32;
    mix(mix(folded(&v.src) ^ ports) ^ folded(&v.dst))
}
