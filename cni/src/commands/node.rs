//! The node's settings, as commands need them.

use std::net::IpAddr;
use std::path::PathBuf;
use std::time::Duration;

use ipnetwork::IpNetwork;

use crate::alloc::{self, Family, Pool};
use crate::config::{Config, Datapath};
use crate::datapath::PinDir;
use crate::env::Attachment;
use crate::error::{CniError, Code};
use crate::netns::NetNs;
use crate::node_info::{GATEWAYS, NodeInfo, NodeInfoError, Policed, default_policy_wait};
use crate::record::PodRef;

/// The node's settings for ADD and STATUS: from the configuration, else from the daemon, else defaults.
pub(super) struct Node {
    pub(super) pools: Vec<Pool>,
    pub(super) mtu: u32,
    pub(super) gateways: Vec<IpAddr>,
    /// The bpffs with the pinned programs; `None` with `datapath: none`.
    pub(super) bpffs: Option<PathBuf>,
    run_dir: PathBuf,
    /// See [`NodeInfo::policed`].
    policed: Policed,
    /// How long ADD waits for a pod's network policies.
    pub(super) policy_wait: Duration,
}

impl Node {
    pub(super) fn load(config: &Config) -> Result<Self, CniError> {
        let ebpf = config.datapath == Datapath::Ebpf;
        let given = !config.runtime.pools.is_empty() || !config.pod_cidrs.is_empty();
        let info = match NodeInfo::read(&config.run_dir) {
            Ok(info) => Some(info),
            Err(NodeInfoError::Missing { .. }) if given && !ebpf => None,
            Err(e @ NodeInfoError::Missing { .. }) => {
                let details = if ebpf {
                    "start `podnet daemon` on this node, or wait until it has loaded the datapath"
                } else {
                    "set podCIDRs in the network configuration, or start `podnet daemon` on this node"
                };
                return Err(CniError::from(e).details(details));
            }
            Err(e) => return Err(e.into()),
        };
        let published = || info.as_ref().map(|i| i.pod_cidrs.as_slice()).unwrap_or_default();
        let cidrs: &[IpNetwork] = if config.pod_cidrs.is_empty() { published() } else { &config.pod_cidrs };
        let mut pools = match config.runtime.pools.as_slice() {
            [] => Pool::from_cidrs(cidrs)?,
            pools => pools.to_vec(),
        };
        // Wider ranges may contain what is reserved in the node's: the source of hairpin traffic, for example.
        let reserved = published().iter().copied().flat_map(alloc::reserved);
        reserved.for_each(|ip| pools.iter_mut().for_each(|pool| pool.exclude(ip)));
        if pools.is_empty() {
            return Err(CniError::new(Code::TryAgainLater, "this node has no pod CIDR yet").details(
                "the cluster assigns it to the Node object (spec.podCIDRs); or set podCIDRs in the configuration",
            ));
        }
        let mtu = config.mtu.or(info.as_ref().map(|i| i.mtu)).filter(|mtu| *mtu != 0).unwrap_or(1500);
        let least = if pools.iter().any(|p| p.family() == Family::V6) { 1280 } else { 68 };
        if mtu < least {
            return Err(CniError::new(
                Code::InvalidConfig,
                format!("mtu {mtu} is too small: IPv6 requires at least 1280 bytes"),
            ));
        }
        let policed = info.as_ref().map(|info| info.policed.clone()).unwrap_or_default();
        let gateways = gateways(info.as_ref());
        let seconds = info.as_ref().map_or_else(default_policy_wait, |info| info.policy_wait_seconds);
        let policy_wait = Duration::from_secs(seconds.into());
        let (run_dir, bpffs) = (config.run_dir.clone(), info.filter(|_| ebpf).map(|info| info.bpffs));
        Ok(Self { mtu, gateways, bpffs, run_dir, policed, policy_wait, pools })
    }

    /// Whether network policies may apply to a pod, by what the daemon has published by now: the command may have
    /// waited meanwhile.
    pub(super) fn polices(&self, pod: Option<&PodRef>) -> bool {
        let Some(pod) = pod else { return false };
        let now = NodeInfo::read(&self.run_dir).map(|info| info.policed);
        now.as_ref().unwrap_or(&self.policed).contains(&pod.namespace)
    }

    pub(super) fn pins(&self) -> Option<PinDir> {
        self.bpffs.as_deref().map(PinDir::new)
    }
}

/// One gateway per family: the daemon's, if it publishes one.
fn gateways(info: Option<&NodeInfo>) -> Vec<IpAddr> {
    let published = info.map(|i| i.gateways.as_slice()).unwrap_or_default();
    let of_family = |default: IpAddr| published.iter().copied().find(|g| g.is_ipv4() == default.is_ipv4());
    GATEWAYS.map(|default| of_family(default).unwrap_or(default)).to_vec()
}

/// Rejects the plugin's own network namespace, unless CNI_NETNS_OVERRIDE is set.
pub(super) fn refuse_own(attachment: &Attachment, pod: &NetNs, own: &NetNs) -> Result<(), CniError> {
    if pod.is(own) && !attachment.netns_override {
        return Err(CniError::new(Code::InvalidEnvironment, "CNI_NETNS is the plugin's own network namespace")
            .details("a pod needs its own network namespace; set CNI_NETNS_OVERRIDE=1 to allow it anyway"));
    }
    Ok(())
}
