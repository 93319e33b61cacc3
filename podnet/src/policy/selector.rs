//! Matching selectors with labels.

use crate::model::{LabelCondition, Labels, NAMESPACE_NAME_LABEL, Requirement, Selector};

/// Whether a selector selects an object with these labels (pkg/labels in apimachinery).
pub(super) fn selects(selector: &Selector, labels: &Labels) -> bool {
    selector.0.iter().all(|requirement| meets(requirement, labels.get(&requirement.key)))
}

/// Whether a selector selects a namespace with these labels. Of a namespace whose object isn't known (yet), only the
/// name is: it meets no requirement on another label, not even that it be missing.
pub(super) fn selects_namespace(selector: &Selector, name: &str, labels: Option<&Labels>) -> bool {
    match labels {
        Some(labels) => selects(selector, labels),
        None => selector
            .0
            .iter()
            .all(|requirement| &*requirement.key == NAMESPACE_NAME_LABEL && meets(requirement, Some(name))),
    }
}

fn meets(requirement: &Requirement, value: Option<&str>) -> bool {
    let among = |values: &[Box<str>]| value.is_some_and(|value| values.iter().any(|one| **one == *value));
    match &requirement.condition {
        LabelCondition::In(values) => among(values),
        LabelCondition::NotIn(values) => !among(values),
        LabelCondition::Exists => value.is_some(),
        LabelCondition::DoesNotExist => value.is_none(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn selector(key: &str, condition: LabelCondition) -> Selector {
        Selector(vec![Requirement { key: key.into(), condition }])
    }

    #[test]
    fn conditions() {
        let labels: Labels = [("app", "web")].into_iter().collect();
        let values = |values: &[&str]| values.iter().map(|value| (*value).into()).collect::<Vec<_>>();
        for (key, condition, expected) in [
            ("app", LabelCondition::In(values(&["db", "web"])), true),
            ("app", LabelCondition::In(values(&["db"])), false),
            ("tier", LabelCondition::In(values(&["db"])), false),
            ("app", LabelCondition::NotIn(values(&["web"])), false),
            ("app", LabelCondition::NotIn(values(&["db"])), true),
            ("tier", LabelCondition::NotIn(values(&["db"])), true),
            ("app", LabelCondition::Exists, true),
            ("tier", LabelCondition::Exists, false),
            ("app", LabelCondition::DoesNotExist, false),
            ("tier", LabelCondition::DoesNotExist, true),
        ] {
            assert_eq!(selects(&selector(key, condition.clone()), &labels), expected, "{key} {condition:?}");
        }
        assert!(selects(&Selector::default(), &Labels::default()));
    }

    #[test]
    fn an_unknown_namespace_has_only_its_name() {
        let selects = |selector| selects_namespace(&selector, "x", None);
        assert!(selects(Selector::default()));
        assert!(selects(selector(NAMESPACE_NAME_LABEL, LabelCondition::In(vec!["x".into()]))));
        assert!(!selects(selector(NAMESPACE_NAME_LABEL, LabelCondition::NotIn(vec!["x".into()]))));
        assert!(!selects(selector("env", LabelCondition::DoesNotExist)));
    }
}
