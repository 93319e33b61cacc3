//! The manifests in `examples/`, from which new users start, are valid.

use std::path::Path;
use std::time::Instant;

use podnet::config::Config;
use podnet::control::Control;
use podnet::datapath::memory::MemoryTables;
use podnet::reconcile::dump::dump;
use podnet::source::manifest::ManifestSource;

#[test]
fn every_example_takes_effect() {
    let examples = Path::new(env!("CARGO_MANIFEST_DIR")).join("../examples");
    let directory = tempfile::tempdir().unwrap();
    let (manifests, run) = (examples.display(), directory.path().display());
    let config =
        Config::parse(&format!("{{node: node1, manifests: {manifests}, runDir: {run}, stateDir: {run}}}")).unwrap();
    let mut tables = MemoryTables::new(100, 100, 100);
    let mut source = ManifestSource::open(&config.manifests.clone().unwrap()).unwrap();
    let mut control = Control::adopt(&config, &tables).unwrap();
    control.apply(source.poll(Instant::now()));
    let outcome = control.reconcile(&mut tables, Instant::now());
    assert_eq!(outcome.pending, 0);
    let (read, status) = (source.status(), control.status());
    assert_eq!((read.broken, read.duplicates), (vec![], vec![]));
    assert_eq!(status.problems, []);
    assert_eq!((status.services, status.nodes), (6, 2));
    let text = dump(&tables, control.names()).unwrap();
    let lines: Vec<_> = text.lines().collect();
    for (i, line) in lines.iter().enumerate().filter(|(_, line)| line.contains(" service ")) {
        assert!(lines.get(i + 1).is_some_and(|next| next.starts_with("  backend ")), "no backend: {line}");
    }
    for part in ["10.96.0.53:53/UDP", "[fd00:96::10]:80/TCP", "default/web-snat:http snat"] {
        assert!(text.contains(part), "{part} is missing:\n{text}");
    }
}
