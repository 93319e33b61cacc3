//! Inserting flows, and the source ports of translated ones.
//!
//! The reply's key in `conntrack` is what makes a translation unique: it is inserted first and only if it isn't there,
//! so two flows that would get the same answer (two services that share a backend, source NAT) never do; the second
//! gets another source port. The table of connections thus is the table of source ports too, and a port can be used once
//! for each destination.

use crate::{
    addr::Port,
    layout::{CtEntry, Scratch, Tuple},
    verdict::{Counter, Reason},
};

use super::{InsertError, Stage, Tables, Verdict, begin::mix, flow::counterpart, shares};

/// How many source ports are tried in one run of the program. Each is two or three paths for the kernel's verifier.
const TRIES_PER_RUN: u32 = 16;
/// How many are tried before a flow is refused. Drawn at random, one of them is free for all but two flows in a hundred
/// while 99 of 100 are taken. The kernel bounds the runs: 33 tail calls
/// (`MAX_TAIL_CALL_CNT`), of which up to four lead here and two go on from here.
const TRIES: u32 = 400;
/// For so many tries, a drawn port is not one that another client's connection had a moment ago: its server may still
/// wait on it (TIME-WAIT), and refuses a new one unless its numbers or time stamps happen to be later (RFC 6191).
const CHOOSY: u32 = 64;

/// Inserts the flow that [`super::begin`] has left in `scratch`. Its first packet goes on to [`super::send`].
#[inline(always)]
pub fn insert<T: Tables>(t: &T) -> Verdict {
    t.scratch(|s| match put::<T>(t, s) {
        Ok(()) => {
            t.count(Counter::FlowsCreated);
            Verdict::Tail(Stage::Send)
        }
        Err(verdict) => verdict,
    })
    .unwrap_or(Verdict::Drop(Reason::NoProgram))
}

/// Inserts both entries, or the one of a flow that is sent on.
#[inline(always)]
fn put<T: Tables>(t: &T, s: &mut Scratch) -> Result<(), Verdict> {
    let one_way = s.entry.flags & CtEntry::ONE_WAY != 0;
    let mut new = 0;
    // The reply is there before the first packet leaves, so that no answer finds it missing.
    if !one_way {
        new += reserve::<T>(t, s)? as u32;
    }
    match t.insert_flow(&s.tuple, &s.entry) {
        Ok(()) => new += 1,
        Err(InsertError::Exists) if replace(t, s, one_way) => {}
        Err(_) => {
            if !one_way {
                t.remove_flow(&s.key);
            }
            return Err(Verdict::Drop(Reason::ConntrackFull));
        }
    }
    if new != 0 {
        shares::count(t, s, new);
    }
    Ok(())
}

/// Puts the entry in the place of an earlier flow's, and removes that one's other half.
#[inline(always)]
fn replace<T: Tables>(t: &T, s: &mut Scratch, one_way: bool) -> bool {
    let replaced = t.flow(&s.tuple, |old| {
        s.owner = old.reply_key(s.tuple.proto);
        *old = s.entry;
    });
    if replaced.is_none() {
        return false;
    }
    let left = one_way || !s.owner.same(&s.key);
    if left && t.flow(&s.owner, |half| half.reply_key(s.tuple.proto).same(&s.tuple)) == Some(true) {
        t.remove_flow(&s.owner);
    }
    true
}

/// Inserts the reply's entry, with another source port where the first is taken. Returns whether there was none with that
/// key. `Err` is what becomes of the packet: the same again, with other ports, if it isn't dropped.
#[inline(always)]
fn reserve<T: Tables>(t: &T, s: &mut Scratch) -> Result<bool, Verdict> {
    let tried = s.tries;
    let mut i = 0;
    while i < TRIES_PER_RUN {
        let n = tried.wrapping_add(i);
        if s.from_range != 0 || n > 0 {
            if s.ports == 0 {
                return Err(Verdict::Drop(Reason::SnatExhausted));
            }
            let draw = if n == 0 { place(&s.tuple) } else { mix(s.hash ^ n) };
            match t.snat_port(draw % s.ports) {
                Some(port) => s.entry.sport = Port::new(port as u16),
                None => return Err(Verdict::Drop(Reason::SnatExhausted)),
            }
            s.entry.flags |= CtEntry::REWRITE_SRC;
        }
        s.key = s.entry.reply_key(s.tuple.proto);
        counterpart(&mut s.reply, &s.entry, &s.tuple);
        match t.insert_flow(&s.key, &s.reply) {
            Ok(()) => return Ok(true),
            Err(InsertError::Full) => return Err(Verdict::Drop(Reason::ConntrackFull)),
            Err(InsertError::Exists) => {
                let drawn = s.from_range != 0 || n > 0;
                if take_over(t, s, drawn && n < CHOOSY) {
                    return Ok(false);
                }
            }
        }
        if s.from_range == 0 && n == 0 {
            t.count(Counter::PortsChanged);
        }
        i += 1;
    }
    if tried >= TRIES - TRIES_PER_RUN {
        return Err(Verdict::Drop(Reason::SnatExhausted));
    }
    s.tries = tried.wrapping_add(TRIES_PER_RUN);
    Err(Verdict::Tail(Stage::Insert))
}

/// Where the port is that a client's port is given first: a client has its ports in a row, from a place of its own. So
/// no two of them meet, unless it uses more than there are for source NAT, and one that the client uses again is the same
/// again for the server, which may still wait on it (TIME-WAIT) and knows the new connection by the client's time stamps
/// (RFC 6191).
#[inline(always)]
fn place(client: &Tuple) -> u32 {
    let [a, b, c, d] = client.src.0;
    mix(a ^ b.rotate_left(8) ^ c.rotate_left(16) ^ d).wrapping_add(client.sport.get() as u32)
}

/// Takes an entry that this flow had before, or that a closed connection left behind if `choosy` is false.
#[inline(always)]
fn take_over<T: Tables>(t: &T, s: &mut Scratch, choosy: bool) -> bool {
    let free = t.flow(&s.key, |old| {
        s.owner = old.reply_key(s.tuple.proto);
        let free = s.owner.same(&s.tuple) | (old.closed() & !choosy);
        if free {
            *old = s.reply;
        }
        free
    });
    let taken = free == Some(true);
    if taken && !s.owner.same(&s.tuple) {
        t.remove_flow(&s.owner);
    }
    taken
}
