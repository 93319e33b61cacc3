//! Records handed over between stages, one per receiving stage, in per-CPU memory.

use bytemuck::{Pod, Zeroable};

use crate::{
    addr::{Addr, IfIndex},
    layout::{CtEntry, Endpoint, Frontend, Network, Out, Tuple},
};

use super::{Egress, Verdict, headers::Headers};

/// Value of `scratch` (per-CPU array with one entry). A record is valid only for the stage to which its writer
/// continues.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Pod, Zeroable)]
pub struct Handover {
    /// Headers of the packet, for all stages. [`track`](super::track()) completes them: ports of fragments, flags of
    /// SCTP.
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
    /// Egress of a forwarded packet, for [`sctp`](super::sctp()) and the verdict of [`classify`](super::classify()).
    pub(super) departure: Departure,
}

/// A packet that belongs to no flow, and findings about it.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Pod, Zeroable)]
pub(super) struct ToClassify {
    /// An earlier flow, perhaps closed, has left an entry for the packet's tuple: 1 or 0. Also for
    /// [`begin`](super::begin()) and [`insert`](super::insert()).
    pub stale_flow: u32,
    /// Destination pod on this node.
    pub endpoint: Endpoint,
    /// Range of the destination, for the tunnel.
    pub network: Network,
    /// A direct path may be stored for the packet's addresses: 1 or 0.
    pub direct: u32,
}

/// An ICMP error.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Pod, Zeroable)]
pub(super) struct ToQuotation {
    /// Tuple of a reply to the quoted packet; addresses only if its protocol is not tracked.
    pub answer: Tuple,
}

/// Purpose of a new flow.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Purpose {
    /// To a port of a service.
    Service = 0,
    /// From a pod to a destination outside the cluster, with the node's source address.
    Masquerade = 1,
    /// Without translation, to recognise replies.
    Track = 2,
}

/// A packet that begins a flow and has been admitted.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Pod, Zeroable)]
pub(super) struct ToBegin {
    /// For [`Purpose::Service`]: the entry that applies to the client. It has a backend.
    pub frontend: Frontend,
    /// A [`Purpose`] as a number.
    pub purpose: u8,
    /// Another node has forwarded the packet to a backend on this node: 1 or 0.
    pub forwarded: u8,
    /// The packet comes from another node: 1 or 0. Only determined if the frontend has direct server return.
    pub from_peer: u8,
    /// Zero.
    pub _pad: u8,
}

/// A flow to insert. The entry of the packet's own direction is in [`ToSend`].
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Pod, Zeroable)]
pub(super) struct ToInsert {
    /// Entry of the reply direction.
    pub reply: CtEntry,
    /// Key of the reply direction.
    pub key: Tuple,
    /// Key of the flow that owns a conflicting entry.
    pub owner: Tuple,
    /// Hash of the client's tuple.
    pub hash: u32,
    /// The source port must be one of the SNAT ports: 1 or 0.
    pub needs_snat_port: u32,
    /// Number of source ports tried so far.
    pub attempts: u32,
    /// Sender for which entries are counted: a slot in [`holders`](crate::layout::holders).
    pub holder: u32,
    /// Number of SNAT ports that the flow may use: the first ones in `snat_ports`.
    pub ports: u32,
    /// Number of those among which the first attempt chooses. It depends on nothing that changes from flow to flow.
    pub first_ports: u32,
}

/// A packet of a flow, to be rewritten and forwarded.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Pod, Zeroable)]
pub(super) struct ToSend {
    /// Entry of the packet's flow. For [`quotation`](super::quotation): the entry for replies to the quoted packet.
    pub entry: CtEntry,
    /// Next hop, for egress through the neighbour table.
    pub hop: Addr,
    /// The MACs in the entry were obtained from the neighbour table within this tick on this CPU and can be used
    /// directly: 1 or 0.
    pub resolved: u32,
}

/// A translated SCTP packet whose checksum must be updated.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Pod, Zeroable)]
pub(super) struct ToSctp {
    /// Change of the ports: old XOR new, in memory order.
    pub change: u32,
    /// Number of bytes after the ports.
    pub after: u32,
}

/// Egress of a packet that is ready to leave.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Pod, Zeroable)]
pub(super) struct Departure {
    /// Kind of egress: an [`Out`] as a number, possibly [`Out::Stack`].
    out: u32,
    /// Egress interface: see [`Egress::ifindex`].
    pub ifindex: IfIndex,
    /// Next hop: see [`Egress::hop`].
    hop: Addr,
}

impl Departure {
    /// Egress other than the stack.
    #[inline(always)]
    pub fn by(egress: Egress) -> Self {
        Self { out: egress.out as u32, ifindex: egress.ifindex, hop: egress.hop }
    }

    /// Kind of egress for packets whose MACs are known.
    #[inline(always)]
    pub const fn out_with_macs(&self) -> u32 {
        if self.out == Out::Uplink as u32 { Out::Link as u32 } else { self.out }
    }

    /// Verdict for the packet.
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
    /// An [`ErrorKind`] as a number.
    pub kind: u32,
    /// For [`ErrorKind::TooBig`]: MTU to report, in bytes.
    pub mtu: u32,
}

/// The error to report.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum ErrorKind {
    /// TTL or hop limit exceeded.
    TtlExceeded = 0,
    /// Packet too big and not to be fragmented.
    TooBig = 1,
}

impl ToError {
    /// TTL or hop limit exceeded.
    pub const TTL_EXCEEDED: Self = Self { kind: ErrorKind::TtlExceeded as u32, mtu: 0 };

    /// Packet too big for an MTU of `mtu` bytes.
    #[inline(always)]
    pub const fn too_big(mtu: u32) -> Self {
        Self { kind: ErrorKind::TooBig as u32, mtu }
    }
}
