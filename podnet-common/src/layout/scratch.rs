//! What programs of one generation hand over to each other. It belongs to that generation and has no pin.

use bytemuck::{Pod, Zeroable};

use super::{CtEntry, Tuple};
use crate::pipeline::Route;

/// `scratch` (per-CPU array of one): a flow in the making.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Pod, Zeroable)]
pub struct Scratch {
    /// The tuple of the packet at hand.
    pub tuple: Tuple,
    /// Entry of the packet at hand.
    pub entry: CtEntry,
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
    /// By what the ports of an SCTP packet have changed: old XOR new, as they lie in memory.
    pub change: u32,
    /// How many bytes of that packet follow its ports.
    pub after: u32,
    /// What an error says that is sent to the sender: the MTU in bytes, or 0 if its lifetime was over.
    pub mtu: u32,
    /// Who the flow's entries are counted for: a place in [`holders`].
    pub holder: u32,
    /// How many of `snat_ports` the flow may draw from, the first ones.
    pub ports: u32,
}

/// `fib` (per-CPU array of one): a question to the routing table, which is more than the stack has room for.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Pod, Zeroable)]
pub struct Fib {
    /// `bpf_fib_lookup` in words.
    pub question: [u32; 16],
    /// The answer.
    pub route: Route,
    /// The next hop in the answer, or another one to send to.
    pub hop: NextHop,
}

/// `bpf_redir_neigh`: an address in the neighbour table of an interface.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Pod, Zeroable)]
pub struct NextHop {
    /// `AF_INET` or `AF_INET6`.
    pub family: u32,
    /// The address; of IPv4 the first word.
    pub addr: [u32; 4],
}
