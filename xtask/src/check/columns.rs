//! The length of lines in comments and documents. rustfmt breaks lines of code only.

/// As in `rustfmt.toml`.
const COLUMNS: usize = 120;

/// Comments of a Rust source file that are too long, with their lines (from 1).
pub(super) fn in_comments(source: &str) -> Vec<(usize, String)> {
    exceeded(source, "a comment", |line| line.trim_start().starts_with("//"))
}

/// Lines of a Markdown document that are too long, with their numbers (from 1). Rows of tables can't be broken, and
/// fenced blocks show what programs print.
pub(super) fn in_document(text: &str) -> Vec<(usize, String)> {
    let mut fenced = false;
    exceeded(text, "a line", |line| {
        fenced ^= line.trim_start().starts_with("```");
        !fenced && !line.trim_start().starts_with('|')
    })
}

fn exceeded(text: &str, what: &str, mut counts: impl FnMut(&str) -> bool) -> Vec<(usize, String)> {
    let lines = text.lines().map(|line| line.chars().count()).zip(text.lines()).enumerate();
    let long = lines.filter(|(_, (columns, line))| counts(line) && *columns > COLUMNS);
    long.map(|(at, (columns, _))| (at + 1, format!("{what} of {columns} columns: {COLUMNS} are the limit"))).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn long_comments_are_found() {
        let comment = |sign: &str, columns: usize| format!("    {sign} {}", "é".repeat(columns - sign.len() - 5));
        let text = ["//", "///", "//!"].map(|sign| [comment(sign, 120), comment(sign, 121)].join("\n")).join("\n");
        let lines: Vec<_> = in_comments(&text).into_iter().map(|(line, _)| line).collect();
        assert_eq!(lines, [2, 4, 6]);
        assert_eq!(in_comments(&comment("//", 121))[0].1, "a comment of 121 columns: 120 are the limit");
        assert!(in_comments(&format!("let text = \"{}\"; // as it is\n", "x".repeat(120))).is_empty());
    }

    #[test]
    fn long_lines_of_documents_are_found() {
        let long = "é".repeat(121);
        let text = format!("# A title\n{long}\n```\n{long}\n```\n- {long}\n| {long} |\n{}\n", "é".repeat(120));
        assert_eq!(in_document(&text).into_iter().map(|(line, _)| line).collect::<Vec<_>>(), [2, 6]);
    }

    #[test]
    fn code_and_comments_have_the_same_limit() {
        let rustfmt = include_str!("../../../rustfmt.toml");
        assert!(rustfmt.lines().any(|line| line == format!("max_width = {COLUMNS}")), "{rustfmt}");
    }
}
