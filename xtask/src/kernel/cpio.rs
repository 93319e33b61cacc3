//! An archive of files for the initramfs: cpio in the "newc" format
//! (Documentation/driver-api/early-userspace/buffer-format.rst). All entries belong to root.

use std::collections::BTreeSet;
use std::path::Path;

const DIRECTORY: u32 = 0o040_000;
const REGULAR: u32 = 0o100_000;
const LINK: u32 = 0o120_000;
const CHARACTERS: u32 = 0o020_000;

/// An archive in progress.
#[derive(Default)]
pub(crate) struct Archive {
    bytes: Vec<u8>,
    entries: u32,
    directories: BTreeSet<String>,
}

impl Archive {
    /// Adds a directory and its parents.
    pub(crate) fn directory(&mut self, path: &str) {
        let above: Vec<_> = Path::new(path).ancestors().filter_map(Path::to_str).map(str::to_owned).collect();
        for directory in above.into_iter().rev() {
            let name = directory.trim_start_matches('/').to_owned();
            if !name.is_empty() && self.directories.insert(name.clone()) {
                self.entry(&name, DIRECTORY | 0o755, (0, 0), b"");
            }
        }
    }

    /// Adds an executable file.
    pub(crate) fn file(&mut self, path: &str, content: &[u8]) {
        self.below(path, REGULAR | 0o755, (0, 0), content);
    }

    /// Adds a symbolic link.
    pub(crate) fn link(&mut self, path: &str, target: &str) {
        self.below(path, LINK | 0o777, (0, 0), target.as_bytes());
    }

    /// Adds a character device with these numbers.
    pub(crate) fn device(&mut self, path: &str, numbers: (u32, u32)) {
        self.below(path, CHARACTERS | 0o600, numbers, b"");
    }

    /// The complete archive.
    pub(crate) fn finish(mut self) -> Vec<u8> {
        self.entry("TRAILER!!!", 0, (0, 0), b"");
        self.bytes
    }

    fn below(&mut self, path: &str, mode: u32, device: (u32, u32), content: &[u8]) {
        if let Some(directory) = Path::new(path).parent().and_then(Path::to_str) {
            self.directory(directory);
        }
        self.entry(path.trim_start_matches('/'), mode, device, content);
    }

    fn entry(&mut self, name: &str, mode: u32, device: (u32, u32), content: &[u8]) {
        self.entries += 1;
        let (inode, links) = (self.entries, 1);
        let size = content.len() as u32;
        let name_size = name.len() as u32 + 1;
        let numbers = [inode, mode, 0, 0, links, 0, size, 0, 0, device.0, device.1, name_size, 0];
        self.bytes.extend(b"070701");
        numbers.iter().for_each(|number| self.bytes.extend(format!("{number:08x}").bytes()));
        self.bytes.extend(name.bytes());
        self.bytes.push(0);
        self.pad();
        self.bytes.extend(content);
        self.pad();
    }

    /// Aligns names and contents to multiples of four.
    fn pad(&mut self) {
        self.bytes.resize(self.bytes.len().next_multiple_of(4), 0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn entries_have_the_kernels_format() {
        let mut archive = Archive::default();
        archive.file("/a/b", b"hello");
        let bytes = archive.finish();
        assert_eq!(bytes.len() % 4, 0);
        let text = String::from_utf8(bytes).unwrap();
        let header = |inode: u32, mode: u32, size: u32, name: u32| {
            let zeros = "0".repeat(8);
            format!(
                "070701{inode:08x}{mode:08x}{zeros}{zeros}{:08x}{zeros}{size:08x}{}{name:08x}{zeros}",
                1,
                zeros.repeat(4)
            )
        };
        let expected = [
            header(1, 0o040_755, 0, 2) + "a\0",
            header(2, 0o100_755, 5, 4) + "a/b\0" + "\0\0" + "hello\0\0\0",
            header(3, 0, 0, 11) + "TRAILER!!!\0\0\0\0",
        ];
        assert_eq!(text, expected.concat());
    }

    #[test]
    fn directories_occur_once_and_before_their_contents() {
        let mut archive = Archive::default();
        archive.directory("/lib/x");
        archive.link("/lib/y", "x");
        archive.file("/lib/x/z", b"");
        archive.device("/dev/console", (5, 1));
        let text = String::from_utf8(archive.finish()).unwrap();
        let names: Vec<_> = ["lib\0", "lib/x\0", "lib/y\0", "lib/x/z\0", "dev\0", "dev/console\0"]
            .map(|name| text.match_indices(name).map(|(at, _)| at).collect::<Vec<_>>())
            .into();
        assert!(names.iter().all(|at| at.len() == 1), "{names:?}");
        assert!(names.is_sorted());
    }
}
