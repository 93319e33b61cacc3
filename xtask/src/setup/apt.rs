//! Packages of Debian and Ubuntu as files: downloaded and unpacked below `target`, by an apt configuration of their own.
//! Nothing is installed, and nothing of the system's own package lists changes.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, ensure};

use crate::command::{find, output, run};

/// Debian's signing keys, of its package debian-archive-keyring.
pub(crate) const DEBIAN_KEYRING: &str = "/usr/share/keyrings/debian-archive-keyring.gpg";

/// Where packages come from: one line of a sources list.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Source {
    pub(crate) mirror: String,
    pub(crate) suite: String,
    /// The keys that its lists must be signed with; without, the system's.
    pub(crate) keyring: Option<PathBuf>,
}

impl Source {
    /// A suite of Debian, from this mirror.
    pub(crate) fn debian(mirror: impl Into<String>, suite: &str) -> Self {
        let keyring = Path::new(DEBIAN_KEYRING);
        let keyring = keyring.exists().then(|| keyring.to_owned());
        Self { mirror: mirror.into(), suite: suite.to_owned(), keyring }
    }

    fn line(&self) -> String {
        let signed_by = self.keyring.as_ref().map(|path| format!("[signed-by={}] ", path.display()));
        format!("deb {}{} {} main\n", signed_by.unwrap_or_default(), self.mirror, self.suite)
    }
}

/// The archives of Debian.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum DebianArchive {
    /// Releases and backports.
    Main,
    /// Security updates.
    Security,
}

impl DebianArchive {
    /// What apt calls it, the end of its address, and an address that always works.
    fn signs(self) -> (&'static str, &'static str, &'static str) {
        match self {
            Self::Main => ("Debian", "/debian", "http://deb.debian.org/debian"),
            Self::Security => ("Debian-Security", "/debian-security", "http://deb.debian.org/debian-security"),
        }
    }
}

/// The mirror of an archive of Debian that the system uses.
pub(crate) fn system_mirror(archive: DebianArchive) -> Result<Option<String>> {
    ensure_there()?;
    let targets = output(Command::new("apt-get").args(["indextargets", "--format=$(LABEL) $(REPO_URI)"]))?;
    Ok(mirror_in(&targets, archive).map(str::to_owned))
}

/// The same, or Debian's own, also where the system is another.
pub(crate) fn mirror(archive: DebianArchive) -> Result<String> {
    Ok(system_mirror(archive)?.unwrap_or_else(|| archive.signs().2.to_owned()))
}

fn ensure_there() -> Result<()> {
    ensure!(find("apt-get").is_some() && find("dpkg").is_some(), "not a Debian-based system");
    Ok(())
}

/// The first of the system's package sources that is a mirror of the archive. Sources are known by their label, or by
/// their address as long as no list was ever downloaded.
fn mirror_in(targets: &str, archive: DebianArchive) -> Option<&str> {
    let (wanted, end, _) = archive.signs();
    let targets = || targets.lines().filter_map(|line| line.rsplit_once(' '));
    let labelled = targets().find(|(label, _)| *label == wanted);
    let (_, uri) = labelled.or_else(|| targets().find(|(_, uri)| uri.trim_end_matches('/').ends_with(end)))?;
    Some(uri)
}

/// An apt that knows only its own sources and lists, and works as any user.
pub(crate) struct Apt {
    directory: PathBuf,
}

impl Apt {
    /// With its lists and configuration in this directory.
    pub(crate) fn new(directory: PathBuf, sources: &[Source]) -> Result<Self> {
        ensure_there()?;
        for part in ["lists/partial", "cache/archives/partial"] {
            let part = directory.join(part);
            fs::create_dir_all(&part).with_context(|| format!("cannot create {}", part.display()))?;
        }
        let list = directory.join("sources.list");
        let lines: String = sources.iter().map(Source::line).collect();
        fs::write(&list, lines).with_context(|| format!("cannot write {}", list.display()))?;
        Ok(Self { directory })
    }

    /// Downloads the sources' lists of packages.
    pub(crate) fn update(&self) -> Result<()> {
        run(self.command("apt-get").args(["update", "-qq"]))
    }

    /// Downloads packages to a directory and unpacks them there. A package is `name`, `name=version` or `name/suite`.
    pub(crate) fn unpack(&self, packages: &[&str], directory: &Path) -> Result<()> {
        let downloads = directory.join("packages");
        fs::create_dir_all(&downloads).with_context(|| format!("cannot create {}", downloads.display()))?;
        run(self.command("apt-get").current_dir(&downloads).args(["download", "-qq"]).args(packages))?;
        for entry in fs::read_dir(&downloads)? {
            run(Command::new("dpkg").arg("-x").arg(entry?.path()).arg(directory))?;
        }
        fs::remove_dir_all(&downloads).with_context(|| format!("cannot remove {}", downloads.display()))
    }

    /// The names of packages that match a regular expression, as the lists have them.
    pub(crate) fn names(&self, pattern: &str) -> Result<Vec<String>> {
        let found = output(self.command("apt-cache").args(["search", "--names-only", pattern]))?;
        Ok(found.lines().filter_map(|line| Some(line.split_once(' ')?.0.to_owned())).collect())
    }

    fn command(&self, program: &str) -> Command {
        let mut command = Command::new(program);
        command.current_dir(&self.directory).arg("-oAPT::Sandbox::User=");
        for (option, path) in [
            ("Dir::Etc::SourceList", "sources.list"),
            ("Dir::Etc::SourceParts", "no-such-directory"),
            ("Dir::State::Lists", "lists"),
            ("Dir::Cache", "cache"),
        ] {
            command.arg(format!("-o{option}={}", self.directory.join(path).display()));
        }
        command
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_mirror_is_that_of_the_archive() {
        let main = |targets| mirror_in(targets, DebianArchive::Main);
        let labelled = "Debian-Security http://a.example/debian-security/\n\
                        Docker CE http://b.example/linux/debian/\n\
                        Debian http://c.example/debian/\n";
        assert_eq!(main(labelled), Some("http://c.example/debian/"));
        assert_eq!(mirror_in(labelled, DebianArchive::Security), Some("http://a.example/debian-security/"));
        let never_updated = "$(LABEL) http://a.example/debian-security/\n$(LABEL) http://c.example/debian\n";
        assert_eq!(main(never_updated), Some("http://c.example/debian"));
        assert_eq!(main("Ubuntu http://c.example/ubuntu/\n"), None);
    }

    #[test]
    fn a_source_names_its_keys() {
        let mut source = Source { mirror: "http://a.example".into(), suite: "jammy".into(), keyring: None };
        assert_eq!(source.line(), "deb http://a.example jammy main\n");
        source.keyring = Some("/keys.gpg".into());
        assert_eq!(source.line(), "deb [signed-by=/keys.gpg] http://a.example jammy main\n");
    }
}
