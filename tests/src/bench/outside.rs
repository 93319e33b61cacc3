//! TCP between the cluster and an external client on the nodes' link.
//!
//! | row | from, to | baseline |
//! |---|---|---|
//! | `nodeport_snat` | outside → first node's NodePort → backend on the second, which sees the first | `far@routed` |
//! | `nodeport_dsr` | the same, but the backend sees and answers the client | `nodeport_snat`, `far_one_way@routed` |
//! | `nodeport_local` | outside → NodePort of the first node → backend there (traffic policy Local) | `near@routed` |
//! | `egress_masquerade` | pod on the first node → outside, which sees the node | `egress@routed` |
//! | `far@routed` | outside → the backend's pod on the second node, both directions routed by the first node | |
//! | `far_one_way@routed` | the same, with direct replies | `far@routed` |
//! | `near@routed`, `egress@routed` | outside → pod on the first node, and vice versa | |
//! | `…@{iptables,nftables}-{1,10000}` | with kube-proxy's rules, and one rule for masquerade | the routed row |
//!
//! podnet translates at TC here: on veth pairs, XDP costs more than it saves.

use anyhow::Result;

use super::{
    Options,
    paths::{MODES, PODNET, SLICE, round_count},
    results::Results,
    rounds::{self, Variant},
    services::{MANY, NodePort},
    topology::{Kind, Topologies, Way},
    traffic::Metric,
};

/// Measures all requested rows.
pub fn run(options: &Options, topologies: &Topologies, results: &mut Results) -> Result<()> {
    for metric in Metric::ALL {
        let mut variants = variants(metric, topologies);
        if rounds::select(options, &mut variants) {
            let title = format!("{} outside", metric.name());
            rounds::interleave(&title, metric.unit(), round_count(options), variants, results)?;
        }
    }
    Ok(())
}

/// Rows of a metric; rows that are compared are adjacent in time.
fn variants<'a>(metric: Metric, topologies: &'a Topologies) -> Vec<Variant<'a>> {
    let row = |what: &str| format!("{}/outside/{what}", metric.name());
    let mut variants = Vec::new();
    let mut add = |what: &str, baselines: &[&str], kind: Kind, way: Way| {
        let baselines: Vec<String> = baselines.iter().map(|baseline| row(baseline)).collect();
        variants.push(Variant::new(row(what), &baselines, move || {
            topologies.with(kind, |topology| topology.measure(metric, way, SLICE))
        }));
    };
    for (what, way, baseline, routed) in [
        ("nodeport_snat", Way::ToNodePort(NodePort::Snat), "far@routed", Way::ToFar),
        ("nodeport_local", Way::ToNodePort(NodePort::Local), "near@routed", Way::ToNear),
        ("egress_masquerade", Way::ToOutside, "egress@routed", Way::ToOutside),
    ] {
        let peer = |mode, services| format!("{what}@{}", Kind::KubeProxy(mode, services));
        let peers = MODES.map(|mode| peer(mode, 1));
        add(baseline, &[], Kind::Routed, routed);
        add(what, &[baseline, &peers[0], &peers[1]], PODNET, way);
        MODES.iter().for_each(|mode| add(&peer(*mode, 1), &[baseline], Kind::KubeProxy(*mode, 1), way));
        if way == Way::ToNodePort(NodePort::Snat) {
            let peers = MODES.map(|mode| peer(mode, MANY));
            let many = format!("{what}@{}", Kind::Podnet(MANY));
            add("nodeport_dsr", &[what, "far_one_way@routed"], PODNET, Way::ToNodePort(NodePort::Dsr));
            add("far_one_way@routed", &[baseline], Kind::Routed, Way::ToFarOneWay);
            add(&many, &[what, &peers[0], &peers[1]], Kind::Podnet(MANY), way);
            MODES.iter().for_each(|mode| add(&peer(*mode, MANY), &[baseline], Kind::KubeProxy(*mode, MANY), way));
        }
    }
    variants
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn every_baseline_is_measured_once() {
        let topologies = Topologies::default();
        let variants = variants(Metric::TcpCrr, &topologies);
        let names: BTreeSet<&str> = variants.iter().map(|variant| variant.name.as_str()).collect();
        assert_eq!(names.len(), variants.len());
        for variant in &variants {
            for baseline in &variant.baselines {
                assert!(names.contains(baseline.as_str()), "{} is compared with {baseline}", variant.name);
            }
        }
        assert!(names.contains("tcp_crr/outside/nodeport_snat@nftables-10000"));
    }
}
