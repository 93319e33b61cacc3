//! Creates Events for what the [`announcer`](super::announce) lets through.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Instant,
};

use podnet_common::layout::Hook;

use super::{
    Daemon,
    announce::{Word, speaks},
};
use crate::{
    model::{ObjectKey, ObjectName},
    source::kubernetes::{About, Note},
};

/// Number of objects handled per turn.
const OBJECTS: usize = 16;

impl Daemon {
    /// Creates Events that are due. Call it every second.
    pub(super) fn announce(&mut self) {
        if !self.source.can_tell() {
            return;
        }
        let now = Instant::now();
        for word in self.announcer.turn(&self.problems(), now) {
            let (warning, reason, text) = match word {
                Word::Problem(text) => (true, "NetworkDegraded", text),
                Word::Over(text) => (false, "NetworkRecovered", format!("resolved: {text}")),
            };
            self.source.tell(Note { about: About::Node, warning, reason, text });
        }
        self.announce_denials(now);
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
                    "InvalidObject",
                    format!(
                        "invalid: {}; until it is corrected, the last valid version, if any, stays in effect",
                        complaint.reason
                    ),
                )
            } else {
                ("PartiallyApplied", format!("parts of it are ignored: {}", complaint.reason))
            };
            let about = About::Object(complaint.key, complaint.uid);
            self.source.tell(Note { about, warning: true, reason, text });
        }
    }

    fn announce_denials(&mut self, now: Instant) {
        let mut counts: BTreeMap<&ObjectName, u64> = BTreeMap::new();
        for (policy, _, packets) in self.control.policies().denials().totals() {
            *counts.entry(policy).or_default() += packets;
        }
        for (name, packets) in self.announcer.denials(counts.into_iter(), now) {
            let Some(policy) = self.control.policies().policies().get(&name) else { continue };
            let (kind, uid) = (policy.kind(), policy.uid().to_owned());
            let packets = if packets == 1 { "1 packet".to_owned() } else { format!("{packets} packets") };
            let text = format!(
                "{packets} denied on node {} so far; `podnet drops --follow` on that node shows further ones",
                self.config.node
            );
            let about = About::Object(ObjectKey { kind, name }, uid);
            self.source.tell(Note { about, warning: false, reason: "PacketsDenied", text });
        }
    }

    /// Problems of this node, worded as in `podnet status`. Excludes problems of services, which are the same on all
    /// nodes, and an unavailable API server, which couldn't receive the Event.
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
            problems
                .insert("frontends could not be written to the tables, retrying: `podnet status` lists them".into());
        }
        if self.collector.is_nearly_full() {
            problems.insert(
                "the conntrack table is nearly full: raise conntrackMax, which takes effect after `podnet cleanup` or \
                 a reboot"
                    .into(),
            );
        } else if self.collector.hurries() {
            problems.insert(
                "a few senders hold a large part of the conntrack table: their new flows are dropped \
                 (conntrack_share) or their idle flows expire sooner; see `podnet conntrack list`"
                    .into(),
            );
        }
        problems
    }
}
