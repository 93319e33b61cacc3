//! Kernels for the tests, the packages that contain them, and their files below `target/kernels`.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, ensure};

use crate::setup::apt::{self, Apt, DEBIAN_KEYRING, DebianArchive, Source};
use crate::workspace::Workspace;

/// A kernel: name on the command line, and source of its packages.
#[derive(Debug)]
pub(crate) struct Kernel {
    pub(crate) name: &'static str,
    archive: Archive,
    suite: &'static str,
    /// The image, and the modules if packaged separately.
    packages: &'static [&'static str],
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Archive {
    Debian(DebianArchive),
    Ubuntu,
}

/// All kernels, oldest first. Archives keep a few builds of each; when one of these disappears, take the next.
const KERNELS: [Kernel; 7] = [
    Kernel {
        name: "5.15",
        archive: Archive::Ubuntu,
        suite: "jammy-updates",
        packages: &[
            "linux-image-unsigned-5.15.0-198-generic=5.15.0-198.208",
            "linux-modules-5.15.0-198-generic=5.15.0-198.208",
        ],
    },
    Kernel {
        name: "5.19",
        archive: Archive::Ubuntu,
        suite: "jammy-updates",
        packages: &[
            "linux-image-unsigned-5.19.0-50-generic=5.19.0-50.50",
            "linux-modules-5.19.0-50-generic=5.19.0-50.50",
        ],
    },
    Kernel {
        name: "6.1",
        archive: Archive::Debian(DebianArchive::Security),
        suite: "bookworm-security",
        packages: &["linux-image-6.1.0-57-cloud-amd64=6.1.192-3"],
    },
    Kernel {
        name: "6.8",
        archive: Archive::Ubuntu,
        suite: "noble-updates",
        packages: &[
            "linux-image-unsigned-6.8.0-151-generic=6.8.0-151.151",
            "linux-modules-6.8.0-151-generic=6.8.0-151.151",
        ],
    },
    Kernel {
        name: "6.11",
        archive: Archive::Ubuntu,
        suite: "noble-updates",
        packages: &[
            "linux-image-unsigned-6.11.0-29-generic=6.11.0-29.29~24.04.1",
            "linux-modules-6.11.0-29-generic=6.11.0-29.29~24.04.1",
        ],
    },
    Kernel {
        name: "6.12",
        archive: Archive::Debian(DebianArchive::Security),
        suite: "trixie-security",
        packages: &["linux-image-6.12.118+deb13-cloud-amd64=6.12.118-1"],
    },
    Kernel {
        name: "newest",
        archive: Archive::Debian(DebianArchive::Main),
        suite: "trixie-backports",
        packages: &[
            "linux-binary-7.3.4+deb13-cloud-amd64=7.3.4-1~bpo13+1",
            "linux-modules-7.3.4+deb13-cloud-amd64=7.3.4-1~bpo13+1",
        ],
    },
];

/// Name that selects all kernels.
const ALL: &str = "all";
/// Keyring of Ubuntu's archive: on Ubuntu, and in a package of Debian that not every release has.
const UBUNTU_KEYRING: &str = "usr/share/keyrings/ubuntu-archive-keyring.gpg";
const UBUNTU_KEYRING_SUITE: &str = "trixie";
const UBUNTU_KEYRING_PACKAGE: &str = "ubuntu-keyring";
const UBUNTU_MIRROR: &str = "http://archive.ubuntu.com/ubuntu";

/// The kernels with these names, without duplicates, oldest first.
pub(crate) fn named(names: &[impl AsRef<str>]) -> Result<Vec<&'static Kernel>> {
    for name in names.iter().map(AsRef::as_ref) {
        let known: Vec<_> = KERNELS.iter().map(|kernel| kernel.name).collect();
        ensure!(
            name == ALL || known.contains(&name),
            "there is no kernel {name}: choose from {}, or {ALL}",
            known.join(", ")
        );
    }
    let wanted = |kernel: &&Kernel| names.iter().any(|name| [ALL, kernel.name].contains(&name.as_ref()));
    Ok(KERNELS.iter().filter(wanted).collect())
}

/// The files of a kernel.
#[derive(Debug)]
pub(crate) struct Files {
    /// `uname -r`.
    pub(crate) release: String,
    /// Image to be booted by QEMU.
    pub(crate) image: PathBuf,
    /// `/lib/modules/<release>`.
    pub(crate) modules: PathBuf,
}

/// Directory of all files of kernels.
pub(crate) fn directory(workspace: &Workspace) -> PathBuf {
    workspace.target.join("kernels")
}

/// The kernel's files, downloaded if necessary.
///
/// # Errors
/// They are not available; the message lists other builds in the archive.
pub(crate) fn fetch(workspace: &Workspace, kernel: &Kernel) -> Result<Files> {
    let tree = directory(workspace).join("trees").join(tree_name(kernel));
    if !tree.exists() {
        let new = tree.with_extension("new");
        if new.exists() {
            fs::remove_dir_all(&new).with_context(|| format!("cannot remove {}", new.display()))?;
        }
        download(workspace, kernel, &new)?;
        // Renamed when complete, so that an interrupted run does not leave an incomplete directory.
        fs::rename(&new, &tree).with_context(|| format!("cannot create {}", tree.display()))?;
    }
    files(&tree)
}

/// Directory of an unpacked kernel, different for each build.
fn tree_name(kernel: &Kernel) -> String {
    kernel.packages[0].replace(['=', '~'], "_")
}

fn download(workspace: &Workspace, kernel: &Kernel, tree: &Path) -> Result<()> {
    let (source, apt) = match kernel.archive {
        Archive::Debian(archive) => (Source::debian(apt::mirror(archive)?, kernel.suite), "apt-debian"),
        Archive::Ubuntu => {
            let (mirror, suite) = (UBUNTU_MIRROR.to_owned(), kernel.suite.to_owned());
            (Source { mirror, suite, keyring: Some(ubuntu_keyring(workspace)?) }, "apt-ubuntu")
        }
    };
    let apt = Apt::new(directory(workspace).join(apt), &[source])?;
    apt.update()?;
    apt.unpack(kernel.packages, tree).with_context(|| {
        let others = apt.names(&similar(kernel)).unwrap_or_default();
        let others = if others.is_empty() { "none".to_owned() } else { others.join(", ") };
        format!(
            "{} is not available from {}; similar builds there: {others}",
            kernel.packages.join(" and "),
            kernel.suite
        )
    })
}

/// Pattern for images of the same version and flavour.
fn similar(kernel: &Kernel) -> String {
    let name = kernel.packages[0].split('=').next().unwrap_or_default();
    let digits = |c: char| c.is_ascii_digit();
    let (Some(start), Some(flavour)) = (name.find(digits), name.rfind("-cloud").or(name.rfind("-generic"))) else {
        return format!("^{name}$");
    };
    let version: Vec<_> = name[start..].splitn(3, ['.', '-']).take(2).collect();
    format!("^{}{}\\..*{}$", &name[..start], version.join("\\."), &name[flavour..])
}

/// Keyring of Ubuntu's archive: the system's, or that in Debian's package.
fn ubuntu_keyring(workspace: &Workspace) -> Result<PathBuf> {
    let of_system = Path::new("/").join(UBUNTU_KEYRING);
    let tools = workspace.tools().join("ubuntu-keyring");
    let unpacked = tools.join(UBUNTU_KEYRING);
    if of_system.exists() {
        return Ok(of_system);
    }
    if !unpacked.exists() {
        ensure!(Path::new(DEBIAN_KEYRING).exists(), "{DEBIAN_KEYRING} is missing: install debian-archive-keyring");
        let source = Source::debian(apt::mirror(DebianArchive::Main)?, UBUNTU_KEYRING_SUITE);
        let apt = Apt::new(directory(workspace).join("apt-keyring"), &[source])?;
        apt.update()?;
        apt.unpack(&[UBUNTU_KEYRING_PACKAGE], &tools)?;
    }
    ensure!(unpacked.exists(), "{UBUNTU_KEYRING_PACKAGE} has no {UBUNTU_KEYRING}");
    Ok(unpacked)
}

/// Finds image and modules in an unpacked tree: below `/` or `/usr`, with the image in `/boot` or beside the modules.
fn files(tree: &Path) -> Result<Files> {
    let modules = ["usr/lib/modules", "lib/modules"].map(|directory| tree.join(directory));
    let modules = modules.into_iter().find(|directory| directory.is_dir()).context("there are no modules")?;
    let release = fs::read_dir(&modules)?.next().context("there are no modules")??.file_name();
    let release = release.into_string().ok().context("the kernel's release is not UTF-8")?;
    let modules = modules.join(&release);
    let images = [tree.join(format!("boot/vmlinuz-{release}")), modules.join("vmlinuz")];
    let image = images.into_iter().find(|image| image.exists());
    let image = image.with_context(|| format!("there is no image of {release} in {}", tree.display()))?;
    Ok(Files { release, image, modules })
}

/// Content of a module's file, decompressed.
pub(crate) fn module(path: &Path) -> Result<Vec<u8>> {
    let tool = match path.extension().and_then(|extension| extension.to_str()) {
        Some("xz") => "xz",
        Some("zst") => "zstd",
        Some("gz") => "gzip",
        _ => return fs::read(path).with_context(|| format!("cannot read {}", path.display())),
    };
    let output = Command::new(tool).arg("-dc").arg(path).output();
    let output = output.with_context(|| format!("cannot start {tool}"))?;
    ensure!(output.status.success(), "{tool} cannot decompress {}", path.display());
    Ok(output.stdout)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kernels_are_selected_by_name() {
        let names = |wanted: &[&str]| -> Vec<_> { named(wanted).unwrap().iter().map(|kernel| kernel.name).collect() };
        assert_eq!(names(&["6.12", "5.15", "6.12"]), ["5.15", "6.12"]);
        assert_eq!(names(&["all"]).len(), KERNELS.len());
        assert!(names(&[]).is_empty());
        let error = named(&["5.1"]).unwrap_err().to_string();
        assert!(error.contains("no kernel 5.1") && error.contains("5.15, 5.19"), "{error}");
    }

    #[test]
    fn packages_are_pinned_and_match_the_kernel_version() {
        for kernel in &KERNELS {
            for package in kernel.packages {
                let (name, version) = package.split_once('=').unwrap();
                assert!(kernel.name == "newest" || version.starts_with(&format!("{}.", kernel.name)), "{package}");
                assert!(name.starts_with("linux-"));
            }
        }
    }

    #[test]
    fn similar_builds_are_suggested_for_a_missing_one() {
        let patterns: Vec<_> = named(&["5.15", "6.1", "newest"]).unwrap().into_iter().map(similar).collect();
        let wanted = [
            r"^linux-image-unsigned-5\.15\..*-generic$",
            r"^linux-image-6\.1\..*-cloud-amd64$",
            r"^linux-binary-7\.3\..*-cloud-amd64$",
        ];
        assert_eq!(patterns, wanted);
    }
}
