//! Packages of Debian and Ubuntu as files: downloaded and unpacked below `target`, with a separate apt configuration.
//! Nothing is installed, and the system's package lists do not change.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, ensure};

use crate::command::{find, output, run};

/// Debian's signing keys, from the package debian-archive-keyring.
pub(crate) const DEBIAN_KEYRING: &str = "/usr/share/keyrings/debian-archive-keyring.gpg";

/// A package source: one line of a sources list.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Source {
    pub(crate) mirror: String,
    pub(crate) suite: String,
    /// Keyring that must verify its lists; by default the system's.
    pub(crate) keyring: Option<PathBuf>,
}

impl Source {
    /// A suite of Debian from this mirror.
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
    /// Its label in apt, the end of its URL, and a URL that always works.
    fn signs(self) -> (&'static str, &'static str, &'static str) {
        match self {
            Self::Main => ("Debian", "/debian", "http://deb.debian.org/debian"),
            Self::Security => ("Debian-Security", "/debian-security", "http://deb.debian.org/debian-security"),
        }
    }
}

/// The system's mirror of an archive of Debian.
pub(crate) fn system_mirror(archive: DebianArchive) -> Result<Option<String>> {
    ensure_there()?;
    let targets = output(Command::new("apt-get").args(["indextargets", "--format=$(LABEL) $(REPO_URI)"]))?;
    Ok(mirror_in(&targets, archive).map(str::to_owned))
}

/// Same, or Debian's own mirror if there is none, as on other systems.
pub(crate) fn mirror(archive: DebianArchive) -> Result<String> {
    Ok(system_mirror(archive)?.unwrap_or_else(|| archive.signs().2.to_owned()))
}

fn ensure_there() -> Result<()> {
    ensure!(find("apt-get").is_some() && find("dpkg").is_some(), "not a Debian-based system");
    Ok(())
}

/// The first package source of the system that is a mirror of the archive. Sources are identified by label, or by URL
/// before any list has been downloaded.
fn mirror_in(targets: &str, archive: DebianArchive) -> Option<&str> {
    let (wanted, end, _) = archive.signs();
    let targets = || targets.lines().filter_map(|line| line.rsplit_once(' '));
    let labelled = targets().find(|(label, _)| *label == wanted);
    let (_, uri) = labelled.or_else(|| targets().find(|(_, uri)| uri.trim_end_matches('/').ends_with(end)))?;
    Some(uri)
}

/// An apt with separate sources and lists, which needs no privileges.
pub(crate) struct Apt {
    directory: PathBuf,
}

impl Apt {
    /// Creates one with lists and configuration in this directory.
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

    /// Downloads the sources' package lists.
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

    /// Names of packages in the lists that match a regular expression.
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
    fn mirror_matches_the_archive() {
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
    fn source_line_contains_the_keyring() {
        let mut source = Source { mirror: "http://a.example".into(), suite: "jammy".into(), keyring: None };
        assert_eq!(source.line(), "deb http://a.example jammy main\n");
        source.keyring = Some("/keys.gpg".into());
        assert_eq!(source.line(), "deb [signed-by=/keys.gpg] http://a.example jammy main\n");
    }
}
