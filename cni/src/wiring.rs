//! The pod's veth pair: creation, configuration of both ends, comparison with the record.
//!
//! The pod end has the pod's addresses as /32 or /128 and a default route through a link-local gateway. The host end
//! has the gateway's addresses and a route to each address of the pod. Neighbour entries are permanent on both sides,
//! so there is no ARP or ND traffic. `datapath: none` needs nothing else but forwarding.

mod error;
pub mod host_end;

use std::net::IpAddr;
use std::os::fd::AsFd as _;

use ipnetwork::IpNetwork;
use podnet_common::addr::IfIndex;

pub use error::WiringError;

use crate::netlink::{Answer, Bucket, Link, Netlink, NetlinkError, Op, Route, Scope, link_local};
use crate::netns::NetNs;
use crate::record::Record;
use crate::sysctl;

/// Index of `lo` in every network namespace.
const LOOPBACK: IfIndex = IfIndex(1);

fn mismatch<T>(text: impl Into<String>) -> Result<T, WiringError> {
    Err(WiringError::Mismatch(text.into()))
}

fn single(answers: Vec<Answer>) -> Result<Link, WiringError> {
    let link = answers.into_iter().find_map(Answer::link);
    link.ok_or_else(|| NetlinkError::Answer("no link was returned".into()).into())
}

fn host_route(ip: IpAddr) -> IpNetwork {
    IpNetwork::from(ip)
}

/// Creates the pair, with both ends down, and returns the host end's index.
pub fn create(host: &mut Netlink, record: &Record, pod: &NetNs) -> Result<IfIndex, WiringError> {
    let ends = ((record.host_ifname.as_str(), record.host_mac), (record.id.ifname.as_str(), record.mac));
    let ops = [Op::create_veth(ends.0, ends.1, pod.file().as_fd(), record.mtu), Op::get_link(&record.host_ifname)];
    let mut outcomes = host.outcomes(&ops)?.into_iter();
    match outcomes.next() {
        Some(Err(e)) if e.errno() == Some(libc::EEXIST) => Err(WiringError::InterfaceExists {
            ifname: record.id.ifname.as_str().to_owned(),
            host_ifname: record.host_ifname.clone(),
        }),
        Some(Err(e)) => Err(e.into()),
        _ => Ok(single(outcomes.next().transpose()?.unwrap_or_default())?.index),
    }
}

/// Configures the host end and brings it up.
pub fn configure_host(host: &mut Netlink, record: &Record, alias: &str) -> Result<(), WiringError> {
    settings(&record.host_ifname, record)?;
    heed_nothing(&record.host_ifname)?;
    host_end::make(host, record, alias)
}

/// Configures the pod's namespace: `lo` and the pod end, with addresses, neighbours and default routes.
pub fn configure_pod(pod: &NetNs, record: &Record) -> Result<(), WiringError> {
    pod.run(|| {
        let ifname = record.id.ifname.as_str();
        settings(ifname, record)?;
        if record.has_ipv6() {
            enable_ipv6("lo")?;
        }
        let mut netlink = Netlink::open()?;
        let ops = [Op::up(LOOPBACK), Op::no_generated_addresses(ifname), Op::get_link(ifname)];
        let index = single(netlink.run(&ops)?)?.index;
        // Routes before addresses: a pod has one default route per family, and another attachment's must not be
        // replaced.
        let mut ops = vec![Op::up(index)];
        ops.extend(record.gateways.iter().map(|gateway| Op::add_neighbour(index, *gateway, record.host_mac)));
        let routes: Vec<Op> = record.gateways.iter().map(|gateway| default_route(index, *gateway)).collect();
        let added = ops.len();
        ops.extend(routes);
        for (i, outcome) in netlink.outcomes(&ops)?.into_iter().enumerate() {
            match outcome {
                Err(e) if i >= added && e.errno() == Some(libc::EEXIST) => {
                    return Err(WiringError::DefaultRouteExists { ifname: ifname.to_owned() });
                }
                other => other.map(drop)?,
            }
        }
        let mut ops: Vec<Op> = egress_queue(record).iter().map(|bucket| Op::set_queue(index, bucket)).collect();
        if record.has_ipv6() {
            let address = ipnetwork::Ipv6Network::new(link_local(record.mac), 64).map(IpNetwork::V6);
            ops.extend(address.map(|a| Op::add_address(index, a, Scope::Global)));
        }
        for &ip in &record.ips {
            ops.push(Op::add_address(index, host_route(ip), Scope::Global));
        }
        // Last: by then the link has its carrier, so that it can send when the pod's processes start.
        ops.push(Op::get_link_index(index));
        netlink.run(&ops)?;
        Ok(())
    })?
}

/// The queueing discipline of the pod end.
fn egress_queue(record: &Record) -> Option<Bucket> {
    record.bandwidth.egress.map(|limit| limit.bucket(record.mtu))
}

fn default_route(oif: IfIndex, gateway: IpAddr) -> Op {
    Op::add_new_route(&Route { destination: None, gateway: Some(gateway), oif, source: None })
}

/// Waits until the host end has its carrier and can send.
pub fn settle(host: &mut Netlink, record: &Record) -> Result<(), WiringError> {
    host.run(&[Op::get_link_index(IfIndex(record.host_ifindex))])?;
    Ok(())
}

/// Enables forwarding of the pod's packets, by the node and by the host end. With the eBPF datapath the daemon does
/// this.
pub fn forward(record: &Record) -> Result<(), WiringError> {
    let of = |path: &str| {
        let of = format!("/proc/sys/net/{path}");
        move |source| WiringError::Sysctl { of, source }
    };
    for (ipv6, family) in [(false, "ipv4"), (true, "ipv6")] {
        if record.ips.iter().any(|ip| ip.is_ipv6() == ipv6) {
            let path = if ipv6 { "ipv6/conf/all/forwarding" } else { "ipv4/ip_forward" };
            sysctl::forward(ipv6).map_err(of(path))?;
            // A new interface inherits from `default`.
            sysctl::ensure(&[family, "conf", &record.host_ifname, "forwarding"], "1")
                .map_err(of(&format!("{family}/conf/{}/forwarding", record.host_ifname)))?;
        }
    }
    let path = format!("ipv4/conf/{}/rp_filter", record.host_ifname);
    sysctl::loose_rp_filter(&record.host_ifname).map_err(of(&path))
}

/// IPv6 sysctls of an end, to be set before it comes up. Containers often start with IPv6 disabled.
fn settings(ifname: &str, record: &Record) -> Result<(), WiringError> {
    if record.has_ipv6() {
        enable_ipv6(ifname)?;
        for key in ["accept_dad", "accept_ra"] {
            set_ipv6(ifname, key)?;
        }
    }
    Ok(())
}

/// Disables everything by which a pod could influence the host through its host end: router advertisements, address
/// autoconfiguration, redirects and source routing. For both families, whatever the pod's addresses: a pod may send
/// packets of any family that the host supports.
fn heed_nothing(host_ifname: &str) -> Result<(), WiringError> {
    const KEYS: [(&str, &str); 5] = [
        ("ipv6", "accept_ra"),
        ("ipv6", "autoconf"),
        ("ipv6", "accept_redirects"),
        ("ipv4", "accept_redirects"),
        ("ipv4", "accept_source_route"),
    ];
    KEYS.into_iter().try_for_each(|(family, key)| {
        let of = format!("/proc/sys/net/{family}/conf/{host_ifname}/{key}");
        sysctl::ensure_if_there(&[family, "conf", host_ifname, key], "0")
            .map_err(|source| WiringError::Sysctl { of, source })
    })
}

fn enable_ipv6(ifname: &str) -> Result<(), WiringError> {
    set_ipv6(ifname, "disable_ipv6")
}

fn set_ipv6(ifname: &str, key: &str) -> Result<(), WiringError> {
    sysctl::ensure(&["ipv6", "conf", ifname, key], "0")
        .map_err(|source| WiringError::Sysctl { of: format!("/proc/sys/net/ipv6/conf/{ifname}/{key}"), source })
}

/// Compares the host end with its record.
pub fn check_host(host: &mut Netlink, record: &Record) -> Result<(), WiringError> {
    match host_end::lacks(host, record)?.first() {
        Some(part) => {
            mismatch(format!("{} (link {}) does not have the expected {part}", record.host_ifname, record.host_ifindex))
        }
        None => Ok(()),
    }
}

/// Compares the pod end with its record, except for the MTU and for additional addresses and routes, which later
/// plugins may change.
pub fn check_pod(pod: &NetNs, record: &Record) -> Result<(), WiringError> {
    pod.run(|| {
        let name = record.id.ifname.as_str();
        let mut netlink = Netlink::open()?;
        let link = single(netlink.run(&[Op::get_link(name)])?)?;
        if !link.up {
            return mismatch(format!("{name} is down in the pod"));
        }
        // Packets are sent to the MAC that ADD assigned, and packets from any other are dropped.
        if link.mac != record.mac {
            let (found, given) = (link.mac.to_string(), record.mac.to_string());
            return mismatch(format!(
                "{name} has the MAC {found}, but only the assigned MAC {given} works; declare the capability `mac` \
                 for podnet-cni, not for the plugin that changed it"
            ));
        }
        let addresses = netlink.addresses()?;
        let has = |ip: &IpAddr| addresses.iter().any(|a| a.link == link.index && a.network.ip() == *ip);
        if let Some(ip) = record.ips.iter().find(|ip| !has(ip)) {
            return mismatch(format!("{name} no longer has the address {ip}"));
        }
        if let Some(bucket) = egress_queue(record)
            && !netlink.queues()?.contains(&(link.index, bucket.rate, bucket.limit))
        {
            return mismatch(format!("{name} is no longer limited to {} bit/s", bucket.rate * 8));
        }
        let routes = netlink.routes()?;
        for &ip in &record.ips {
            let gateway = record.gateway(ip);
            let family = |r: &Route| r.gateway.is_some_and(|g| g.is_ipv4() == ip.is_ipv4());
            let ours = |r: &Route| r.oif == link.index && r.gateway == gateway;
            if !routes.iter().any(|r| r.destination.is_none() && family(r) && ours(r)) {
                return mismatch(format!(
                    "the pod has no default route via {} on {name}",
                    gateway.map_or("its gateway".to_owned(), |g| g.to_string())
                ));
            }
        }
        Ok(())
    })?
}
