//! The cost of network policy for a packet from a pod to a service with a local backend: of a flow's first packet and
//! of an established flow.
//!
//! | row | policies |
//! |---|---|
//! | `…/none` | none: the baseline |
//! | `…/others` | one, about other pods of the node |
//! | `…/subject` | one for egress of the client and one for ingress of the backends, which allow the flow |
//! | `…/subject@1000_policies` | beside these, 1,000 about other pods of the node |
//! | `…/subject@200_policies` | 200 for egress of the client, of which the last by name allows the flow |
//! | `…/subject@100000_peers` | the rules select 100,000 pods of another node, too |
//! | `…/cluster` | as `subject`, in the tiers of ClusterNetworkPolicies |

use std::{
    cell::Cell,
    net::{IpAddr, Ipv4Addr},
};

use anyhow::Result;
use podnet::{
    model::{
        Action, ClusterNetworkPolicy, ClusterRule, LabelCondition, LeftOut, NetworkPolicy, ObjectName, Pod, PolicyPeer,
        PolicyPort, PolicyRule, PortMatch, Protocol, Requirement, Selector, Tier,
    },
    policy::Policies,
};
use podnet_common::{layout::Hook, tables};

use super::{
    Options,
    chain::{Chain, REPEAT, Rewrite},
    results::Results,
    rig::{Rig, secluded},
    rounds::{self, Variant},
    worker,
};
use crate::traffic::Family;

const ROUNDS: usize = 40;
const QUICK_ROUNDS: usize = 8;
const PACKETS: u32 = 200 * REPEAT;
const ESTABLISHED_PORT: u16 = 40_000;
const FIRST_PORT: u16 = 50_000;
const NODE: &str = "node1";
/// Numbers of policies and pods.
const MANY: usize = 1_000;
const OF_ONE_POD: usize = 200;
const PEERS: u32 = 100_000;

type Fill = fn(&mut Policies);

/// Rows, with what fills the cluster.
const CASES: [(&str, Fill); 7] = [
    ("none", |_| {}),
    ("others", |policies| set(policies, "other", "other", vec![allow("backend")])),
    ("subject", subjects),
    ("subject@1000_policies", |policies| {
        (0..MANY).for_each(|i| set(policies, &format!("other-{i:04}"), "other", vec![allow(&format!("app-{i}"))]));
        subjects(policies);
    }),
    ("subject@200_policies", |policies| {
        let rules = |i: usize| vec![allow(if i + 1 == OF_ONE_POD { "backend" } else { "other" })];
        (0..OF_ONE_POD).for_each(|i| set(policies, &format!("own-{i:04}"), "client", rules(i)));
    }),
    ("subject@100000_peers", |policies| {
        for number in 0..PEERS {
            let ip = Ipv4Addr::from(u32::from(Ipv4Addr::new(10, 128, 0, 0)) + number);
            add(policies, &format!("far-{number}"), "backend", "node2", ip.into());
        }
        subjects(policies);
    }),
    ("cluster", |policies| {
        let rule = |action, app: &str| ClusterRule { name: "".into(), action, matches: allow(app) };
        let policy = ClusterNetworkPolicy {
            uid: "".into(),
            tier: Tier::Admin,
            priority: 10,
            namespaces: Selector::default(),
            pods: Selector::default(),
            ingress: vec![rule(Action::Deny, "other"), rule(Action::Accept, "client")],
            egress: vec![rule(Action::Deny, "other"), rule(Action::Accept, "backend")],
            left_out: LeftOut::default(),
        };
        policies.set_policy(&name("", "cluster"), Some(policy.into()));
    }),
];

const KINDS: [(&str, bool); 2] = [("established", false), ("first", true)];

fn row(kind: &str, case: &str) -> String {
    format!("ns_per_packet/policy/{kind}/{case}")
}

/// Measures all requested rows.
pub fn run(options: &Options, results: &mut Results) -> Result<()> {
    let rows = KINDS.iter().flat_map(|(kind, _)| CASES.iter().map(|(case, _)| row(kind, case)));
    if !rows.into_iter().any(|row| options.wants(&row)) {
        return Ok(());
    }
    let count = if options.quick { QUICK_ROUNDS } else { ROUNDS };
    secluded(|bpffs| {
        worker::settle()?;
        let rig = Rig::new(&bpffs.join("rig"), tables::CONNTRACK.capacity() as u32)?;
        let [established, first] = [false, true].map(|first| chain(&rig, first));
        rig.establish(&[established])?;
        rig.serve(&first)?;
        let clusters = CASES.iter().map(|(_, fill)| cluster(&first, *fill)).collect();
        let scene = Scene { rig: &rig, chain: first, clusters, in_force: Cell::new(0) };
        let position = Cell::new(0);
        let mut variants = Vec::new();
        for (kind, opens) in KINDS {
            let baseline = row(kind, CASES[0].0);
            for (number, (case, _)) in CASES.iter().enumerate() {
                let name = row(kind, case);
                let baselines: &[String] = if name == baseline { &[] } else { std::slice::from_ref(&baseline) };
                let (rig, scene, position) = (&rig, &scene, &position);
                let sample = move || match opens {
                    true => rig.sample_first(Hook::FromPod, first),
                    false => rig.sample_established(Hook::FromPod, &established, position, PACKETS),
                };
                variants.push(Variant::new(name, baselines, move || {
                    scene.set(number)?;
                    // The change of the tables has displaced the caches.
                    sample()?;
                    sample()
                }));
            }
        }
        rounds::select(options, &mut variants);
        rounds::interleave("ns_per_packet/policy", "ns", count, variants, results)
    })
}

/// A rig in which the policies change. Two rigs with the same policies differ by some percent as long as they exist.
struct Scene<'a> {
    rig: &'a Rig,
    chain: Chain,
    /// Policies by number of the case; `None`: none.
    clusters: Vec<Option<Policies>>,
    /// Number of the case whose policies are in force. The first has none.
    in_force: Cell<usize>,
}

impl Scene<'_> {
    /// Puts the policies of a case into force.
    fn set(&self, case: usize) -> Result<()> {
        if self.in_force.get() == case {
            return Ok(());
        }
        if let Some(policies) = &self.clusters[self.in_force.replace(case)] {
            self.rig.lift(policies.desired(), &self.chain)?;
        }
        let policies = self.clusters[case].as_ref();
        policies.map_or(Ok(()), |policies| self.rig.enforce(policies.desired(), &self.chain))
    }
}

fn chain(rig: &Rig, first: bool) -> Chain {
    let (steps, pod_port) = if first { (REPEAT, FIRST_PORT) } else { (2, ESTABLISHED_PORT) };
    Chain {
        family: Family::V4,
        rewrite: Rewrite::Destination,
        steps,
        in_ifindex: rig.pod,
        out_ifindex: rig.other,
        pod_port,
    }
}

/// The policies of a cluster with the pods of a chain; `None` if there are none.
fn cluster(chain: &Chain, fill: Fill) -> Option<Policies> {
    let mut policies = Policies::new(NODE);
    add(&mut policies, "client", "client", NODE, chain.pod());
    for (number, ip) in chain.others().into_iter().enumerate() {
        add(&mut policies, &format!("backend-{number}"), "backend", NODE, ip);
    }
    add(&mut policies, "other", "other", NODE, Ipv4Addr::new(10, 244, 1, 200).into());
    fill(&mut policies);
    policies.update();
    (!policies.is_empty()).then_some(policies)
}

/// Policies for both ends of the flow.
fn subjects(policies: &mut Policies) {
    set(policies, "client", "client", vec![allow("backend")]);
    let ingress =
        NetworkPolicy { pods: app("backend"), ingress: Some(vec![allow("client")]), ..NetworkPolicy::default() };
    policies.set_policy(&name("default", "backend"), Some(ingress.into()));
}

/// Sets a policy for egress of the pods of an app.
fn set(policies: &mut Policies, policy: &str, of: &str, rules: Vec<PolicyRule>) {
    let egress = NetworkPolicy { pods: app(of), egress: Some(rules), ..NetworkPolicy::default() };
    policies.set_policy(&name("default", policy), Some(egress.into()));
}

/// A rule about the pods of an app, and all ports.
fn allow(peers: &str) -> PolicyRule {
    let ports = PolicyPort { protocol: Protocol::Tcp, ports: PortMatch::Range(1, u16::MAX) };
    let peers = PolicyPeer::Pods { namespaces: Some(Selector::default()), pods: app(peers) };
    PolicyRule { peers: Some(vec![peers]), ports: Some(vec![ports]) }
}

fn app(name: &str) -> Selector {
    Selector(vec![Requirement { key: "app".into(), condition: LabelCondition::In(vec![name.into()]) }])
}

fn add(policies: &mut Policies, pod: &str, app: &str, node: &str, ip: IpAddr) {
    let labels = [("app", app)].into_iter().collect();
    let object = Pod { node: node.into(), labels, ips: vec![ip], ..Pod::default() };
    policies.set_pod(&name("default", pod), Some(&object));
}

fn name(namespace: &str, name: &str) -> ObjectName {
    ObjectName { namespace: namespace.into(), name: name.into() }
}
