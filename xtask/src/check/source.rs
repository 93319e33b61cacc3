//! Rust source as tokens. Comments and literals are ignored.

use anyhow::{Result, anyhow};
use proc_macro2::{Delimiter, Group, TokenStream, TokenTree};

/// The tokens of a file.
pub(super) fn tokens(text: &str) -> Result<Vec<TokenTree>> {
    let stream: TokenStream = text.parse().map_err(|error| anyhow!("not Rust: {error}"))?;
    Ok(stream.into_iter().collect())
}

/// Identifiers and keywords, each with its line (from 1).
pub(super) fn words(tokens: &[TokenTree]) -> Vec<(usize, String)> {
    let mut words = Vec::new();
    for token in tokens {
        match token {
            TokenTree::Ident(ident) => words.push((ident.span().start().line, ident.to_string())),
            TokenTree::Group(group) => words.extend(self::words(&inside(group))),
            TokenTree::Punct(_) | TokenTree::Literal(_) => {}
        }
    }
    words
}

/// The tokens between a group's delimiters.
pub(super) fn inside(group: &Group) -> Vec<TokenTree> {
    group.stream().into_iter().collect()
}

/// Whether a token is this identifier or keyword.
pub(super) fn is_word(token: Option<&TokenTree>, word: &str) -> bool {
    matches!(token, Some(TokenTree::Ident(ident)) if ident == word)
}

/// Whether a token is this punctuation character.
pub(super) fn is_punct(token: Option<&TokenTree>, character: char) -> bool {
    matches!(token, Some(TokenTree::Punct(punct)) if punct.as_char() == character)
}

/// The token as a group, if it is one with this delimiter.
pub(super) fn group(token: Option<&TokenTree>, delimiter: Delimiter) -> Option<&Group> {
    match token {
        Some(TokenTree::Group(group)) if group.delimiter() == delimiter => Some(group),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn comments_and_literals_are_ignored() {
        let text =
            "a // b\nc /* d /* e */ f */ g(\"h \\\" i\", r#\"j \" k\"#, b\"l\", '\\'', 'm');\n/// n\nfn o<'p>() {}\n";
        let words = words(&tokens(text).unwrap());
        let names: Vec<_> = words.iter().map(|(_, word)| word.as_str()).collect();
        assert_eq!(names, ["a", "c", "g", "doc", "fn", "o", "p"]);
    }

    #[test]
    fn lines_are_counted_through_literals_and_comments() {
        let words = words(&tokens("f(\"\n\");\n/* \n */ a\nb").unwrap());
        assert_eq!(words[1..], [(4, "a".to_owned()), (5, "b".to_owned())]);
    }
}
