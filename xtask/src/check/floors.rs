//! The floors of a crate's modules: a module uses modules of lower floors only, and files don't use each other in a
//! circle.

use std::collections::{BTreeMap, BTreeSet};

use super::modules::{Modules, Name, Use};

/// A crate's modules, from the top floor down. Modules of the same floor don't use each other.
pub(super) struct Floors {
    /// The crate's directory.
    pub(super) directory: &'static str,
    pub(super) floors: &'static [&'static [&'static str]],
}

pub(super) const FLOORS: &[Floors] = &[
    Floors {
        directory: "podnet",
        floors: &[
            &["cli"],
            &["daemon"],
            &["control", "health"],
            &["socket"],
            &["select", "status"],
            &["datapath", "guard", "host", "install", "source"],
            &["config", "reconcile"],
            &["compile", "policy"],
            &["frontend", "metrics"],
            &["mirror", "model"],
            &["async_fd", "backoff", "heap", "http", "limit", "prefixes", "entry_counts", "yaml"],
        ],
    },
    Floors {
        directory: "cni",
        floors: &[
            &["commands"],
            &["config", "repair"],
            &["env", "result", "teardown"],
            &["error", "ownership"],
            &["entries", "store", "wiring"],
            &["record"],
            &["address_log", "bandwidth", "datapath", "node_info"],
            &["alloc", "call_log", "files", "id", "mac", "netlink", "netns", "sysctl", "version"],
            &["text"],
        ],
    },
    Floors {
        directory: "podnet-common",
        floors: &[
            &["simulator"],
            &["tables"],
            &["fib", "removal"],
            &["pipeline"],
            &["layout", "packet"],
            &["hash", "verdict"],
            &["addr", "checksum", "time"],
        ],
    },
    Floors {
        directory: "podnet-ebpf",
        floors: &[
            &["removal", "sock", "tc", "xdp"],
            &["tables"],
            &["events", "jump", "policy"],
            &["context", "maps", "yardstick"],
        ],
    },
    Floors {
        directory: "xtask",
        floors: &[
            &["test"],
            &["bench", "demo", "image", "kernel", "lab"],
            &["check"],
            &["build"],
            &["setup"],
            &["workspace"],
            &["command", "frames", "strip", "tally"],
        ],
    },
    Floors {
        directory: "tests",
        floors: &[&["bench", "demo"], &["lab"], &["traffic"], &["place"], &["api", "verifier", "wait"]],
    },
];

/// Violations of the rules, each with its file and line.
pub(super) fn violations(modules: &Modules, floors: &Floors) -> Vec<(Name, usize, String)> {
    let uses = modules.uses();
    let mut found = unlisted(modules, floors);
    found.extend(uses.iter().filter_map(|one| Some((one.from.clone(), one.line, upward(one, floors)?))));
    found.extend(circles(&uses));
    found
}

/// Modules without a floor, and listed modules that don't exist.
fn unlisted(modules: &Modules, floors: &Floors) -> Vec<(Name, usize, String)> {
    let listed: BTreeSet<&str> = floors.floors.iter().copied().flatten().copied().collect();
    let there = modules.top();
    let new = there
        .difference(&listed)
        .map(|name| (vec![(*name).to_owned()], 1, format!("`{name}` has no floor in xtask/src/check/floors.rs yet")));
    let gone = listed.difference(&there).map(|name| {
        (Vec::new(), 1, format!("there is no module `{name}`, which xtask/src/check/floors.rs has a floor for"))
    });
    new.chain(gone).collect()
}

/// The message about a use of a module that is not on a lower floor; `None` for any other use.
fn upward(one: &Use, floors: &Floors) -> Option<String> {
    let (from, to) = (one.from.first()?, one.to.first()?);
    let floor = |name: &str| floors.floors.iter().position(|floor| floor.contains(&name));
    (from != to && floor(from)? >= floor(to)?).then(|| {
        let what = [one.to.as_slice(), std::slice::from_ref(&one.item)].concat().join("::");
        format!("`{from}` must not use `{what}`: `{to}` is not on a lower floor")
    })
}

/// A shortest circle for each group of files that use each other.
fn circles(uses: &BTreeSet<Use>) -> Vec<(Name, usize, String)> {
    let mut next: BTreeMap<&Name, BTreeMap<&Name, &Use>> = BTreeMap::new();
    for one in uses {
        next.entry(&one.from).or_default().entry(&one.to).or_insert(one);
    }
    let mut known = BTreeSet::new();
    let mut found = Vec::new();
    for start in next.keys() {
        let Some(circle) = circle(start, &next) else { continue };
        if circle.iter().any(|name| known.contains(name)) {
            continue;
        }
        known.extend(circle.iter().copied());
        let first = circle[1 % circle.len()];
        let names: Vec<_> = circle.iter().chain([start]).map(|name| name.join("::")).collect();
        found.push(((*start).clone(), next[*start][first].line, format!("a circle: {}", names.join(" → "))));
    }
    found
}

/// The shortest path from a file back to itself, without the repetition of the file at the end.
fn circle<'a>(start: &'a Name, next: &BTreeMap<&'a Name, BTreeMap<&'a Name, &Use>>) -> Option<Vec<&'a Name>> {
    let mut ways = vec![vec![start]];
    let mut seen = BTreeSet::new();
    while !ways.is_empty() {
        let mut longer = Vec::new();
        for way in ways {
            for to in next.get(way.last()?).into_iter().flat_map(BTreeMap::keys) {
                if *to == start {
                    return Some(way);
                }
                if seen.insert(*to) {
                    longer.push([way.as_slice(), &[*to]].concat());
                }
            }
        }
        ways = longer;
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::check::modules::Module;
    use crate::check::source::tokens;

    const HOUSE: Floors = Floors { directory: "house", floors: &[&["attic"], &["hall", "room"], &["cellar"]] };

    fn found(files: &[(&str, &str)]) -> Vec<String> {
        let module = |(name, text): &(&str, &str)| {
            (name.split("::").map(ToOwned::to_owned).collect(), Module::read(&tokens(text).unwrap()))
        };
        let found = violations(&Modules::new(files.iter().map(module)), &HOUSE);
        found.into_iter().map(|(name, line, what)| format!("{}:{line}: {what}", name.join("::"))).collect()
    }

    #[test]
    fn a_module_uses_lower_floors_only() {
        let files = |cellar: &'static str, hall: &'static str| {
            found(&[
                ("attic", "use crate::{hall::H, cellar::C};"),
                ("hall", hall),
                ("room", "pub struct R;"),
                ("cellar", cellar),
            ])
        };
        assert_eq!(files("pub struct C;", "pub struct H;"), [""; 0]);
        assert_eq!(
            files("fn f() {\n crate::hall::g() }", ""),
            ["cellar:2: `cellar` must not use `hall::g`: `hall` is not on a lower floor"]
        );
        assert_eq!(
            files("", "use crate::room::R;"),
            ["hall:1: `hall` must not use `room::R`: `room` is not on a lower floor"]
        );
    }

    #[test]
    fn every_module_has_a_floor() {
        let found = found(&[("attic", ""), ("hall", ""), ("room", ""), ("shed", "")]);
        assert_eq!(found.len(), 2);
        assert!(found[0].contains("`shed` has no floor") && found[1].contains("no module `cellar`"), "{found:?}");
    }

    #[test]
    fn files_do_not_use_each_other_in_a_circle() {
        let files = |b: &'static str| {
            let files = [("attic", ""), ("room", ""), ("cellar", ""), ("hall", "mod a;\nmod b;")];
            found(&[&files[..], &[("hall::a", "\nuse super::b::B;"), ("hall::b", b)]].concat())
        };
        assert_eq!(files("pub struct B;"), [""; 0]);
        assert_eq!(files("use super::a::A;"), ["hall::a:2: a circle: hall::a → hall::b → hall::a"]);
    }
}
