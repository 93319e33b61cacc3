//! Which files of a crate use which. Paths and imports are followed through re-exports to the file that defines the
//! item.
//!
//! Methods are not followed, since tokens don't contain the type of their receiver. Tests are left out: they may use
//! anything.

use std::collections::{BTreeMap, BTreeSet};

use proc_macro2::{Delimiter, TokenTree};

use super::source::{group, inside, is_punct, is_word};

/// A module's path in its crate; empty for the root.
pub(super) type Name = Vec<String>;

/// Imports, paths and definitions of one file.
#[derive(Debug, Default)]
pub(super) struct Module {
    imports: Vec<Import>,
    /// Paths of more than one segment outside of imports.
    paths: Vec<(usize, Name)>,
    /// Identifiers outside of imports and of declarations of modules.
    words: BTreeSet<String>,
    /// Names of items.
    defines: BTreeSet<String>,
    /// Modules that exist in tests only.
    tests: Vec<String>,
}

#[derive(Debug)]
struct Import {
    line: usize,
    path: Name,
    /// Its name in this file; `*` for a glob.
    name: String,
    exported: bool,
}

/// One file uses another.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Use {
    pub(super) from: Name,
    pub(super) to: Name,
    /// The line of the use, from 1.
    pub(super) line: usize,
    /// The used item, as a path in the other file.
    pub(super) item: String,
}

impl Module {
    pub(super) fn read(tokens: &[TokenTree]) -> Self {
        let mut module = Self::default();
        module.stream(tokens, 0);
        module
    }

    /// Reads tokens inside `depth` nested inline modules.
    fn stream(&mut self, tokens: &[TokenTree], depth: usize) {
        let mut at = 0;
        while at < tokens.len() {
            if is_test_attribute(&tokens[at..]) {
                let end = at + item_length(&tokens[at..]);
                if let Some(place) = tokens[at..end].iter().position(|token| is_word(Some(token), "mod")) {
                    self.tests.extend(tokens.get(at + place + 1).map(ToString::to_string));
                }
                at = end;
            } else if is_word(tokens.get(at), "use") && !is_punct(tokens.get(at + 1), '<') {
                let end =
                    tokens[at..].iter().position(|token| is_punct(Some(token), ';')).map_or(tokens.len(), |l| at + l);
                self.import(&tokens[at + 1..end], is_exported(&tokens[..at]), depth);
                at = end;
            } else if is_word(tokens.get(at), "mod") {
                let body = group(tokens.get(at + 2), Delimiter::Brace);
                body.into_iter().for_each(|body| self.stream(&inside(body), depth + 1));
                at += 3;
            } else {
                at += self.token(&tokens[at..], depth);
            }
        }
    }

    /// Reads the path, group or other token at the start. Returns its length in tokens.
    fn token(&mut self, tokens: &[TokenTree], depth: usize) -> usize {
        match &tokens[0] {
            TokenTree::Group(group) => {
                self.stream(&inside(group), depth);
                1
            }
            TokenTree::Ident(first) => {
                const ITEMS: [&str; 9] =
                    ["struct", "enum", "trait", "fn", "const", "static", "type", "union", "macro_rules"];
                if ITEMS.iter().any(|item| first == item) {
                    let name = tokens[1..].iter().take(2).find(|token| matches!(token, TokenTree::Ident(_)));
                    self.defines.extend(name.map(ToString::to_string));
                }
                let (path, length) = path(tokens);
                self.words.extend(path.iter().cloned());
                if path.len() > 1 {
                    self.paths.extend(outward(path, depth).map(|path| (first.span().start().line, path)));
                }
                length
            }
            TokenTree::Punct(_) | TokenTree::Literal(_) => 1,
        }
    }

    fn import(&mut self, tokens: &[TokenTree], exported: bool, depth: usize) {
        let line = tokens.first().map_or(0, |token| token.span().start().line);
        for (path, name) in use_tree(tokens) {
            self.imports.extend(outward(path, depth).map(|path| Import { line, path, name, exported }));
        }
    }

    fn imported(&self, name: &str) -> Option<&Import> {
        self.imports.iter().find(|import| import.name == name)
    }
}

/// The imports of a `use` tree: paths and the names that they get.
fn use_tree(tokens: &[TokenTree]) -> Vec<(Name, String)> {
    let tokens = if is_punct(tokens.first(), ':') { &tokens[2..] } else { tokens };
    let (prefix, length) = path(tokens);
    let rest = &tokens[length..];
    let rest = if is_punct(rest.first(), ':') { &rest[2..] } else { rest };
    let with = |path: &[String]| [&prefix, path].concat();
    if let Some(group) = group(rest.first(), Delimiter::Brace) {
        let inside = inside(group);
        let parts = inside.split(|token| is_punct(Some(token), ',')).filter(|part| !part.is_empty());
        let parts = parts.flat_map(use_tree).map(|(path, name)| match path.as_slice() {
            [only] if only == "self" => (prefix.clone(), if name == "self" { last(&prefix) } else { name }),
            path => (with(path), name),
        });
        return parts.collect();
    }
    if is_punct(rest.first(), '*') {
        return vec![(with(&["*".to_owned()]), "*".to_owned())];
    }
    let name = if is_word(rest.first(), "as") { rest.get(1).map(ToString::to_string) } else { None };
    let name = name.unwrap_or_else(|| last(&prefix));
    vec![(prefix, name)]
}

fn last(path: &[String]) -> String {
    path.last().cloned().unwrap_or_default()
}

/// The path at the start of the tokens, and its length in tokens.
fn path(tokens: &[TokenTree]) -> (Name, usize) {
    let (mut path, mut at) = (Name::new(), 0);
    while let Some(TokenTree::Ident(ident)) = tokens.get(at) {
        path.push(ident.to_string());
        at += 1;
        let goes_on = is_punct(tokens.get(at), ':')
            && is_punct(tokens.get(at + 1), ':')
            && matches!(tokens.get(at + 2), Some(TokenTree::Ident(_)));
        if !goes_on {
            break;
        }
        at += 2;
    }
    (path, at)
}

/// A path, rewritten for the file's own module; `None` if it stays within an inline module.
fn outward(path: Name, depth: usize) -> Option<Name> {
    let supers = path.iter().take_while(|segment| *segment == "super").count();
    if depth == 0 || supers == 0 {
        let stays = depth > 0 && path.first().is_some_and(|first| first == "self");
        return (!stays).then_some(path);
    }
    match supers.checked_sub(depth)? {
        0 => Some([&["self".to_owned()], &path[supers..]].concat()),
        left => Some([vec!["super".to_owned(); left].as_slice(), &path[supers..]].concat()),
    }
}

/// Whether these tokens begin with `#[cfg(test)]`, or with another condition that is met in tests only.
fn is_test_attribute(tokens: &[TokenTree]) -> bool {
    let Some(attribute) = group(tokens.get(1), Delimiter::Bracket).filter(|_| is_punct(tokens.first(), '#')) else {
        return false;
    };
    let attribute = inside(attribute);
    let condition = group(attribute.get(1), Delimiter::Parenthesis).filter(|_| is_word(attribute.first(), "cfg"));
    let condition = condition.map(inside).unwrap_or_default();
    let all = group(condition.get(1), Delimiter::Parenthesis).filter(|_| is_word(condition.first(), "all"));
    is_word(condition.first(), "test") || all.is_some_and(|all| is_word(inside(all).first(), "test"))
}

/// Length of an item in tokens, including its attributes.
fn item_length(tokens: &[TokenTree]) -> usize {
    let mut at = 0;
    while is_punct(tokens.get(at), '#') {
        at += 2;
    }
    let is_use = tokens[at..].iter().take(3).any(|token| is_word(Some(token), "use"));
    let ends = |token: &TokenTree| {
        is_punct(Some(token), ';')
            || !is_use && (is_punct(Some(token), ',') || group(Some(token), Delimiter::Brace).is_some())
    };
    tokens[at..].iter().position(ends).map_or(tokens.len(), |length| at + length + 1)
}

/// Whether the tokens before a `use` end with `pub` or `pub(…)`.
fn is_exported(before: &[TokenTree]) -> bool {
    let is_pub = |token: Option<&TokenTree>| is_word(token, "pub");
    let [.., a, b] = before else { return is_pub(before.last()) };
    is_pub(Some(b)) || is_pub(Some(a)) && group(Some(b), Delimiter::Parenthesis).is_some()
}

/// The files of a crate, without tests.
#[derive(Debug, Default)]
pub(super) struct Modules(BTreeMap<Name, Module>);

impl Modules {
    pub(super) fn new(files: impl IntoIterator<Item = (Name, Module)>) -> Self {
        let mut files: BTreeMap<_, _> = files.into_iter().collect();
        let tests = files.iter().flat_map(|(name, module)| {
            module.tests.iter().map(|test| [name.as_slice(), std::slice::from_ref(test)].concat())
        });
        let tests: Vec<Name> = tests.collect();
        files.retain(|name, _| !tests.iter().any(|test| name.starts_with(test)));
        Self(files)
    }

    /// Names of the top-level modules.
    pub(super) fn top(&self) -> BTreeSet<&str> {
        self.0.keys().filter_map(|name| name.first()).map(String::as_str).collect()
    }

    /// All uses of other files, in ascending order.
    pub(super) fn uses(&self) -> BTreeSet<Use> {
        let mut uses = BTreeSet::new();
        for (name, module) in &self.0 {
            // A re-export counts only if the file itself uses the name.
            let used = |import: &&Import| !import.exported || module.words.contains(&import.name);
            let imports = module.imports.iter().filter(used).map(|import| (import.line, &import.path));
            let paths = module.paths.iter().map(|(line, path)| (*line, path));
            for (line, path) in imports.chain(paths) {
                let Some((to, item)) = self.absolute(name, path, 0).and_then(|path| self.defined(&path, 0)) else {
                    continue;
                };
                if to != *name && !item.is_empty() {
                    uses.insert(Use { from: name.clone(), to, line, item: item.join("::") });
                }
            }
        }
        uses
    }

    /// A path relative to the crate's root; `None` if it leads out of the crate, or to an item of the file itself.
    fn absolute(&self, module: &Name, path: &[String], depth: usize) -> Option<Name> {
        let (first, rest) = path.split_first()?;
        let supers = path.iter().take_while(|segment| *segment == "super").count();
        match first.as_str() {
            "crate" => Some(rest.to_vec()),
            "self" => Some([module, rest].concat()),
            "super" => Some([&module[..module.len().checked_sub(supers)?], &path[supers..]].concat()),
            _ => {
                let child = [module.as_slice(), std::slice::from_ref(first)].concat();
                if self.0.contains_key(&child) {
                    return Some([&child, rest].concat());
                }
                let import = self.0.get(module)?.imported(first).filter(|import| import.path[0] != *first)?;
                if depth > LONGEST {
                    return None;
                }
                Some([self.absolute(module, &import.path, depth + 1)?.as_slice(), rest].concat())
            }
        }
    }

    /// The file that defines the item at a path, and the item's path in that file.
    fn defined(&self, path: &Name, depth: usize) -> Option<(Name, Name)> {
        let length = (0..=path.len()).rev().find(|length| self.0.contains_key(&path[..*length]))?;
        let (name, rest) = (path[..length].to_vec(), path[length..].to_vec());
        let (Some(first), true) = (rest.first(), depth < LONGEST) else { return Some((name, rest)) };
        let module = &self.0[&name];
        if let Some(import) = module.imported(first)
            && let Some(target) = self.absolute(&name, &import.path, 0)
        {
            return self.defined(&[target.as_slice(), &rest[1..]].concat(), depth + 1);
        }
        if !module.defines.contains(first) {
            for glob in module.imports.iter().filter(|import| import.name == "*") {
                let target = self.absolute(&name, &glob.path[..glob.path.len() - 1], 0);
                let target = target.filter(|target| self.0.get(target).is_some_and(|m| m.defines.contains(first)));
                if let Some(target) = target {
                    return Some((target, rest));
                }
            }
        }
        Some((name, rest))
    }
}

/// Maximum length of a chain of imports or re-exports, which could be circular.
const LONGEST: usize = 8;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::check::source::tokens;

    fn uses(files: &[(&str, &str)]) -> Vec<String> {
        let module = |(name, text): &(&str, &str)| {
            let name = name.split("::").filter(|part| !part.is_empty()).map(ToOwned::to_owned).collect();
            (name, Module::read(&tokens(text).unwrap()))
        };
        let uses = Modules::new(files.iter().map(module)).uses();
        let shown = |one: &Use| format!("{}:{} {} {}", one.from.join("::"), one.line, one.to.join("::"), one.item);
        uses.iter().map(shown).collect()
    }

    #[test]
    fn imports_and_paths_are_uses() {
        let files = [
            ("", "mod a; mod b; mod c;"),
            ("a", "use crate::b::{self, B as Other};\nuse std::fmt;\nfn f() { b::g(); crate::c::h(fmt::x) }"),
            ("b", "pub struct B; pub fn g() {}"),
            ("c", "use super::b;"),
        ];
        assert_eq!(uses(&files), ["a:1 b B", "a:3 b g", "a:3 c h"], "naming a module uses nothing of it");
    }

    #[test]
    fn re_exports_are_followed_and_are_no_uses() {
        let files = [
            ("a", "mod inner; mod all;\npub use inner::X;\npub use all::*;\npub use inner::Y;\nfn f(_: Y) {}"),
            ("a::inner", "pub struct X; pub struct Y;"),
            ("a::all", "pub const Z: u8 = 0;"),
            ("b", "use crate::a::{X, Z};"),
        ];
        assert_eq!(uses(&files), ["a:4 a::inner Y", "b:1 a::all Z", "b:1 a::inner X"]);
    }

    #[test]
    fn an_inline_module_is_a_part_of_its_file() {
        let files =
            [("a", "mod part { use super::own; use super::super::b::B; }\nfn own() {}"), ("b", "pub struct B;")];
        assert_eq!(uses(&files), ["a:1 b B"]);
    }

    #[test]
    fn tests_may_use_anything() {
        let files = [
            (
                "a",
                "#[cfg(test)]\nuse crate::b::{B};\n#[cfg(test)]\nmod tests { use crate::b::B; }\n#[cfg(test)]\nmod fake;",
            ),
            ("a::fake", "use crate::b::B;"),
            ("b", "pub struct B;"),
        ];
        assert_eq!(uses(&files), [""; 0]);
    }
}
