//! `cargo xtask check`: every check other than the tests.
//!
//! Other [tools] check format, lints and documentation, and cargo-deny checks the [dependencies]. The workspace's own
//! rules, which are a unit test as well, are those that no tool knows. Dependencies between our crates point down only.
//! A crate that ties us to Kubernetes, the kernel's BPF or netlink is imported in its own corner only, and unsafe code
//! stays where the kernel is touched. Within a crate, modules stand on floors and use lower ones only. Sources are read
//! as tokens without comments and texts, so any use of such a name counts, whatever its path. No source file is too
//! long. The texts that the programs print are fit for people, [prose] has a single spelling, and comments and
//! documents have no more [columns] than code.

mod columns;
mod dependencies;
mod floors;
mod modules;
mod prose;
mod source;
mod texts;
mod tools;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::{fmt, fs};

use anyhow::{Context, Result, ensure};
use proc_macro2::TokenTree;

use crate::workspace::{Package, Workspace};
use floors::FLOORS;
use modules::{Module, Modules, Name};

/// Which of our crates a crate may depend on.
const MAY_DEPEND_ON: &[(&str, &[&str])] = &[
    ("podnet-common", &[]),
    ("podnet-ebpf", &["podnet-common"]),
    ("podnet-cni", &["podnet-common"]),
    ("podnet", &["podnet-cni", "podnet-common"]),
    ("podnet-tests", &["podnet", "podnet-cni", "podnet-common"]),
    ("xtask", &[]),
];

/// Words that may stand in some modules only. A module is named by its path without `.rs`; directories count as well.
struct Corner {
    words: &'static [&'static str],
    places: &'static [&'static str],
    why: &'static str,
}

const CORNERS: &[Corner] = &[
    Corner {
        words: &["kube", "k8s_openapi"],
        places: &["podnet/src/source/kubernetes", "tests"],
        why: "only podnet::source::kubernetes talks to the Kubernetes API",
    },
    Corner {
        words: &["aya"],
        places: &["podnet/src/datapath", "cni/src/datapath", "tests"],
        why: "only the datapath modules know how programs and maps are reached",
    },
    Corner {
        words: &[
            "rtnetlink",
            "netlink_packet_core",
            "netlink_packet_route",
            "netlink_packet_sock_diag",
            "netlink_proto",
            "netlink_sys",
        ],
        places: &["podnet/src/host", "cni/src/netlink", "tests"],
        why: "only the netlink modules speak netlink",
    },
    Corner {
        words: &["unsafe"],
        places: &[
            "podnet-ebpf",
            "podnet/src/async_fd",
            "podnet/src/heap",
            "podnet/src/datapath",
            "cni/src/datapath",
            "tests",
        ],
        why: "unsafe code stays where the kernel is touched",
    },
];

/// The most lines that a source file has, tests and tables included. None is exempt: a longer one has a seam.
const MOST_LINES: usize = 500;

impl Corner {
    fn contains(&self, file: &Path) -> bool {
        self.places.iter().any(|place| file.starts_with(place) || file.with_extension("") == Path::new(place))
    }
}

/// A broken rule.
#[derive(Debug, PartialEq, Eq)]
struct Violation {
    place: String,
    what: String,
}

impl Violation {
    /// In a line (from 1) of a file.
    fn at(file: &Path, line: usize, what: &str) -> Self {
        Self { place: format!("{}:{line}", file.display()), what: what.to_owned() }
    }
}

impl fmt::Display for Violation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.place, self.what)
    }
}

/// Runs every check; a failed one does not keep the later ones from running.
pub(crate) fn run(workspace: &Workspace) -> Result<()> {
    type Check = fn(&Workspace) -> Result<()>;
    let checks: [(&str, Check); 5] = [
        ("rules", rules),
        ("format", tools::format),
        ("lints", tools::lints),
        ("documentation", tools::documentation),
        ("dependencies", dependencies::dependencies),
    ];
    let mut failed = Vec::new();
    for (name, check) in checks {
        println!("\n==> {name}");
        if let Err(error) = check(workspace) {
            println!("{error:#}");
            failed.push(name);
        }
    }
    ensure!(failed.is_empty(), "failed checks: {}", failed.join(", "));
    println!("\nAll checks passed.");
    Ok(())
}

fn rules(workspace: &Workspace) -> Result<()> {
    let violations = violations(workspace)?;
    for violation in &violations {
        println!("{violation}");
    }
    ensure!(violations.is_empty(), "{} violations of the workspace's rules", violations.len());
    Ok(())
}

fn violations(workspace: &Workspace) -> Result<Vec<Violation>> {
    let mut found: Vec<_> = workspace.packages.iter().flat_map(wrong_dependencies).collect();
    for file in documents(&workspace.root)? {
        let text = fs::read_to_string(&file).with_context(|| format!("cannot read {}", file.display()))?;
        let file = file.strip_prefix(&workspace.root)?;
        let violations = prose::in_document(&text).into_iter().chain(columns::in_document(&text));
        found.extend(violations.map(|(line, what)| Violation::at(file, line, &what)));
    }
    for package in &workspace.packages {
        let sources = package.directory.join("src");
        let mut modules = Vec::new();
        for file in files(&workspace.root.join(&package.directory), "rs")? {
            let text = fs::read_to_string(&file).with_context(|| format!("cannot read {}", file.display()))?;
            let file = file.strip_prefix(&workspace.root)?;
            let tokens = source::tokens(&text).with_context(|| format!("cannot read {}", file.display()))?;
            found.extend(out_of_corner(file, &tokens));
            found.extend(too_long(file, &text));
            let texts = texts::wrong(file, &text).into_iter();
            found.extend(texts.map(|(line, what)| Violation::at(file, line, what)));
            let comments = prose::in_comments(&text).into_iter().chain(columns::in_comments(&text));
            found.extend(comments.map(|(line, what)| Violation::at(file, line, &what)));
            if let Some(name) = file.strip_prefix(&sources).ok().and_then(module_name) {
                modules.push((name, file.to_owned(), Module::read(&tokens)));
            }
        }
        found.extend(out_of_floor(&package.directory, modules));
    }
    Ok(found)
}

/// The path of the module that a source file is; `None` for a program, and for tests.
fn module_name(file: &Path) -> Option<Name> {
    let file = file.with_extension("");
    let mut name: Name = file.iter().map(|part| part.to_string_lossy().into_owned()).collect();
    if name.last().is_some_and(|last| last == "mod") || name == ["lib"] {
        name.pop();
    }
    let is_program = name == ["main"] || name.first().is_some_and(|first| first == "bin");
    (!is_program && !name.iter().any(|part| part == "tests")).then_some(name)
}

/// What a crate's modules use that they must not.
fn out_of_floor(directory: &Path, modules: Vec<(Name, PathBuf, Module)>) -> Vec<Violation> {
    let Some(floors) = FLOORS.iter().find(|floors| Path::new(floors.directory) == directory) else { return Vec::new() };
    let files: BTreeMap<Name, PathBuf> = modules.iter().map(|(name, file, _)| (name.clone(), file.clone())).collect();
    let modules = Modules::new(modules.into_iter().map(|(name, _, module)| (name, module)));
    let found = floors::violations(&modules, floors).into_iter();
    found
        .map(|(name, line, what)| Violation::at(files.get(&name).map_or(directory, |file| file), line, &what))
        .collect()
}

/// The dependencies of a crate on others of ours that do not point down.
fn wrong_dependencies(package: &Package) -> Vec<Violation> {
    let violation = |what| Violation { place: package.directory.join("Cargo.toml").display().to_string(), what };
    let Some((_, allowed)) = MAY_DEPEND_ON.iter().find(|(name, _)| *name == package.name) else {
        return vec![violation(format!("{} is missing from xtask's list of crates", package.name))];
    };
    let ours = |name: &str| MAY_DEPEND_ON.iter().any(|(crate_name, _)| *crate_name == name);
    let wrong = package.dependencies.iter().filter(|name| ours(name) && !allowed.contains(&name.as_str()));
    wrong.map(|name| violation(format!("{} must not depend on {name}", package.name))).collect()
}

/// The words in a source file that belong elsewhere.
fn out_of_corner(file: &Path, tokens: &[TokenTree]) -> Vec<Violation> {
    let mut found = Vec::new();
    for (line, word) in source::words(tokens) {
        let corner = CORNERS.iter().find(|corner| corner.words.contains(&word.as_str()));
        if let Some(corner) = corner.filter(|corner| !corner.contains(file)) {
            found.push(Violation::at(file, line, &format!("`{word}`: {}", corner.why)));
        }
    }
    found
}

fn too_long(file: &Path, text: &str) -> Option<Violation> {
    let lines = text.lines().count();
    let what = format!("{lines} lines, where {MOST_LINES} are allowed: split the file along its subjects");
    (lines > MOST_LINES).then(|| Violation::at(file, MOST_LINES + 1, &what))
}

/// All files below a directory with this extension, in order.
fn files(directory: &Path, extension: &str) -> Result<Vec<PathBuf>> {
    let mut found = Vec::new();
    for path in entries(directory)? {
        if path.is_dir() {
            found.extend(files(&path, extension)?);
        } else if path.extension().is_some_and(|its| its == extension) {
            found.push(path);
        }
    }
    Ok(found)
}

/// The documents in the workspace's root and below `docs`.
fn documents(root: &Path) -> Result<Vec<PathBuf>> {
    let mut found = entries(root)?;
    found.retain(|path| path.extension().is_some_and(|extension| extension == "md"));
    found.extend(files(&root.join("docs"), "md")?);
    Ok(found)
}

fn entries(directory: &Path) -> Result<Vec<PathBuf>> {
    let mut entries = fs::read_dir(directory)
        .and_then(|entries| entries.map(|entry| Ok(entry?.path())).collect::<std::io::Result<Vec<_>>>())
        .with_context(|| format!("cannot read {}", directory.display()))?;
    entries.sort();
    Ok(entries)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_workspace_keeps_its_rules() {
        let violations = violations(&Workspace::find().unwrap()).unwrap();
        let shown: Vec<_> = violations.iter().map(Violation::to_string).collect();
        assert!(shown.is_empty(), "\n{}", shown.join("\n"));
    }

    #[test]
    fn dependencies_point_down_only() {
        let package = |name: &str, dependencies: &[&str]| Package {
            name: name.into(),
            dependencies: dependencies.iter().map(|name| (*name).to_owned()).collect(),
            directory: name.into(),
        };
        assert!(wrong_dependencies(&package("podnet", &["podnet-cni", "podnet-common", "serde"])).is_empty());
        let upwards = wrong_dependencies(&package("podnet-cni", &["podnet-common", "podnet"]));
        assert_eq!(upwards[0].to_string(), "podnet-cni/Cargo.toml: podnet-cni must not depend on podnet");
        assert_eq!(wrong_dependencies(&package("xtask", &["podnet-common"])).len(), 1);
        assert_eq!(wrong_dependencies(&package("podnet-new", &[])).len(), 1, "a new crate needs a decision");
    }

    #[test]
    fn long_files_are_found() {
        let lines = |count: usize| too_long(Path::new("a.rs"), &"\n".repeat(count)).map(|found| found.to_string());
        assert_eq!(lines(500), None);
        assert_eq!(
            lines(501).as_deref(),
            Some("a.rs:501: 501 lines, where 500 are allowed: split the file along its subjects")
        );
    }

    #[test]
    fn words_keep_to_their_corners() {
        let found = |file: &str, text: &str| -> Vec<_> {
            out_of_corner(Path::new(file), &source::tokens(text).unwrap()).iter().map(Violation::to_string).collect()
        };
        assert_eq!(
            found("podnet/src/select.rs", "use std::fmt;\nuse kube::Api;\n"),
            ["podnet/src/select.rs:2: `kube`: only podnet::source::kubernetes talks to the Kubernetes API"]
        );
        assert!(found("podnet/src/source/kubernetes.rs", "use kube::Api;").is_empty());
        assert_eq!(found("podnet/src/cli/status.rs", "let map = ::aya::maps::MapData::from_pin(path);").len(), 1);
        assert!(found("podnet/src/datapath/maps.rs", "use aya::maps::MapData;").is_empty());
        assert!(found("cni/src/datapath.rs", "use aya::maps::MapData;").is_empty());
        assert_eq!(found("podnet/src/datapath_like.rs", "use aya::maps::MapData;").len(), 1);
        assert_eq!(found("cni/src/wiring.rs", "use { rtnetlink as nl };").len(), 1);
        assert_eq!(found("cni/src/store.rs", "unsafe { libc::getuid() }").len(), 1);
        assert!(found("cni/src/store.rs", "// unsafe, aya\nlet unsafety = \"unsafe\";").is_empty());
    }
}
