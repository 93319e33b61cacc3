//! The length of comments. rustfmt breaks lines of code only.

/// As in `rustfmt.toml`.
const COLUMNS: usize = 120;

/// Comments that are too long, with their lines (from 1).
pub(super) fn exceeded(source: &str) -> Vec<(usize, String)> {
    let lines = source.lines().map(|line| line.chars().count()).zip(source.lines()).enumerate();
    let long = lines.filter(|(_, (columns, line))| *columns > COLUMNS && line.trim_start().starts_with("//"));
    long.map(|(at, (columns, _))| (at + 1, format!("a comment of {columns} columns: {COLUMNS} are the limit")))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn long_comments_are_found() {
        let comment = |sign: &str, columns: usize| format!("    {sign} {}", "é".repeat(columns - sign.len() - 5));
        let text = ["//", "///", "//!"].map(|sign| [comment(sign, 120), comment(sign, 121)].join("\n")).join("\n");
        let lines: Vec<_> = exceeded(&text).into_iter().map(|(line, _)| line).collect();
        assert_eq!(lines, [2, 4, 6]);
        assert_eq!(exceeded(&comment("//", 121))[0].1, "a comment of 121 columns: 120 are the limit");
        assert!(exceeded(&format!("let text = \"{}\"; // as it is\n", "x".repeat(120))).is_empty());
    }

    #[test]
    fn code_and_comments_have_the_same_limit() {
        let rustfmt = include_str!("../../../rustfmt.toml");
        assert!(rustfmt.lines().any(|line| line == format!("max_width = {COLUMNS}")), "{rustfmt}");
    }
}
