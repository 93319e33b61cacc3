//! Which problems become Events: persistent problems of the node, and their end; and invalid objects. [`crate::source`]
//! writes the Events asynchronously.
//!
//! An Event costs the API server a write for each node that has the problem, so there are few of them. An intermittent
//! problem is a single problem until it has been absent for as long as it must persist to be announced. A budget limits
//! the rest: what exceeds it waits, or is dropped when the problem ends first. Objects are the same on all nodes, so
//! only two nodes report each.

use std::{
    collections::{BTreeMap, BTreeSet},
    hash::{DefaultHasher, Hash as _, Hasher as _},
    time::{Duration, Instant},
};

use crate::model::{ObjectKey, ObjectName};

/// How long a problem must persist before it is announced, and be absent before its end is.
const PERSISTENCE: Duration = Duration::from_secs(20);
/// Number of problems that are tracked.
const PROBLEMS: usize = 100;
/// Time between two Events about a policy's denials.
const DENIALS_INTERVAL: Duration = Duration::from_secs(3600);
/// Number of nodes that report an object.
const SPEAKERS: usize = 2;

/// An announcement about the node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Word {
    /// A problem exists.
    Problem(String),
    /// A problem has ended.
    Over(String),
}

/// Tracks the problems of the node.
#[derive(Debug)]
pub(super) struct Announcer {
    problems: BTreeMap<String, Problem>,
    budget: Budget,
    /// Budget for Events about objects.
    pub(super) objects: Budget,
    /// Policies of which denials have been announced: the number of packets and the time.
    denials: BTreeMap<ObjectName, (u64, Instant)>,
}

#[derive(Debug)]
struct Problem {
    first: Instant,
    last: Instant,
    told: bool,
}

impl Announcer {
    /// Without any problems.
    pub(super) fn new(now: Instant) -> Self {
        Self {
            problems: BTreeMap::new(),
            budget: Budget::new(10, Duration::from_secs(300), now),
            objects: Budget::new(20, Duration::from_secs(60), now),
            denials: BTreeMap::new(),
        }
    }

    /// Which policies' denials to announce, given the number of packets that each has denied so far: the first ones,
    /// and every hour those that have denied more.
    pub(super) fn denials<'a>(
        &mut self,
        counts: impl Iterator<Item = (&'a ObjectName, u64)>,
        now: Instant,
    ) -> Vec<(ObjectName, u64)> {
        let counts: BTreeMap<&ObjectName, u64> = counts.collect();
        self.denials.retain(|policy, _| counts.contains_key(policy));
        let mut due = Vec::new();
        for (policy, packets) in counts {
            let before = self.denials.get(policy);
            let more = before.map_or(packets > 0, |(told, at)| packets > *told && now - *at >= DENIALS_INTERVAL);
            if more && self.objects.take(now) {
                self.denials.insert(policy.clone(), (packets, now));
                due.push((policy.clone(), packets));
            }
        }
        due
    }

    /// What to announce, given the present problems. Call it about every second.
    pub(super) fn turn(&mut self, current: &BTreeSet<String>, now: Instant) -> Vec<Word> {
        for text in current {
            if let Some(problem) = self.problems.get_mut(text) {
                problem.last = now;
            } else if self.problems.len() < PROBLEMS {
                self.problems.insert(text.clone(), Problem { first: now, last: now, told: false });
            }
        }
        let mut words = Vec::new();
        let budget = &mut self.budget;
        self.problems.retain(|text, problem| {
            let away = now.saturating_duration_since(problem.last);
            if away >= PERSISTENCE {
                if problem.told && budget.take(now) {
                    words.push(Word::Over(text.clone()));
                    return false;
                }
                return problem.told;
            }
            let persists = problem.last.saturating_duration_since(problem.first) >= PERSISTENCE;
            if persists && !problem.told && budget.take(now) {
                problem.told = true;
                words.push(Word::Problem(text.clone()));
            }
            true
        });
        words
    }
}

/// A token bucket: a burst, then one per interval.
#[derive(Debug)]
pub(super) struct Budget {
    most: u32,
    left: u32,
    interval: Duration,
    /// Time from which the next token is earned.
    since: Instant,
}

impl Budget {
    /// A full bucket.
    pub(super) fn new(most: u32, interval: Duration, now: Instant) -> Self {
        Self { most, left: most, interval, since: now }
    }

    /// Takes a token; `false` if there is none.
    pub(super) fn take(&mut self, now: Instant) -> bool {
        let earned = now.saturating_duration_since(self.since).as_nanos() / self.interval.as_nanos();
        let earned = u32::try_from(earned).unwrap_or(u32::MAX);
        if earned >= self.most - self.left {
            (self.left, self.since) = (self.most, now);
        } else {
            self.left += earned;
            self.since += self.interval * earned;
        }
        let allowed = self.left > 0;
        self.left -= u32::from(allowed);
        allowed
    }
}

/// Whether this node is among those that report an object. All nodes agree on them.
pub(super) fn speaks<'a>(node: &str, nodes: impl ExactSizeIterator<Item = &'a str>, object: &ObjectKey) -> bool {
    let count = nodes.len();
    let mut hasher = DefaultHasher::new();
    object.hash(&mut hasher);
    let first = (hasher.finish() % count.max(1) as u64) as usize;
    // A node missing from the list would otherwise never report, nor would others in its place.
    let Some(place) = { nodes }.position(|other| other == node) else { return true };
    (place + count - first) % count < SPEAKERS
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::Kind;

    struct Bench {
        announcer: Announcer,
        start: Instant,
    }

    impl Bench {
        fn new() -> Self {
            let start = Instant::now();
            Self { announcer: Announcer::new(start), start }
        }

        fn at(&mut self, second: u64, problems: &[&str]) -> Vec<Word> {
            let current = problems.iter().map(|text| (*text).to_owned()).collect();
            self.announcer.turn(&current, self.start + Duration::from_secs(second))
        }
    }

    fn problem(text: &str) -> Word {
        Word::Problem(text.into())
    }

    fn over(text: &str) -> Word {
        Word::Over(text.into())
    }

    #[test]
    fn persistent_problem_and_its_end_are_announced_once_each() {
        let mut bench = Bench::new();
        for second in 0..20 {
            assert_eq!(bench.at(second, &["a"]), [], "{second}");
        }
        assert_eq!(bench.at(20, &["a"]), [problem("a")]);
        assert_eq!(bench.at(21, &["a", "b"]), []);
        // A different text is a different problem.
        assert_eq!(bench.at(40, &["b"]), []);
        assert_eq!(bench.at(41, &["b"]), [over("a"), problem("b")]);
        assert_eq!(bench.at(60, &[]), []);
        assert_eq!(bench.at(61, &[]), [over("b")]);
        for second in 62..200 {
            assert_eq!(bench.at(second, &[]), []);
        }
    }

    #[test]
    fn denials_are_announced_once_an_hour() {
        let mut bench = Bench::new();
        let name = |name: &str| ObjectName { namespace: "x".into(), name: name.into() };
        let mut at = |second: u64, counts: &[(&str, u64)]| {
            let counts: Vec<_> = counts.iter().map(|(policy, packets)| (name(policy), *packets)).collect();
            let now = bench.start + Duration::from_secs(second);
            let due = bench.announcer.denials(counts.iter().map(|(policy, packets)| (policy, *packets)), now);
            due.into_iter().map(|(policy, packets)| (policy.name, packets)).collect::<Vec<_>>()
        };
        assert_eq!(at(0, &[("a", 0), ("b", 2)]), [("b".to_owned(), 2)]);
        assert_eq!(at(1, &[("a", 1), ("b", 9)]), [("a".to_owned(), 1)]);
        assert_eq!(at(3600, &[("a", 1), ("b", 9)]), [("b".to_owned(), 9)]);
        assert_eq!(at(9000, &[("a", 1), ("b", 9)]), [], "no more than before");
        assert_eq!(at(9001, &[("b", 9)]), []);
        assert_eq!(at(9002, &[("a", 1), ("b", 9)]), [("a".to_owned(), 1)], "another policy of this name");
    }

    #[test]
    fn transient_problem_is_not_announced() {
        let mut bench = Bench::new();
        for second in 0..15 {
            assert_eq!(bench.at(second, &["a"]), []);
        }
        for second in 15..100 {
            assert_eq!(bench.at(second, &[]), []);
        }
        assert!(bench.announcer.problems.is_empty());
    }

    #[test]
    fn hour_of_intermittent_problems_is_a_handful_of_events() {
        for period in [2, 10, 30, 60, 100] {
            let mut bench = Bench::new();
            let mut told = 0;
            for second in 0..3600 {
                let there = second / period % 2 == 0;
                told += bench.at(second, if there { &["a"] } else { &[] }).len();
            }
            assert!((1..=22).contains(&told), "{told} with a period of {period}");
        }
        // Texts that never recur.
        let mut bench = Bench::new();
        let told: usize = (0..36_000)
            .map(|tenth| {
                let texts: Vec<_> = (0..10).map(|i| format!("{i} {}", tenth / 300)).collect();
                let texts: Vec<_> = texts.iter().map(String::as_str).collect();
                bench.at(tenth / 10, &texts).len()
            })
            .sum();
        assert!(told <= 22 && bench.announcer.problems.len() <= PROBLEMS, "{told}");
    }

    #[test]
    fn budget_refills() {
        let start = Instant::now();
        let at = |second| start + Duration::from_secs(second);
        let mut budget = Budget::new(3, Duration::from_secs(10), start);
        let mut taken = |second| (0..5).filter(|_| budget.take(at(second))).count();
        assert_eq!([taken(0), taken(9), taken(10), taken(19), taken(45)], [3, 0, 1, 0, 3]);
        assert_eq!([taken(54), taken(55)], [0, 1]);
    }

    #[test]
    fn two_nodes_report_each_object_and_every_node_reports_some() {
        let names: Vec<_> = (0..10).map(|i| format!("n{i}")).collect();
        let nodes = || names.iter().map(String::as_str).collect::<Vec<_>>().into_iter();
        let key = |i| ObjectKey::new(Kind::Service, "x", &format!("s{i}"));
        let mut spoken = BTreeSet::new();
        for i in 0..200 {
            let speakers: Vec<_> = names.iter().filter(|node| speaks(node, nodes(), &key(i))).collect();
            assert_eq!(speakers.len(), SPEAKERS, "{speakers:?}");
            spoken.extend(speakers);
        }
        assert_eq!(spoken.len(), names.len());
        assert!(speaks("n1", ["n1"].into_iter(), &key(0)), "an only node");
        assert!(speaks("n1", [].into_iter(), &key(0)) && speaks("n1", ["n2"].into_iter(), &key(0)), "not one of them");
    }
}
