//! Labels of pods and namespaces.

use std::cmp::Ordering;
use std::sync::Arc;

/// Complete labels, ascending by key. Copies share them.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Labels(Arc<[(Box<str>, Box<str>)]>);

impl Labels {
    /// Value of a label.
    pub fn get(&self, key: &str) -> Option<&str> {
        let place = self.0.binary_search_by(|(own, _)| -> Ordering { (**own).cmp(key) });
        place.ok().map(|place| &*self.0[place].1)
    }

    /// All of them, ascending by key.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &str)> {
        self.0.iter().map(|(key, value)| (&**key, &**value))
    }
}

impl Default for Labels {
    /// None.
    fn default() -> Self {
        Self([].into())
    }
}

impl<K: Into<Box<str>>, V: Into<Box<str>>> FromIterator<(K, V)> for Labels {
    /// Of labels with the same key the first counts.
    fn from_iter<I: IntoIterator<Item = (K, V)>>(labels: I) -> Self {
        let mut labels: Vec<(Box<str>, Box<str>)> = labels.into_iter().map(|(k, v)| (k.into(), v.into())).collect();
        labels.sort_by(|(a, _), (b, _)| a.cmp(b));
        labels.dedup_by(|(later, _), (first, _)| later == first);
        Self(labels.into())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn labels_are_found_by_key() {
        let labels: Labels = [("tier", "db"), ("app", "web"), ("app", "other")].into_iter().collect();
        assert_eq!((labels.get("app"), labels.get("tier"), labels.get("x")), (Some("web"), Some("db"), None));
        assert_eq!(labels.iter().collect::<Vec<_>>(), [("app", "web"), ("tier", "db")]);
    }
}
