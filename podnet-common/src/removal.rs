//! Removal of `conntrack` entries, as requested by the daemon.
//!
//! The collector examines a copy of the entries in user space. The copy may be out of date when the collector acts: a
//! client may have started a new flow on the same ports. Therefore a program checks the collector's condition for each
//! entry immediately before it deletes the entry. The program is attached to no hook: the daemon runs it with
//! `BPF_PROG_TEST_RUN` on frames of [`Removal`]s, and it returns the number of entries removed.

use bytemuck::{Pod, Zeroable};

use crate::{
    addr::IfIndex,
    layout::{CtEntry, Out, Tuple},
    packet::{ETH, Packet},
    pipeline::{Tables, denies_flow},
};

/// Offset of the first removal in a frame, in bytes: after an Ethernet header, at a multiple of four.
pub const START: usize = ETH.next_multiple_of(4);
/// Maximum number of removals in a frame. A test run accepts a page, less headroom and `struct skb_shared_info`. These
/// take less than `RESERVED` together, even with `CONFIG_MAX_SKB_FRAGS=45` and cache lines of 128 bytes.
pub const AT_ONCE: usize = 64;
/// Space in the page that is not available to the frame, in bytes: see [`AT_ONCE`].
const RESERVED: usize = 1000;

/// A request to remove an entry of `conntrack`, with the condition that it must still meet. It is never stored, so its
/// layout has no version.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Pod, Zeroable)]
pub struct Removal {
    key: Tuple,
    condition: u32,
    /// Operand of the condition.
    value: u32,
}

/// No condition.
const ALWAYS: u32 = 0;
/// [`CtEntry::last_seen`] equals the value.
const UNSEEN: u32 = 1;
/// Packets enter or leave by the interface with this index. The flow's other half is removed too.
const INTERFACE: u32 = 2;

const _: () = assert!(START + AT_ONCE * size_of::<Removal>() + RESERVED <= 4096);

impl Removal {
    /// Removes the entry unconditionally.
    pub const fn always(key: Tuple) -> Self {
        Self { key, condition: ALWAYS, value: 0 }
    }

    /// Removes the entry unless a packet has been seen since `last_seen`, in [ticks](crate::time).
    pub const fn unseen_since(key: Tuple, last_seen: u32) -> Self {
        Self { key, condition: UNSEEN, value: last_seen }
    }

    /// Removes both halves of the flow if packets of this half still enter or leave by the interface.
    pub const fn of_interface(key: Tuple, ifindex: IfIndex) -> Self {
        Self { key, condition: INTERFACE, value: ifindex.0 }
    }

    #[inline(always)]
    const fn applies(&self, entry: &CtEntry) -> bool {
        match self.condition {
            ALWAYS => true,
            UNSEEN => entry.last_seen == self.value,
            _ => (entry.in_ifindex.0 == self.value) | (entry.out_ifindex.0 == self.value),
        }
    }
}

/// Carries out the removals in a frame. Returns the number of entries removed.
#[inline(always)]
pub fn remove<P: Packet, T: Tables>(frame: &P, t: &T) -> u32 {
    let mut removed = 0;
    for place in 0..AT_ONCE {
        let Some(removal) = frame.load::<Removal>(START + place * size_of::<Removal>()) else { break };
        let mut other = removal.key;
        let evaluated = t.flow(&removal.key, |entry| {
            entry.write_reply_key(&mut other);
            removal.applies(entry)
        });
        if evaluated != Some(true) {
            continue;
        }
        t.remove_flow(&removal.key);
        removed += 1;
        if removal.condition == INTERFACE {
            removed += remove_half(t, &other, &removal.key);
        }
    }
    removed
}

/// Maximum number of keys in a frame of [`deny`]: the verifier follows every path of an evaluation for each.
pub const EVALUATED_AT_ONCE: usize = 4;

/// Marks those halves of flows that network policy denies by now as [`Out::Denied`]. The frame has their keys from
/// [`START`] on. Returns the number of entries that were not denied before.
#[inline(always)]
pub fn deny<P: Packet, T: Tables>(frame: &P, t: &T) -> u32 {
    let mut newly = 0;
    for place in 0..EVALUATED_AT_ONCE {
        let Some(key) = frame.load::<Tuple>(START + place * size_of::<Tuple>()) else { break };
        let denied = t.flow(&key, |entry| {
            let denied = entry.out != Out::Denied as u8 && denies_flow(t, &key, entry);
            if denied {
                entry.out = Out::Denied as u8;
            }
            denied
        });
        newly += (denied == Some(true)) as u32;
    }
    newly
}

/// Removes the other half of a flow, unless its entry belongs to another flow. Returns the number of entries removed.
#[inline(always)]
fn remove_half<T: Tables>(t: &T, other: &Tuple, key: &Tuple) -> u32 {
    let is_half = t.flow(other, |entry| entry.reply_key(key.proto).same(key)) == Some(true);
    if is_half {
        t.remove_flow(other);
    }
    is_half as u32
}
