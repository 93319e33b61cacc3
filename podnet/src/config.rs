//! The daemon's configuration file.
//!
//! A YAML mapping; all keys except `node` and one of `manifests` and `kubernetes` have defaults. An unknown key, a
//! wrong type or an invalid value is an error that names file, line and key: there are no guesses, and nothing is
//! ignored.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use clap::ValueEnum;
use ipnetwork::IpNetwork;
use podnet_cni::config::{RUN_DIR, STATE_DIR};
use podnet_cni::{files, node_info::default_policy_wait};
use podnet_common::tables;
use serde::de::{Deserializer, Error as _};
use serde::ser::Serializer;
use serde::{Deserialize, Serialize};
use thiserror::Error;

use crate::compile::maglev;
use crate::model::{SourceIp, service_range};
use crate::yaml::{self, Document, TextError};

/// Default mount point of the BPF file system.
pub const BPFFS: &str = "/sys/fs/bpf";

/// Smallest MTU that carries IPv6 (RFC 8200, section 5).
const MTU_MIN: u32 = 1280;
/// Longest interface name in bytes (`IFNAMSIZ` less the terminator).
const INTERFACE_NAME_MAX: usize = 15;
/// Bounds of `conntrackMax`: a flow takes two entries of 108 bytes.
const CONNTRACK_BOUNDS: std::ops::RangeInclusive<u32> = 1024..=33_554_432;

/// Bounds of `frontendsMax`: a frontend takes 350 bytes in the tables behind it.
const FRONTENDS_BOUNDS: std::ops::RangeInclusive<u32> = 1024..=1_048_576;

/// Bounds of `maglevTableSize`: every frontend with a Maglev table takes this many slots.
const MAGLEV_BOUNDS: std::ops::RangeInclusive<u32> = 251..=131_071;

/// Largest `policyWaitSeconds`: runtimes give up on a pod after a few minutes.
const POLICY_WAIT_MAX: u32 = 60;

/// Which connections to services are translated at the socket.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum SocketLb {
    /// Those of processes of the host.
    #[default]
    Host,
    /// Those of pods too.
    All,
    /// None: translation per packet only.
    Off,
}

/// How packets reach the pods of other nodes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Routing {
    /// Unencapsulated between nodes on a shared link, and through the tunnel elsewhere.
    #[default]
    Auto,
    /// Unencapsulated: all nodes share a link.
    Direct,
    /// Through the tunnel.
    Vxlan,
}

/// Mode of the uplinks' XDP program.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Xdp {
    /// In the driver if that is a gain, else none.
    #[default]
    Auto,
    /// None.
    Off,
    /// In the driver.
    Native,
    /// In the kernel's receive path, for drivers without support.
    Generic,
}

/// The form of log lines.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum LogFormat {
    /// Human-readable text.
    #[default]
    Text,
    /// One JSON object per line.
    Json,
}

/// The content of the file in `podnet daemon --config FILE`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Config {
    /// Name of this node's Node object.
    #[serde(default)]
    pub node: String,
    /// Directory watched for manifests: the source of objects without Kubernetes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub manifests: Option<PathBuf>,
    /// The Kubernetes API: the source of objects otherwise.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub kubernetes: Option<Kubernetes>,
    /// Ranges of services' addresses, one for each family at most, in addition to those of ServiceCIDR objects.
    /// `None`: the defaults in [`Self::service_cidrs`].
    #[serde(rename = "serviceCIDRs", default, skip_serializing_if = "Option::is_none")]
    pub service_cidrs: Option<Vec<IpNetwork>>,
    /// Source address that backends see, unless the service specifies it.
    #[serde(rename = "sourceIP", default)]
    pub source_ip: SourceIp,
    /// Which connections are translated at the socket.
    #[serde(rename = "socketLB", default)]
    pub socket_lb: SocketLb,
    /// Ranges of the node's addresses that serve NodePorts; empty: all addresses.
    #[serde(default)]
    pub node_port_addresses: Vec<IpNetwork>,
    /// Whether pods reach destinations outside the cluster with the node's address as source.
    #[serde(default = "yes")]
    pub masquerade: bool,
    /// Destinations that pods also reach with their own address, in addition to the cluster's pods and nodes.
    #[serde(rename = "nonMasqueradeCIDRs", default = "default_non_masquerade_cidrs")]
    pub non_masquerade_cidrs: Vec<IpNetwork>,
    /// Whether Services may have external IPs: kube-proxy's gate `AllowServiceExternalIPs`.
    #[serde(rename = "externalIPs", default = "yes")]
    pub external_ips: bool,
    /// Ranges of addresses that no Service may have as external IP or load balancer IP, and no Node as pod CIDR.
    #[serde(default)]
    pub protected_addresses: Vec<IpNetwork>,
    /// Slots of the Maglev table of a frontend for which nodes must agree on the backend: a prime.
    #[serde(default = "default_maglev_table_size")]
    pub maglev_table_size: u32,
    /// Address for `/healthz` and `/livez`.
    #[serde(default)]
    pub healthz_bind_address: BindAddress,
    /// Address for `/metrics`.
    #[serde(default = "default_metrics_bind_address")]
    pub metrics_bind_address: BindAddress,
    /// The form of log lines, unless the command line sets it.
    #[serde(default)]
    pub log_format: LogFormat,
    /// Mode of the uplinks' XDP program.
    #[serde(default)]
    pub xdp: Xdp,
    /// Names of the uplinks; empty: every interface except pods' and podnet's own, and ports of bridges and bonds.
    #[serde(default)]
    pub uplinks: Vec<String>,
    /// How packets reach the pods of other nodes.
    #[serde(default)]
    pub routing: Routing,
    /// MTU of pods in bytes; 0: the smallest of the main uplinks, less the tunnel's overhead if there is a tunnel.
    #[serde(default)]
    pub mtu: u32,
    /// Whether ClusterIPs may be used from outside the cluster.
    #[serde(rename = "externalClusterIP", default)]
    pub external_cluster_ip: bool,
    /// How long the plugin waits for the network policies of a new pod before it lets the pod start closed, in seconds.
    #[serde(default = "default_policy_wait")]
    pub policy_wait_seconds: u32,
    /// Entries of the connection table; a flow takes two.
    #[serde(default = "default_conntrack_max")]
    pub conntrack_max: u32,
    /// Entries of the table of services' addresses and ports; the tables behind it are sized in proportion.
    #[serde(default = "default_frontends_max")]
    pub frontends_max: u32,
    /// Mount point of the BPF file system.
    #[serde(default = "default_bpffs")]
    pub bpffs: PathBuf,
    /// The cgroup v2 directory whose processes are the host's.
    #[serde(default = "default_cgroup")]
    pub cgroup: PathBuf,
    /// Directory for state that must survive a reboot.
    #[serde(default = "default_state_dir")]
    pub state_dir: PathBuf,
    /// Directory for state that must not survive a reboot.
    #[serde(default = "default_run_dir")]
    pub run_dir: PathBuf,
    /// Directory of the host's sysctls: `/proc/sys`, or a writable mount of it in a container.
    #[serde(default = "default_sysctls")]
    pub sysctls: PathBuf,
    /// Where to install the plugin, as soon as pods can start; `None`: it isn't installed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub install: Option<Install>,
}

/// Access to the Kubernetes API. Without a kubeconfig, the credentials are those of the pod's service account.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct Kubernetes {
    /// Address of the API server, such as `https://192.0.2.1:6443`. It must not be a Service's address, since Services
    /// are implemented by podnet.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub server: Option<String>,
    /// The kubelet's own kubeconfig, of which only the server's address is read, if `server` isn't set.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub kubelet_config: Option<PathBuf>,
    /// A kubeconfig with server and credentials, for a daemon outside a pod.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub kubeconfig: Option<PathBuf>,
}

/// Directories in which container runtimes look for plugins.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Install {
    /// For plugin binaries, commonly `/opt/cni/bin`.
    pub bin_dir: PathBuf,
    /// For network configuration lists, commonly `/etc/cni/net.d`.
    pub conf_dir: PathBuf,
}

/// An address and port to listen on, or the empty text for none. The unspecified address, of either family, means all
/// addresses of both.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BindAddress(pub Option<SocketAddr>);

impl Default for BindAddress {
    /// kube-proxy's default for health checks.
    fn default() -> Self {
        Self(Some(SocketAddr::from(([0, 0, 0, 0], 10_256))))
    }
}

impl<'de> Deserialize<'de> for BindAddress {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        if text.is_empty() {
            return Ok(Self(None));
        }
        let refused =
            || D::Error::custom(format!("`{text}` is not an address with a port, such as 0.0.0.0:10256 or [::]:10256"));
        match text.parse::<SocketAddr>() {
            Ok(address) if address.port() != 0 => Ok(Self(Some(address))),
            _ => Err(refused()),
        }
    }
}

impl Serialize for BindAddress {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self.0 {
            Some(address) => serializer.collect_str(&address),
            None => serializer.serialize_str(""),
        }
    }
}

fn cidrs(texts: &[&str]) -> Vec<IpNetwork> {
    texts.iter().filter_map(|cidr| cidr.parse().ok()).collect()
}
fn yes() -> bool {
    true
}
fn default_non_masquerade_cidrs() -> Vec<IpNetwork> {
    cidrs(&["169.254.0.0/16", "fe80::/10"])
}
fn default_maglev_table_size() -> u32 {
    maglev::SIZE
}
/// kube-proxy's default: reachable from the node itself only.
fn default_metrics_bind_address() -> BindAddress {
    BindAddress(Some(SocketAddr::from(([127, 0, 0, 1], 10_249))))
}
fn default_conntrack_max() -> u32 {
    tables::CONNTRACK.capacity() as u32
}
fn default_frontends_max() -> u32 {
    tables::FRONTENDS.capacity() as u32
}
fn default_bpffs() -> PathBuf {
    BPFFS.into()
}
fn default_cgroup() -> PathBuf {
    "/sys/fs/cgroup".into()
}
fn default_state_dir() -> PathBuf {
    STATE_DIR.into()
}
fn default_run_dir() -> PathBuf {
    RUN_DIR.into()
}
fn default_sysctls() -> PathBuf {
    "/proc/sys".into()
}

/// Errors of reading the configuration.
#[derive(Debug, Error)]
pub enum ConfigError {
    /// The file can't be read.
    #[error("cannot read the configuration {path}: {source}; pass another file with --config", path = path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// The kernel's error.
        source: std::io::Error,
    },
    /// The content of the file is invalid.
    #[error("{path}:{line}: {reason}", path = path.display(), line = error.line, reason = error.reason)]
    Content {
        /// The file.
        path: PathBuf,
        /// The line, and the problem.
        error: TextError,
    },
}

impl Config {
    /// Reads and validates a file.
    ///
    /// # Errors
    /// [`ConfigError`], with the line if there is one.
    pub fn read(path: &Path) -> Result<Self, ConfigError> {
        Self::read_for(path, None)
    }

    /// The same for a node with this name, whatever the file says: one file may serve all nodes.
    ///
    /// # Errors
    /// [`ConfigError`], with the line if there is one.
    pub fn read_for(path: &Path, node: Option<&str>) -> Result<Self, ConfigError> {
        let text = files::read_text(path, files::OWN_MAX)
            .map_err(|source| ConfigError::Read { path: path.to_owned(), source })?;
        Self::parse_for(&text, node).map_err(|error| ConfigError::Content { path: path.to_owned(), error })
    }

    /// Parses and validates a text.
    ///
    /// # Errors
    /// Line and reason of the first problem.
    pub fn parse(text: &str) -> Result<Self, TextError> {
        Self::parse_for(text, None)
    }

    fn parse_for(text: &str, node: Option<&str>) -> Result<Self, TextError> {
        let document = match yaml::documents(text)[..] {
            [] => {
                return Err(TextError {
                    line: 1,
                    reason: "the file is empty: set `node`, and `manifests` or `kubernetes`".into(),
                });
            }
            [document] => document,
            [_, second, ..] => {
                return Err(TextError { line: second.line, reason: "only one YAML document is allowed".into() });
            }
        };
        let mut config: Self = yaml::parse(document)?;
        if let Some(node) = node {
            node.clone_into(&mut config.node);
        }
        config.validate().map_err(|(path, reason)| at(document, &path, &reason))?;
        Ok(config)
    }

    /// The configured ranges of services' addresses. Without any, and without ServiceCIDR objects to read, the common
    /// defaults of clusters.
    pub fn service_cidrs(&self) -> Vec<IpNetwork> {
        let common = if self.kubernetes.is_some() { &[][..] } else { &["10.96.0.0/16", "fd00:96::/112"] };
        self.service_cidrs.clone().unwrap_or_else(|| cidrs(common))
    }

    fn validate(&self) -> Result<(), (String, String)> {
        let refuse = |path: &str, reason: String| Err((path.to_owned(), reason));
        if self.node.is_empty() {
            return refuse("node", "is missing: set it to the name of this node's Node object".into());
        }
        let api = match (&self.manifests, &self.kubernetes) {
            (None, None) => {
                return refuse("manifests", "is missing: set it to a directory, or set `kubernetes` instead".into());
            }
            (Some(_), Some(_)) => {
                return refuse("kubernetes", "cannot be combined with `manifests`: remove one of them".into());
            }
            (Some(_), None) => &Kubernetes::default(),
            (None, Some(api)) => api,
        };
        if let Some(server) = &api.server
            && !server.starts_with("https://")
        {
            return refuse("kubernetes.server", format!("`{server}` is not a URL such as https://192.0.2.1:6443"));
        }
        let install = self.install.as_ref();
        for (path, directory) in [
            ("manifests", self.manifests.as_ref()),
            ("kubernetes.kubeletConfig", api.kubelet_config.as_ref()),
            ("kubernetes.kubeconfig", api.kubeconfig.as_ref()),
            ("bpffs", Some(&self.bpffs)),
            ("cgroup", Some(&self.cgroup)),
            ("stateDir", Some(&self.state_dir)),
            ("runDir", Some(&self.run_dir)),
            ("sysctls", Some(&self.sysctls)),
            ("install.binDir", install.map(|install| &install.bin_dir)),
            ("install.confDir", install.map(|install| &install.conf_dir)),
        ] {
            let Some(directory) = directory else { continue };
            if !directory.is_absolute() {
                return refuse(path, format!("{} is not an absolute path", directory.display()));
            }
        }
        for (key, cidrs) in [
            ("nodePortAddresses", &self.node_port_addresses),
            ("nonMasqueradeCIDRs", &self.non_masquerade_cidrs),
            ("protectedAddresses", &self.protected_addresses),
        ] {
            if let Some((i, cidr)) = cidrs.iter().enumerate().find(|(_, cidr)| cidr.ip() != cidr.network()) {
                let network =
                    IpNetwork::new(cidr.network(), cidr.prefix()).map_or_else(|e| e.to_string(), |n| n.to_string());
                let reason = format!("{cidr} has bits set after its prefix: write {network}");
                return refuse(&format!("{key}[{i}]"), reason);
            }
        }
        let ranges = self.service_cidrs.as_deref().unwrap_or_default();
        for (i, cidr) in ranges.iter().enumerate() {
            let path = format!("serviceCIDRs[{i}]");
            if let Err(reason) = service_range(*cidr) {
                return refuse(&path, reason);
            }
            if ranges[..i].iter().any(|other| other.is_ipv4() == cidr.is_ipv4()) {
                return refuse(&path, format!("{cidr} is the second range of its family: one for each is allowed"));
            }
        }
        for (i, name) in self.uplinks.iter().enumerate() {
            let bad = |c: char| c == '/' || c == ':' || c.is_whitespace();
            if name.is_empty() || name.len() > INTERFACE_NAME_MAX || name.contains(bad) {
                return refuse(&format!("uplinks[{i}]"), format!("`{name}` is not a valid interface name"));
            }
        }
        if self.mtu != 0 && !(MTU_MIN..=65_535).contains(&self.mtu) {
            return refuse("mtu", format!("{} is not 0 or between {MTU_MIN} and 65535", self.mtu));
        }
        if self.policy_wait_seconds > POLICY_WAIT_MAX {
            let reason = format!("{} is not between 0 and {POLICY_WAIT_MAX}", self.policy_wait_seconds);
            return refuse("policyWaitSeconds", reason);
        }
        let size = self.maglev_table_size;
        if !MAGLEV_BOUNDS.contains(&size) || !maglev::is_prime(size) {
            let (low, high) = (MAGLEV_BOUNDS.start(), MAGLEV_BOUNDS.end());
            let reason = format!("{size} is not a prime between {low} and {high}: use 4093, 16381 or 65521");
            return refuse("maglevTableSize", reason);
        }
        if !CONNTRACK_BOUNDS.contains(&self.conntrack_max) {
            let (low, high) = (CONNTRACK_BOUNDS.start(), CONNTRACK_BOUNDS.end());
            return refuse("conntrackMax", format!("{} is not between {low} and {high}", self.conntrack_max));
        }
        if !FRONTENDS_BOUNDS.contains(&self.frontends_max) {
            let (low, high) = (FRONTENDS_BOUNDS.start(), FRONTENDS_BOUNDS.end());
            return refuse("frontendsMax", format!("{} is not between {low} and {high}", self.frontends_max));
        }
        Ok(())
    }
}

fn at(document: Document<'_>, path: &str, reason: &str) -> TextError {
    TextError { line: yaml::line_of(document, path), reason: format!("{path}: {reason}") }
}

#[cfg(test)]
mod tests;
