//! Pods' links, looked after when the kernel says that something about them has changed, and from time to time.
//!
//! Programs that manage networks, and people, flush routes and addresses, take links down, rename them. What a record
//! derives is put back at once. Somebody may do it again and again; then the daemon does too, but more rarely, and says
//! so.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use podnet_cni::repair::{Mended, Missed, Report, Subject};
use podnet_common::addr::IfIndex;
use tracing::{info, warn};

use crate::metrics::Metrics;
use crate::status::{RepairStatus, UnixTime};

/// So many times in a row a link is repaired at once.
const ROW: u32 = 10;
/// How long each of these counts, and so how often a link is repaired that somebody changes all the time.
const EVERY: Duration = Duration::from_secs(5);
/// For how long after the last repair it is told that somebody does that.
const CALM: Duration = Duration::from_secs(60);
/// How many pods' repairs are remembered for `podnet status`.
const REMEMBERED: usize = 64;

/// What there is to do, and what was done.
#[derive(Debug, Default)]
pub(super) struct Links {
    /// Links about which something has changed, and when they are to be looked at.
    due: BTreeMap<IfIndex, Instant>,
    repaired: BTreeMap<Subject, Repaired>,
    /// Of links, whose they are: of those that were repaired.
    subjects: BTreeMap<IfIndex, Subject>,
    /// Pods that are left alone since their records are lost.
    alone: Vec<String>,
    /// Everything has been looked at once.
    begun: bool,
}

#[derive(Debug)]
struct Repaired {
    times: u64,
    parts: String,
    left: Vec<String>,
    last: Instant,
    when: UnixTime,
    /// When no repair counts any more.
    quiet: Instant,
    /// It had to wait, the last time.
    waited: bool,
}

impl Repaired {
    /// When the next repair may be.
    fn next(&self) -> Instant {
        self.quiet.checked_sub(EVERY * (ROW - 1)).map_or(self.last, |at| at.max(self.last))
    }

    fn fights(&self, now: Instant) -> bool {
        self.waited && now.saturating_duration_since(self.last) < CALM
    }
}

impl Links {
    /// Something about these links has changed.
    pub(super) fn touched(&mut self, links: BTreeSet<IfIndex>, now: Instant) {
        for link in links {
            let repaired = self.subjects.get(&link).and_then(|subject| self.repaired.get(subject));
            let at = repaired.map_or(now, |repaired| now.max(repaired.next()));
            self.due.entry(link).or_insert(at);
        }
    }

    /// When the next one is to be looked at.
    pub(super) fn next(&self) -> Option<Instant> {
        self.due.values().min().copied()
    }

    /// Takes those that are to be looked at now.
    pub(super) fn take(&mut self, now: Instant) -> BTreeSet<IfIndex> {
        let (due, later) = std::mem::take(&mut self.due).into_iter().partition(|(_, at)| *at <= now);
        self.due = later;
        let due: BTreeMap<IfIndex, Instant> = due;
        due.into_keys().collect()
    }

    /// Takes in what a repair has done. `whole` says that it looked at everything.
    pub(super) fn note(&mut self, report: &Report, whole: bool, metrics: &Metrics, now: Instant) {
        for mended in &report.mended {
            mended.parts.iter().for_each(|part| metrics.links.repaired(part.kind));
            // With new pins, at the start, every pod is without.
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
            self.alone.extend(report.errors.iter().map(|error| {
                let details = if error.details.is_empty() { String::new() } else { format!(": {}", error.details) };
                format!("{}{details}", error.msg)
            }));
        }
    }

    fn mended(&mut self, mended: &Mended, now: Instant) {
        let Mended { subject, link, parts, left } = mended;
        let parts = parts.iter().map(|part| part.what.as_str()).collect::<Vec<_>>().join(", ");
        let before = self.repaired.get(subject);
        // Whoever had to wait is early still.
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

    /// What a user should know.
    pub(super) fn problems(&self, now: Instant) -> Vec<String> {
        let fights = self.repaired.iter().filter(|(_, repaired)| repaired.fights(now)).map(|(subject, repaired)| {
            format!(
                "another program keeps changing the link of {subject} ({}): podnet restores it every {} s; configure \
                 that program to ignore pn* interfaces (see docs/kubernetes.md for NetworkManager and \
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

    /// What was repaired, for `podnet status`.
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
    fn who_undoes_it_again_and_again_is_answered_more_rarely_and_named() {
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
    fn pods_that_are_left_alone_are_named_until_that_is_over() {
        let (mut links, metrics, now) = (Links::default(), Metrics::new(), Instant::now());
        let report = Report { left_alone: vec!["the record is lost".into()], ..Report::default() };
        links.note(&report, true, &metrics, now);
        links.note(&Report::default(), false, &metrics, now);
        assert_eq!(links.problems(now), ["the record is lost"]);
        links.note(&Report::default(), true, &metrics, now);
        assert!(links.problems(now).is_empty());
    }
}
