//! Programs that come as packages of the system.

use std::path::Path;
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail};

use super::{Purpose, announce};
use crate::command::{as_root, find, run};

/// A package of Debian and Ubuntu, and what tells that it is there.
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
    SystemPackage { name: "iptables", sign: Sign::Program("iptables"), needed_for: Purpose::Test },
    SystemPackage { name: "nftables", sign: Sign::Program("nft"), needed_for: Purpose::Test },
    SystemPackage {
        name: "containernetworking-plugins",
        sign: Sign::File("/usr/lib/cni/ptp"),
        needed_for: Purpose::Bench,
    },
];

/// Installs the packages that the purpose needs and that are missing.
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
    // Package lists may be missing or old: only then are new ones worth their time.
    let installed = install(&missing).or_else(|_| {
        run(apt_get()?.arg("update"))?;
        install(&missing)
    });
    installed.with_context(|| format!("these packages are missing: {list}; install them and run the command again"))
}

/// The names of the packages that the purpose needs and that are not there.
fn missing(
    packages: &'static [SystemPackage],
    purpose: Purpose,
    is_there: impl Fn(&Sign) -> bool,
) -> Vec<&'static str> {
    let missing = packages.iter().filter(|package| package.needed_for <= purpose && !is_there(&package.sign));
    missing.map(|package| package.name).collect()
}

fn install(packages: &[&str]) -> Result<()> {
    run(apt_get()?.args(["install", "--yes", "--no-install-recommends"]).args(packages))
}

/// apt-get as root, asking nothing, and waiting for another one to finish.
fn apt_get() -> Result<Command> {
    let mut command = as_root("apt-get", [("DEBIAN_FRONTEND", "noninteractive".as_ref())])?;
    command.arg("-oDPkg::Lock::Timeout=120").stdin(Stdio::null());
    Ok(command)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_purpose_needs_what_the_purposes_before_it_need_and_no_more() {
        assert_eq!(missing(PACKAGES, Purpose::Build, |_| false), ["gcc", "libc6-dev"]);
        assert_eq!(missing(PACKAGES, Purpose::Lab, |_| false), ["gcc", "libc6-dev", "iproute2", "iperf3"]);
        assert_eq!(missing(PACKAGES, Purpose::Test, |_| false)[4..], ["iptables", "nftables"]);
        assert_eq!(missing(PACKAGES, Purpose::Bench, |_| false).len(), PACKAGES.len());
    }

    #[test]
    fn what_is_there_is_not_installed_again() {
        let only_ip = |sign: &Sign| !matches!(sign, Sign::Program("iperf3"));
        assert_eq!(missing(PACKAGES, Purpose::Bench, only_ip), ["iperf3"]);
        assert!(missing(PACKAGES, Purpose::Bench, |_| true).is_empty());
    }
}
