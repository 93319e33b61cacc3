//! The source against a real directory. Events are there as soon as the system call that caused them has returned,
//! so nothing here waits; time is what `poll` is told.

use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};

use super::*;

struct Bench {
    directory: tempfile::TempDir,
    source: ManifestSource,
    now: Instant,
    /// What the batches so far amount to: the nodes' first internal address by their name.
    nodes: BTreeMap<String, String>,
}

fn node(name: &str, address: u8) -> String {
    format!(
        "---\napiVersion: v1\nkind: Node\nmetadata:\n  name: {name}\nstatus:\n  addresses:\n  - type: InternalIP\n    \
         address: 192.0.2.{address}\n"
    )
}

impl Bench {
    fn new(files: &[(&str, &str)]) -> Self {
        let directory = tempfile::tempdir().unwrap();
        fs::create_dir(directory.path().join("m")).unwrap();
        for (name, text) in files {
            fs::write(directory.path().join("m").join(name), text).unwrap();
        }
        let source = ManifestSource::open(&directory.path().join("m")).unwrap();
        Self { directory, source, now: Instant::now(), nodes: BTreeMap::new() }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join("m").join(name)
    }

    fn write(&self, name: &str, text: &str) {
        fs::write(self.path(name), text).unwrap();
    }

    fn rename(&self, from: &str, to: &str) {
        fs::rename(self.path(from), self.path(to)).unwrap();
    }

    /// Polls, and gives what changed as `name=last byte of the address` or `name gone`.
    fn poll(&mut self) -> Vec<String> {
        let batch = self.source.poll(self.now);
        assert_eq!(batch.synced, self.source.status().synced);
        let mut changes = Vec::new();
        for Change { key, object, .. } in batch.changes {
            let name = key.name.name;
            match object {
                Some(Object::Node(node)) => {
                    let address = node.internal_ips[0].to_string().rsplit('.').next().unwrap().to_owned();
                    changes.push(format!("{name}={address}"));
                    self.nodes.insert(name, address);
                }
                Some(other) => panic!("{other:?}"),
                None => {
                    changes.push(format!("{name} gone"));
                    assert!(self.nodes.remove(&name).is_some(), "{name} wasn't there");
                }
            }
        }
        changes
    }

    /// Lets the time pass that a file has to be gone for.
    fn wait(&mut self) {
        self.now += REMOVAL_DELAY;
    }

    fn errors(&self) -> Vec<String> {
        let show = |file: &BrokenFile| {
            let name = file.name.clone();
            file.errors.iter().map(move |e| format!("{name}:{}: {}", e.line.unwrap_or(0), e.reason)).collect::<Vec<_>>()
        };
        self.source.status().broken.iter().flat_map(show).collect()
    }
}

const NONE: [&str; 0] = [];

#[test]
fn a_missing_directory_is_an_error_that_says_what_to_do() {
    let directory = tempfile::tempdir().unwrap();
    let error = ManifestSource::open(&directory.path().join("none")).unwrap_err().to_string();
    assert!(error.contains("/none: ") && error.contains("create it"), "{error}");
    fs::write(directory.path().join("file"), "").unwrap();
    assert!(ManifestSource::open(&directory.path().join("file")).is_err());
}

#[test]
fn everything_comes_first_and_then_what_changes() {
    let mut bench = Bench::new(&[("a.yaml", &(node("n1", 1) + &node("n2", 2))), ("b.yml", &node("n3", 3))]);
    bench.write("c.json", "{\"apiVersion\":\"v1\",\"kind\":\"Node\",\"metadata\":{\"name\":\"n4\"},\"status\":{\"addresses\":[{\"type\":\"InternalIP\",\"address\":\"192.0.2.4\"}]}}");
    for ignored in ["a.txt", ".a.yaml", ".a.yaml.swp", "a.yaml~", "#a.yaml#", "4913"] {
        bench.write(ignored, &node("ignored", 9));
    }
    assert!(!bench.source.status().synced);
    assert_eq!(bench.poll(), ["n1=1", "n2=2", "n3=3", "n4=4"]);
    assert!(bench.source.status().synced);
    assert_eq!(bench.poll(), NONE);
    bench.write("a.yaml", &(node("n1", 1) + &node("n2", 22) + &node("n5", 5)));
    assert_eq!(bench.poll(), ["n2=22", "n5=5"]);
    bench.write("a.yaml", &node("n2", 22));
    assert_eq!(bench.poll(), ["n1 gone", "n5 gone"]);
    assert_eq!(bench.source.status().files, 3);
}

#[test]
fn a_broken_file_is_reported_and_its_last_good_state_stays() {
    let mut bench = Bench::new(&[("a.yaml", &node("n1", 1)), ("b.yaml", &node("n2", 2))]);
    bench.poll();
    bench.write("a.yaml", &(node("n1", 7) + &node("n3", 3).replace("192.0.2.3", "nowhere")));
    bench.write("b.yaml", &node("n2", 22));
    assert_eq!(bench.poll(), ["n2=22"]);
    assert_eq!(bench.errors(), ["a.yaml:18: Node n3: status.addresses[0].address: `nowhere` is not an IP address"]);
    assert!(bench.source.status().synced, "it was good once");
    bench.write("a.yaml", &node("n1", 7));
    assert_eq!(bench.poll(), ["n1=7"]);
    assert_eq!(bench.errors(), NONE);
    bench.write("a.yaml", "\u{0}");
    bench.poll();
    fs::remove_file(bench.path("a.yaml")).unwrap();
    bench.poll();
    bench.wait();
    assert_eq!(bench.poll(), ["n1 gone"]);
    assert_eq!(bench.errors(), NONE);
}

#[test]
fn a_file_that_was_never_good_keeps_the_source_from_being_synced() {
    let mut bench = Bench::new(&[("a.yaml", "kind: [\n"), ("b.yaml", &node("n2", 2))]);
    assert_eq!(bench.poll(), ["n2=2"]);
    assert!(!bench.source.status().synced);
    fs::remove_file(bench.path("a.yaml")).unwrap();
    bench.poll();
    bench.wait();
    bench.poll();
    assert!(bench.source.status().synced);
}

#[test]
fn a_file_is_read_when_its_writer_is_done() {
    use std::io::Write;
    let mut bench = Bench::new(&[("a.yaml", &node("n1", 1))]);
    bench.poll();
    let mut file = fs::File::create(bench.path("a.yaml")).unwrap();
    assert_eq!(bench.poll(), NONE, "truncated");
    file.write_all(node("n2", 2).as_bytes()).unwrap();
    assert_eq!(bench.poll(), NONE, "not closed yet");
    file.write_all(node("n1", 1).as_bytes()).unwrap();
    drop(file);
    assert_eq!(bench.poll(), ["n2=2"]);
    // Renamed into place, as most tools do.
    bench.write(".a.yaml.tmp", &node("n1", 11));
    bench.rename(".a.yaml.tmp", "a.yaml");
    assert_eq!(bench.poll(), ["n1=11", "n2 gone"]);
}

#[test]
fn what_editors_do_takes_nothing_away() {
    let mut bench = Bench::new(&[("a.yaml", &node("n1", 1))]);
    bench.poll();
    // vim: the old file becomes the backup, a new one is written.
    bench.rename("a.yaml", "a.yaml~");
    assert_eq!(bench.poll(), NONE);
    assert_eq!(bench.source.next_poll(), Some(bench.now + REMOVAL_DELAY));
    bench.write("a.yaml", &node("n1", 2));
    assert_eq!(bench.poll(), ["n1=2"]);
    assert_eq!(bench.source.next_poll(), None);
    // git: removed and written again; slowly.
    fs::remove_file(bench.path("a.yaml")).unwrap();
    assert_eq!(bench.poll(), NONE);
    let file = fs::File::create(bench.path("a.yaml")).unwrap();
    bench.wait();
    assert_eq!(bench.poll(), NONE, "it is being written");
    drop(file);
    bench.write("a.yaml", &node("n1", 3));
    assert_eq!(bench.poll(), ["n1=3"]);
}

#[test]
fn a_removed_file_takes_its_objects_with_it() {
    let mut bench = Bench::new(&[("a.yaml", &node("n1", 1)), ("b.yaml", &node("n2", 2))]);
    bench.poll();
    fs::remove_file(bench.path("a.yaml")).unwrap();
    bench.rename("b.yaml", "b.bak");
    assert_eq!(bench.poll(), NONE);
    bench.wait();
    assert_eq!(bench.poll(), ["n1 gone", "n2 gone"]);
    assert_eq!(bench.source.status().files, 0);
}

#[test]
fn a_renamed_file_changes_nothing() {
    let mut bench = Bench::new(&[("a.yaml", &node("n1", 1))]);
    bench.poll();
    for (from, to) in [("a.yaml", "b.yaml"), ("b.yaml", "a.yaml")] {
        bench.rename(from, to);
        assert_eq!(bench.poll(), NONE);
        let status = bench.source.status();
        assert_eq!((status.files, status.duplicates), (1, vec![]));
    }
}

#[test]
fn of_an_object_in_several_files_the_first_by_name_counts() {
    let mut bench = Bench::new(&[("b.yaml", &node("n1", 2))]);
    assert_eq!(bench.poll(), ["n1=2"]);
    bench.write("c.yaml", &node("n1", 3));
    assert_eq!(bench.poll(), NONE);
    bench.write("a.yaml", &node("n1", 1));
    assert_eq!(bench.poll(), ["n1=1"]);
    let duplicate =
        Duplicate { object: "Node n1".into(), used: "a.yaml".into(), ignored: vec!["b.yaml".into(), "c.yaml".into()] };
    assert_eq!(bench.source.status().duplicates, [duplicate]);
    bench.write("b.yaml", &node("n9", 9));
    assert_eq!(bench.poll(), ["n9=9"]);
    fs::remove_file(bench.path("a.yaml")).unwrap();
    bench.poll();
    bench.wait();
    assert_eq!(bench.poll(), ["n1=3"]);
    assert_eq!(bench.source.status().duplicates, []);
    assert_eq!(bench.nodes.len(), 2);
}

#[test]
fn a_directory_that_goes_keeps_its_objects_and_is_followed_when_it_is_back() {
    let mut bench = Bench::new(&[("a.yaml", &node("n1", 1)), ("b.yaml", &node("n2", 2))]);
    bench.poll();
    let (m, away) = (bench.directory.path().join("m"), bench.directory.path().join("away"));
    fs::rename(&m, &away).unwrap();
    assert_eq!(bench.poll(), NONE);
    let status = bench.source.status();
    assert!(status.error.is_some_and(|error| error.contains("until it is back")));
    assert_eq!(status.files, 2);
    let look = bench.source.next_poll().unwrap();
    // What happens in the old place is none of our business.
    fs::write(away.join("a.yaml"), node("n1", 9)).unwrap();
    bench.now = look;
    assert_eq!(bench.poll(), NONE);
    fs::create_dir(&m).unwrap();
    bench.write("a.yaml", &node("n1", 11));
    bench.now = bench.source.next_poll().unwrap();
    assert_eq!(bench.poll(), ["n1=11"]);
    assert_eq!(bench.source.status().error, None);
    bench.wait();
    assert_eq!(bench.poll(), ["n2 gone"]);
    bench.write("c.yaml", &node("n3", 3));
    assert_eq!(bench.poll(), ["n3=3"], "the new directory is watched");
    // Removed with its files, one by one, and made again at once.
    fs::remove_dir_all(&m).unwrap();
    fs::create_dir(&m).unwrap();
    bench.write("a.yaml", &node("n1", 12));
    assert_eq!(bench.poll(), ["n1=12"]);
    bench.wait();
    assert_eq!(bench.poll(), ["n3 gone"]);
}

#[test]
fn a_config_map_volume_is_followed() {
    // kubelet writes a new directory and replaces the link `..data` to it.
    let mut bench = Bench::new(&[]);
    let publish = |bench: &Bench, version: &str, text: &str| {
        fs::create_dir(bench.path(version)).unwrap();
        fs::write(bench.path(version).join("a.yaml"), text).unwrap();
        symlink(version, bench.path("..data_tmp")).unwrap();
        bench.rename("..data_tmp", "..data");
    };
    publish(&bench, "..1", &node("n1", 1));
    symlink("..data/a.yaml", bench.path("a.yaml")).unwrap();
    assert_eq!(bench.poll(), ["n1=1"]);
    publish(&bench, "..2", &node("n1", 2));
    assert_eq!(bench.poll(), ["n1=2"]);
}

#[test]
fn links_are_complete_when_they_appear() {
    let mut bench = Bench::new(&[]);
    bench.poll();
    let elsewhere = bench.directory.path().join("elsewhere.yaml");
    fs::write(&elsewhere, node("n1", 1)).unwrap();
    symlink(&elsewhere, bench.path("a.yaml")).unwrap();
    fs::hard_link(&elsewhere, bench.path("b.yaml")).unwrap();
    assert_eq!(bench.poll(), ["n1=1"]);
    assert_eq!(bench.source.status().duplicates.len(), 1);
}

#[test]
fn what_is_no_file_is_no_obstacle() {
    let mut bench = Bench::new(&[]);
    fs::create_dir(bench.path("d.yaml")).unwrap();
    nix::unistd::mkfifo(&bench.path("pipe.yaml"), nix::sys::stat::Mode::from_bits_truncate(0o600)).unwrap();
    bench.write("a.yaml", &node("n1", 1));
    assert_eq!(bench.poll(), ["n1=1"]);
    assert!(bench.source.status().synced);
}

#[test]
fn a_broken_file_is_read_again_when_its_attributes_change() {
    // A mode that forbids reading doesn't stop root, so a change that the directory can't see stands for one that
    // only shows after a chmod.
    let mut bench = Bench::new(&[]);
    bench.poll();
    let elsewhere = bench.directory.path().join("elsewhere.yaml");
    fs::write(&elsewhere, "kind: [\n").unwrap();
    fs::hard_link(&elsewhere, bench.path("a.yaml")).unwrap();
    bench.poll();
    fs::write(&elsewhere, node("n1", 1)).unwrap();
    assert_eq!(bench.poll(), NONE);
    assert_eq!(bench.errors().len(), 1);
    fs::set_permissions(bench.path("a.yaml"), fs::Permissions::from_mode(0o640)).unwrap();
    assert_eq!(bench.poll(), ["n1=1"]);
    assert_eq!(bench.errors(), NONE);
}
