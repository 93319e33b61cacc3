//! Programs from system packages.

use std::path::Path;
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail};

use super::purpose::Purpose;
use super::tell::announce;
use crate::command::{as_root, find, run};

/// A package of Debian and Ubuntu, and how to detect it.
struct SystemPackage {
    name: &'static str,
    sign: Sign,
    needed_for: Purpose,
}

enum Sign {
    Program(&'static str),
    File(&'static str),
}

impl Sign {
    fn is_there(&self) -> bool {
        match self {
            Self::Program(name) => find(name).is_some(),
            Self::File(path) => Path::new(path).exists(),
        }
    }
}

const PACKAGES: &[SystemPackage] = &[
    SystemPackage { name: "gcc", sign: Sign::Program("cc"), needed_for: Purpose::Build },
    SystemPackage { name: "libc6-dev", sign: Sign::File("/usr/include/stdlib.h"), needed_for: Purpose::Build },
    SystemPackage { name: "iproute2", sign: Sign::Program("ip"), needed_for: Purpose::Lab },
    SystemPackage { name: "iperf3", sign: Sign::Program("iperf3"), needed_for: Purpose::Lab },
    // Suggested by the lab's shell.
    SystemPackage { name: "curl", sign: Sign::Program("curl"), needed_for: Purpose::Lab },
    SystemPackage { name: "iputils-ping", sign: Sign::Program("ping"), needed_for: Purpose::Lab },
    SystemPackage { name: "qemu-system-x86", sign: Sign::Program("qemu-system-x86_64"), needed_for: Purpose::Kernel },
    SystemPackage { name: "busybox", sign: Sign::Program("busybox"), needed_for: Purpose::Kernel },
    SystemPackage { name: "binutils", sign: Sign::Program("strip"), needed_for: Purpose::Kernel },
    SystemPackage { name: "xz-utils", sign: Sign::Program("xz"), needed_for: Purpose::Kernel },
    SystemPackage { name: "zstd", sign: Sign::Program("zstd"), needed_for: Purpose::Kernel },
    SystemPackage {
        name: "debian-archive-keyring",
        sign: Sign::File(super::apt::DEBIAN_KEYRING),
        needed_for: Purpose::Kernel,
    },
    SystemPackage { name: "iptables", sign: Sign::Program("iptables"), needed_for: Purpose::Test },
    SystemPackage { name: "nftables", sign: Sign::Program("nft"), needed_for: Purpose::Test },
    SystemPackage { name: "containerd", sign: Sign::Program("containerd"), needed_for: Purpose::Test },
    SystemPackage { name: "runc", sign: Sign::Program("runc"), needed_for: Purpose::Test },
    // containerd needs the plugin `loopback`, the benchmarks need the others.
    SystemPackage {
        name: "containernetworking-plugins",
        sign: Sign::File("/usr/lib/cni/ptp"),
        needed_for: Purpose::Test,
    },
];

/// Services of packages that only the tests may start; each lab has its own.
const SERVICES: &[(&str, &str)] = &[("containerd", "containerd.service")];
/// Exists where systemd runs; packages start their services there.
const SYSTEMD: &str = "/run/systemd/system";

/// Installs the missing packages for the purpose.
pub(super) fn ensure(purpose: Purpose) -> Result<()> {
    let missing = missing(PACKAGES, purpose, Sign::is_there);
    if missing.is_empty() {
        return Ok(());
    }
    let list = missing.join(" ");
    if find("apt-get").is_none() {
        bail!("these packages are missing (Debian's names): {list}; install them and run the command again");
    }
    announce(&format!("apt-get install {list}"));
    // Package lists may be missing or old; update them only then.
    let installed = asleep(&services(&missing, Path::new(SYSTEMD)), || {
        install(&missing).or_else(|_| {
            run(apt_get()?.arg("update"))?;
            install(&missing)
        })
    });
    installed.with_context(|| format!("these packages are missing: {list}; install them and run the command again"))
}

/// Names of the missing packages for the purpose.
fn missing(
    packages: &'static [SystemPackage],
    purpose: Purpose,
    is_there: impl Fn(&Sign) -> bool,
) -> Vec<&'static str> {
    let missing = packages.iter().filter(|package| package.needed_for <= purpose && !is_there(&package.sign));
    missing.map(|package| package.name).collect()
}

/// Services of the packages, if they would be started.
fn services(packages: &[&str], systemd: &Path) -> Vec<&'static str> {
    let brought = SERVICES.iter().filter(|(package, _)| packages.contains(package) && systemd.exists());
    brought.map(|(_, service)| *service).collect()
}

/// Installs without starting services: they are masked during the installation, and disabled for the next boot.
fn asleep(services: &[&str], install: impl FnOnce() -> Result<()>) -> Result<()> {
    let systemctl = |verb: &[&str]| run(as_root("systemctl", [])?.args(verb).args(services));
    if services.is_empty() {
        return install();
    }
    systemctl(&["mask", "--runtime"])?;
    let installed = install();
    systemctl(&["unmask", "--runtime"])?;
    installed?;
    systemctl(&["disable"])
}

fn install(packages: &[&str]) -> Result<()> {
    run(apt_get()?.args(["install", "--yes", "--no-install-recommends"]).args(packages))
}

/// apt-get as root, non-interactive, waiting for the lock.
fn apt_get() -> Result<Command> {
    let mut command = as_root("apt-get", [("DEBIAN_FRONTEND", "noninteractive".as_ref())])?;
    command.arg("-oDPkg::Lock::Timeout=120").stdin(Stdio::null());
    Ok(command)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn purposes_include_earlier_ones_only() {
        assert_eq!(missing(PACKAGES, Purpose::Build, |_| false), ["gcc", "libc6-dev"]);
        assert_eq!(
            missing(PACKAGES, Purpose::Lab, |_| false),
            ["gcc", "libc6-dev", "iproute2", "iperf3", "curl", "iputils-ping"]
        );
        let for_tests = ["iptables", "nftables", "containerd", "runc", "containernetworking-plugins"];
        assert_eq!(missing(PACKAGES, Purpose::Kernel, |_| false)[6..8], ["qemu-system-x86", "busybox"]);
        assert_eq!(missing(PACKAGES, Purpose::Test, |_| false)[12..], for_tests);
        assert_eq!(missing(PACKAGES, Purpose::Bench, |_| false).len(), PACKAGES.len());
    }

    #[test]
    fn only_services_that_would_start_are_masked() {
        let running = Path::new("/");
        assert_eq!(services(&["gcc", "containerd"], running), ["containerd.service"]);
        assert!(services(&["gcc", "runc"], running).is_empty());
        assert!(services(&["containerd"], Path::new("/nonexistent")).is_empty());
    }

    #[test]
    fn present_packages_are_not_installed_again() {
        let only_ip = |sign: &Sign| !matches!(sign, Sign::Program("iperf3"));
        assert_eq!(missing(PACKAGES, Purpose::Bench, only_ip), ["iperf3"]);
        assert!(missing(PACKAGES, Purpose::Bench, |_| true).is_empty());
    }
}
