//! An attachment's record: its content on disk, and its file name.
//!
//! The name contains everything that must be unique and everything needed to undo the attachment:
//! `<container id>:<interface>:<boot>:<address>[,<address>].<state>`, where boot is the first eight digits of the boot
//! id and the state is `allocating` or, once ADD has finished, `json`. So allocation lists one directory and reads no
//! file, and an attachment can be undone even if the content of its record is lost.

use std::fmt;
use std::net::IpAddr;
use std::path::PathBuf;

use podnet_common::addr::{Addr, Mac};
use podnet_common::layout::Sandbox;
use serde::{Deserialize, Serialize};

use crate::bandwidth::Bandwidth;
use crate::id::AttachmentId;

/// The state of an attachment.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum State {
    /// ADD has allocated the addresses and is in progress, or was killed.
    Allocating,
    /// ADD has finished.
    Ready,
}

impl State {
    const ALL: [Self; 2] = [Self::Allocating, Self::Ready];

    /// Suffix of the file name.
    const fn suffix(self) -> &'static str {
        match self {
            Self::Allocating => ".allocating",
            Self::Ready => ".json",
        }
    }
}

/// The Kubernetes pod, as named in CNI_ARGS.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct PodRef {
    /// Its namespace.
    pub namespace: String,
    /// Its name.
    pub name: String,
    /// Its uid; empty if the runtime did not pass it.
    #[serde(default)]
    pub uid: String,
}

/// A host port that is mapped to the pod (capability `portMappings`): to the pod's address of the same family as the
/// destination.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct PortMapping {
    /// Port on the host.
    pub host_port: u16,
    /// Port in the pod.
    pub container_port: u16,
    /// `tcp`, `udp` or `sctp`.
    pub protocol: String,
    /// The host address to which it is limited: `None` for all, the unspecified address for all of its family.
    #[serde(rename = "hostIP", default, skip_serializing_if = "Option::is_none")]
    pub host_ip: Option<IpAddr>,
}

impl PortMapping {
    /// Whether a packet could match both.
    pub fn overlaps(&self, other: &Self) -> bool {
        let addresses = match (self.host_ip, other.host_ip) {
            (Some(a), Some(b)) => a == b || a.is_ipv4() == b.is_ipv4() && (a.is_unspecified() || b.is_unspecified()),
            _ => true,
        };
        addresses && self.host_port == other.host_port && self.protocol == other.protocol
    }
}

impl fmt::Display for PortMapping {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.host_port, self.protocol)?;
        match self.host_ip {
            Some(ip) => write!(f, " of {ip}"),
            None => Ok(()),
        }
    }
}

/// An attachment.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Record {
    /// Container and interface.
    #[serde(flatten)]
    pub id: AttachmentId,
    /// Its state.
    pub state: State,
    /// Name of the network in the network configuration.
    pub network: String,
    /// CNI_NETNS, verbatim.
    pub netns: String,
    /// Cookie of the pod's network namespace, which stays unique after the namespace has gone; `None` with `datapath:
    /// none`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub netns_cookie: Option<u64>,
    /// The pod's addresses, IPv4 first.
    pub ips: Vec<IpAddr>,
    /// MAC of the pod's interface.
    #[serde(with = "crate::mac")]
    pub mac: Mac,
    /// Name of the host end.
    pub host_ifname: String,
    /// Interface index of the host end; 0 until it exists.
    pub host_ifindex: u32,
    /// MAC of the host end.
    #[serde(with = "crate::mac")]
    pub host_mac: Mac,
    /// Inode number of the host end's network namespace.
    pub host_netns: u64,
    /// The pod's MTU in bytes.
    pub mtu: u32,
    /// The pod's default gateways.
    pub gateways: Vec<IpAddr>,
    /// The bpffs whose programs are attached; `None` with `datapath: none`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub bpffs: Option<PathBuf>,
    /// Boot id of the kernel under which the attachment was made.
    #[serde(rename = "bootID")]
    pub boot_id: String,
    /// The pod, if the runtime named it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pod: Option<PodRef>,
    /// Host ports.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub port_mappings: Vec<PortMapping>,
    /// Bandwidth limits.
    #[serde(default, skip_serializing_if = "is_unlimited")]
    pub bandwidth: Bandwidth,
}

fn is_unlimited(bandwidth: &Bandwidth) -> bool {
    *bandwidth == Bandwidth::default()
}

impl Record {
    /// Its file name.
    pub fn name(&self) -> RecordName {
        let boot = short_boot(&self.boot_id).to_owned();
        RecordName { id: self.id.clone(), boot, ips: self.ips.clone(), state: self.state }
    }

    /// The gateway of the address's family.
    pub fn gateway(&self, ip: IpAddr) -> Option<IpAddr> {
        self.gateways.iter().copied().find(|g| g.is_ipv4() == ip.is_ipv4())
    }

    /// Key and value of its entry in the table `sandboxes`.
    pub fn sandbox(&self) -> Option<(u64, Sandbox)> {
        let address = |v4: bool| self.ips.iter().find(|ip| ip.is_ipv4() == v4).map_or(Addr::NONE, |ip| (*ip).into());
        self.netns_cookie.map(|cookie| (cookie, Sandbox { v4: address(true), v6: address(false) }))
    }

    /// Whether it has an IPv6 address.
    pub fn has_ipv6(&self) -> bool {
        self.ips.iter().any(IpAddr::is_ipv6)
    }
}

/// The part of a boot id that appears in file names.
pub fn short_boot(boot_id: &str) -> &str {
    boot_id.get(..8).unwrap_or(boot_id)
}

/// A record's file name, parsed.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct RecordName {
    /// Container and interface.
    pub id: AttachmentId,
    /// First digits of the boot id.
    pub boot: String,
    /// The addresses it holds.
    pub ips: Vec<IpAddr>,
    /// The state of the attachment.
    pub state: State,
}

impl RecordName {
    /// Parses a file name; `None` if it is not a record's.
    pub fn parse(file: &str) -> Option<Self> {
        let with = |state: State| Some((file.strip_suffix(state.suffix())?, state));
        let (stem, state) = State::ALL.into_iter().find_map(with)?;
        // An interface name contains no ':'; an IPv6 address does, but the addresses come last.
        let mut parts = stem.splitn(4, ':').map(str::to_owned);
        let container = parts.next()?.try_into().ok()?;
        let ifname = parts.next()?.try_into().ok()?;
        let boot = parts.next()?;
        let ips = parts.next()?.split(',').map(|ip| ip.parse().ok()).collect::<Option<Vec<_>>>()?;
        Some(Self { id: AttachmentId { container, ifname }, boot, ips, state })
    }
}

impl fmt::Display for RecordName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}:{}:", self.id.container.as_str(), self.id.ifname.as_str(), self.boot)?;
        for (i, ip) in self.ips.iter().enumerate() {
            write!(f, "{}{ip}", if i == 0 { "" } else { "," })?;
        }
        f.write_str(self.state.suffix())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_on_disk_and_back() {
        for text in ["c1:eth0:0123abcd:10.0.0.5.json", "a_b.c-d:net@1.5:0123abcd:10.0.0.5,fd00:1::5.allocating"] {
            let name = RecordName::parse(text).unwrap();
            assert_eq!(name.to_string(), text);
        }
        let name = RecordName::parse("c1:eth0:0123abcd:fd00::1,10.0.0.5.json").unwrap();
        assert_eq!(name.ips, ["fd00::1", "10.0.0.5"].map(|ip| ip.parse::<IpAddr>().unwrap()));
        for other in
            ["c1:eth0:0123abcd:10.0.0.5.tmp", "lock", "c1:eth0:0123abcd:.json", "c1:eth0:0123abcd:10.0.0.json", ".json"]
        {
            assert_eq!(RecordName::parse(other), None, "{other}");
        }
    }

    #[test]
    fn host_ports_overlap_where_a_packet_could_be_for_both() {
        let mapping = |host_port: u16, protocol: &str, host_ip: &str| PortMapping {
            host_port,
            container_port: 80,
            protocol: protocol.into(),
            host_ip: host_ip.parse().ok(),
        };
        for (a, b, expected) in [
            ("", "", true),
            ("", "192.0.2.1", true),
            ("", "::", true),
            ("192.0.2.1", "192.0.2.1", true),
            ("192.0.2.1", "192.0.2.2", false),
            ("192.0.2.1", "0.0.0.0", true),
            ("192.0.2.1", "::", false),
            ("0.0.0.0", "::", false),
            ("::", "2001:db8::1", true),
        ] {
            let (a, b) = (mapping(80, "tcp", a), mapping(80, "tcp", b));
            assert_eq!((a.overlaps(&b), b.overlaps(&a)), (expected, expected), "{a} and {b}");
            for other in [mapping(81, "tcp", ""), mapping(80, "udp", "")] {
                assert!(!a.overlaps(&other), "{a} and {other}");
            }
        }
    }

    #[test]
    fn a_name_fits_a_directory_entry() {
        let longest = RecordName {
            id: AttachmentId {
                container: "c".repeat(crate::id::ContainerId::MAX).try_into().unwrap(),
                ifname: "i".repeat(15).try_into().unwrap(),
            },
            boot: "0123abcd".into(),
            ips: vec!["255.255.255.255".parse().unwrap(), "1111:1111:1111:1111:1111:1111:1111:1111".parse().unwrap()],
            state: State::Allocating,
        };
        assert!(longest.to_string().len() <= 255);
    }
}
