//! Problems of objects, for their users: shown by `podnet status`; parts that are left out also become Events.

use std::collections::{BTreeMap, VecDeque};

use crate::model::{Complaint, Diagnostic, LeftOut, ObjectKey, Severity};

/// Number of problems that are shown; of the rest only the count is.
pub(super) const SHOWN_MAX: usize = 1000;
/// Number of complaints that can wait to become Events; further ones are lost.
const COMPLAINTS_MAX: usize = 256;

/// Problems of one object.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Notes {
    /// Remarks for its author.
    pub(super) remarks: Vec<String>,
    /// Parts that have no effect, and why.
    pub(super) left_out: Vec<String>,
    /// Parts that would take traffic of others.
    pub(super) alarms: Vec<String>,
}

impl Notes {
    pub(super) fn new(left_out: &LeftOut) -> Self {
        Self { left_out: left_out.lines().collect(), ..Self::default() }
    }

    pub(super) fn is_empty(&self) -> bool {
        self.remarks.is_empty() && self.without_effect().next().is_none()
    }

    fn without_effect(&self) -> impl Iterator<Item = &String> {
        self.alarms.iter().chain(&self.left_out)
    }
}

/// Problems of all objects.
#[derive(Debug, Default)]
pub(super) struct Problems {
    notes: BTreeMap<ObjectKey, Notes>,
    complaints: VecDeque<ObjectKey>,
}

impl Problems {
    /// Replaces the problems of an object.
    pub(super) fn set(&mut self, object: &ObjectKey, notes: Notes) {
        let before = match notes.is_empty() {
            true => self.notes.remove(object),
            false => self.notes.insert(object.clone(), notes),
        };
        let now = self.notes.get(object).filter(|notes| notes.without_effect().next().is_some());
        let news = now.is_some_and(|now| before.is_none_or(|before| !before.without_effect().eq(now.without_effect())));
        if news && self.complaints.len() < COMPLAINTS_MAX && !self.complaints.contains(object) {
            self.complaints.push_back(object.clone());
        }
    }

    /// The next object of which a part is left out. Each is returned once.
    pub(super) fn complaint(&mut self, uid: impl Fn(&ObjectKey) -> String) -> Option<Complaint> {
        while let Some(key) = self.complaints.pop_front() {
            let parts: Vec<_> = self.notes.get(&key).into_iter().flat_map(Notes::without_effect).cloned().collect();
            if !parts.is_empty() {
                return Some(Complaint { uid: uid(&key), key, reason: parts.join("; ") });
            }
        }
        None
    }

    /// Returns a complaint, which is then the next one again.
    pub(super) fn keep(&mut self, object: ObjectKey) {
        self.complaints.push_front(object);
    }

    /// Parts that would take traffic of others.
    pub(super) fn alarms(&self) -> impl Iterator<Item = Diagnostic> {
        self.notes.iter().flat_map(|(object, notes)| of(object, Severity::Alarm, &notes.alarms))
    }

    /// All other problems.
    pub(super) fn all(&self) -> impl Iterator<Item = Diagnostic> {
        self.notes.iter().flat_map(|(object, notes)| {
            of(object, Severity::LeftOut, &notes.left_out).chain(of(object, Severity::Remark, &notes.remarks))
        })
    }
}

fn of(object: &ObjectKey, severity: Severity, reasons: &[String]) -> impl Iterator<Item = Diagnostic> {
    reasons.iter().map(move |reason| Diagnostic::of(object.clone(), severity, reason.clone()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::Kind;

    #[test]
    fn left_out_part_is_reported_once_until_it_changes() {
        let mut problems = Problems::default();
        let key = ObjectKey::new(Kind::Service, "x", "a");
        let notes = |left_out: &[&str]| Notes {
            alarms: Vec::new(),
            remarks: vec!["a remark".into()],
            left_out: left_out.iter().map(|text| (*text).to_owned()).collect(),
        };
        let told = |problems: &mut Problems| {
            std::iter::from_fn(|| problems.complaint(|_| "u".into())).map(|told| told.reason).collect::<Vec<_>>()
        };
        problems.set(&key, notes(&[]));
        assert_eq!(told(&mut problems), [""; 0], "a remark is no reason for an Event");
        problems.set(&key, notes(&["one", "two"]));
        problems.set(&key, notes(&["one", "two"]));
        assert_eq!(told(&mut problems), ["one; two"]);
        problems.set(&key, notes(&["one", "two"]));
        assert_eq!(told(&mut problems), [""; 0]);
        problems.set(&key, notes(&["one"]));
        problems.set(&key, Notes::default());
        assert_eq!((told(&mut problems), problems.all().count()), (vec![], 0), "it is over before it was told");
    }
}
