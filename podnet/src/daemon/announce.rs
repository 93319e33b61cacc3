//! Which problems the cluster is told of as Events: those of the node that persist, and their end; objects that can't be
//! used. Who writes them is [`crate::source`], without anybody waiting for it.
//!
//! An Event costs the API server a write on each node that has it, so there are few. A problem that comes and goes is one
//! problem until it has been away for as long as it has to be there. A budget bounds what is left, and what it doesn't
//! allow waits, or is forgotten when it is over. Of objects, which are the same for all nodes, two nodes speak.

use std::{
    collections::{BTreeMap, BTreeSet},
    hash::{DefaultHasher, Hash as _, Hasher as _},
    time::{Duration, Instant},
};

use crate::model::ObjectKey;

/// How long a problem has to be there before it is told, and away before its end is.
const PERSISTENCE: Duration = Duration::from_secs(20);
/// How many problems are followed.
const PROBLEMS: usize = 100;
/// How many nodes speak of an object.
const SPEAKERS: usize = 2;

/// Something to be told of the node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Word {
    /// There is a problem.
    Problem(String),
    /// There isn't any more.
    Over(String),
}

/// Follows the node's problems.
#[derive(Debug)]
pub(super) struct Announcer {
    problems: BTreeMap<String, Problem>,
    budget: Budget,
    /// For objects.
    pub(super) objects: Budget,
}

#[derive(Debug)]
struct Problem {
    first: Instant,
    last: Instant,
    told: bool,
}

impl Announcer {
    /// Knows of none.
    pub(super) fn new(now: Instant) -> Self {
        Self {
            problems: BTreeMap::new(),
            budget: Budget::new(10, Duration::from_secs(300), now),
            objects: Budget::new(20, Duration::from_secs(60), now),
        }
    }

    /// What is to be told, now that these are the problems. To be called every second or so.
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

/// How often something may be done: some times at once, and then once in an interval.
#[derive(Debug)]
pub(super) struct Budget {
    most: u32,
    left: u32,
    interval: Duration,
    /// When the next one is earned.
    since: Instant,
}

impl Budget {
    /// All of it.
    pub(super) fn new(most: u32, interval: Duration, now: Instant) -> Self {
        Self { most, left: most, interval, since: now }
    }

    /// Whether it may be done now, which then counts.
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

/// Whether this node is one of those that speak of an object, which all nodes see alike.
pub(super) fn speaks<'a>(node: &str, nodes: impl ExactSizeIterator<Item = &'a str>, object: &ObjectKey) -> bool {
    let count = nodes.len();
    let mut hasher = DefaultHasher::new();
    object.hash(&mut hasher);
    let first = (hasher.finish() % count.max(1) as u64) as usize;
    // Without a place of its own it would never speak, and neither would others for it.
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
    fn what_persists_is_told_once_and_so_is_its_end() {
        let mut bench = Bench::new();
        for second in 0..20 {
            assert_eq!(bench.at(second, &["a"]), [], "{second}");
        }
        assert_eq!(bench.at(20, &["a"]), [problem("a")]);
        assert_eq!(bench.at(21, &["a", "b"]), []);
        // Another text is another problem.
        assert_eq!(bench.at(40, &["b"]), []);
        assert_eq!(bench.at(41, &["b"]), [over("a"), problem("b")]);
        assert_eq!(bench.at(60, &[]), []);
        assert_eq!(bench.at(61, &[]), [over("b")]);
        for second in 62..200 {
            assert_eq!(bench.at(second, &[]), []);
        }
    }

    #[test]
    fn what_passes_is_not_told() {
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
    fn an_hour_of_coming_and_going_is_a_handful_of_events() {
        for period in [2, 10, 30, 60, 100] {
            let mut bench = Bench::new();
            let mut told = 0;
            for second in 0..3600 {
                let there = second / period % 2 == 0;
                told += bench.at(second, if there { &["a"] } else { &[] }).len();
            }
            assert!((1..=22).contains(&told), "{told} with a period of {period}");
        }
        // Texts that never come again.
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
    fn a_budget_is_earned_again() {
        let start = Instant::now();
        let at = |second| start + Duration::from_secs(second);
        let mut budget = Budget::new(3, Duration::from_secs(10), start);
        let mut taken = |second| (0..5).filter(|_| budget.take(at(second))).count();
        assert_eq!([taken(0), taken(9), taken(10), taken(19), taken(45)], [3, 0, 1, 0, 3]);
        assert_eq!([taken(54), taken(55)], [0, 1]);
    }

    #[test]
    fn two_nodes_speak_of_an_object_and_all_nodes_of_some() {
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
