//! Inserting flows, and the source ports of translated ones.
//!
//! The reply's key in `conntrack` is what makes a translation unique: it is inserted first and only if it isn't there,
//! so two flows that would get the same answer (two services that share a backend, source NAT) never do; the second
//! gets another source port. The table of connections thus is the table of source ports too, and a port can be used once
//! for each destination.

use crate::{
    addr::Port,
    layout::{CtEntry, Tuple},
    packet::Packet,
    verdict::{Counter, Reason},
};

use super::{
    Action, InsertError, Place, Stage, Tables, Verdict,
    balance::{folded, mix},
    handover::Handover,
    headers::Headers,
    shares, staged,
};

/// How many source ports are tried in one run of the program. Each is two or three paths for the kernel's verifier.
const TRIES_PER_RUN: u32 = 16;
/// How many are tried before a flow is refused. Drawn at random, one of them is free for all but two flows in a hundred
/// while 99 of 100 are taken. The kernel bounds the runs: 33 tail calls
/// (`MAX_TAIL_CALL_CNT`), of which up to four lead here and two go on from here.
const TRIES: u32 = 400;
/// For so many tries, a drawn port is not one that another client's connection had a moment ago: its server may still
/// wait on it (TIME-WAIT), and refuses a new one unless its numbers or time stamps happen to be later (RFC 6191).
const CHOOSY: u32 = 64;

/// Goes on with the source ports of a flow whose first one is taken. Follows [`begin`](super::begin()) or itself at the same
/// hook.
#[inline(always)]
pub fn insert<At: Place, P: Packet, T: Tables>(_: &mut P, t: &T) -> Verdict {
    staged::<At, T>(t, |h| tries::<At, T, TRIES_PER_RUN>(t, h))
}

/// Inserts the flow that is handed over, if its first source port is free. Its packet goes on to [`send`](super::send()).
#[inline(always)]
pub(super) fn first<At: Place, T: Tables>(t: &T, h: &mut Handover) -> Verdict {
    tries::<At, T, 1>(t, h)
}

#[inline(always)]
fn tries<At: Place, T: Tables, const RUN: u32>(t: &T, h: &mut Handover) -> Verdict {
    match put::<T, RUN>(t, h) {
        Ok(()) => {
            t.count(Counter::FlowsCreated);
            Verdict::tail(Stage::Send)
        }
        // What the host's own processes send goes on without a flow too.
        Err(verdict) if At::EGRESS && verdict.action == Action::Drop => Verdict::PASS,
        Err(verdict) => verdict,
    }
}

/// Inserts both entries, or the one of a flow that is sent on.
#[inline(always)]
fn put<T: Tables, const RUN: u32>(t: &T, h: &mut Handover) -> Result<(), Verdict> {
    let one_way = h.send.entry.flags & CtEntry::ONE_WAY != 0;
    let mut new = 0;
    // The reply is there before the first packet leaves, so that no answer finds it missing.
    if !one_way {
        new += reserve::<T, RUN>(t, h)? as u32;
    }
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
    if new != 0 {
        shares::count(t, &h.insert, new);
    }
    Ok(())
}

/// Puts the entry in the place of an earlier flow's, and removes that one's other half.
#[inline(always)]
fn replace<T: Tables>(t: &T, h: &mut Handover, one_way: bool) -> bool {
    let Handover { packet: Headers { tuple, .. }, send: s, insert: n, .. } = h;
    let replaced = t.flow(tuple, |old| {
        n.owner = old.reply_key(tuple.proto);
        *old = s.entry;
    });
    if replaced.is_none() {
        return false;
    }
    let left = one_way || !n.owner.same(&n.key);
    if left && t.flow(&n.owner, |half| half.reply_key(tuple.proto).same(tuple)) == Some(true) {
        t.remove_flow(&n.owner);
    }
    true
}

/// Inserts the reply's entry, with another source port where the first is taken. Returns whether there was none with that
/// key. `Err` is what becomes of the packet: the same once more, with other ports, if it isn't dropped.
#[inline(always)]
fn reserve<T: Tables, const RUN: u32>(t: &T, h: &mut Handover) -> Result<bool, Verdict> {
    let tried = h.insert.tries;
    let mut i = 0;
    while i < RUN {
        let n = tried.wrapping_add(i);
        if h.insert.from_range != 0 || n > 0 {
            if h.insert.ports == 0 {
                return Err(Verdict::drop(Reason::SnatExhausted));
            }
            let draw = if n == 0 { place(&h.packet.tuple) } else { mix(h.insert.hash ^ n) };
            match t.snat_port(draw % h.insert.ports) {
                Some(port) => h.send.entry.sport = Port::new(port as u16),
                None => return Err(Verdict::drop(Reason::SnatExhausted)),
            }
            h.send.entry.flags |= CtEntry::REWRITE_SRC;
        }
        h.insert.key = h.send.entry.reply_key(h.packet.tuple.proto);
        h.insert.reply = h.send.entry.reverse(&h.packet.tuple);
        match t.insert_flow(&h.insert.key, &h.insert.reply) {
            Ok(()) => return Ok(true),
            Err(InsertError::Full) => return Err(Verdict::drop(Reason::ConntrackFull)),
            Err(InsertError::Exists) => {
                let drawn = h.insert.from_range != 0 || n > 0;
                if take_over(t, h, drawn && n < CHOOSY) {
                    return Ok(false);
                }
            }
        }
        if h.insert.from_range == 0 && n == 0 {
            t.count(Counter::SourcePortsChanged);
        }
        i += 1;
    }
    if tried >= TRIES - TRIES_PER_RUN {
        return Err(Verdict::drop(Reason::SnatExhausted));
    }
    h.insert.tries = tried.wrapping_add(RUN);
    Err(Verdict::tail(Stage::Insert))
}

/// SNAT port allocation: where the port is that a client's port is given first. A client's ports follow each other from a
/// place of its own, so that clients don't meet unless one uses more than there are for source NAT, and a port that a client
/// uses again is the same again for the server, which may still wait on it (TIME-WAIT) and knows the new connection by the
/// client's time stamps (RFC 6191).
#[inline(always)]
fn place(client: &Tuple) -> u32 {
    mix(folded(&client.src)).wrapping_add(client.sport.get() as u32)
}

/// Takes an entry that this flow had before, or that a closed connection left behind if `choosy` is false.
#[inline(always)]
fn take_over<T: Tables>(t: &T, h: &mut Handover, choosy: bool) -> bool {
    let Handover { packet: Headers { tuple, .. }, insert: n, .. } = h;
    let free = t.flow(&n.key, |old| {
        n.owner = old.reply_key(tuple.proto);
        let free = n.owner.same(tuple) | (old.closed() & !choosy);
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
