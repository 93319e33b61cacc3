//! Outcomes of stages.

use crate::{
    addr::{Addr, IfIndex},
    layout::Out,
    verdict::Reason,
};

use super::Stage;

/// Egress of a forwarded packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Egress {
    /// Kind of egress; never [`Out::Stack`].
    pub out: Out,
    /// Egress interface.
    pub ifindex: IfIndex,
    /// Next hop to look up in the neighbour table ([`Out::Uplink`], [`Out::Via`]), possibly of another family than the
    /// packet (RFC 5549). Otherwise none.
    pub hop: Addr,
}

/// Outcome of a stage. Drops, rejects and answers have been counted.
///
/// Not an enum with payloads: where paths of several variants merge, the compiler copies payloads that only some of
/// them have, and the verifier rejects copies of uninitialised memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Verdict {
    /// Action to take.
    pub action: Action,
    /// Reason of [`Action::Drop`] and [`Action::Reject`].
    pub reason: Reason,
    /// Next stage, of [`Action::Tail`].
    pub stage: Stage,
    /// Egress of [`Action::Forward`]; of [`Action::Answer`] the interface only.
    pub egress: Egress,
}

/// Action to take on a packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Action {
    /// Continue as if the hook weren't there: the packet is none of podnet's, or the host's stack completes its
    /// processing.
    Pass,
    /// Drop the packet, for [`Verdict::reason`].
    Drop,
    /// Forward the packet to [`Verdict::egress`].
    Forward,
    /// Continue in another stage, [`Verdict::stage`].
    Tail,
    /// Reject the packet, for [`Verdict::reason`]: continue in the stage that turns it into an answer,
    /// [`Stage::answering`].
    Reject,
    /// Send the packet, which has become the answer to its sender, out of the interface on which it arrived.
    Answer,
    /// Drop a rejected packet to which no answer is possible.
    Unanswered,
}

impl Verdict {
    /// [`Action::Pass`].
    pub const PASS: Self = Self::only(Action::Pass);
    /// [`Action::Unanswered`].
    pub const UNANSWERED: Self = Self::only(Action::Unanswered);

    #[inline(always)]
    const fn only(action: Action) -> Self {
        let egress = Egress { out: Out::Stack, ifindex: IfIndex(0), hop: Addr::NONE };
        Self { action, reason: Reason::Internal, stage: Stage::Track, egress }
    }

    /// [`Action::Drop`].
    #[inline(always)]
    pub const fn drop(reason: Reason) -> Self {
        Self { reason, ..Self::only(Action::Drop) }
    }

    /// [`Action::Reject`].
    #[inline(always)]
    pub const fn reject(reason: Reason) -> Self {
        Self { reason, ..Self::only(Action::Reject) }
    }

    /// [`Action::Tail`].
    #[inline(always)]
    pub const fn tail(stage: Stage) -> Self {
        Self { stage, ..Self::only(Action::Tail) }
    }

    /// [`Action::Forward`].
    #[inline(always)]
    pub const fn forward(egress: Egress) -> Self {
        Self { egress, ..Self::only(Action::Forward) }
    }

    /// [`Action::Answer`], out of `ifindex`.
    #[inline(always)]
    pub const fn answer(ifindex: IfIndex) -> Self {
        Self { egress: Egress { out: Out::Link, ifindex, hop: Addr::NONE }, ..Self::only(Action::Answer) }
    }
}
