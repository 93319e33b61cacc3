//! Running a stage: on the records handed over to it, and with its outcome counted.

use crate::verdict::Reason;

use super::{Action, Handover, HookPoint, Tables, Verdict};

impl Verdict {
    /// Counts drops and rejects. Last step of every stage.
    #[inline(always)]
    pub(super) fn counted<At: HookPoint, T: Tables>(self, t: &T) -> Self {
        if let Action::Drop | Action::Reject = self.action {
            t.report(At::HOOK, self.reason);
        }
        self
    }
}

/// Runs a stage on the records handed over to it.
#[inline(always)]
pub(super) fn run_stage<At: HookPoint, T: Tables>(t: &T, stage: impl FnOnce(&mut Handover) -> Verdict) -> Verdict {
    t.handover(stage).unwrap_or(Verdict::drop(Reason::Internal)).counted::<At, T>(t)
}
