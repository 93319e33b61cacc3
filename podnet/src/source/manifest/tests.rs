//! The source with a real directory. Events are pending as soon as the system call that causes them has returned, so
//! tests never wait; `poll` gets its time from them.

use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};

use super::*;

struct Bench {
    directory: tempfile::TempDir,
    source: ManifestSource,
    now: Instant,
    /// The state after all batches so far: the nodes' first internal address by name.
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

    /// Polls, and returns changes as `name=last byte of the address` or `name gone`.
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

    /// Advances the time past the delay for removed files.
    fn wait(&mut self) {
        self.now += REMOVAL_DELAY;
    }

    /// Advances the time to the next check of the directory.
    fn look_again(&mut self) {
        self.now = self.now.max(self.source.next_look.unwrap());
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
fn the_first_poll_returns_everything_and_later_ones_changes() {
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
fn a_broken_file_is_reported_and_keeps_its_last_valid_version() {
    let mut bench = Bench::new(&[("a.yaml", &node("n1", 1)), ("b.yaml", &node("n2", 2))]);
    bench.poll();
    bench.write("a.yaml", &(node("n1", 7) + &node("N3", 3)));
    bench.write("b.yaml", &node("n2", 22));
    assert_eq!(bench.poll(), ["n2=22"]);
    assert_eq!(
        bench.errors(),
        ["a.yaml:14: Node N3: metadata.name: `N3` is not a valid name: use up to 253 of a-z, 0-9, - and ."]
    );
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
fn a_file_that_was_never_valid_keeps_the_source_from_being_synced() {
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
    // Renamed into place, as by most tools.
    bench.write(".a.yaml.tmp", &node("n1", 11));
    bench.rename(".a.yaml.tmp", "a.yaml");
    assert_eq!(bench.poll(), ["n1=11", "n2 gone"]);
}

#[test]
fn saving_with_an_editor_removes_no_objects() {
    let mut bench = Bench::new(&[("a.yaml", &node("n1", 1))]);
    bench.poll();
    // vim: the old file becomes the backup, a new one is written.
    bench.rename("a.yaml", "a.yaml~");
    assert_eq!(bench.poll(), NONE);
    assert_eq!(bench.source.next_poll(), Some(bench.now + REMOVAL_DELAY));
    bench.write("a.yaml", &node("n1", 2));
    assert_eq!(bench.poll(), ["n1=2"]);
    assert!(bench.source.next_poll() > Some(bench.now + REMOVAL_DELAY), "nothing is due but a look at the directory");
    // git: removed and rewritten, slowly.
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
fn a_missing_directory_keeps_its_objects_and_is_followed_when_it_is_back() {
    let mut bench = Bench::new(&[("a.yaml", &node("n1", 1)), ("b.yaml", &node("n2", 2))]);
    bench.poll();
    let (m, away) = (bench.directory.path().join("m"), bench.directory.path().join("away"));
    fs::rename(&m, &away).unwrap();
    assert_eq!(bench.poll(), NONE);
    let status = bench.source.status();
    assert!(status.error.is_some_and(|error| error.contains("until it is back")));
    assert_eq!(status.files, 2);
    // Changes at the old path don't count.
    fs::write(away.join("a.yaml"), node("n1", 9)).unwrap();
    bench.look_again();
    assert_eq!(bench.poll(), NONE);
    fs::create_dir(&m).unwrap();
    bench.write("a.yaml", &node("n1", 11));
    bench.look_again();
    assert_eq!(bench.poll(), ["n1=11"]);
    assert!(bench.source.error().is_some_and(|error| error.contains("lacks 1 of the files")));
    bench.now += RETURN_DELAY / 2;
    bench.write("c.yaml", &node("n3", 3));
    assert_eq!(bench.poll(), ["n3=3"], "the new directory is watched");
    bench.now += RETURN_DELAY / 2;
    assert_eq!(bench.poll(), NONE, "it is still being filled");
    bench.now += RETURN_DELAY / 2;
    assert_eq!(bench.poll(), ["n2 gone"]);
    assert_eq!(bench.source.status().error, None);
    // Removed with its files, one by one, and recreated at once.
    fs::remove_dir_all(&m).unwrap();
    fs::create_dir(&m).unwrap();
    bench.write("a.yaml", &node("n1", 12));
    assert_eq!(bench.poll(), ["n1=12"]);
    bench.wait();
    assert_eq!(bench.poll(), NONE);
    bench.now += RETURN_DELAY;
    assert_eq!(bench.poll(), ["n3 gone"]);
}

#[test]
fn removing_the_directory_removes_no_objects() {
    for held in [false, true] {
        let mut bench = Bench::new(&[("a.yaml", &node("n1", 1)), ("b.yaml", &node("n2", 2))]);
        bench.poll();
        let m = bench.directory.path().join("m");
        // An open descriptor delays the kernel's event for the removal.
        let _open = held.then(|| fs::File::open(&m).unwrap());
        fs::remove_file(m.join("a.yaml")).unwrap();
        assert_eq!(bench.poll(), NONE);
        fs::remove_file(m.join("b.yaml")).unwrap();
        fs::remove_dir(&m).unwrap();
        for _ in 0..100 {
            bench.look_again();
            bench.wait();
            assert_eq!(bench.poll(), NONE);
        }
        assert!(
            bench.source.error().is_some_and(|error| error.contains("until it is back")),
            "{:?}",
            bench.source.error()
        );
        // Recreated, and still empty.
        fs::create_dir(&m).unwrap();
        for _ in 0..100 {
            bench.look_again();
            bench.now += RETURN_DELAY;
            assert_eq!(bench.poll(), NONE);
        }
        assert!(bench.source.error().is_some_and(|error| error.contains("until it has some")));
        for (name, number) in [("a.yaml", 1), ("b.yaml", 22)] {
            bench.write(name, &node(&format!("n{}", number % 10), number));
        }
        assert_eq!(bench.poll(), ["n2=22"]);
        assert_eq!((bench.source.error(), bench.source.status().synced), (None, true));
    }
}

#[test]
fn slow_removal_of_many_files_counts_once_it_ends() {
    let names: Vec<_> = (0..50).map(|i| format!("{i:02}.yaml")).collect();
    let texts: Vec<_> = (0..50).map(|i| node(&format!("n{i}"), i)).collect();
    let files: Vec<_> = names.iter().map(|n| &**n).zip(texts.iter().map(|t| &**t)).collect();
    let mut bench = Bench::new(&files);
    bench.poll();
    for name in &names {
        fs::remove_file(bench.path(name)).unwrap();
        assert_eq!(bench.poll(), NONE);
        bench.now += REMOVAL_DELAY / 3;
    }
    fs::remove_dir(bench.directory.path().join("m")).unwrap();
    bench.now += RETURN_DELAY;
    assert_eq!(bench.poll(), NONE);
    // The delay for a removed file is limited, even while other files are removed all the time.
    let mut bench = Bench::new(&files);
    bench.poll();
    let mut gone = 0;
    for name in &names {
        fs::remove_file(bench.path(name)).unwrap();
        gone += bench.poll().len();
        bench.now += REMOVAL_DELAY - Duration::from_millis(1);
    }
    assert!(gone >= 20, "{gone}");
    bench.wait();
    bench.poll();
    assert!(bench.nodes.is_empty(), "they were removed, not the directory");
}

#[test]
fn another_directory_in_its_place_is_followed_with_or_without_an_event() {
    type Replace = fn(&Path);
    let aside: Replace = |m| {
        fs::rename(m, m.with_file_name("old")).unwrap();
        fs::rename(m.with_file_name("new"), m).unwrap();
    };
    let exchanged: Replace = |m| {
        let flags = nix::fcntl::RenameFlags::RENAME_EXCHANGE;
        nix::fcntl::renameat2(nix::fcntl::AT_FDCWD, m, nix::fcntl::AT_FDCWD, &m.with_file_name("new"), flags).unwrap();
    };
    let over: Replace = |m| {
        fs::remove_file(m.join("a.yaml")).unwrap();
        fs::remove_file(m.join("b.yaml")).unwrap();
        fs::rename(m.with_file_name("new"), m).unwrap();
    };
    for replace in [aside, exchanged, over] {
        let mut bench = Bench::new(&[("a.yaml", &node("n1", 1)), ("b.yaml", &node("n2", 2))]);
        bench.poll();
        let new = bench.directory.path().join("new");
        fs::create_dir(&new).unwrap();
        fs::write(new.join("a.yaml"), node("n1", 5)).unwrap();
        let _open = fs::File::open(bench.directory.path().join("m")).unwrap();
        replace(&bench.directory.path().join("m"));
        bench.now += CHECK_INTERVAL;
        assert_eq!(bench.poll(), ["n1=5"]);
        bench.wait();
        assert_eq!(bench.poll(), NONE);
        bench.now += RETURN_DELAY;
        assert_eq!(bench.poll(), ["n2 gone"]);
        bench.write("c.yaml", &node("n3", 3));
        assert_eq!(bench.poll(), ["n3=3"]);
    }
}

#[test]
fn a_path_that_leads_elsewhere_is_followed() {
    let directory = tempfile::tempdir().unwrap();
    for version in 1..=2 {
        let path = directory.path().join(format!("v{version}/m"));
        fs::create_dir_all(&path).unwrap();
        fs::write(path.join("a.yaml"), node("n1", version)).unwrap();
    }
    let link = directory.path().join("current");
    symlink("v1", &link).unwrap();
    let mut source = ManifestSource::open(&link.join("m")).unwrap();
    let mut now = Instant::now();
    assert_eq!(source.poll(now).changes.len(), 1);
    for version in ["v2", "nowhere", "v1"] {
        symlink(version, directory.path().join("next")).unwrap();
        fs::rename(directory.path().join("next"), &link).unwrap();
        now += CHECK_INTERVAL;
        assert_eq!(source.poll(now).changes.len(), usize::from(version != "nowhere"), "{version}");
        assert_eq!(source.error().is_some(), version == "nowhere");
    }
}

#[test]
fn an_emptied_file_keeps_its_objects() {
    for empty in ["", "\n", " \n\t\r\n"] {
        let mut bench = Bench::new(&[("a.yaml", &node("n1", 1))]);
        bench.poll();
        bench.write("a.yaml", empty);
        assert_eq!(bench.poll(), NONE, "{empty:?}");
        bench.now += RETURN_DELAY;
        assert_eq!(bench.poll(), NONE);
        assert_eq!(bench.errors(), ["a.yaml:0: it is empty; remove it if that is intended"]);
        assert!(bench.source.status().synced);
        // Renamed, it is the same file.
        bench.rename("a.yaml", "c.yaml");
        assert_eq!(bench.poll(), NONE);
        assert_eq!(bench.errors(), ["c.yaml:0: it is empty; remove it if that is intended"]);
        bench.write("c.yaml", &node("n1", 2));
        assert_eq!(bench.poll(), ["n1=2"]);
        assert_eq!(bench.errors(), NONE);
        bench.write("c.yaml", empty);
        bench.poll();
        fs::remove_file(bench.path("c.yaml")).unwrap();
        bench.poll();
        bench.wait();
        assert_eq!(bench.poll(), ["n1 gone"], "removing it is meant");
    }
    // Content that explicitly defines no objects counts.
    for text in
        ["# nothing\n", "---\n", "{apiVersion: v1, kind: List, items: []}\n", "{apiVersion: v1, kind: Secret}\n"]
    {
        let mut bench = Bench::new(&[("a.yaml", &node("n1", 1))]);
        bench.poll();
        bench.write("a.yaml", text);
        assert_eq!(bench.poll(), ["n1 gone"], "{text}");
        bench.write("a.yaml", "");
        assert_eq!(bench.poll(), NONE);
        assert_eq!(bench.errors(), NONE, "there is nothing to keep");
    }
}

#[test]
fn a_file_emptied_before_the_start_keeps_the_source_from_being_synced() {
    let mut bench = Bench::new(&[("a.yaml", ""), ("b.yaml", &node("n2", 2))]);
    assert_eq!(bench.poll(), ["n2=2"]);
    assert!(!bench.source.status().synced, "an earlier daemon's tables stay");
    bench.write("a.yaml", &node("n1", 1));
    assert_eq!(bench.poll(), ["n1=1"]);
    assert!(bench.source.status().synced);
    // A new file has no earlier content.
    bench.write("c.yaml", "");
    bench.poll();
    assert!(bench.source.status().synced && bench.errors().is_empty());

    let mut bench = Bench::new(&[]);
    bench.poll();
    let status = bench.source.status();
    assert!(!status.synced && status.error.is_some_and(|error| error.contains("no manifests yet")));
    bench.write("a.yaml", &node("n1", 1));
    assert_eq!(bench.poll(), ["n1=1"]);
    assert_eq!((bench.source.error(), bench.source.status().synced), (None, true));
}

#[test]
fn a_replacement_that_is_no_file_is_reported_and_never_blocks() {
    type Make = fn(&Path);
    let directory: Make = |path| fs::create_dir(path).unwrap();
    let pipe: Make = |path| nix::unistd::mkfifo(path, nix::sys::stat::Mode::from_bits_truncate(0o600)).unwrap();
    let socket: Make = |path| drop(std::os::unix::net::UnixListener::bind(path).unwrap());
    let device: Make = |path| symlink("/dev/zero", path).unwrap();
    let to_itself: Make = |path| symlink(path, path).unwrap();
    let to_nothing: Make = |path| symlink("nowhere", path).unwrap();
    for (make, what) in [
        (directory, "a directory"),
        (pipe, "a named pipe"),
        (socket, "a socket"),
        (device, "a device"),
        (to_itself, "Too many levels"),
        (to_nothing, "dangling symbolic link"),
    ] {
        for renamed in [false, true] {
            let mut bench = Bench::new(&[("a.yaml", &node("n1", 1))]);
            bench.poll();
            if renamed {
                fs::remove_file(bench.path("a.yaml")).unwrap();
                make(&bench.path("odd"));
                // Now a link to itself, which can't be resolved.
                bench.rename("odd", "a.yaml");
            } else {
                fs::remove_file(bench.path("a.yaml")).unwrap();
                make(&bench.path("a.yaml"));
            }
            assert_eq!(bench.poll(), NONE, "{what}");
            bench.wait();
            assert_eq!(bench.poll(), NONE, "{what}");
            let errors = bench.errors();
            let expected = if renamed && what == "Too many levels" { "dangling symbolic link" } else { what };
            assert!(errors.len() == 1 && errors[0].contains(expected), "{what}: {errors:?}");
            bench.write("b", &node("n1", 2));
            let _ = fs::remove_dir(bench.path("a.yaml"));
            bench.rename("b", "a.yaml");
            assert_eq!(bench.poll(), ["n1=2"], "{what}");
            assert_eq!(bench.errors(), NONE);
        }
    }
}

#[test]
fn an_endless_file_is_rejected() {
    let mut bench = Bench::new(&[("a.yaml", &node("n1", 1))]);
    bench.poll();
    // Sparse, so that it takes no disk space.
    fs::File::options().write(true).open(bench.path("a.yaml")).unwrap().set_len(1 << 40).unwrap();
    assert_eq!(bench.poll(), NONE);
    assert!(bench.errors()[0].contains("is larger than"), "{:?}", bench.errors());
    bench.write("a.yaml", &node("n1", 2));
    assert_eq!(bench.poll(), ["n1=2"]);
}

#[test]
fn names_that_are_not_utf8_are_reported() {
    use std::os::unix::ffi::OsStrExt;
    let mut bench = Bench::new(&[("a.yaml", &node("n1", 1))]);
    let odd = bench.directory.path().join("m").join(std::ffi::OsStr::from_bytes(b"\xff.yaml"));
    fs::write(&odd, node("n2", 2)).unwrap();
    assert_eq!(bench.poll(), ["n1=1"]);
    let remarks = |bench: &Bench| super::super::Status::from(bench.source.status()).remarks;
    assert!(remarks(&bench)[0].contains("not UTF-8: rename \u{fffd}.yaml"), "{:?}", remarks(&bench));
    fs::remove_file(&odd).unwrap();
    bench.poll();
    assert_eq!(remarks(&bench), NONE);
    fs::write(&odd, "").unwrap();
    bench.poll();
    assert_eq!(remarks(&bench).len(), 1);
}

#[test]
fn thousands_of_broken_files_are_reported_in_part() {
    let mut bench = Bench::new(&[("a.yaml", &node("n1", 1))]);
    for i in 0..2000 {
        bench.write(&format!("b{i}.yaml"), "kind: [");
    }
    assert_eq!(bench.poll(), ["n1=1"]);
    let status = super::super::Status::from(bench.source.status());
    assert_eq!(status.mistakes.len(), REPORTED);
    assert!(status.remarks[0].contains("1900 more files or objects"), "{:?}", status.remarks);
}

#[test]
fn a_config_map_volume_is_followed() {
    // The kubelet writes a new directory and replaces the link `..data`.
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
fn directories_and_pipes_are_ignored() {
    let mut bench = Bench::new(&[]);
    fs::create_dir(bench.path("d.yaml")).unwrap();
    nix::unistd::mkfifo(&bench.path("pipe.yaml"), nix::sys::stat::Mode::from_bits_truncate(0o600)).unwrap();
    bench.write("a.yaml", &node("n1", 1));
    assert_eq!(bench.poll(), ["n1=1"]);
    assert!(bench.source.status().synced);
}

#[test]
fn a_broken_file_is_read_again_when_its_attributes_change() {
    // Mode bits don't keep root from reading, so a change without an event stands for one that becomes visible with a
    // chmod.
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

/// All watches that the host allows are in use.
#[test]
fn without_inotify_the_directory_is_polled() {
    let mut bench = Bench::new(&[("a.yaml", &node("n1", 1))]);
    bench.source.unwatch();
    bench.source.notices = Notices::looking(Errno::EMFILE.into()).unwrap();
    let after_looks = |bench: &mut Bench| {
        let mut changes = Vec::new();
        for _ in 0..4 {
            changes.extend(bench.poll());
            bench.look_again();
            bench.wait();
        }
        changes
    };
    assert_eq!(after_looks(&mut bench), ["n1=1"]);
    let error = bench.source.error().unwrap();
    assert!(error.contains("fs.inotify.max_user_instances"), "{error}");
    bench.write("b.yaml", &node("n2", 2));
    assert_eq!(after_looks(&mut bench), ["n2=2"]);
    bench.write("a.yaml", &node("n1", 77));
    assert_eq!(after_looks(&mut bench), ["n1=77"]);
    fs::remove_file(bench.path("b.yaml")).unwrap();
    assert_eq!(after_looks(&mut bench), ["n2 gone"]);
    assert_eq!(after_looks(&mut bench), NONE);
}
