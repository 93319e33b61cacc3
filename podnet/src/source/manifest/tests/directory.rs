//! The directory as a whole: its removal and return, names and kinds of its entries, inotify.

use std::fs;
use std::os::unix::fs::symlink;

use super::*;

#[test]
fn a_missing_directory_is_an_error_that_says_what_to_do() {
    let directory = tempfile::tempdir().unwrap();
    let error = ManifestSource::open(&directory.path().join("none")).unwrap_err().to_string();
    assert!(error.contains("/none: ") && error.contains("create it"), "{error}");
    fs::write(directory.path().join("file"), "").unwrap();
    assert!(ManifestSource::open(&directory.path().join("file")).is_err());
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
fn names_that_are_not_utf8_are_reported() {
    use std::os::unix::ffi::OsStrExt;
    let mut bench = Bench::new(&[("a.yaml", &node("n1", 1))]);
    let odd = bench.directory.path().join("m").join(std::ffi::OsStr::from_bytes(b"\xff.yaml"));
    fs::write(&odd, node("n2", 2)).unwrap();
    assert_eq!(bench.poll(), ["n1=1"]);
    let remarks = |bench: &Bench| crate::source::Status::from(bench.source.status()).remarks;
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
    let status = crate::source::Status::from(bench.source.status());
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
fn directories_and_pipes_are_ignored() {
    let mut bench = Bench::new(&[]);
    fs::create_dir(bench.path("d.yaml")).unwrap();
    nix::unistd::mkfifo(&bench.path("pipe.yaml"), nix::sys::stat::Mode::from_bits_truncate(0o600)).unwrap();
    bench.write("a.yaml", &node("n1", 1));
    assert_eq!(bench.poll(), ["n1=1"]);
    assert!(bench.source.status().synced);
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
