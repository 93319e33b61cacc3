//! The node's part of the datapath: links, routes, settings, hooks, and the information for the plugin.
//!
//! One function checks everything and does what is missing: at start, when the network or the Node objects change, and
//! periodically. A step that fails is a problem for `podnet status`; the other steps are carried out.
//!
//! The order of the steps is enforced by their types, for these reasons:
//! - podnet0 comes before the table `config`, which names its interfaces;
//! - the tunnel gets its hooks before it comes up ([`HookedTunnel`]), so its very first packet is examined;
//! - the tables come before the hooks ([`TablesWritten`]): programs misread packets if their tables are empty;
//! - the plugin is informed last ([`HooksAttached`]): a pod that starts earlier would send past the programs.

use std::{
    collections::BTreeSet,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    path::Path,
};

use anyhow::{Context as _, Result, anyhow};
use ipnetwork::IpNetwork;
use podnet_cni::{
    node_info::{GATEWAYS, NodeInfo, Policed, SCHEMA},
    text::chain,
};
use podnet_common::{
    addr::{Addr, IfIndex},
    layout, tables,
};

use crate::{
    config::{Config, SocketLb, Xdp},
    control::{
        Control,
        networks::{Cluster, Networks, Written},
    },
    datapath::{Datapath, UplinkHook, UplinkState, netns_cookie},
    host::{
        Families, Host,
        podnet0::{self, Podnet0},
        ports::{self, Supply},
        routes::{NodeNetwork, NodeRoutes, RemoteNode},
        settings::{self, Setting},
        snapshot::Snapshot,
        sysctl::{SettingError, Sysctl},
        tunnel::{self, Tunnel},
        uplinks::{self, Uplink, Uplinks},
    },
    model::Node,
};

/// Ethernet's MTU, in bytes.
const DEFAULT_MTU: u32 = 1500;

/// Outcome of a sync.
#[derive(Debug, Default)]
pub(super) struct Status {
    /// Whether the plugin may start pods.
    pub ready: bool,
    /// Whether pods can start: the node is ready and has addresses for them.
    pub takes_pods: bool,
    /// Whether a step failed that a retry may complete.
    pub incomplete: bool,
    /// Whether the socket hooks could not be loaded or attached.
    pub socket_hooks_refused: bool,
    /// Problems for the user.
    pub problems: Vec<String>,
    /// The uplinks.
    pub uplinks: Vec<Uplink>,
    /// Hooks of the uplinks.
    pub hooks: Vec<UplinkState>,
    /// Routes to other nodes.
    pub routes: NodeRoutes,
    /// The node's own addresses.
    pub addresses: BTreeSet<IpAddr>,
}

impl Status {
    /// Whether a backend is on the node with this address.
    pub(super) fn is_on(&self, backend: IpAddr, node: IpAddr) -> bool {
        backend == node || self.routes.hops.iter().any(|hop| hop.via == node && hop.cidr.contains(backend))
    }
}

/// Desired state of the node.
pub(super) struct Wanted<'a> {
    /// The configuration.
    pub config: &'a Config,
    /// For services and host ports.
    pub control: &'a Control,
}

/// Syncs the node: makes it match its Node object and its network.
pub(super) async fn sync(
    wanted: &Wanted<'_>,
    host: &Host,
    snapshot: Option<Snapshot>,
    networks: &mut Networks,
    datapath: &mut Datapath,
) -> Status {
    let mut status = Status::default();
    let config = wanted.config;
    let Some(own) = wanted.control.nodes().get(&config.node) else {
        if !wanted.control.synced() {
            return status;
        }
        status.problems.push(format!(
            "there is no Node object named {}: create it (kubelets do so; with manifest files, add one), or correct \
             `node` in the configuration",
            config.node
        ));
        return status;
    };
    if let Err(error) = set_up(wanted, own, host, snapshot, networks, datapath, &mut status).await {
        status.problems.push(chain(error.as_ref()));
        status.incomplete = true;
    }
    status
}

async fn set_up(
    wanted: &Wanted<'_>,
    own: &Node,
    host: &Host,
    snapshot: Option<Snapshot>,
    networks: &mut Networks,
    datapath: &mut Datapath,
    status: &mut Status,
) -> Result<()> {
    let config = wanted.config;
    let addresses = &own.internal_ips;
    let mut snapshot = match snapshot {
        Some(snapshot) => snapshot,
        None => host.snapshot().await?,
    };
    let uplinks = uplinks::find(&snapshot, addresses, &config.uplinks);
    for name in &uplinks.missing {
        status.problems.push(format!("there is no interface {name}: correct `uplinks` in the configuration"));
    }
    status.problems.extend(uplinks.foreign.iter().map(|name| {
        format!(
            "the frames of interface {name} are of a type that podnet does not support: pods' packets leave by it \
             without masquerading, and packets arriving on it are not checked; route pod traffic through another \
             interface"
        )
    }));
    let uplink_mtu = uplinks.mtu().unwrap_or(DEFAULT_MTU);
    let mtu = if config.mtu != 0 { config.mtu } else { uplink_mtu };
    let route_mtu = snapshot.narrowest();
    let sysctl = Sysctl::at(&config.sysctls);
    apply_settings(&sysctl, addresses, &uplinks, status);
    status.problems.extend(missing(own, &config.node));

    let others = wanted.control.nodes().iter().filter(|(name, _)| **name != config.node);
    let remote: Vec<_> = others
        .map(|(name, node)| RemoteNode {
            name: name.clone(),
            addresses: node.internal_ips.clone(),
            pod_cidrs: node.pod_cidrs.clone(),
        })
        .collect();
    let ranges = wanted.control.service_cidrs();
    if ranges.is_empty() {
        status.problems.push("no ClusterIP range is known: set `serviceCIDRs` in the configuration".to_owned());
    }
    let cluster = Cluster { config, own, addresses: &uplinks.addresses, remote: &remote, service_cidrs: ranges };
    let services = cluster.service_addresses(wanted.control.service_addresses().into_iter());
    status.addresses = uplinks.addresses.clone();

    let hairpins = own.pod_cidrs.iter().map(|cidr| podnet0::hairpin(*cidr));
    let pair = podnet0::Wanted {
        mtu,
        destinations: ranges.iter().copied().chain(hairpins).collect(),
        external: services.iter().copied().collect(),
        node_addresses: addresses.clone(),
    };
    let pair = host.ensure_podnet0(&mut snapshot, &pair).await?;
    note(status, pair.problems.iter());

    let network = NodeNetwork {
        name: &config.node,
        addresses,
        mtu: uplink_mtu,
        routing: config.routing,
        pod_cidrs: &own.pod_cidrs,
        nodes: &remote,
    };
    let programs = |tunnel| programs_config(config, own, &pair, &uplinks, (mtu, route_mtu), tunnel);
    let prepared = host.prepare_tunnel(&mut snapshot, &network).await;
    let tunnel = HookedTunnel::new(prepared, programs, datapath)?;
    status.routes = host.sync_node_routes(&snapshot, &network, tunnel.0).await?;
    networks.complete(&mut status.routes);
    let routes = std::mem::take(&mut status.routes);
    note(status, routes.errors.iter());
    status.problems.extend(routes.unreachable.iter().map(|u| format!("no route to node {}: {}", u.node, u.reason)));

    let ports = sync_ports(wanted.control, &uplinks.addresses, &sysctl, datapath);
    note(status, ports.err().iter().map(|error| chain(error.as_ref())));
    if uplinks.found.len() > tables::INTERFACES.capacity() {
        status.problems.push(format!(
            "more than {} uplinks found: pod traffic through the others is not masqueraded; list the right ones as \
             `uplinks` in the configuration",
            tables::INTERFACES.capacity(),
        ));
    }
    let written = networks.sync(&cluster, &routes, &services, uplinks.table(), datapath.node_tables())?;
    if written.left_out() > 0 {
        status.problems.push(format!(
            "the table `nodes` has no room for {} of {} load balancer and external IPs: they lead to their Services, \
             but packets to their other ports are left to the host; use fewer of them",
            written.left_out(),
            services.len()
        ));
    }
    let tables = TablesWritten::new(&written, &programs(routes.tunnel)?, datapath)?;
    let hooks = attach(&tables, config, &uplinks, &pair, routes.tunnel, datapath, status)?;
    status.uplinks = uplinks.found;
    // A configured MTU applies: longer packets are answered with the tunnel's MTU.
    let pod_mtu = routes.tunnel.filter(|_| config.mtu == 0).map_or(mtu, |tunnel| tunnel.mtu);
    status.routes = routes;

    publish(&hooks, wanted, own, pod_mtu)?;
    status.ready = true;
    status.takes_pods = !own.pod_cidrs.is_empty();
    Ok(())
}

/// The tunnel's device with its hooks, not up yet.
struct HookedTunnel(tunnel::Prepared);

impl HookedTunnel {
    /// Attaches the hooks, and gives the programs what senders into the tunnel need.
    fn new(
        prepared: tunnel::Prepared,
        programs: impl Fn(Option<Tunnel>) -> Result<layout::Config>,
        datapath: &mut Datapath,
    ) -> Result<Self> {
        if let Some(tunnel) = prepared.tunnel {
            datapath.set_config(&programs(Some(tunnel))?)?;
            datapath.attach_tunnel(tunnel.ifindex)?;
        }
        Ok(Self(prepared))
    }
}

/// The tables that the programs read are written.
struct TablesWritten(());

impl TablesWritten {
    /// Writes the last of them, `config`, after the networks.
    fn new(_: &Written, programs: &layout::Config, datapath: &mut Datapath) -> Result<Self> {
        datapath.set_config(programs)?;
        Ok(Self(()))
    }
}

/// Packets of pods and uplinks pass the programs.
struct HooksAttached(());

/// Attaches missing hooks.
fn attach(
    _: &TablesWritten,
    config: &Config,
    uplinks: &Uplinks,
    pair: &Podnet0,
    tunnel: Option<Tunnel>,
    datapath: &mut Datapath,
    status: &mut Status,
) -> Result<HooksAttached> {
    let hook = |name: &str, ifindex, raw, xdp| UplinkHook { name: name.to_owned(), ifindex, raw, xdp };
    let xdp = |uplink: &Uplink| (uplink.main && !uplink.raw).then_some(config.xdp);
    let mut hooks: Vec<_> = uplinks.found.iter().map(|u| hook(&u.name, u.ifindex, u.raw, xdp(u))).collect();
    // Packets out of the tunnel have already passed the kernel's receive path.
    hooks.extend(tunnel.map(|tunnel| hook(tunnel::NAME, tunnel.ifindex, false, None)));
    status.hooks = datapath.attach_uplinks(&hooks, &uplinks.others);
    status.incomplete |= status.hooks.iter().flat_map(|uplink| &uplink.hooks).any(|hook| hook.how.is_err());
    datapath.attach_host(pair.far, uplinks.loopback)?;
    // Without socket hooks, services are still translated per packet.
    let hooked = datapath.set_socket_hooks((config.socket_lb != SocketLb::Off).then_some(config.cgroup.as_path()));
    status.socket_hooks_refused = hooked.is_err();
    note(status, hooked.err().iter());
    if config.xdp == Xdp::Native {
        let slow = uplinks.main().filter(|u| u.veth);
        status.problems.extend(slow.map(|u| {
            format!(
                "{} is a veth: native XDP disables TCP segmentation offload of its peer; use `xdp: auto`, `generic` \
                 or `off`",
                u.name
            )
        }));
    }
    Ok(HooksAttached(()))
}

/// What this node's object lacks for pods.
fn missing(own: &Node, name: &str) -> Vec<String> {
    if own.pod_cidrs.is_empty() {
        return vec![format!(
            "the Node object {name} has no spec.podCIDRs: pods cannot start; set it, or run the controller \
             manager with --allocate-node-cidrs and --cluster-cidr"
        )];
    }
    let lacks = |cidr: &&IpNetwork| !own.internal_ips.iter().any(|ip| ip.is_ipv4() == cidr.is_ipv4());
    let tell = |cidr: &IpNetwork| {
        format!(
            "the Node object {name} has no InternalIP of the family of its pod CIDR {cidr}: its pods cannot reach \
             services by that family; add one (--node-ip of the kubelet takes an address of each)"
        )
    };
    own.pod_cidrs.iter().filter(lacks).map(tell).collect()
}

/// Gives the programs ports for source NAT that neither the host's processes nor services use at the node's addresses.
/// If these are too few, has the kernel reserve some of the host's.
pub(super) fn sync_ports(
    control: &Control,
    addresses: &BTreeSet<IpAddr>,
    sysctl: &Sysctl,
    datapath: &mut Datapath,
) -> Result<()> {
    let any: [IpAddr; 2] = [Ipv4Addr::UNSPECIFIED.into(), Ipv6Addr::UNSPECIFIED.into()];
    let supply = || -> Result<Supply> {
        let mut used = ports::read_port_use()?;
        used.taken.extend(any.iter().chain(addresses).flat_map(|address| control.ports_at(*address)));
        Ok(ports::supply(&used)?)
    };
    let (free, reserved) = match supply()? {
        Supply::Free(free) => (free, Ok(())),
        Supply::Reserve { list, meanwhile } => match sysctl.write(ports::RESERVATION, &list) {
            // Sockets that have got such a port in the meantime keep it.
            Ok(()) => match supply()? {
                Supply::Free(free) => {
                    tracing::info!(reserved = list, "reserved ports for source NAT");
                    (free, Ok(()))
                }
                Supply::Reserve { .. } => (
                    meanwhile,
                    Err(anyhow!(
                        "{} lacks {list} after it was written: another program has overwritten it",
                        ports::RESERVATION
                    )),
                ),
            },
            Err(error) => (meanwhile, Err(error.into())),
        },
    };
    let wanted = ports::settle(datapath.snat_ports(), &free);
    if wanted != datapath.snat_ports() {
        datapath.set_snat_ports(&wanted)?;
    }
    reserved.context(
        "net.ipv4.ip_local_port_range leaves too few ports for source NAT: narrow it, or let the daemon write \
         net.ipv4.ip_local_reserved_ports",
    )
}

/// Records problems that a retry may solve.
fn note(status: &mut Status, errors: impl Iterator<Item = impl std::fmt::Display>) {
    for error in errors {
        status.problems.push(error.to_string());
        status.incomplete = true;
    }
}

fn apply_settings(sysctl: &Sysctl, addresses: &[IpAddr], uplinks: &Uplinks, status: &mut Status) {
    let wanted = settings::wanted(Families::of(addresses), uplinks);
    // The settings of podnet0 and the tunnel are applied while these are created, since some must precede their coming
    // up.
    let wanted: Vec<_> =
        wanted.into_iter().filter(|s| sysctl.read(&s.path).is_ok_and(|value| value.is_some())).collect();
    note(status, set(sysctl, &wanted).iter());
}

/// Applies the settings of pods' host ends, given by name.
pub(super) fn set_host_ends<'a>(sysctl: &Sysctl, addresses: &[IpAddr], names: impl IntoIterator<Item = &'a String>) {
    let wanted = settings::host_ends(Families::of(addresses), names);
    for error in set(sysctl, &wanted) {
        tracing::warn!("{error}");
    }
}

/// Writes settings that differ, and logs them. Returns those that could not be written.
fn set(sysctl: &Sysctl, wanted: &[Setting]) -> Vec<SettingError> {
    let applied = settings::apply(sysctl, wanted);
    for change in &applied.changed {
        tracing::info!("corrected a host setting: {change}");
    }
    applied.failed
}

/// Configuration of the programs for this node.
fn programs_config(
    config: &Config,
    own: &Node,
    pair: &Podnet0,
    uplinks: &Uplinks,
    (mtu, route_mtu): (u32, Option<u32>),
    tunnel: Option<Tunnel>,
) -> Result<layout::Config> {
    let address =
        |v4: bool| own.internal_ips.iter().find(|address| address.is_ipv4() == v4).map_or(Addr::NONE, |a| (*a).into());
    let hairpin = |v4: bool| {
        let cidr = own.pod_cidrs.iter().find(|cidr| cidr.is_ipv4() == v4);
        cidr.map_or(Addr::NONE, |cidr| podnet0::hairpin(*cidr).ip().into())
    };
    let mut indices = [IfIndex::default(); layout::UPLINKS];
    indices.iter_mut().zip(uplinks.main()).for_each(|(index, uplink)| *index = uplink.ifindex);
    let flags = [
        (config.external_cluster_ip, layout::Config::EXTERNAL_CLUSTER_IP),
        (config.masquerade, layout::Config::MASQUERADE),
        (config.socket_lb == SocketLb::All, layout::Config::SOCKET_PODS),
    ];
    Ok(layout::Config {
        node_v4: address(true),
        node_v6: address(false),
        hairpin_v4: hairpin(true),
        hairpin_v6: hairpin(false),
        podnet0: pair.near,
        podnet1: pair.far,
        podnet0_mac: pair.near_mac,
        podnet1_mac: pair.far_mac,
        // Set together with the ports.
        snat_count: 0,
        uplinks: indices,
        flags: flags.iter().filter(|(wanted, _)| *wanted).map(|(_, flag)| flag).sum(),
        mtu,
        tunnel: tunnel.map(|tunnel| tunnel.ifindex).unwrap_or_default(),
        tunnel_mtu: tunnel.map(|tunnel| tunnel.mtu).unwrap_or_default(),
        tunnel_mac: tunnel.map(|tunnel| tunnel.mac).unwrap_or_default(),
        route_mtu: route_mtu.map_or(0, |mtu| u16::try_from(mtu).unwrap_or(u16::MAX)),
        netns_cookie: netns_cookie().context("cannot read the network namespace's cookie")?,
    })
}

/// Writes the pods that start closed to `node.json`, if this exists and says otherwise.
pub(super) fn publish_policed(run_dir: &Path, policed: &Policed) -> Result<()> {
    let Ok(before) = NodeInfo::read(run_dir) else { return Ok(()) };
    if before.policed != *policed {
        NodeInfo { policed: policed.clone(), ..before }.write_atomically(run_dir)?;
    }
    Ok(())
}

/// Writes `node.json` for the plugin, if it has changed. Until network policies have been read, the pods listed in
/// the file of an earlier daemon start closed; without such a file, no pod can start.
fn publish(_: &HooksAttached, wanted: &Wanted<'_>, own: &Node, mtu: u32) -> Result<()> {
    let (config, control) = (wanted.config, wanted.control);
    let policed = if control.policies_synced() {
        control.policies().policed()
    } else {
        let before = NodeInfo::read(&config.run_dir).map_err(|_| {
            anyhow!(
                "the network policies of the cluster have not been read yet, so no pod can start: see the source's \
                 warnings in `podnet status`"
            )
        });
        before?.policed
    };
    let info = NodeInfo {
        schema: SCHEMA,
        bpffs: config.bpffs.clone(),
        pod_cidrs: own.pod_cidrs.clone(),
        mtu,
        gateways: GATEWAYS.to_vec(),
        policed,
        policy_wait_seconds: config.policy_wait_seconds,
    };
    let path: &Path = &config.run_dir;
    let before = NodeInfo::read(path).ok();
    if before.as_ref() == Some(&info) {
        return Ok(());
    }
    info.write_atomically(path)?;
    let policies_only = before.is_some_and(|before| NodeInfo { policed: info.policed.clone(), ..before } == info);
    if policies_only {
        tracing::debug!("published the namespaces with network policies");
    } else {
        tracing::info!(mtu, "pods can start");
    }
    Ok(())
}

#[cfg(test)]
mod tests;
