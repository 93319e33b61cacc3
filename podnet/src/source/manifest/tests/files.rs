//! Single files: how they are written, replaced, emptied and removed, and what is wrong in them.

use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};

use super::*;

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
