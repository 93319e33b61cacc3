//! Insertion of flows, including SNAT port allocation.
//!
//! The key of the reply's entry in `conntrack` makes a translation unique: it is inserted first, and only if it is
//! free. So two flows whose replies would be identical (two services with a common backend, source NAT) can't exist;
//! the second gets another source port. The connection table thus doubles as the table of source ports, and each port
//! can be used once per destination.

use crate::{
    addr::Port,
    hash::{folded, mix},
    layout::{CtEntry, Tuple},
    packet::Packet,
    verdict::{Counter, Reason},
};

use super::{
    Action, HookPoint, InsertError, Stage, Tables, Verdict, handover::Handover, headers::Headers, run::run_stage,
    shares,
};

/// Number of source ports to try in one run of the program. Each adds two or three paths for the verifier.
const ATTEMPTS_PER_RUN: u32 = 16;
/// Number of source ports to try before the flow is refused. With 99 of 100 ports in use, so many random draws find a
/// free one for all but two flows in a hundred. The kernel limits the number of runs: of 33 tail calls
/// (`MAX_TAIL_CALL_CNT`), up to four lead here and two follow.
const ATTEMPTS: u32 = 400;
/// Number of attempts that avoid ports of recently closed connections of other clients: the server may still hold them
/// in TIME-WAIT and refuse a new connection unless its sequence numbers or timestamps happen to be higher (RFC 6191).
const ATTEMPTS_AVOIDING_CLOSED: u32 = 64;

/// Tries more source ports for a flow whose first port is taken. Follows [`begin`](super::begin()) or itself at the
/// same hook.
#[inline(always)]
pub fn insert<At: HookPoint, P: Packet, T: Tables>(_: &mut P, t: &T) -> Verdict {
    run_stage::<At, T>(t, |h| attempt::<At, T, ATTEMPTS_PER_RUN>(t, h))
}

/// Inserts the flow handed over if its first source port is free; the packet continues with [`send`](super::send()).
#[inline(always)]
pub(super) fn first_attempt<At: HookPoint, T: Tables>(t: &T, h: &mut Handover) -> Verdict {
    attempt::<At, T, 1>(t, h)
}

#[inline(always)]
fn attempt<At: HookPoint, T: Tables, const RUN: u32>(t: &T, h: &mut Handover) -> Verdict {
    match insert_entries::<T, RUN>(t, h) {
        Ok(()) => {
            t.count(Counter::FlowsCreated);
            Verdict::tail(Stage::Send)
        }
        // Packets from processes of the host pass even without a flow.
        Err(verdict) if At::EGRESS && verdict.action == Action::Drop => Verdict::PASS,
        Err(verdict) => verdict,
    }
}

/// Inserts both entries, or the only one of a flow that is forwarded for direct server return.
#[inline(always)]
fn insert_entries<T: Tables, const RUN: u32>(t: &T, h: &mut Handover) -> Result<(), Verdict> {
    let one_way = h.send.entry.flags & CtEntry::ONE_WAY != 0;
    let mut new = 0;
    // Inserted before the first packet leaves, so that the reply finds it.
    if !one_way {
        new += reserve::<T, RUN>(t, h)? as u32;
    }
    // A failed insertion takes longer than a lookup.
    let replaced = h.classify.stale_flow != 0 && replace(t, h, one_way);
    if !replaced {
        match t.insert_flow(&h.packet.tuple, &h.send.entry) {
            Ok(()) => new += 1,
            Err(InsertError::Exists) if replace(t, h, one_way) => {}
            Err(_) => {
                if !one_way {
                    t.remove_flow(&h.insert.key);
                }
                return Err(Verdict::drop(Reason::ConntrackFull));
            }
        }
    }
    if new != 0 {
        shares::count_entries(t, &h.insert, new);
    }
    Ok(())
}

/// Overwrites the entry of an earlier flow and removes the other half of that flow.
// Out of line: called from several places.
#[inline(never)]
fn replace<T: Tables>(t: &T, h: &mut Handover, one_way: bool) -> bool {
    let Handover { packet: Headers { tuple, .. }, send: s, insert: n, .. } = h;
    let replaced = t.flow(tuple, |old| {
        n.owner = old.reply_key(tuple.proto);
        *old = s.entry;
    });
    if replaced.is_none() {
        return false;
    }
    let orphaned = one_way || !n.owner.same(&n.key);
    if orphaned && t.flow(&n.owner, |half| half.reply_key(tuple.proto).same(tuple)) == Some(true) {
        t.remove_flow(&n.owner);
    }
    true
}

/// Inserts the reply's entry, with another source port if the first is taken. Returns whether the key was new. `Err` is
/// the verdict: retry with other ports in another run, or drop.
#[inline(always)]
fn reserve<T: Tables, const RUN: u32>(t: &T, h: &mut Handover) -> Result<bool, Verdict> {
    let tried = h.insert.attempts;
    let mut i = 0;
    while i < RUN {
        let n = tried.wrapping_add(i);
        if h.insert.needs_snat_port != 0 || n > 0 {
            let (draw, among) = match n {
                0 => (follow_client(&h.packet.tuple), h.insert.first_ports),
                _ => (mix(h.insert.hash ^ n), h.insert.ports),
            };
            match draw.checked_rem(among).and_then(|index| t.snat_port(index)) {
                Some(port) => h.send.entry.sport = Port::new(port as u16),
                None => return Err(Verdict::drop(Reason::SnatExhausted)),
            }
            h.send.entry.flags |= CtEntry::REWRITE_SRC;
        }
        h.insert.key = h.send.entry.reply_key(h.packet.tuple.proto);
        h.insert.reply = h.send.entry.reverse(&h.packet.tuple);
        let drawn = h.insert.needs_snat_port != 0 || n > 0;
        let avoid_closed = drawn && n < ATTEMPTS_AVOIDING_CLOSED;
        // Most likely the earlier flow of this tuple has the key.
        if n == 0 && h.classify.stale_flow != 0 && take_over(t, h, avoid_closed) {
            return Ok(false);
        }
        match t.insert_flow(&h.insert.key, &h.insert.reply) {
            Ok(()) => return Ok(true),
            Err(InsertError::Full) => return Err(Verdict::drop(Reason::ConntrackFull)),
            Err(InsertError::Exists) => {
                if take_over(t, h, avoid_closed) {
                    return Ok(false);
                }
            }
        }
        if h.insert.needs_snat_port == 0 && n == 0 {
            t.count(Counter::SourcePortsChanged);
        }
        i += 1;
    }
    if tried >= ATTEMPTS - ATTEMPTS_PER_RUN {
        return Err(Verdict::drop(Reason::SnatExhausted));
    }
    h.insert.attempts = tried.wrapping_add(RUN);
    Err(Verdict::tail(Stage::Insert))
}

/// SNAT port allocation: number from which the first port to try is derived, modulo [`ToInsert::first_ports`].
///
/// Consecutive ports of a client get consecutive SNAT ports, starting at an offset that depends on its address. So the
/// ports of a client don't collide with each other unless it uses more than the SNAT range has, and a reused client
/// port gets the same SNAT port again. The server may still hold that in TIME-WAIT, but recognises the new connection
/// by the client's timestamps (RFC 6191), which may have another offset for each of the client's ports.
///
/// [`ToInsert::first_ports`]: super::handover::ToInsert::first_ports
#[inline(always)]
fn follow_client(client: &Tuple) -> u32 {
    mix(folded(&client.src)).wrapping_add(client.sport.get() as u32)
}

/// Takes over the entry with the reply's key if it belongs to the same flow, or to a closed one unless `avoid_closed`.
// Out of line: called from several places.
#[inline(never)]
fn take_over<T: Tables>(t: &T, h: &mut Handover, avoid_closed: bool) -> bool {
    let Handover { packet: Headers { tuple, .. }, insert: n, .. } = h;
    let free = t.flow(&n.key, |old| {
        n.owner = old.reply_key(tuple.proto);
        let free = n.owner.same(tuple) | (old.closed() & !avoid_closed);
        if free {
            *old = n.reply;
        }
        free
    });
    let taken = free == Some(true);
    if taken && !n.owner.same(tuple) {
        t.remove_flow(&n.owner);
    }
    taken
}
