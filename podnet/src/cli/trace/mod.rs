//! `podnet trace`: what this node would do with a packet, according to the tables now in the kernel.
//!
//! The pipeline itself runs, on a packet in memory: lookups read the kernel's tables, and writes stay in memory. So
//! nothing is changed and nothing is sent. Between the hooks the host's stack is followed as far as its routes and
//! neighbours determine it; packet filters are not evaluated.

mod capture;
#[cfg(test)]
mod end_to_end;
mod facts;
mod fields;
mod packet;
mod policy;
mod record;
mod report;
mod socket_call;
mod stack;
mod summary;
#[cfg(test)]
mod tests;
mod tracer;
mod walk;

use std::collections::BTreeSet;
use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, bail};
use clap::Args;
use podnet_common::addr::{Addr, IfIndex, Mac, Proto};
use podnet_common::layout::{Endpoint, Frontend, FrontendKey, Network, NetworkKind};
use tokio::runtime::Runtime;

pub(super) use facts::Names;
pub(super) use report::Traces;

use super::flow::parse_protocol;
use super::output::protocol;
use crate::compile::{ServiceId, of_node};
use crate::datapath::inspect::View;
use crate::datapath::live::Source;
use crate::host::{Host, OutputRoute};
use fields::{Fragment, IcmpType};
use packet::Description;
use summary::Summary;
use tracer::{Node, Process, Sender, Tracer};

/// Default source port.
const SPORT: u16 = 40_000;
/// MAC of an outside sender whose MAC is unknown.
const SOME_MAC: Mac = Mac([2, 0, 0, 0, 0, 0xfe]);

/// Which packet to trace.
#[derive(Clone, Debug, Args)]
pub struct TraceArgs {
    /// Sender: `pod/NAMESPACE/NAME` or a pod's address, `host`, or the address of another machine, with the interface
    /// where its packets arrive [default: the interface of the route to it]
    #[arg(long, value_name = "pod/NAMESPACE/NAME | host | ADDRESS[%INTERFACE]")]
    from: String,
    /// Destination; for a Service, `PORT` is a number or a port name.
    #[arg(
        long,
        value_name = "NAMESPACE/SERVICE[:PORT] | pod/NAMESPACE/NAME[:PORT] | ADDRESS[:PORT]",
        required_unless_present_any = ["pcap", "hex"]
    )]
    to: Option<String>,
    /// tcp, udp, sctp, icmp or a number [default: that of the Service, or icmp with --icmp-type, or else tcp]
    #[arg(long, value_name = "PROTOCOL", value_parser = parse_protocol)]
    proto: Option<Proto>,
    /// Source port, to which the sending process's socket is bound [default: 40000, unbound]
    #[arg(long, value_name = "PORT")]
    sport: Option<u16>,
    /// Comma-separated TCP flags: syn, ack, fin, rst, psh, urg; or none.
    #[arg(long, value_name = "FLAGS", value_parser = fields::parse_flags, default_value = "syn")]
    tcp_flags: u8,
    /// ICMP type: `echo-request`, `echo-reply`, another name or a number, with `:CODE` if not 0 [default: echo-request]
    #[arg(long, value_name = "TYPE")]
    icmp_type: Option<String>,
    /// Identifier of an ICMP echo.
    #[arg(long, value_name = "NUMBER", default_value_t = 1)]
    icmp_id: u16,
    /// Length of the IP packet in bytes [default: the headers only]
    #[arg(long, value_name = "BYTES")]
    size: Option<u16>,
    /// TTL or hop limit.
    #[arg(long, value_name = "HOPS", default_value_t = 64)]
    ttl: u8,
    /// Set the don't-fragment bit (IPv4 only; IPv6 packets are never fragmented in transit).
    #[arg(long)]
    dont_fragment: bool,
    /// Trace a fragment: `first`, or its offset in bytes, followed by `+` if it is not the last one.
    #[arg(long, value_name = "first|OFFSET[+]", value_parser = fields::parse_fragment)]
    fragment: Option<Fragment>,
    /// The sender uses a connected UDP socket: its packets are translated one by one, not by the socket hooks.
    #[arg(long)]
    connected: bool,
    /// MAC address of an outside sender [default: that of its node, if it belongs to the cluster]
    #[arg(long, value_name = "MAC", value_parser = parse_mac)]
    mac: Option<Mac>,
    /// Prefer IPv6 if both the pod and the Service are dual-stack.
    #[arg(short = '6', long)]
    ipv6: bool,
    /// Trace the packets of a capture in order, each with the effects of those before it.
    #[arg(long, value_name = "FILE", conflicts_with_all = ["to", "hex"])]
    pcap: Option<PathBuf>,
    /// Trace an Ethernet frame or IP packet in hexadecimal digits.
    #[arg(long, value_name = "DIGITS", conflicts_with = "to")]
    hex: Option<String>,
    /// Show the bytes of each frame.
    #[arg(long)]
    bytes: bool,
}

fn parse_mac(text: &str) -> Result<Mac, String> {
    podnet_cni::mac::parse(text).ok_or_else(|| format!("{text} is not a MAC address: use the form 02:00:00:00:00:01"))
}

/// Traces packets through the node whose tables are pinned at `bpffs`.
pub(super) fn run(bpffs: &Path, view: &dyn View, names: &Names, args: &TraceArgs) -> Result<Traces> {
    let source = Source::open(bpffs)?;
    let live = source.look()?;
    let routes = Routes::open()?;
    let output = |dst, src| routes.output(dst, src);
    let tracer = Tracer { node: &live, view, names, output: &output, own_mac: &own_mac, bytes: args.bytes };
    let traces = trace(&tracer, args)?;
    live.check()?;
    Ok(traces)
}

/// The kernel's routes for the host's own packets.
struct Routes {
    runtime: Runtime,
    host: Host,
}

impl Routes {
    fn open() -> Result<Self> {
        let runtime =
            tokio::runtime::Builder::new_current_thread().enable_all().build().context("cannot start the runtime")?;
        let host = runtime.block_on(async { Host::open() })?;
        Ok(Self { runtime, host })
    }

    fn output(&self, dst: IpAddr, src: Option<IpAddr>) -> Result<Option<OutputRoute>> {
        Ok(self.runtime.block_on(self.host.output_route(dst, src))?)
    }
}

/// The MAC of an interface of this namespace; zeros if it has none.
fn own_mac(ifindex: IfIndex) -> Mac {
    let Some(name) = crate::datapath::view::interface_name(ifindex) else { return Mac::default() };
    let mut addresses =
        nix::ifaddrs::getifaddrs().into_iter().flatten().filter(|address| address.interface_name == name);
    let mac = addresses.find_map(|address| address.address?.as_link_addr()?.addr());
    mac.map(Mac).unwrap_or_default()
}

/// Traces the packets that the arguments ask for.
fn trace<N: Node>(tracer: &Tracer<'_, N>, args: &TraceArgs) -> Result<Traces> {
    let frames = match (&args.pcap, &args.hex) {
        (Some(path), _) => capture::read(path)?,
        (None, Some(digits)) => vec![capture::digits(digits)?],
        (None, None) => return Ok(Traces(vec![described(tracer, args)?])),
    };
    let mut traces = Vec::new();
    for frame in frames {
        let summary = Summary::of(&frame);
        let v6 = summary.as_ref().map_or(args.ipv6, |summary| summary.src.is_ipv6());
        let origin = origin(tracer, args, v6)?;
        let make = |_| {
            let mut frame = frame.clone();
            // A frame from a capture without Ethernet headers has no MACs.
            if let Some(macs) = frame.get_mut(..12).filter(|macs| macs.iter().all(|byte| *byte == 0)) {
                macs.copy_from_slice(bytemuck::bytes_of(&origin.macs));
            }
            Ok(frame)
        };
        traces.push(tracer.trace(origin.sender, None, &make)?);
    }
    Ok(Traces(traces))
}

/// Traces the packet that the arguments describe.
fn described<N: Node>(tracer: &Tracer<'_, N>, args: &TraceArgs) -> Result<report::Trace> {
    let target = target(tracer, args)?;
    let v6 = target.addr.is_ipv6();
    let origin = origin(tracer, args, v6)?;
    let proto = match (args.proto.or(target.proto), args.icmp_type.is_some()) {
        (Some(Proto::ICMP | Proto::ICMPV6), _) | (None, true) => {
            if v6 {
                Proto::ICMPV6
            } else {
                Proto::ICMP
            }
        }
        (Some(proto), _) => proto,
        (None, false) => Proto::TCP,
    };
    let carries_ports = [Proto::TCP, Proto::UDP, Proto::SCTP].contains(&proto);
    if carries_ports && target.port.is_none() && args.fragment.is_none_or(|fragment| fragment.offset == 0) {
        bail!("{} needs a port: use {}:PORT", protocol(proto), args.to.as_deref().unwrap_or_default());
    }
    let icmp =
        fields::parse_icmp(args.icmp_type.as_deref().unwrap_or("echo-request"), v6).map_err(anyhow::Error::msg)?;
    let make = |instead: Option<(IpAddr, u16)>| {
        let (dst, dport) = instead.unwrap_or((target.addr, target.port.unwrap_or_default()));
        let src = match origin.address {
            Some(address) => address,
            None => host_source(tracer, dst)?,
        };
        let description = Description {
            src,
            dst,
            proto,
            sport: args.sport.unwrap_or(SPORT),
            dport,
            tcp_flags: args.tcp_flags,
            icmp: IcmpType { identifier: args.icmp_id, ..icmp },
            ttl: args.ttl,
            size: args.size,
            dont_fragment: args.dont_fragment,
            fragment: args.fragment,
        };
        Ok(description.frame(origin.macs))
    };
    let process = Process { bound: args.sport.is_some(), connected: args.connected };
    tracer.trace(origin.sender, Some(process), &make)
}

/// The source address of a process of the host.
fn host_source<N>(tracer: &Tracer<'_, N>, dst: IpAddr) -> Result<IpAddr> {
    let route = (tracer.output)(dst, None)?.with_context(|| format!("no route to {dst} on this host"))?;
    route.source.with_context(|| format!("no source address for {dst} on this host"))
}

/// The destination of a packet.
struct Target {
    addr: IpAddr,
    port: Option<u16>,
    /// Protocol of the service.
    proto: Option<Proto>,
}

/// Parses the destination.
fn target<N: Node>(tracer: &Tracer<'_, N>, args: &TraceArgs) -> Result<Target> {
    let text = args.to.as_deref().unwrap_or_default();
    if let Ok(address) = text.parse::<SocketAddr>() {
        return Ok(Target { addr: address.ip(), port: Some(address.port()), proto: None });
    }
    if let Ok(addr) = text.trim_start_matches('[').trim_end_matches(']').parse::<IpAddr>() {
        return Ok(Target { addr, port: None, proto: None });
    }
    let (object, port) = text.split_once(':').map_or((text, None), |(object, port)| (object, Some(port)));
    match object.split('/').collect::<Vec<_>>().as_slice() {
        ["pod", namespace, name] => {
            let port = port.map(|port| port.parse().with_context(|| format!("{port} is not a port"))).transpose()?;
            let addresses = tracer.names.pods.addresses(namespace, name);
            let addr = of_family(&addresses, args.ipv6).with_context(|| no_such_pod(namespace, name))?;
            Ok(Target { addr, port, proto: None })
        }
        [namespace, name] => service(tracer, args, namespace, name, port),
        _ => bail!(
            "{text} is not a destination: use NAMESPACE/SERVICE:PORT, pod/NAMESPACE/NAME:PORT or ADDRESS:PORT, with \
             IPv6 in brackets"
        ),
    }
}

fn no_such_pod(namespace: &str, name: &str) -> String {
    format!("no pod {namespace}/{name} on this node; see `podnet endpoint list`")
}

/// An address of the preferred family, or else of the other.
fn of_family(addresses: &[IpAddr], v6: bool) -> Option<IpAddr> {
    addresses.iter().copied().find(|addr| addr.is_ipv6() == v6).or_else(|| addresses.first().copied())
}

/// A port of a service: at its ClusterIP, if it has one.
fn service<N: Node>(
    tracer: &Tracer<'_, N>,
    args: &TraceArgs,
    namespace: &str,
    name: &str,
    port: Option<&str>,
) -> Result<Target> {
    let mut found: Vec<(FrontendKey, Frontend, &str)> = Vec::new();
    for (key, frontend) in tracer.view.frontends()? {
        let Some(service) = tracer.names.services.name(ServiceId(frontend.service)) else { continue };
        let own = service.service.namespace == namespace && service.service.name == name;
        if own && key.scope == FrontendKey::ANY && key != FrontendKey::address(key.addr) && !of_node(&key) {
            found.push((key, frontend, &service.port));
        }
    }
    if found.is_empty() {
        bail!("no service {namespace}/{name} with an address of its own in the tables; see `podnet service list`");
    }
    let ports: BTreeSet<_> = found.iter().map(|(key, _, name)| (key.port.get(), protocol(key.proto), *name)).collect();
    let listed = ports.iter().map(|(port, proto, name)| format!("{port}/{proto} {name}").trim_end().to_owned());
    let listed = listed.collect::<Vec<_>>().join(", ");
    found.retain(|(key, _, name)| {
        port.is_none_or(|port| *name == port || port.parse() == Ok(key.port.get()))
            && args.proto.is_none_or(|proto| proto == key.proto || matches!(proto, Proto::ICMP | Proto::ICMPV6))
    });
    let chosen: BTreeSet<_> = found.iter().map(|(key, _, _)| key.port.get()).collect();
    if chosen.len() != 1 && args.icmp_type.is_none() {
        bail!("{namespace}/{name} has these ports: {listed}. Choose one with {namespace}/{name}:PORT");
    }
    // ClusterIPs first, then the preferred family, then TCP.
    found.sort_by_key(|(key, frontend, _)| {
        (frontend.flags & Frontend::EXTERNAL != 0, key.addr.is_v4() == args.ipv6, key.proto, key.addr)
    });
    let (key, ..) = found.first().with_context(|| format!("{namespace}/{name} has no such port, only {listed}"))?;
    let proto = if args.icmp_type.is_some() { None } else { Some(key.proto) };
    Ok(Target { addr: key.addr.into(), port: Some(key.port.get()), proto })
}

/// The sender of a packet.
struct Origin {
    sender: Sender,
    /// `None`: the host's address, which depends on the route.
    address: Option<IpAddr>,
    /// Destination and source.
    macs: [Mac; 2],
}

/// Parses the sender, for packets of a family.
fn origin<N: Node>(tracer: &Tracer<'_, N>, args: &TraceArgs, v6: bool) -> Result<Origin> {
    if args.from == "host" {
        let config = tracer.node.config().copied().unwrap_or_default();
        return Ok(Origin { sender: Sender::Host, address: None, macs: [config.podnet1_mac, config.podnet0_mac] });
    }
    if let Some(("pod", pod)) = args.from.split_once('/') {
        let Some((namespace, name)) = pod.split_once('/') else {
            bail!("{} is not a pod: use pod/NAMESPACE/NAME", args.from);
        };
        let addresses = tracer.names.pods.addresses(namespace, name);
        if addresses.is_empty() {
            bail!("{}", no_such_pod(namespace, name));
        }
        let family = if v6 { "IPv6" } else { "IPv4" };
        let address = addresses.into_iter().find(|addr| addr.is_ipv6() == v6);
        let address = address.with_context(|| format!("the pod {pod} has no {family} address"))?;
        let endpoint = tracer.node.endpoint(&address.into());
        let endpoint = endpoint.with_context(|| {
            format!("the table endpoints has no entry for {address}: the pod {pod} has no connectivity")
        })?;
        return Ok(of_pod(address, endpoint));
    }
    let (address, interface) = args.from.split_once('%').map_or((args.from.as_str(), None), |(a, i)| (a, Some(i)));
    let Ok(address) = address.parse::<IpAddr>() else {
        bail!("{} is not a sender: use pod/NAMESPACE/NAME, host or ADDRESS[%INTERFACE]", args.from);
    };
    if address.is_ipv6() != v6 && args.pcap.is_none() && args.hex.is_none() {
        bail!("{address} and the destination are of different families");
    }
    let addr = Addr::from(address);
    if let (Some(endpoint), None) = (tracer.node.endpoint(&addr), interface) {
        return Ok(of_pod(address, endpoint));
    }
    let network = tracer.node.network(&addr);
    let is = |kind: NetworkKind| network.is_some_and(|network| network.kind == kind as u32);
    if is(NetworkKind::LocalNode) && interface.is_none() {
        let config = tracer.node.config().copied().unwrap_or_default();
        let macs = [config.podnet1_mac, config.podnet0_mac];
        return Ok(Origin { sender: Sender::Host, address: Some(address), macs });
    }
    let ifindex = match interface {
        Some(name) => IfIndex(nix::net::if_::if_nametoindex(name).with_context(|| format!("no interface {name}"))?),
        None => towards(tracer, address, network)?,
    };
    // A pod that uses the address of another.
    if let Some((_, endpoint)) = tracer.view.endpoints()?.iter().find(|(_, endpoint)| endpoint.ifindex == ifindex) {
        let macs = [endpoint.host_mac, args.mac.unwrap_or(endpoint.mac)];
        return Ok(Origin { sender: Sender::Pod(ifindex), address: Some(address), macs });
    }
    let config = tracer.node.config().copied().unwrap_or_default();
    let tunnelled = ifindex == config.tunnel;
    let known = network.map(|network| network.mac).filter(|mac| *mac != Mac::default());
    let own = if tunnelled { config.tunnel_mac } else { (tracer.own_mac)(ifindex) };
    let macs = [own, args.mac.or(known).unwrap_or(SOME_MAC)];
    Ok(Origin { sender: Sender::Outside(ifindex), address: Some(address), macs })
}

fn of_pod(address: IpAddr, endpoint: &Endpoint) -> Origin {
    let macs = [endpoint.host_mac, endpoint.mac];
    Origin { sender: Sender::Pod(endpoint.ifindex), address: Some(address), macs }
}

/// The interface on which packets of a machine arrive: that of the route to it.
fn towards<N: Node>(tracer: &Tracer<'_, N>, address: IpAddr, network: Option<&Network>) -> Result<IfIndex> {
    let config = tracer.node.config().copied().unwrap_or_default();
    let by_tunnel = network.is_some_and(|n| n.flags & Network::TUNNEL != 0 && n.kind == NetworkKind::RemotePods as u32);
    if by_tunnel {
        return Ok(config.tunnel);
    }
    let route = (tracer.output)(address, None)?;
    let route = route.filter(|route| !route.local && route.ifindex != config.podnet0);
    let route = route.with_context(|| {
        format!("no interface has a route to {address}: choose one with --from {address}%INTERFACE")
    })?;
    Ok(route.ifindex)
}
