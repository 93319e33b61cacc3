//! TCP through every topology (streams, requests on one connection, short connections), and UDP packets of many flows.
//!
//! | row | topology |
//! |---|---|
//! | `…/direct`, `…/clusterip`, `…/direct_host`, `…/clusterip_host` | podnet with one service |
//! | `…/clusterip@podnet-1`, `…@podnet-10000` | podnet with so many services; the first is `…/clusterip` itself |
//! | `…/direct@routed` | plain routed veth pairs, no connection tracking |
//! | `…/{direct,clusterip}@{iptables,nftables}-{1,10000}` | the same pairs with kube-proxy's rules |
//! | `…/{direct,clusterip}@socket` | podnet with one service and socket load balancing for pods |
//! | `…/{direct,clusterip}@unpoliced` | podnet with one service, in a lab in which policies come and go |
//! | `…/{direct,clusterip}@policed` | the same lab with network policies for the pods |
//! | `…/{direct,clusterip}@others-policed` | the same lab with network policies for other pods |
//! | `…/cross_node/{direct,clusterip}@vxlan` | podnet with one service and its tunnel between the nodes |
//! | `…/cross_node/direct@routed-vxlan` | plain routing through a VXLAN device of the kernel |
//! | `udp_flows/{100,100000}@…` | so many flows in turn, from pod to pod on one node through the service |

use std::time::Duration;

use anyhow::Result;

use super::{
    Options,
    kube_proxy::Mode,
    results::{Results, Series},
    rounds::{self, Variant},
    services::MANY,
    topology::{Distance, Kind, Policed, Topologies, Way},
    traffic::Metric,
};

/// Rounds of a full run: twice as many as a verdict requires, to distinguish ratios of 0.97 from 1 in spite of noise.
const ROUNDS: usize = 48;
const QUICK_ROUNDS: usize = 6;
/// Duration of a sample.
pub const SLICE: Duration = Duration::from_millis(150);

/// Default topology of a row.
pub const PODNET: Kind = Kind::Podnet(1);
/// Modes of kube-proxy.
pub const MODES: [Mode; 2] = [Mode::Nftables, Mode::Iptables];

/// Number of rounds of a run.
pub const fn round_count(options: &Options) -> usize {
    if options.quick { QUICK_ROUNDS } else { ROUNDS }
}

/// Measures all requested rows.
pub fn run(options: &Options, topologies: &Topologies, results: &mut Results) -> Result<()> {
    let count = round_count(options);
    for metric in Metric::ALL {
        for distance in Distance::ALL {
            let mut variants = tcp_variants(metric, distance, topologies);
            if rounds::select(options, &mut variants) {
                let title = format!("{} {}", metric.name(), distance.name());
                rounds::interleave(&title, metric.unit(), count, variants, results)?;
                name_podnet_1(results, &format!("{}/{}", metric.name(), distance.name()));
            }
        }
    }
    let mut variants = flow_variants(topologies);
    if rounds::select(options, &mut variants) {
        rounds::interleave("udp_flows", "ns", count, variants, results)?;
    }
    Ok(())
}

/// Rows of a metric and distance; rows that are compared are adjacent in time.
fn tcp_variants<'a>(metric: Metric, distance: Distance, topologies: &'a Topologies) -> Vec<Variant<'a>> {
    let row = |what: &str| format!("{}/{}/{what}", metric.name(), distance.name());
    let variant = |what: String, baselines: &[&str], kind: Kind, way: fn(Distance) -> Way| {
        let baselines: Vec<String> = baselines.iter().map(|b| row(b)).collect();
        Variant::new(row(&what), &baselines, move || {
            topologies.with(kind, |topology| topology.measure(metric, way(distance), SLICE))
        })
    };
    let mut variants = vec![
        variant("direct@routed".into(), &[], Kind::Routed, Way::Direct),
        variant("direct".into(), &["direct@routed"], PODNET, Way::Direct),
        variant("clusterip".into(), &["direct"], PODNET, Way::ClusterIp),
        variant("clusterip@podnet-10000".into(), &["clusterip"], Kind::Podnet(MANY), Way::ClusterIp),
    ];
    for services in [1, MANY] {
        for mode in MODES {
            let kind = Kind::KubeProxy(mode, services);
            variants.push(variant(format!("direct@{kind}"), &["direct@routed"], kind, Way::Direct));
            variants.push(variant(format!("clusterip@{kind}"), &[&format!("direct@{kind}")], kind, Way::ClusterIp));
        }
    }
    variants.push(variant("direct@socket".into(), &[], Kind::Socket, Way::Direct));
    variants.push(variant("clusterip@socket".into(), &["direct@socket"], Kind::Socket, Way::ClusterIp));
    for policed in [Policed::None, Policed::All, Policed::Others] {
        let kind = Kind::Policed(policed);
        for (name, way) in [("direct", Way::Direct as fn(Distance) -> Way), ("clusterip", Way::ClusterIp)] {
            let baseline = format!("{name}@{}", Kind::Policed(Policed::None));
            let baselines = if policed == Policed::None { vec![] } else { vec![baseline.as_str()] };
            variants.push(variant(format!("{name}@{kind}"), &baselines, kind, way));
        }
    }
    if distance == Distance::CrossNode {
        let routed = "direct@routed-vxlan";
        variants.push(variant(routed.into(), &["direct@routed"], Kind::RoutedVxlan, Way::Direct));
        variants.push(variant("direct@vxlan".into(), &[routed, "direct"], Kind::Vxlan, Way::Direct));
        variants.push(variant("clusterip@vxlan".into(), &["direct@vxlan", routed], Kind::Vxlan, Way::ClusterIp));
    }
    variants.push(variant("direct_host".into(), &[], PODNET, Way::DirectHost));
    variants.push(variant("clusterip_host".into(), &["direct_host"], PODNET, Way::ClusterIpHost));
    variants
}

/// Adds `…/clusterip@podnet-1`, the same measurement as `…/clusterip`, beside its peers, as the baseline of
/// `@podnet-10000`.
fn name_podnet_1(results: &mut Results, prefix: &str) {
    let row = |what: &str| format!("{prefix}/clusterip@{what}");
    let peers = |services: usize| MODES.map(|mode| row(&Kind::KubeProxy(mode, services).to_string())).to_vec();
    if let Some(one) = results.get(&format!("{prefix}/clusterip")).cloned() {
        results.push(Series { name: row("podnet-1"), baselines: peers(1), ..one });
    }
    if let Some(many) = results.get_mut(&row("podnet-10000")) {
        many.baselines = [vec![row("podnet-1")], peers(MANY)].concat();
    }
}

/// Numbers of flows in a small and a large table.
const FLOWS: [u32; 2] = [100, 100_000];
/// Packets per sample: one per flow of the large table.
const PACKETS: u32 = 100_000;

fn flow_variants<'a>(topologies: &'a Topologies) -> Vec<Variant<'a>> {
    let row = |flows: u32, kind: Kind| format!("udp_flows/{flows}@{kind}");
    let mut variants = Vec::new();
    for kind in [PODNET, Kind::KubeProxy(Mode::Nftables, 1), Kind::KubeProxy(Mode::Iptables, 1)] {
        for flows in FLOWS {
            let mut baselines = Vec::new();
            if flows != FLOWS[0] {
                baselines.push(row(FLOWS[0], kind));
            }
            if kind != PODNET {
                baselines.push(row(flows, PODNET));
            }
            variants.push(Variant::new(row(flows, kind), &baselines, move || {
                topologies.with(kind, |topology| topology.flows(flows, PACKETS))
            }));
        }
    }
    variants
}
