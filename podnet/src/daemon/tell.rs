//! Tells the cluster, as Events, what the [`announcer`](super::announce) lets through.

use std::{collections::BTreeSet, time::Instant};

use podnet_common::layout::Hook;

use super::{
    Daemon,
    announce::{Word, speaks},
};
use crate::source::kubernetes::{About, Note};

/// How many objects are looked at in a turn.
const OBJECTS: usize = 16;

impl Daemon {
    /// Tells the cluster what it should know. To be called every second.
    pub(super) fn announce(&mut self) {
        if !self.source.can_tell() {
            return;
        }
        let now = Instant::now();
        for word in self.announcer.turn(&self.problems(), now) {
            let (warning, reason, text) = match word {
                Word::Problem(text) => (true, "PodnetProblem", text),
                Word::Over(text) => (false, "PodnetProblemOver", format!("no longer: {text}")),
            };
            self.source.tell(Note { about: About::Node, warning, reason, text });
        }
        if !self.control.synced() {
            return;
        }
        for _ in 0..OBJECTS {
            let of_source = self.source.complaint();
            let whole = of_source.is_some();
            let Some(complaint) = of_source.or_else(|| self.control.complaint()) else { return };
            let nodes = self.control.nodes();
            if !speaks(&self.config.node, nodes.keys().map(String::as_str), &complaint.key) {
                continue;
            }
            if !self.announcer.objects.take(now) {
                if whole {
                    self.source.keep(complaint)
                } else {
                    self.control.keep(complaint)
                }
                return;
            }
            let (reason, text) = if whole {
                (
                    "PodnetCannotUse",
                    format!("podnet can't use it, so it changes nothing until it is corrected: {}", complaint.reason),
                )
            } else {
                ("PodnetLeftOut", format!("podnet can't use parts of it, and the rest holds: {}", complaint.reason))
            };
            let about = About::Object(complaint.key, complaint.uid);
            self.source.tell(Note { about, warning: true, reason, text });
        }
    }

    /// What is wrong on this node, as `podnet status` says it. Services' own problems are the same on all nodes, and a server
    /// that is away could not be told.
    fn problems(&self) -> BTreeSet<String> {
        let mut problems: BTreeSet<String> = self.node.problems.iter().cloned().collect();
        problems.extend(self.servers.problems());
        problems.extend(self.listener.problem());
        problems.extend(self.pod_problems());
        for uplink in &self.node.hooks {
            let failed =
                |hook: Hook, error: &String| format!("{} is not attached to {}: {error}", hook.name(), uplink.name);
            problems
                .extend(uplink.hooks.iter().filter_map(|state| Some(failed(state.hook, state.how.as_ref().err()?))));
        }
        if self.outcome.unwritten > 0 {
            problems.insert("services can't be written to the tables: `podnet status` names them".into());
        }
        if self.collector.is_nearly_full() {
            problems.insert("the table conntrack is nearly full: raise conntrackMax, which takes effect after `podnet cleanup` or a reboot".into());
        } else if self.collector.hurries() {
            problems.insert("a few senders hold much of the table conntrack, so they are refused further flows (conntrack_share) or their silent ones are given up sooner: `podnet conntrack` lists them".into());
        }
        problems
    }
}
