//! The two directions of a link.

pub use crate::netlink::Direction;

impl Direction {
    pub(super) fn preposition(self) -> &'static str {
        match self {
            Self::Ingress => "to the ingress of",
            Self::Egress => "to the egress of",
        }
    }

    /// `enum bpf_attach_type` of linux/bpf.h: BPF_TCX_INGRESS, BPF_TCX_EGRESS.
    pub(super) fn tcx(self) -> u32 {
        match self {
            Self::Ingress => 46,
            Self::Egress => 47,
        }
    }
}
