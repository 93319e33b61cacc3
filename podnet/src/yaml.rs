//! Parsing YAML: the documents of a file, and the line of a value.
//!
//! A file is split into its documents before any is parsed, so that errors have the line in the file, and several
//! threads can parse the documents. Configuration and manifests use the same options.

use std::fmt;

use serde::Deserialize;
use serde::de::{Deserializer, IgnoredAny, MapAccess, SeqAccess, Visitor};
use serde_saphyr::{Error, Options, Spanned};

/// An error in a text, with its line.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TextError {
    /// Counted from 1 at the beginning of the file.
    pub line: u64,
    /// The problem.
    pub reason: String,
}

impl fmt::Display for TextError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "line {}: {}", self.line, self.reason)
    }
}

/// One document of a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Document<'a> {
    /// The line of the file at which it begins, counted from 1.
    pub line: u64,
    /// Its text.
    pub text: &'a str,
}

/// The documents of a YAML stream, split at `---` and `...`, which can't mean anything else at the beginning of a line
/// (YAML 1.2.2, section 9.1.2). Comments and directives belong to the document that follows.
pub fn documents(stream: &str) -> Vec<Document<'_>> {
    let stream = stream.strip_prefix('\u{feff}').unwrap_or(stream);
    let mut documents = Vec::new();
    let (mut start, mut start_line, mut has_content, mut has_marker) = (0, 1, false, false);
    let mut offset = 0;
    for (line, text) in (1..).zip(stream.split_inclusive('\n')) {
        let marks = |marker: &str| text.strip_prefix(marker).is_some_and(|rest| rest.trim_start().len() < rest.len());
        let (begins, ends) = (marks("---") || text == "---", marks("...") && text.trim_end() == "..." || text == "...");
        if begins && (has_content || has_marker) {
            if has_content {
                documents.push(Document { line: start_line, text: &stream[start..offset] });
            }
            (start, start_line, has_content) = (offset, line, false);
        }
        has_marker |= begins;
        offset += text.len();
        if ends {
            if has_content {
                documents.push(Document { line: start_line, text: &stream[start..offset] });
            }
            (start, start_line, has_content, has_marker) = (offset, line + 1, false, false);
        } else {
            let content = if begins { text[3..].trim() } else { text.trim() };
            has_content |= !content.is_empty() && !content.starts_with('#') && !text.starts_with('%');
        }
    }
    if has_content {
        documents.push(Document { line: start_line, text: &stream[start..] });
    }
    documents
}

/// Parses one document.
///
/// # Errors
/// The line in the file and the parser's message.
pub fn parse<'a, T: Deserialize<'a>>(document: Document<'a>) -> Result<T, TextError> {
    serde_saphyr::from_str_with_options(document.text, options()).map_err(|error| text_error(document.line, &error))
}

fn options() -> Options {
    let mut options = Options::default();
    options.with_snippet = false;
    // Limits against hostile input don't fit: an ordinary file may contain a list of ten thousand objects.
    options.budget = None;
    options
}

fn text_error(first_line: u64, error: &Error) -> TextError {
    let mut reason = error.without_snippet().to_string();
    let mut line = first_line;
    if let Some(location) = error.location() {
        line = first_line + location.line().max(1) - 1;
        let place = format!(" at line {}, column {}", location.line(), location.column());
        reason.truncate(reason.strip_suffix(&place).map_or(reason.len(), str::len));
    }
    TextError { line, reason }
}

/// Line in the file of the value with this path, such as `spec.ports[1].name`; of its nearest existing parent
/// otherwise.
pub fn line_of(document: Document<'_>, path: &str) -> u64 {
    let Ok(tree) = parse::<Spanned<Tree>>(document) else { return document.line };
    let (mut node, mut line) = (&tree.value, tree.referenced.line());
    for step in path.split(['.', '[']).map(|step| step.trim_end_matches(']')) {
        let next = match node {
            Tree::Leaf => None,
            Tree::Map(entries) => entries.iter().find(|(key, _)| key == step).map(|(_, value)| value),
            Tree::List(items) => step.parse().ok().and_then(|index: usize| items.get(index)),
        };
        let Some(next) = next else { break };
        (node, line) = (&next.value, next.referenced.line());
    }
    document.line + line.max(1) - 1
}

/// Structure of a document with positions, for finding the line of a path.
enum Tree {
    Leaf,
    Map(Vec<(String, Spanned<Tree>)>),
    List(Vec<Spanned<Tree>>),
}

impl<'de> Deserialize<'de> for Tree {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Walk;
        impl<'de> Visitor<'de> for Walk {
            type Value = Tree;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("any YAML")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Tree, A::Error> {
                let mut entries = Vec::new();
                while let Some(entry) = map.next_entry()? {
                    entries.push(entry);
                }
                Ok(Tree::Map(entries))
            }

            fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Tree, A::Error> {
                let mut items = Vec::new();
                while let Some(item) = seq.next_element()? {
                    items.push(item);
                }
                Ok(Tree::List(items))
            }

            fn visit_bool<E>(self, _: bool) -> Result<Tree, E> {
                Ok(Tree::Leaf)
            }
            fn visit_i64<E>(self, _: i64) -> Result<Tree, E> {
                Ok(Tree::Leaf)
            }
            fn visit_u64<E>(self, _: u64) -> Result<Tree, E> {
                Ok(Tree::Leaf)
            }
            fn visit_f64<E>(self, _: f64) -> Result<Tree, E> {
                Ok(Tree::Leaf)
            }
            fn visit_str<E>(self, _: &str) -> Result<Tree, E> {
                Ok(Tree::Leaf)
            }
            fn visit_unit<E>(self) -> Result<Tree, E> {
                Ok(Tree::Leaf)
            }
            fn visit_none<E>(self) -> Result<Tree, E> {
                Ok(Tree::Leaf)
            }
            fn visit_newtype_struct<D: Deserializer<'de>>(self, deserializer: D) -> Result<Tree, D::Error> {
                IgnoredAny::deserialize(deserializer).map(|_| Tree::Leaf)
            }
        }
        deserializer.deserialize_any(Walk)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn split(stream: &str) -> Vec<(u64, &str)> {
        documents(stream).iter().map(|d| (d.line, d.text)).collect()
    }

    #[test]
    fn documents_are_divided_at_markers_only() {
        assert_eq!(split(""), []);
        assert_eq!(split("# nothing\n---\n---\n...\n"), []);
        assert_eq!(split("a: 1\n"), [(1, "a: 1\n")]);
        assert_eq!(split("---\na: 1\n---\nb: 2"), [(1, "---\na: 1\n"), (3, "---\nb: 2")]);
        assert_eq!(split("---\n# none\n---\na: 1\n"), [(3, "---\na: 1\n")]);
        assert_eq!(split("a: |\n  ---\n  ...\n----: x\n"), [(1, "a: |\n  ---\n  ...\n----: x\n")]);
        assert_eq!(split("a: 1\n...\n# next\n--- {b: 2}\n"), [(1, "a: 1\n...\n"), (3, "# next\n--- {b: 2}\n")]);
        assert_eq!(split("%YAML 1.2\n---\r\na: 1\r\n---\r\n"), [(1, "%YAML 1.2\n---\r\na: 1\r\n")]);
        assert_eq!(split("\u{feff}a: 1\n---"), [(1, "a: 1\n")]);
    }

    #[test]
    fn every_document_parses_alone() {
        for document in documents("%YAML 1.2\n---\na: 1\n...\n# c\n--- {a: 2}\n--- # d\na: 3\n---") {
            parse::<std::collections::BTreeMap<String, u8>>(document).unwrap();
        }
    }

    #[test]
    fn errors_name_the_line_in_the_file() {
        let stream = "a: 1\n---\nb: 1\nc: [1\nd: 2\n";
        let error = parse::<IgnoredAny>(documents(stream)[1]).unwrap_err();
        assert!((4..=5).contains(&error.line), "{error}");
        assert!(!error.reason.contains("line"), "{error}");
    }

    #[test]
    fn the_line_of_a_path() {
        let stream =
            "x: 1\n---\nspec:\n  ports:\n  - name: a\n  - port: 2\n    name: b\n  list: [1, 2]\n  text: null\n";
        let document = documents(stream)[1];
        for (path, line) in [
            ("spec.ports[1].name", 7),
            ("spec.ports[1].port", 6),
            ("spec.ports[0].port", 5),
            ("spec.list[1]", 8),
            ("spec.text", 9),
            ("spec.none", 4),
            ("none", 3),
        ] {
            assert_eq!(line_of(document, path), line, "{path}");
        }
    }
}
