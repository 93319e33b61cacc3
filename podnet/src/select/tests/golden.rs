//! From YAML to frontends: for each `golden/NAME.yaml`, `NAME.txt` contains the frontends, the health check and the
//! remarks on node `n1`.
//!
//! `UPDATE_GOLDEN=1 cargo test -p podnet --lib select` rewrites the latter; review the difference.

use std::fs;
use std::path::Path;

use super::*;

#[test]
fn golden() {
    let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("src/select/tests/golden");
    let mut paths: Vec<_> = fs::read_dir(&directory).unwrap().map(|entry| entry.unwrap().path()).collect();
    paths.retain(|path| path.extension().is_some_and(|extension| extension == "yaml"));
    paths.sort();
    assert!(!paths.is_empty());
    let mut wrong = Vec::new();
    for path in paths {
        let found = dump(&fs::read_to_string(&path).unwrap());
        let golden = path.with_extension("txt");
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

fn dump(stream: &str) -> String {
    let manifests = Manifests::parse(stream);
    for mode in [SourceIp::Auto, SourceIp::Preserve, SourceIp::Snat] {
        explained::agrees(&manifests, &manifests.settings(mode));
    }
    let settings = manifests.settings(SourceIp::Auto);
    let mut dump = String::new();
    for frontend in manifests.frontends(&settings) {
        writeln!(dump, "{}", line(&frontend)).unwrap();
    }
    if let Some(check) = health(&manifests.name, &manifests.service, manifests.slices(), &settings, &Guard::default()) {
        writeln!(dump, "health {} on port {}: {}", check.service, check.port, check.local_endpoints).unwrap();
    }
    for remark in remarks(&manifests.service) {
        writeln!(dump, "remark {remark}").unwrap();
    }
    dump
}
