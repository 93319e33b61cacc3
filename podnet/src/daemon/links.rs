//! Maintenance of pods' links, when the kernel reports a change, and periodically.
//!
//! Network managers, and people, flush routes and addresses, set links down, and rename them. The daemon immediately
//! restores what a record derives. If something keeps undoing that, the daemon repairs less often, and reports it.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use podnet_cni::repair::{Mended, Missed, Report, Subject};
use podnet_common::addr::IfIndex;
use tracing::{info, warn};

use crate::metrics::Metrics;
use crate::status::{RepairStatus, UnixTime};

/// Number of consecutive immediate repairs of a link.
const ROW: u32 = 10;
/// How long each of them counts; hence the repair interval of a link that is changed continually.
const EVERY: Duration = Duration::from_secs(5);
/// How long after the last repair such a conflict is reported.
const CALM: Duration = Duration::from_secs(60);
/// Number of pods whose repairs are kept for `podnet status`.
const REMEMBERED: usize = 64;

/// Pending and finished repairs.
#[derive(Debug, Default)]
pub(super) struct Links {
    /// Links with a reported change, and when to check them.
    due: BTreeMap<IfIndex, Instant>,
    repaired: BTreeMap<Subject, Repaired>,
    /// Owners of links that were repaired.
    subjects: BTreeMap<IfIndex, Subject>,
    /// Pods that are not repaired because their records are lost.
    alone: Vec<String>,
    /// Everything has been checked once.
    begun: bool,
}

#[derive(Debug)]
struct Repaired {
    times: u64,
    parts: String,
    left: Vec<String>,
    last: Instant,
    when: UnixTime,
    /// When the last repair stops counting.
    quiet: Instant,
    /// The last repair was delayed.
    waited: bool,
}

impl Repaired {
    /// Earliest time of the next repair.
    fn next(&self) -> Instant {
        self.quiet.checked_sub(EVERY * (ROW - 1)).map_or(self.last, |at| at.max(self.last))
    }

    fn fights(&self, now: Instant) -> bool {
        self.waited && now.saturating_duration_since(self.last) < CALM
    }
}

impl Links {
    /// The kernel has reported changes of these links.
    pub(super) fn touched(&mut self, links: BTreeSet<IfIndex>, now: Instant) {
        for link in links {
            let repaired = self.subjects.get(&link).and_then(|subject| self.repaired.get(subject));
            let at = repaired.map_or(now, |repaired| now.max(repaired.next()));
            self.due.entry(link).or_insert(at);
        }
    }

    /// When the next link is due.
    pub(super) fn next(&self) -> Option<Instant> {
        self.due.values().min().copied()
    }

    /// Takes the links that are due.
    pub(super) fn take(&mut self, now: Instant) -> BTreeSet<IfIndex> {
        let (due, later) = std::mem::take(&mut self.due).into_iter().partition(|(_, at)| *at <= now);
        self.due = later;
        let due: BTreeMap<IfIndex, Instant> = due;
        due.into_keys().collect()
    }

    /// Records the outcome of a repair. `whole`: everything was checked.
    pub(super) fn note(&mut self, report: &Report, whole: bool, metrics: &Metrics, now: Instant) {
        for mended in &report.mended {
            mended.parts.iter().for_each(|part| metrics.links.repaired(part.kind));
            // With new pins, at start, every pod lacks these.
            let of_pins = mended.parts.iter().all(|part| [Missed::PROGRAMS, Missed::ENTRIES].contains(&part.kind));
            if self.begun || !of_pins {
                self.mended(mended, now);
            }
        }
        for (subject, known) in &report.rewritten {
            metrics.links.rewritten();
            match known {
                true => {
                    warn!(attachment = %subject.id, "rewrote the record of {subject}, which was damaged or removed")
                }
                false => warn!(
                    attachment = %subject.id,
                    "rebuilt the damaged or removed record of {subject} from the kernel's state, without the pod's \
                     name and host ports; replace the pod"
                ),
            }
        }
        for text in report.left_alone.iter().filter(|text| !self.alone.contains(text)) {
            warn!("{text}");
        }
        for error in &report.errors {
            warn!(error = error.msg, details = error.details, "cannot repair an attachment");
        }
        let removed = (report.removed.len(), report.links.len(), report.endpoints.len());
        if removed != (0, 0, 0) {
            info!(removed = removed.0, links = removed.1, endpoints = removed.2, "removed leftovers of dead pods");
        }
        if whole {
            self.begun = true;
            self.alone.clone_from(&report.left_alone);
            self.alone.extend(report.errors.iter().map(|error| error.text()));
        }
    }

    fn mended(&mut self, mended: &Mended, now: Instant) {
        let Mended { subject, link, parts, left } = mended;
        let parts = parts.iter().map(|part| part.what.as_str()).collect::<Vec<_>>().join(", ");
        let before = self.repaired.get(subject);
        // A delayed repair still counts as early.
        let waited = before.is_some_and(|before| before.next() > before.last && now < before.next() + EVERY);
        if !waited {
            warn!(attachment = %subject.id, parts, "restored the link of {subject}, which another program had changed");
        }
        let repaired = Repaired {
            times: before.map_or(0, |before| before.times) + 1,
            parts,
            left: left.clone(),
            last: now,
            when: UnixTime::now(),
            quiet: before.map_or(now, |before| before.quiet.max(now)) + EVERY,
            waited,
        };
        self.repaired.insert(subject.clone(), repaired);
        self.subjects.insert(*link, subject.clone());
        while self.repaired.len() > REMEMBERED {
            let oldest =
                self.repaired.iter().min_by_key(|(_, repaired)| repaired.last).map(|(subject, _)| subject.clone());
            let Some(oldest) = oldest else { break };
            self.repaired.remove(&oldest);
            self.subjects.retain(|_, subject| *subject != oldest);
        }
    }

    /// Problems for the user.
    pub(super) fn problems(&self, now: Instant) -> Vec<String> {
        let fights = self.repaired.iter().filter(|(_, repaired)| repaired.fights(now)).map(|(subject, repaired)| {
            format!(
                "another program keeps changing the link of {subject} ({}): podnet restores it every {} s; configure \
                 that program to ignore pn* interfaces (docs/configuration.md says how, for NetworkManager and \
                 systemd-networkd)",
                repaired.parts,
                EVERY.as_secs(),
            )
        });
        let left = self.repaired.iter().filter(|(_, repaired)| now.saturating_duration_since(repaired.last) < CALM);
        let left = left.flat_map(|(subject, repaired)| {
            repaired.left.iter().map(move |left| format!("the link of {subject} could not be restored: {left}"))
        });
        fights.chain(left).chain(self.alone.iter().cloned()).collect()
    }

    /// Repairs, for `podnet status`.
    pub(super) fn status(&self) -> Vec<RepairStatus> {
        let status = |(subject, repaired): (&Subject, &Repaired)| RepairStatus {
            of: subject.to_string(),
            parts: repaired.parts.clone(),
            times: repaired.times,
            last: repaired.when,
        };
        self.repaired.iter().map(status).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LINK: IfIndex = IfIndex(7);

    fn mended() -> Report {
        let id = serde_json::from_str(r#"{"containerID": "c1", "ifname": "eth0"}"#).unwrap();
        let subject = Subject { id, pod: Some(("shop".into(), "web".into())) };
        let parts = vec![Missed { kind: "route", what: "route to 10.244.1.5".into() }];
        Report { mended: vec![Mended { subject, link: LINK, parts, left: Vec::new() }], ..Report::default() }
    }

    #[test]
    fn continual_changes_are_repaired_less_often_and_reported() {
        let (mut links, metrics) = (Links::default(), Metrics::new());
        let mut now = Instant::now();
        let mut pauses = Vec::new();
        for _ in 0..14 {
            links.touched([LINK].into(), now);
            let due = links.next().unwrap();
            assert!(links.take(now).contains(&LINK) == (due == now));
            pauses.push((due - now).as_secs());
            now = due;
            links.take(now);
            links.note(&mended(), false, &metrics, now);
        }
        assert_eq!(pauses, [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 5, 5, 5, 5]);
        let problems = links.problems(now);
        assert!(problems[0].contains("pod shop/web") && problems[0].contains("route to 10.244.1.5"), "{problems:?}");
        assert_eq!((links.status()[0].times, links.status()[0].of.as_str()), (14, "pod shop/web"));

        now += CALM;
        assert!(links.problems(now).is_empty(), "it has ended");
        links.touched([LINK].into(), now);
        assert_eq!(links.next(), Some(now));
        links.note(&mended(), false, &metrics, now);
        assert!(links.problems(now).is_empty());
    }

    #[test]
    fn pods_without_records_are_reported_until_resolved() {
        let (mut links, metrics, now) = (Links::default(), Metrics::new(), Instant::now());
        let report = Report { left_alone: vec!["the record is lost".into()], ..Report::default() };
        links.note(&report, true, &metrics, now);
        links.note(&Report::default(), false, &metrics, now);
        assert_eq!(links.problems(now), ["the record is lost"]);
        links.note(&Report::default(), true, &metrics, now);
        assert!(links.problems(now).is_empty());
    }
}
