//! From a file's text to objects: all of them or none, since part of a file may have another meaning than the whole.

use std::collections::BTreeSet;

use tracing::debug;

use crate::model::{Kind, Object, ObjectKey, raw};
use crate::yaml::{self, Document, TextError};

/// Maximum number of errors kept per file.
const ERRORS_MAX: usize = 10;
/// Minimum number of documents per thread.
const DOCUMENTS_A_THREAD: usize = 64;

/// The objects in a file, by key. Objects of kinds that podnet doesn't read are left out.
///
/// # Errors
/// The problems found, at most [`ERRORS_MAX`].
pub(super) fn parse(text: &str, json: bool) -> Result<Vec<(ObjectKey, Object)>, Vec<TextError>> {
    let documents = if json { vec![Document { line: 1, text }] } else { yaml::documents(text) };
    let parsed = parallel_map(&documents, DOCUMENTS_A_THREAD, |&document| {
        if json { json_objects(document) } else { yaml_objects(document) }
    });
    let (mut objects, mut errors, mut seen) = (Vec::new(), Vec::new(), BTreeSet::new());
    for (result, document) in parsed.into_iter().zip(&documents) {
        match result {
            Ok(found) => {
                for (key, object) in found {
                    if seen.insert(key.clone()) {
                        objects.push((key, object));
                    } else {
                        let reason = format!("duplicate {key}: remove one");
                        errors.push(TextError { line: document.line, reason });
                    }
                }
            }
            Err(error) => errors.push(error),
        }
    }
    if errors.is_empty() {
        objects.sort_by(|(a, _), (b, _)| a.cmp(b));
        Ok(objects)
    } else {
        errors.truncate(ERRORS_MAX);
        Err(errors)
    }
}

fn yaml_objects(document: Document<'_>) -> Result<Vec<(ObjectKey, Object)>, TextError> {
    match yaml::parse::<Option<raw::Manifest>>(document) {
        Ok(manifest) => objects(document, manifest),
        Err(error) => unless_foreign(yaml::parse(document).ok(), error),
    }
}

fn json_objects(document: Document<'_>) -> Result<Vec<(ObjectKey, Object)>, TextError> {
    let mut found = Vec::new();
    for manifest in serde_json::Deserializer::from_str(document.text).into_iter() {
        match manifest {
            Ok(manifest) => found.extend(objects(document, manifest)?),
            Err(error) => {
                let reason = error.to_string();
                let place = format!(" at line {} column {}", error.line(), error.column());
                let reason = reason.strip_suffix(&place).unwrap_or(&reason).to_owned();
                let error = TextError { line: error.line().max(1) as u64, reason };
                return unless_foreign(serde_json::from_str(document.text).ok(), error);
            }
        }
    }
    Ok(found)
}

/// An error in an object of a kind that podnet doesn't read is ignored.
fn unless_foreign(header: Option<raw::Header>, mut error: TextError) -> Result<Vec<(ObjectKey, Object)>, TextError> {
    let Some(header) = header else { return Err(error) };
    match Kind::of(&header.api_version, &header.kind) {
        Ok(None) if header.kind != "List" => Ok(Vec::new()),
        Ok(Some(kind)) => {
            let key = ObjectKey::new(kind, &header.metadata.namespace, &header.metadata.name);
            error.reason = format!("{key}: {}", error.reason);
            Err(error)
        }
        _ => Err(error),
    }
}

fn objects(document: Document<'_>, manifest: Option<raw::Manifest>) -> Result<Vec<(ObjectKey, Object)>, TextError> {
    let mut found = Vec::new();
    if let Some(manifest) = manifest {
        collect(document, manifest, "", &mut found)?;
    }
    Ok(found)
}

fn collect(
    document: Document<'_>,
    manifest: raw::Manifest,
    path: &str,
    found: &mut Vec<(ObjectKey, Object)>,
) -> Result<(), TextError> {
    let error = |field: &str, reason: String| {
        let line = yaml::line_of(document, &format!("{path}{field}"));
        TextError { line, reason }
    };
    match (manifest.kind.as_str(), Kind::of(&manifest.api_version, &manifest.kind)) {
        (list, Ok(_)) if list == "List" || Kind::ALL.iter().any(|kind| kind.list() == list) => {
            let element = list.trim_end_matches("List");
            for (i, mut item) in manifest.items.into_iter().enumerate() {
                // Elements of a typed list omit their type.
                if item.kind.is_empty() && !element.is_empty() {
                    element.clone_into(&mut item.kind);
                    item.api_version.clone_from(&manifest.api_version);
                }
                collect(document, item, &format!("{path}items[{i}]."), found)?;
            }
            Ok(())
        }
        (_, Ok(Some(kind))) => match Object::new(kind, manifest) {
            Ok(object) => {
                found.push(object);
                Ok(())
            }
            Err(invalid) => Err(error(&invalid.field, invalid.to_string())),
        },
        (kind, Ok(None)) => {
            debug!(object.kind = kind, object.name = manifest.metadata.name, "ignored an object of another kind");
            Ok(())
        }
        (_, Err(reason)) => Err(error("kind", format!("an object {reason}"))),
    }
}

/// Results of `f` for all items, in order, computed by as many threads as have at least `least` items each.
pub(super) fn parallel_map<T: Sync, R: Send>(items: &[T], least: usize, f: impl Fn(&T) -> R + Sync) -> Vec<R> {
    let mut threads = items.len() / least.max(1);
    if threads > 1 {
        threads = threads.min(std::thread::available_parallelism().map_or(1, usize::from));
    }
    if threads < 2 {
        return items.iter().map(f).collect();
    }
    std::thread::scope(|scope| {
        let f = &f;
        let workers: Vec<_> = items
            .chunks(items.len().div_ceil(threads))
            .map(|chunk| scope.spawn(move || chunk.iter().map(f).collect::<Vec<R>>()))
            .collect();
        let join = |worker: std::thread::ScopedJoinHandle<'_, Vec<R>>| {
            worker.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
        };
        workers.into_iter().flat_map(join).collect()
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const NODE: &str = "apiVersion: v1\nkind: Node\nmetadata: {name: n1}\n";

    fn names(text: &str, json: bool) -> Vec<String> {
        parse(text, json).unwrap().into_iter().map(|(key, _)| key.to_string()).collect()
    }

    fn errors(text: &str, json: bool) -> Vec<String> {
        parse(text, json).unwrap_err().iter().map(ToString::to_string).collect()
    }

    #[test]
    fn documents_lists_and_other_kinds() {
        let text = format!(
            "{NODE}---\n---\napiVersion: apps/v1\nkind: Deployment\nmetadata: {{name: d}}\nspec: {{ports: 3}}\n---\n\
             apiVersion: v1\nitems:\n- {{apiVersion: v1, kind: Node, metadata: {{name: n3}}}}\n\
             - {{apiVersion: v1, kind: Secret, metadata: {{name: s}}}}\nkind: List\n---\n\
             {{apiVersion: v1, kind: NodeList, items: [{{metadata: {{name: n2}}}}]}}\n"
        );
        assert_eq!(names(&text, false), ["Node n1", "Node n2", "Node n3"]);
    }

    #[test]
    fn json_with_tabs_and_nulls() {
        let text = "{\n\t\"apiVersion\": \"discovery.k8s.io/v1\",\n\t\"kind\": \"EndpointSlice\",\n\t\"metadata\": \
                    {\"name\": \"a\", \"namespace\": \"x\"},\n\t\"addressType\": \"IPv4\",\n\t\"endpoints\": null\n}\n";
        assert_eq!(names(text, true), ["EndpointSlice x/a"]);
        assert_eq!(names(&format!("{text}{}", text.replace("\"a\"", "\"b\"")), true).len(), 2);
        let broken = text.replace("null", "[{\"addresses\": 5}]");
        let found = errors(&broken, true);
        assert!(found[0].starts_with("line 6: EndpointSlice x/a: "), "{found:?}");
    }

    #[test]
    fn every_broken_document_is_reported_with_its_line() {
        let text = format!(
            "{NODE}---\napiVersion: v1\nkind: Service\nmetadata:\n  name: web\nspec:\n  clusterIP: 10.96.0.1\n  ports:\n  \
             - port: 80\n  - name: b\n    port: x\n---\napiVersion: v1\nkind: Service\nmetadata:\n  name: web\nspec:\n  \
             clusterIP: 10.96.0.1\n  ports:\n  - port: 800000\n---\nkind: [\n"
        );
        let found = errors(&text, false);
        assert_eq!(found.len(), 3, "{found:?}");
        assert!(found[0].starts_with("line 14: Service default/web: "), "{found:?}");
        assert_eq!(found[1], "line 23: Service default/web: spec.ports[0].port: 800000 is not between 1 and 65535");
        assert!(found[2].starts_with("line 25: ") || found[2].starts_with("line 24: "), "{found:?}");
    }

    #[test]
    fn errors_in_lists_and_headers() {
        let text = "apiVersion: v1\nkind: List\nitems:\n- apiVersion: v1\n  kind: Node\n  metadata:\n    name: N\n";
        assert!(errors(text, false)[0].starts_with("line 7: Node N: metadata.name: "));
        assert_eq!(errors("a: 1\n", false), ["line 1: an object has no kind: this is not a Kubernetes object"]);
        assert_eq!(errors(&format!("{NODE}---\n{NODE}"), false), ["line 4: duplicate Node n1: remove one"]);
        assert_eq!(errors("just text\n", false).len(), 1);
    }

    #[test]
    fn many_documents_keep_their_order() {
        let text: String =
            (0..1000).map(|i| format!("---\napiVersion: v1\nkind: Node\nmetadata: {{name: n{i:04}}}\n")).collect();
        let expected: Vec<_> = (0..1000).map(|i| format!("Node n{i:04}")).collect();
        assert_eq!(names(&text, false), expected);
        let found = errors(&text.replace("n0777", "N"), false);
        assert!(found[0].starts_with(&format!("line {}: ", 777 * 4 + 4)), "{found:?}");
    }
}
