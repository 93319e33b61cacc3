//! From manifests to tables. Each directory in `golden/` contains steps, `1.yaml`, `2.yaml` and so on, which are the
//! successive contents of one file of the manifest directory, and `tables.txt`, the contents of the tables after each
//! step.
//!
//! `UPDATE_GOLDEN=1 cargo test -p podnet --test golden` rewrites `tables.txt`; review the difference.

use std::fmt::Write;
use std::fs;
use std::path::Path;
use std::time::{Duration, Instant};

use podnet::config::Config;
use podnet::control::Control;
use podnet::datapath::memory::MemoryTables;
use podnet::reconcile::dump::dump;
use podnet::source::manifest::ManifestSource;

#[test]
fn tables_after_each_step() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden");
    let mut cases: Vec<_> = fs::read_dir(&root).unwrap().map(|entry| entry.unwrap().path()).collect();
    cases.sort();
    assert!(cases.len() >= 3, "the cases in {} are missing", root.display());
    let mut wrong = Vec::new();
    for case in cases {
        let found = run(&case);
        let golden = case.join("tables.txt");
        if std::env::var_os("UPDATE_GOLDEN").is_some() {
            fs::write(&golden, &found).unwrap();
        }
        let expected = fs::read_to_string(&golden).unwrap_or_default();
        if found != expected {
            wrong.push(format!("{}:\nexpected\n{expected}\nfound\n{found}", golden.display()));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

fn run(case: &Path) -> String {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().display();
    let config =
        format!("{{node: node1, manifests: {path}, runDir: {path}/run, stateDir: {path}/state, maglevTableSize: 251}}");
    let config = Config::parse(&config).unwrap();
    let mut tables = MemoryTables::new(100, 4096, 100);
    let mut source = ManifestSource::open(directory.path()).unwrap();
    let mut control = Control::adopt(&config, &tables).unwrap();
    let mut now = Instant::now();
    let mut text = String::new();
    for step in 1.. {
        let Ok(manifest) = fs::read(case.join(format!("{step}.yaml"))) else { break };
        fs::write(directory.path().join("manifest.yaml"), manifest).unwrap();
        control.apply(source.poll(now));
        assert_eq!(source.status().broken, [], "{} step {step}", case.display());
        let outcome = control.reconcile(&mut tables, now);
        assert_eq!(outcome.pending, 0);
        write!(text, "# after {step}.yaml\n{}", dump(&tables, control.names()).unwrap()).unwrap();
        // Long enough for every quarantine to end.
        now += Duration::from_secs(10);
    }
    text
}
