//! Namespaces.

use super::field::Checked;
use crate::model::{LeftOut, NAMESPACE_NAME_LABEL, Namespace, raw};

/// Validates a Namespace, and adds the label that the API server gives to each.
pub(super) fn check(raw: raw::Manifest) -> Checked<Namespace> {
    let raw::Metadata { name, labels, .. } = raw.metadata;
    let named = (NAMESPACE_NAME_LABEL, name.as_str());
    let labels = labels.complete();
    let labels = std::iter::once(named).chain(labels.iter()).collect();
    Ok(Namespace { labels, left_out: LeftOut::default() })
}

#[cfg(test)]
mod tests {
    use super::super::tests::parse;
    use crate::model::Object;

    #[test]
    fn a_namespace_has_its_name_as_a_label() {
        for labels in ["{env: prod}", "{env: prod, kubernetes.io/metadata.name: other}"] {
            let yaml = format!("{{apiVersion: v1, kind: Namespace, metadata: {{name: x, labels: {labels}}}}}");
            let (key, Object::Namespace(namespace)) = parse(&yaml).unwrap() else { panic!() };
            assert_eq!(key.to_string(), "Namespace x");
            let all: Vec<_> = namespace.labels.iter().collect();
            assert_eq!(all, [("env", "prod"), ("kubernetes.io/metadata.name", "x")]);
        }
    }
}
