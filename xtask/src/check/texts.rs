//! User-visible text of the programs: no values in Rust's debug format, and no error without its cause.

use std::path::Path;

/// Source directories of the programs that ship.
const SHIPPED: [&str; 2] = ["podnet/src", "cni/src"];
/// Exempt: it removes debug output from the messages of a library.
const KNOWS_DEBUG: &str = "podnet/src/source/kubernetes/failure.rs";

/// Violations in a source file, with their lines (from 1).
pub(super) fn wrong(file: &Path, text: &str) -> Vec<(usize, &'static str)> {
    let is_test = file.components().any(|part| part.as_os_str() == "tests") || file.ends_with("tests.rs");
    if is_test || !SHIPPED.iter().any(|place| file.starts_with(place)) {
        return Vec::new();
    }
    let code = text.split("#[cfg(test)]\nmod tests").next().unwrap_or(text);
    let code = code.split("#[cfg(test)]\npub(crate) mod tests").next().unwrap_or(code);
    let mut found = causeless(code);
    if file != Path::new(KNOWS_DEBUG) {
        found.extend(debugging(code));
    }
    found.sort_unstable();
    found
}

/// Values in debug format, including those of log fields.
fn debugging(code: &str) -> impl Iterator<Item = (usize, &'static str)> {
    let lines = code.lines().enumerate().filter(|(_, line)| !line.trim_start().starts_with("//"));
    let is_wrong = |line: &str| {
        let field = line
            .split(['(', ','])
            .map(str::trim_start)
            .any(|part| part.strip_prefix('?').is_some_and(|rest| rest.starts_with(|c: char| c.is_ascii_lowercase())));
        line.contains(":?}") || line.contains(":#?}") || field || line.contains("= ?")
    };
    let wrong = lines.filter(move |(_, line)| is_wrong(line));
    wrong.map(|(number, _)| (number + 1, "`{:?}` in user-visible text: implement Display"))
}

/// Errors whose text lacks their cause.
fn causeless(code: &str) -> Vec<(usize, &'static str)> {
    let mut found = Vec::new();
    for (at, _) in code.match_indices("#[error(") {
        let rest = &code[at..];
        let Some(end) = rest.find(")]\n") else { continue };
        let (text, rest) = rest.split_at(end);
        // Up to the next variant, or the end of the type.
        let ends = ["#[error(", "\n}"].into_iter().filter_map(|end| rest.find(end));
        let body = &rest[..ends.min().unwrap_or(rest.len())];
        let has_cause = ["source:", "#[source]", "#[from]"].iter().any(|word| body.contains(word));
        let tells = ["source", "{0", "(.0", "transparent", ".0)"].iter().any(|word| text.contains(word));
        if has_cause && !tells {
            let line = code[..at].matches('\n').count() + 1;
            found.push((line, "the error text lacks its cause: add `{source}`"));
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lines(text: &str) -> Vec<usize> {
        wrong(Path::new("podnet/src/x.rs"), text).into_iter().map(|(line, _)| line).collect()
    }

    #[test]
    fn debug_format_is_found() {
        assert_eq!(
            lines("warn!(\"{change:?}\");\nwarn!(?key, \"a\");\nwarn!(key = ?key, \"b\");\nf(\"{:#?}\", x)\n"),
            [1, 2, 3, 4]
        );
        assert_eq!(
            lines("let a = f(b)?;\nlet c = d?.e();\n// {x:?}\nwarn!(%key, \"a\");\n#[cfg(test)]\nmod tests {\n{x:?}"),
            [0; 0]
        );
        assert!(wrong(Path::new("podnet/src/a/tests.rs"), "{x:?}").is_empty());
        assert!(wrong(Path::new("tests/src/a.rs"), "{x:?}").is_empty());
    }

    #[test]
    fn errors_without_their_cause_are_found() {
        let of = |text: &str, body: &str| format!("enum E {{\n    #[error({text})]\n    A {{\n{body}\n    }},\n}}\n");
        let source = "        source: io::Error,";
        assert_eq!(lines(&of("\"can't read {path}\"", source)), [2]);
        assert_eq!(lines(&of("\"can't read {path}: {source}\"", source)), [0; 0]);
        assert_eq!(lines(&of("\"can't read {}: {}\", path, chain(.source)", source)), [0; 0]);
        assert_eq!(lines(&of("\"no {path}\"", "        path: PathBuf,")), [0; 0]);
        assert_eq!(
            lines(
                "enum E {\n    #[error(\"socket\")]\n    A(#[from] io::Error),\n    #[error(\"b: {0}\")]\n    B(#[source] io::Error),\n}\n"
            ),
            [2]
        );
        assert_eq!(lines("#[error(\"can't {verb}\")]\npub struct E {\n    source: io::Error,\n}\n"), [1]);
    }
}
