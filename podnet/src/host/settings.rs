//! Host settings that podnet depends on: a table of sysctls with accepted values, the reason, and which component sets
//! each.
//!
//! [`wanted`] builds the table for the current interfaces, [`apply`] writes deviating settings, [`check`] only reports
//! them. The daemon does both at start and periodically, and `podnet status` runs the check on its own, so that it
//! finds a setting reverted by another program even while the daemon is down. Settings are never restored on removal,
//! since other programs may rely on them by then.
//!
//! Sysctls under `net/` are those of the calling thread's network namespace.

use std::fmt;
use std::io;

use serde::{Deserialize, Serialize};

use super::families::Families;
use super::names::{FAR, NEAR, TUNNEL};
use super::sysctl::{SettingError, Sysctl};
use super::uplinks::Uplinks;

/// Which component sets a setting first. The daemon repairs all of them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum SetBy {
    /// The daemon.
    Daemon,
    /// The plugin, when it creates the interface.
    Plugin,
}

/// One row of the table.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Setting {
    /// Path below `/proc/sys`.
    pub path: String,
    /// Accepted values. The first is written in place of any other.
    pub accepted: &'static [&'static str],
    /// A second sysctl: the larger of the two values is effective.
    pub or_larger: Option<&'static str>,
    /// Whether the sysctl may be missing in a kernel or namespace.
    pub optional: bool,
    /// The consequence of another value.
    pub why: &'static str,
    /// Which component sets it.
    pub set_by: SetBy,
}

/// A setting without an accepted value.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Deviation {
    /// Path below `/proc/sys`.
    pub path: String,
    /// Effective value; `None`: the sysctl does not exist.
    pub actual: Option<String>,
    /// The value that podnet sets.
    pub wanted: String,
    /// The consequence.
    pub why: String,
    /// Which component sets it.
    pub set_by: SetBy,
}

impl fmt::Display for Deviation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { path, actual, wanted, why, .. } = self;
        let name = path.replace('/', ".");
        match actual {
            Some(value) => write!(f, "{name} is {value} instead of {wanted}: {why}"),
            None => write!(f, "{name} does not exist, but must be {wanted}: {why}"),
        }
    }
}

/// Result of [`apply`].
#[derive(Debug, Default)]
pub struct Applied {
    /// Settings that were changed, with the value found.
    pub changed: Vec<Deviation>,
    /// Settings that could not be changed.
    pub failed: Vec<SettingError>,
}

const OFF: &[&str] = &["0"];
const ON: &[&str] = &["1"];

const WHY_FORWARD: &str = "the host does not forward packets of this interface, to or from pods";
const WHY_RP_FILTER: &str = "strict reverse path filtering drops packets that pass the stack after translation, \
                             such as ICMP errors about a flow to a service";

/// Settings of podnet0 and podnet1, which must be set before they come up.
pub fn podnet0(families: Families) -> Vec<Setting> {
    let mut table = Table::default();
    for dev in [NEAR, FAR] {
        if families.v4 && dev == NEAR {
            // A process that uses a NodePort of its own node has the node's address as source, and its packets arrive
            // here.
            let why = "host processes cannot reach the NodePorts of their own node";
            table.interface(4, dev, "accept_local", ON, why).or_larger("net/ipv4/conf/all/accept_local");
        }
        let redirected = "ICMP redirects divert host processes' packets to services";
        table.own(families, dev, redirected, "services cannot be reached over IPv6 by host processes");
    }
    table.0
}

/// Settings of the tunnel, which must be set before it comes up.
pub fn tunnel(families: Families) -> Vec<Setting> {
    let mut table = Table::default();
    let dev = TUNNEL;
    if families.v4 {
        table.interface(4, dev, "forwarding", ON, WHY_FORWARD);
    }
    let redirected = "the host sends ICMP redirects for pods' packets";
    table.own(families, dev, redirected, "other nodes' pods cannot be reached over IPv6");
    table.0
}

/// Settings against abuse of the host by a pod through its host end, by family and name, with the abuse.
const HOST_END: [(u8, &str, &str); 5] = [
    (6, "accept_ra", "a pod could inject routes into the host by router advertisements"),
    (6, "autoconf", "a pod could inject addresses into the host by router advertisements"),
    (6, "accept_redirects", "a pod could change the host's routes by ICMP redirects"),
    (4, "accept_redirects", "a pod could change the host's routes by ICMP redirects"),
    (4, "accept_source_route", "a pod could bypass destination checks by source routing"),
];

/// Settings of pods' host ends. They are optional, since these interfaces come and go and may be gone by now.
pub fn host_ends<'a>(families: Families, names: impl IntoIterator<Item = &'a String>) -> Vec<Setting> {
    let mut table = Table::default();
    for dev in names {
        if families.v6 {
            let why = "IPv6 is disabled there, so the pod is unreachable over IPv6";
            table.interface(6, dev, "disable_ipv6", OFF, why).optional = true;
        }
        table.forwarded(families, dev, true);
        // Whatever families pods have: the host has IPv6, and a pod may send it.
        for (family, name, why) in HOST_END {
            let setting = table.interface(family, dev, name, OFF, why);
            (setting.set_by, setting.optional) = (SetBy::Plugin, true);
        }
    }
    table.0
}

/// The whole table, in the order in which it must be applied.
pub fn wanted(families: Families, interfaces: &Uplinks) -> Vec<Setting> {
    let Uplinks { found: uplinks, host_ends, .. } = interfaces;
    let mut table = Table::default();
    if families.v6 {
        // Before forwarding: enabling it makes the kernel drop routes learnt where accept_ra is 1.
        for uplink in uplinks.iter().filter(|u| u.router_advertisements) {
            let why = "a host that forwards ignores router advertisements, so its IPv6 default route expires";
            // 0 is accepted too: then a program in user space handles the advertisements.
            table.interface(6, &uplink.name, "accept_ra", &["2", "0"], why);
        }
    }
    if families.v4 {
        table.global("net/ipv4/ip_forward", ON, "the host does not forward packets to or from pods");
        let why = "the host's ICMP redirects make clients bypass the translation of services";
        table.global("net/ipv4/conf/all/send_redirects", OFF, why);
        for uplink in uplinks {
            table.interface(4, &uplink.name, "send_redirects", OFF, why).optional = !uplink.main;
        }
    }
    if families.v6 {
        table.global("net/ipv6/conf/all/forwarding", ON, "the host does not forward IPv6 packets to or from pods");
    }
    // Interfaces of other programs come and go, so these may be gone by now.
    for uplink in uplinks {
        table.forwarded(families, &uplink.name, !uplink.main);
    }
    table.0.extend(self::host_ends(families, host_ends));
    table.0.extend(podnet0(families));
    if interfaces.tunnel {
        table.0.extend(tunnel(families));
    }
    // Exists in the initial network namespace only.
    table.global("net/core/bpf_jit_enable", &["1", "2"], "eBPF programs are interpreted, many times slower").optional =
        true;
    table.0
}

/// Settings that deviate.
pub fn check(sysctl: &Sysctl, settings: &[Setting]) -> Result<Vec<Deviation>, SettingError> {
    settings.iter().filter_map(|s| deviation(sysctl, s).transpose()).collect()
}

/// Writes the settings that deviate, continuing after errors.
pub fn apply(sysctl: &Sysctl, settings: &[Setting]) -> Applied {
    let mut applied = Applied::default();
    for setting in settings {
        match deviation(sysctl, setting) {
            Ok(None) => {}
            Ok(Some(found)) => match sysctl.write(&setting.path, setting.accepted[0]) {
                Ok(()) => applied.changed.push(found),
                Err(e) if setting.optional && e.source.kind() == io::ErrorKind::NotFound => {}
                Err(e) => applied.failed.push(e),
            },
            Err(e) => applied.failed.push(e),
        }
    }
    applied
}

/// The deviation of a setting, if any.
fn deviation(sysctl: &Sysctl, setting: &Setting) -> Result<Option<Deviation>, SettingError> {
    let own = sysctl.read(&setting.path)?;
    if own.is_none() && setting.optional {
        return Ok(None);
    }
    let other = setting.or_larger.map(|path| sysctl.read(path)).transpose()?.flatten();
    let actual = match (own, other) {
        (Some(own), Some(other)) => Some(larger(own, other)),
        (own, _) => own,
    };
    if actual.as_deref().is_some_and(|a| setting.accepted.contains(&a)) {
        return Ok(None);
    }
    Ok(Some(Deviation {
        path: setting.path.clone(),
        actual,
        wanted: setting.accepted[0].to_owned(),
        why: setting.why.to_owned(),
        set_by: setting.set_by,
    }))
}

fn larger(a: String, b: String) -> String {
    let number = |s: &str| s.parse::<i64>().unwrap_or_default();
    if number(&b) > number(&a) { b } else { a }
}

/// The table under construction.
#[derive(Default)]
struct Table(Vec<Setting>);

impl Table {
    fn global(&mut self, path: &str, accepted: &'static [&'static str], why: &'static str) -> &mut Setting {
        let setting =
            Setting { path: path.to_owned(), accepted, or_larger: None, optional: false, why, set_by: SetBy::Daemon };
        self.0.push(setting);
        self.0.last_mut().expect("it has just been pushed")
    }

    /// Settings of all of podnet's own interfaces, with the consequences of redirects and of an interface without IPv6.
    fn own(&mut self, families: Families, dev: &str, redirected: &'static str, without_v6: &'static str) {
        if families.v4 {
            self.interface(4, dev, "rp_filter", &["2", "0"], WHY_RP_FILTER).or_larger("net/ipv4/conf/all/rp_filter");
            self.interface(4, dev, "send_redirects", OFF, redirected);
        }
        if families.v6 {
            self.interface(6, dev, "disable_ipv6", OFF, without_v6);
            self.interface(6, dev, "addr_gen_mode", ON, "a link-local address appears on podnet's own interface");
            self.interface(6, dev, "accept_ra", OFF, "podnet's own interface solicits routers");
            self.interface(6, dev, "forwarding", ON, WHY_FORWARD);
        }
    }

    /// Settings of an interface on which packets of pods arrive or leave.
    fn forwarded(&mut self, families: Families, dev: &str, optional: bool) {
        if families.v4 {
            self.interface(4, dev, "forwarding", ON, WHY_FORWARD).optional = optional;
            let rp_filter = self.interface(4, dev, "rp_filter", &["2", "0"], WHY_RP_FILTER);
            rp_filter.or_larger("net/ipv4/conf/all/rp_filter").optional = optional;
        }
        if families.v6 {
            self.interface(6, dev, "forwarding", ON, WHY_FORWARD).optional = optional;
        }
    }

    fn interface(
        &mut self,
        family: u8,
        dev: &str,
        name: &str,
        accepted: &'static [&'static str],
        why: &'static str,
    ) -> &mut Setting {
        self.global(&format!("net/ipv{family}/conf/{dev}/{name}"), accepted, why)
    }
}

impl Setting {
    fn or_larger(&mut self, path: &'static str) -> &mut Self {
        self.or_larger = Some(path);
        self
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;
    use crate::host::uplinks::Uplink;
    use podnet_common::addr::IfIndex;
    use tempfile::TempDir;

    const BOTH: Families = Families { v4: true, v6: true };

    /// Uplinks by name and whether they receive router advertisements, and pods' interfaces.
    fn interfaces(uplinks: &[(&str, bool)], host_ends: &[&str]) -> Uplinks {
        let uplink = |(name, router_advertisements): &(&str, bool)| Uplink {
            name: (*name).into(),
            ifindex: IfIndex(2),
            mtu: 1500,
            main: true,
            router_advertisements: *router_advertisements,
            ..Uplink::default()
        };
        Uplinks {
            found: uplinks.iter().map(uplink).collect(),
            host_ends: host_ends.iter().map(|name| (*name).to_owned()).collect(),
            tunnel: true,
            ..Uplinks::default()
        }
    }

    /// A directory in which every setting has its desired value.
    fn healthy(settings: &[Setting]) -> (TempDir, Sysctl) {
        let dir = TempDir::new().unwrap();
        for setting in settings {
            put(&dir, &setting.path, setting.accepted[0]);
        }
        let sysctl = Sysctl::at(dir.path());
        (dir, sysctl)
    }

    fn put(dir: &TempDir, path: &str, value: &str) {
        let path = dir.path().join(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, format!("{value}\n")).unwrap();
    }

    #[test]
    fn a_healthy_host_has_no_deviation_and_one_undone_setting_is_named_and_repaired() {
        let settings = wanted(BOTH, &interfaces(&[("eth0.100", false)], &["pn0"]));
        let (dir, sysctl) = healthy(&settings);
        assert_eq!(check(&sysctl, &settings).unwrap(), []);
        put(&dir, "net/ipv4/conf/eth0.100/forwarding", "0");
        let found = check(&sysctl, &settings).unwrap();
        assert_eq!(found.len(), 1);
        assert_eq!(found[0].path, "net/ipv4/conf/eth0.100/forwarding");
        assert_eq!((found[0].actual.as_deref(), found[0].wanted.as_str()), (Some("0"), "1"));
        let applied = apply(&sysctl, &settings);
        assert_eq!(applied.changed, found);
        assert!(applied.failed.is_empty());
        assert_eq!(check(&sysctl, &settings).unwrap(), []);
    }

    #[test]
    fn of_two_rp_filters_the_larger_counts() {
        let settings = wanted(BOTH, &interfaces(&[("eth0", false)], &[]));
        let (dir, sysctl) = healthy(&settings);
        let deviating = |all: &str, own: &str| {
            put(&dir, "net/ipv4/conf/all/rp_filter", all);
            put(&dir, "net/ipv4/conf/eth0/rp_filter", own);
            check(&sysctl, &settings).unwrap().iter().any(|d| d.path == "net/ipv4/conf/eth0/rp_filter")
        };
        assert!(!deviating("0", "0"));
        assert!(deviating("1", "0"));
        assert!(deviating("0", "1"));
        assert!(!deviating("1", "2"));
        assert!(!deviating("2", "1"), "loose for all is loose here");
    }

    #[test]
    fn accept_ra_is_for_uplinks_with_advertisements_and_comes_before_forwarding() {
        let settings = wanted(BOTH, &interfaces(&[("eth0", false), ("eth1", true)], &[]));
        let position = |path: &str| settings.iter().position(|s| s.path == path);
        let accept_ra = position("net/ipv6/conf/eth1/accept_ra").unwrap();
        assert!(accept_ra < position("net/ipv6/conf/all/forwarding").unwrap());
        assert_eq!(position("net/ipv6/conf/eth0/accept_ra"), None);
        let (dir, sysctl) = healthy(&settings);
        put(&dir, "net/ipv6/conf/eth1/accept_ra", "0");
        assert_eq!(check(&sysctl, &settings).unwrap(), [], "user space handles them");
        put(&dir, "net/ipv6/conf/eth1/accept_ra", "1");
        assert_eq!(check(&sysctl, &settings).unwrap().len(), 1);
    }

    #[test]
    fn a_family_that_the_node_lacks_needs_nothing() {
        let only_v4 = Families { v4: true, v6: false };
        let settings = wanted(only_v4, &interfaces(&[("eth0", true)], &["pn0"]));
        // Pods may still send IPv6, and the host may have it.
        let of_pod = |s: &Setting| s.path.contains("/pn0/");
        assert!(settings.iter().all(|s| !s.path.contains("ipv6") || (of_pod(s) && s.accepted == OFF && s.optional)));
        assert!(settings.iter().any(|s| s.path.contains("ipv6/conf/pn0/accept_ra")));
        assert!(settings.iter().any(|s| s.path.contains("ipv4")));
    }

    #[test]
    fn a_missing_sysctl_is_a_deviation_unless_optional_and_writing_goes_on_past_errors() {
        let settings = wanted(BOTH, &interfaces(&[("eth0", false)], &["pn0"]));
        let (dir, sysctl) = healthy(&settings);
        fs::remove_file(dir.path().join("net/core/bpf_jit_enable")).unwrap();
        fs::remove_dir_all(dir.path().join("net/ipv4/conf/pn0")).unwrap();
        assert_eq!(check(&sysctl, &settings).unwrap(), []);
        fs::remove_dir_all(dir.path().join("net/ipv4/conf/eth0")).unwrap();
        put(&dir, "net/ipv6/conf/eth0/forwarding", "0");
        assert!(check(&sysctl, &settings).unwrap().iter().any(|d| d.actual.is_none()));
        let applied = apply(&sysctl, &settings);
        assert_eq!(applied.failed.len(), 3, "send_redirects, forwarding, rp_filter: {:?}", applied.failed);
        assert_eq!(applied.changed.len(), 1);
    }
}
