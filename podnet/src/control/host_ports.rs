//! Host ports of this node's pods.

use super::frontends::Frontends;
use super::problems::SHOWN_MAX;
use crate::entry_counts::EntryCounts;
use crate::frontend::{Frontend, Owner};
use crate::guard::Guard;
use crate::model::{Diagnostic, Severity};

/// Host ports that pods ask for, and what becomes of them.
#[derive(Debug, Default)]
pub(super) struct HostPorts {
    /// Oldest pod first.
    asked: Vec<Frontend>,
    /// Host ports that are left out, and why.
    problems: Vec<Diagnostic>,
}

impl HostPorts {
    /// Replaces the requested host ports.
    pub(super) fn set(&mut self, asked: Vec<Frontend>, frontends: &mut Frontends) {
        self.asked = asked;
        let all = u32::try_from(self.asked.len()).unwrap_or(u32::MAX);
        let asks = EntryCounts { frontends: all, slots: all, backends: all, source_ranges: 0, spread: 0 };
        frontends.shares.ask(&Owner::HostPorts, asks.min(frontends.shares.of_service()));
    }

    /// Computes their frontends. All host ports together have the share of one service; the oldest come first.
    pub(super) fn update(&mut self, guard: &Guard, frontends: &mut Frontends) {
        let shares = &frontends.shares;
        let limit = shares.limit(&Owner::HostPorts).unwrap_or(EntryCounts::MAX).min(shares.of_service());
        let most = limit.frontends.min(limit.slots).min(limit.backends) as usize;
        let refused = |port: &Frontend| guard.port(port.kind, port.key.socket, port.key.protocol);
        let problems = self.asked.iter().filter_map(|port| {
            let reason = format!("host port {} is ignored: {}", port.key, refused(port)?);
            Some(Diagnostic::of(port.service.object(), Severity::LeftOut, reason))
        });
        self.problems = problems.take(SHOWN_MAX).collect();
        let admitted = self.asked.iter().filter(|port| refused(port).is_none()).take(most).cloned().collect();
        frontends.set(&Owner::HostPorts, admitted);
    }

    /// Whether pods ask for no host ports.
    pub(super) fn is_empty(&self) -> bool {
        self.asked.is_empty()
    }

    /// Host ports that are left out, and why.
    pub(super) fn problems(&self) -> &[Diagnostic] {
        &self.problems
    }
}
