//! What stages hand over to each other: one record for each receiver, in memory of the processor that the packet is on.

use bytemuck::{Pod, Zeroable};

use crate::{
    addr::{Addr, IfIndex},
    layout::{CtEntry, Endpoint, Frontend, Network, Out, Tuple},
};

use super::{Egress, Verdict, headers::Headers};

/// `scratch` (per-CPU array of one). A record counts for the stage that its writer goes on in.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Pod, Zeroable)]
pub struct Handover {
    /// The packet's headers, for all stages. [`track`](super::track()) completes them: a fragment's ports, SCTP's chunk.
    pub(super) packet: Headers,
    /// For [`classify`](super::classify()).
    pub(super) classify: ToClassify,
    /// For [`quotation`](super::quotation).
    pub(super) quotation: ToQuotation,
    /// For [`begin`](super::begin()).
    pub(super) begin: ToBegin,
    /// For [`insert`](super::insert()).
    pub(super) insert: ToInsert,
    /// For [`send`](super::send()) and [`quotation`](super::quotation).
    pub(super) send: ToSend,
    /// For [`sctp`](super::sctp()).
    pub(super) sctp: ToSctp,
    /// For [`error`](super::error).
    pub(super) error: ToError,
    /// How a forwarded packet leaves; for [`sctp`](super::sctp()) and for the verdict of [`classify`](super::classify()).
    pub(super) departure: Departure,
}

/// A packet that belongs to no flow, and what is found out about it.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Pod, Zeroable)]
pub(super) struct ToClassify {
    /// Whether a flow that is over has left an entry for its tuple: 1, or else 0.
    pub left: u32,
    /// The pod of this node that it is for.
    pub endpoint: Endpoint,
    /// The prefix that it is for, if it goes through the tunnel.
    pub network: Network,
    /// Whether others between its addresses may take its path without a look: 1, or else 0.
    pub direct: u32,
}

/// An ICMP error.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Pod, Zeroable)]
pub(super) struct ToQuotation {
    /// Tuple of an answer to what it quotes; the addresses only if no flow can have that.
    pub answer: Tuple,
}

/// What a new flow is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Purpose {
    /// A port of a service.
    Service = 0,
    /// From a pod to the outside, with the node's address as source.
    Masquerade = 1,
    /// To be known, so that answers to it are.
    Track = 2,
}

/// A packet that begins a flow, and may.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Pod, Zeroable)]
pub(super) struct ToBegin {
    /// The entry that counts for its client, for [`Purpose::Service`]. It has a backend.
    pub frontend: Frontend,
    /// A [`Purpose`] as a number.
    pub purpose: u8,
    /// Another node has chosen this one for the packet: 1 or 0.
    pub sent_on: u8,
    /// Another node has sent the packet here: 1 or 0. Only asked where the frontend has direct server return.
    pub from_peer: u8,
    /// Zero.
    pub _pad: u8,
}

/// A flow that is to be inserted; the packet's own entry is in [`ToSend`].
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Pod, Zeroable)]
pub(super) struct ToInsert {
    /// Entry of the other direction.
    pub reply: CtEntry,
    /// Key of the other direction.
    pub key: Tuple,
    /// Key of the flow that an entry in the way belongs to.
    pub owner: Tuple,
    /// Hash of the client's tuple.
    pub hash: u32,
    /// Whether the source port must be one of those for source NAT: 1, or else 0.
    pub from_range: u32,
    /// How many source ports have been tried.
    pub tries: u32,
    /// Who the flow's entries are counted for: a place in [`holders`](crate::layout::holders).
    pub holder: u32,
    /// How many of `snat_ports` the flow may draw from, the first ones.
    pub ports: u32,
}

/// A packet of a flow, to be rewritten and sent on.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Pod, Zeroable)]
pub(super) struct ToSend {
    /// Its flow's entry; for [`quotation`](super::quotation) that of answers to what the packet quotes.
    pub entry: CtEntry,
    /// The next hop of that way.
    pub hop: Addr,
    /// Whether the MACs in the entry were had from the neighbour table within this tick on this processor, so that they may
    /// be used at once: 1, or else 0.
    pub resolved: u32,
}

/// A translated SCTP packet, whose checksum is to be brought up to date.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Pod, Zeroable)]
pub(super) struct ToSctp {
    /// By what the ports have changed: old XOR new, as they lie in memory.
    pub change: u32,
    /// How many bytes follow the ports.
    pub after: u32,
}

/// How a packet leaves that is ready.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Pod, Zeroable)]
pub(super) struct Departure {
    /// An [`Out`] as a number, [`Out::Stack`] among them.
    out: u32,
    /// As [`Egress::ifindex`].
    pub ifindex: IfIndex,
    /// As [`Egress::hop`].
    hop: Addr,
}

impl Departure {
    /// By a way that isn't the stack's.
    #[inline(always)]
    pub fn by(egress: Egress) -> Self {
        Self { out: egress.out as u32, ifindex: egress.ifindex, hop: egress.hop }
    }

    /// How other packets leave by the same way whose MACs are known.
    #[inline(always)]
    pub const fn out_with_macs(&self) -> u32 {
        if self.out == Out::Uplink as u32 { Out::Link as u32 } else { self.out }
    }

    /// The verdict.
    #[inline(always)]
    pub fn verdict(&self) -> Verdict {
        match Out::from_number(self.out as u8) {
            Out::Stack => Verdict::PASS,
            out => Verdict::forward(Egress { out, ifindex: self.ifindex, hop: self.hop }),
        }
    }
}

/// A packet whose sender gets an ICMP error.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Pod, Zeroable)]
pub(super) struct ToError {
    /// A [`Complaint`] as a number.
    pub complaint: u32,
    /// What would fit, in bytes, if it is too big.
    pub mtu: u32,
}

/// What is wrong with a packet on its way.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Complaint {
    /// Its TTL or hop limit was exceeded.
    TtlExceeded = 0,
    /// It is too big and may not be fragmented.
    TooBig = 1,
}

impl ToError {
    /// TTL or hop limit exceeded.
    pub const TTL_EXCEEDED: Self = Self { complaint: Complaint::TtlExceeded as u32, mtu: 0 };

    /// Too big, where `mtu` bytes would fit.
    #[inline(always)]
    pub const fn too_big(mtu: u32) -> Self {
        Self { complaint: Complaint::TooBig as u32, mtu }
    }
}
