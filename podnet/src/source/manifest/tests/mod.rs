//! The source with a real directory. Events are pending as soon as the system call that causes them has returned, so
//! tests never wait; `poll` gets its time from them.

mod directory;
mod files;

use std::fs;

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
