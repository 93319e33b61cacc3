//! Which addresses and pod CIDRs of Nodes are admitted: those that conflict with older claims are left out.
//!
//! A Node's credentials can write that Node, and any address in it attracts traffic. So a claim is admitted only if it
//! takes nothing from others: of two conflicting claims the older one wins. Age is the order of arrival, which survives
//! the daemon (`ages`). Among claims that arrive at once, as all do when a node first sees them, the Node with the
//! earlier `creationTimestamp`, then the lesser name, wins, so all nodes decide alike. This node's own claims are the
//! oldest: it never gives away the addresses of its pods.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;

use ipnetwork::IpNetwork;

use super::ages::Ages;
use super::claim::Claim;
use crate::guard::HostFacts;
use crate::model::Node;
use crate::prefixes::overlap;

fn claims(node: &Node) -> impl Iterator<Item = Claim> {
    let addresses = node.internal_ips.iter().copied().map(Claim::Address);
    addresses.chain(node.pod_cidrs.iter().copied().map(Claim::Pods))
}

/// The age of each claim.
#[derive(Clone, Debug, Default)]
pub struct Claims {
    /// By node. Later claims have larger numbers.
    since: BTreeMap<String, Vec<(Claim, u64)>>,
    /// The number of all claims that are new during the initial list.
    start: u64,
    clock: u64,
    /// Claims seen by earlier daemons, until the sources are synced.
    remembered: BTreeMap<String, Vec<(Claim, u64)>>,
    /// Whether the file must be written.
    changed: bool,
}

/// What claims are checked against, besides each other.
#[derive(Clone, Copy, Debug)]
pub struct Setting<'a> {
    /// This node's name.
    pub own: &'a str,
    /// The ranges of service addresses.
    pub services: &'a BTreeSet<IpNetwork>,
    /// `protectedAddresses`.
    pub protected: &'a [IpNetwork],
    /// Facts about this host.
    pub host: &'a HostFacts,
}

/// The outcome: Nodes with their admitted claims, and the reasons for those that are left out.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Evaluated {
    /// By name.
    pub nodes: BTreeMap<String, Arc<Node>>,
    /// By name: why claims are left out. Contains only Nodes with such claims.
    pub refused: BTreeMap<String, Vec<String>>,
}

impl Claims {
    /// Starts with the claims seen by earlier daemons.
    pub(super) fn remember(ages: Option<Ages>) -> Self {
        let Some(ages) = ages else { return Self { changed: true, ..Self::default() } };
        let start = ages.clock + 1;
        Self { start, clock: start, remembered: ages.claims(), ..Self::default() }
    }

    /// The sources are synced: forgets remembered claims of Nodes that are gone.
    pub(super) fn settle(&mut self) {
        self.changed |= !self.remembered.is_empty();
        self.remembered.clear();
    }

    /// The ages to be written, if they have changed.
    pub(super) fn take_changed(&mut self) -> Option<Ages> {
        std::mem::take(&mut self.changed).then(|| Ages::new(self.clock, self.since.iter()))
    }

    /// Records a changed or (`None`) deleted Node. `first`: it belongs to the initial list.
    pub fn note(&mut self, name: &str, node: Option<&Node>, first: bool) {
        let before = self.since.remove(name);
        let Some(node) = node else {
            self.changed |= before.is_some();
            return;
        };
        self.clock += u64::from(!first);
        let before = before.or_else(|| self.remembered.remove(name)).unwrap_or_default();
        let since = |claim: &Claim| before.iter().find(|(known, _)| known == claim).map(|(_, since)| *since);
        let default = if first { self.start } else { self.clock };
        let now: Vec<_> = claims(node).map(|claim| (claim, since(&claim).unwrap_or(default))).collect();
        self.changed |= now != before;
        self.since.insert(name.to_owned(), now);
    }

    /// The admitted claims of all Nodes.
    pub fn evaluate(&self, nodes: &BTreeMap<String, Arc<Node>>, setting: Setting<'_>) -> Evaluated {
        let mut order = Vec::new();
        for (name, node) in nodes {
            let since = self.since.get(name).map_or(&[][..], Vec::as_slice);
            // Nodes without a timestamp come last.
            let created = (node.created.is_empty(), &*node.created);
            order.extend(
                since.iter().map(|(claim, since)| (name != setting.own, *since, created, name.as_str(), *claim)),
            );
        }
        order.sort_unstable();
        let mut court = Court { setting, addresses: BTreeMap::new(), pods: BTreeMap::new() };
        let (mut lost, mut refused) =
            (BTreeMap::<&str, BTreeSet<Claim>>::new(), BTreeMap::<String, Vec<String>>::new());
        for (_, _, _, name, claim) in order {
            if let Err(why) = court.admit(name, &nodes[name], claim) {
                lost.entry(name).or_default().insert(claim);
                refused.entry(name.to_owned()).or_default().push(why);
            }
        }
        let without = |name: &str, node: &Arc<Node>| {
            let Some(lost) = lost.get(name) else { return node.clone() };
            let mut node = Node::clone(node);
            node.internal_ips.retain(|ip| !lost.contains(&Claim::Address(*ip)));
            node.pod_cidrs.retain(|range| !lost.contains(&Claim::Pods(*range)));
            Arc::new(node)
        };
        let nodes = nodes.iter().map(|(name, node)| (name.clone(), without(name, node))).collect();
        Evaluated { nodes, refused }
    }
}

/// Claims admitted so far.
struct Court<'a> {
    setting: Setting<'a>,
    addresses: BTreeMap<IpAddr, &'a str>,
    /// By first address. The ranges are disjoint.
    pods: BTreeMap<IpAddr, (IpNetwork, &'a str)>,
}

impl<'a> Court<'a> {
    fn admit(&mut self, name: &'a str, node: &Node, claim: Claim) -> Result<(), String> {
        match claim {
            Claim::Address(ip) => {
                self.address(name, node, ip).map_err(|why| format!("its InternalIP {ip} is ignored: {why}"))?;
                self.addresses.insert(ip, name);
            }
            Claim::Pods(range) => {
                self.range(name, range).map_err(|why| format!("its pod CIDR {range} is ignored: {why}"))?;
                self.pods.insert(range.network(), (range, name));
            }
        }
        Ok(())
    }

    fn address(&self, name: &str, node: &Node, ip: IpAddr) -> Result<(), String> {
        let Setting { own, services, host, .. } = self.setting;
        if let Some(range) = services.iter().find(|range| range.contains(ip)) {
            return Err(format!("it is in the ClusterIP range {range}"));
        }
        if let Some(holder) = self.addresses.get(&ip).filter(|holder| **holder != name) {
            return Err(format!("it is an address of node {holder}, which claimed it first"));
        }
        if let Some((range, holder)) = self.pods_from(ip).filter(|(range, _)| range.contains(ip)) {
            return Err(format!("it is in the pod CIDR {range} of node {holder}"));
        }
        if name == own {
            return Ok(());
        }
        if host.addresses.contains(&ip) {
            return Err(format!("it is an address of node {own}"));
        }
        // Only an administrator can set this label (admission plugin NodeRestriction).
        if node.control_plane {
            return Ok(());
        }
        if host.default_gateways.contains(&ip) {
            return Err(format!("it is the gateway of node {own}"));
        }
        if host.api_servers.iter().any(|server| server.ip() == ip) {
            return Err(format!(
                "it is the API server's address, and the Node does not have the label {CONTROL_PLANE}"
            ));
        }
        Ok(())
    }

    fn range(&self, name: &str, range: IpNetwork) -> Result<(), String> {
        let Setting { own, services, protected, host } = self.setting;
        if let Some(services) = services.iter().find(|services| overlap(services, &range)) {
            return Err(format!("it overlaps the ClusterIP range {services}"));
        }
        if let Some(protected) = protected.iter().find(|protected| overlap(protected, &range)) {
            return Err(format!("it overlaps the range {protected} of protectedAddresses"));
        }
        let (first, last) = (range.network(), range.broadcast());
        if let Some((ip, holder)) = self.addresses.range(first..=last).next() {
            return Err(format!("it contains {ip}, an address of node {holder}"));
        }
        let api = host.api_servers.iter().map(|server| (server.ip(), "the API server"));
        let ways = (host.gateways.iter().map(|ip| (*ip, "a gateway")))
            .chain(host.resolvers.iter().map(|ip| (*ip, "a DNS server")));
        let own_addresses = host.addresses.iter().map(|ip| (*ip, "an interface")).filter(|_| name != own);
        if let Some((ip, what)) = ways.chain(api).chain(own_addresses).find(|(ip, _)| range.contains(*ip)) {
            return Err(format!("it contains {ip}, the address of {what} of node {own}"));
        }
        let overlapping = self.pods_from(last).filter(|(other, _)| overlap(other, &range));
        match overlapping {
            Some((other, holder)) => Err(format!("it overlaps the pod CIDR {other} of node {holder}")),
            None => Ok(()),
        }
    }

    /// The last admitted pod CIDR that begins at or before an address. As CIDRs are disjoint, no other one can contain
    /// the address, and if a range that ends at this address overlaps any CIDR, it overlaps this one.
    fn pods_from(&self, ip: IpAddr) -> Option<(IpNetwork, &'a str)> {
        self.pods.range(..=ip).next_back().map(|(_, found)| *found)
    }
}

/// The label of nodes with an API server.
const CONTROL_PLANE: &str = "node-role.kubernetes.io/control-plane";

#[cfg(test)]
mod tests {
    use super::*;

    fn node(ips: &[&str], cidrs: &[&str]) -> Node {
        Node {
            internal_ips: ips.iter().map(|ip| ip.parse().unwrap()).collect(),
            pod_cidrs: cidrs.iter().map(|cidr| cidr.parse().unwrap()).collect(),
            ..Node::default()
        }
    }

    struct Bench {
        nodes: BTreeMap<String, Arc<Node>>,
        claims: Claims,
        services: BTreeSet<IpNetwork>,
        host: HostFacts,
    }

    impl Bench {
        /// Three nodes, of which `n2` is this one.
        fn new() -> Self {
            let host = HostFacts {
                addresses: ["172.30.0.2", "192.168.7.1"].map(|ip| ip.parse().unwrap()).into(),
                gateways: ["172.30.0.254", "192.168.7.254", "fd00:30::fe"].map(|ip| ip.parse().unwrap()).into(),
                default_gateways: ["172.30.0.254", "fd00:30::fe"].map(|ip| ip.parse().unwrap()).into(),
                resolvers: ["192.0.2.53".parse().unwrap()].into(),
                api_servers: ["192.0.2.99:6443".parse().unwrap()].into(),
            };
            let services = ["10.96.0.0/16", "fd00:96::/112"].map(|range| range.parse().unwrap()).into();
            let mut bench = Self { nodes: BTreeMap::new(), claims: Claims::default(), services, host };
            for i in 1..=3 {
                let ips = [format!("172.30.0.{i}"), format!("fd00:30::{i}")];
                let cidrs = [format!("10.244.{i}.0/24"), format!("fd00:244:{i}::/64")];
                let node = node(&[&ips[0], &ips[1]], &[&cidrs[0], &cidrs[1]]);
                bench.put(&format!("n{i}"), node, true);
            }
            bench
        }

        fn put(&mut self, name: &str, node: Node, first: bool) {
            self.claims.note(name, Some(&node), first);
            self.nodes.insert(name.to_owned(), node.into());
        }

        fn evaluate(&self) -> Evaluated {
            let setting = Setting { own: "n2", services: &self.services, protected: &[], host: &self.host };
            self.claims.evaluate(&self.nodes, setting)
        }

        /// The claims refused after a node has been added.
        fn refused(&mut self, name: &str, node: Node, first: bool) -> Vec<String> {
            let before = self.claims.clone();
            self.put(name, node, first);
            let evaluated = self.evaluate();
            self.nodes.remove(name);
            self.claims = before;
            evaluated
                .refused
                .iter()
                .flat_map(|(name, why)| why.iter().map(move |why| format!("{name}: {why}")))
                .collect()
        }
    }

    #[test]
    fn nodes_without_conflicts_are_admitted_unchanged() {
        let bench = Bench::new();
        assert_eq!(bench.evaluate(), Evaluated { nodes: bench.nodes.clone(), refused: BTreeMap::new() });
    }

    #[test]
    fn pod_cidr_that_overlaps_others_is_refused() {
        let mut bench = Bench::new();
        for (cidr, part) in [
            ("10.244.1.0/24", "of node n1"),
            ("10.244.1.128/25", "of node n1"),
            ("10.244.0.0/16", "overlaps the pod CIDR"),
            ("10.244.2.0/23", "overlaps the pod CIDR"),
            ("fd00:244:3::/48", "of node n3"),
            ("fd00:244:3:0:1::/80", "of node n3"),
            ("172.30.0.3/32", "172.30.0.3, an address of node n3"),
            ("172.30.0.0/16", "node n"),
            ("172.16.0.0/12", "node n"),
            ("fd00:30::/64", "node n"),
            ("172.30.0.254/32", "a gateway"),
            ("192.168.7.0/28", "an interface of node n2"),
            ("192.168.7.128/25", "a gateway"),
            ("192.0.2.0/26", "a DNS server"),
            ("192.0.2.64/26", "the API server"),
            ("10.96.7.0/24", "ClusterIP range"),
            ("10.0.0.0/8", "ClusterIP range"),
            ("fd00:96::/64", "ClusterIP range"),
        ] {
            // Of any name: existing nodes are older.
            for name in ["a", "z"] {
                let refused = bench.refused(name, node(&["198.51.100.9"], &[cidr]), false);
                assert_eq!(refused.len(), 1, "{cidr}: {refused:?}");
                assert!(
                    refused[0].starts_with(&format!("{name}: its pod CIDR")) && refused[0].contains(part),
                    "{refused:?}"
                );
            }
        }
        assert_eq!(bench.refused("z", node(&["198.51.100.9"], &["10.244.4.0/24", "fd00:244:4::/64"]), false), [""; 0]);
    }

    #[test]
    fn internal_ip_that_belongs_to_others_is_refused() {
        let mut bench = Bench::new();
        for (ip, part) in [
            ("172.30.0.1", "an address of node n1, which claimed it first"),
            ("172.30.0.2", "node n2"),
            ("fd00:30::3", "node n3"),
            ("192.168.7.1", "an address of node n2"),
            ("10.244.1.7", "10.244.1.0/24 of node n1"),
            ("fd00:244:2::7", "fd00:244:2::/64 of node n2"),
            ("172.30.0.254", "gateway"),
            ("fd00:30::fe", "gateway"),
            ("192.0.2.99", "API server"),
            ("10.96.0.1", "ClusterIP range"),
            ("fd00:96::1", "ClusterIP range"),
        ] {
            for name in ["a", "z"] {
                let refused = bench.refused(name, node(&[ip, "198.51.100.9"], &[]), false);
                assert_eq!(refused.len(), 1, "{ip}: {refused:?}");
                assert!(
                    refused[0].starts_with(&format!("{name}: its InternalIP")) && refused[0].contains(part),
                    "{refused:?}"
                );
            }
        }
        // Next hop of a route to a network behind a node.
        assert_eq!(bench.refused("z", node(&["192.168.7.254"], &[]), false), [""; 0]);
        let control_plane = Node { control_plane: true, ..node(&["192.0.2.99"], &[]) };
        assert_eq!(bench.refused("z", control_plane, false), [""; 0]);
        let own = bench.refused("z", node(&["198.51.100.9"], &["198.51.100.0/24"]), false);
        assert!(own[0].contains("198.51.100.9, an address of node z"), "{own:?}");
    }

    #[test]
    fn older_claim_wins_and_the_next_oldest_succeeds_it() {
        let mut bench = Bench::new();
        bench.put("a", node(&["198.51.100.1"], &["10.244.9.0/24"]), false);
        bench.put("0", node(&["198.51.100.2"], &["10.244.9.0/24"]), false);
        assert_eq!(bench.evaluate().refused.keys().collect::<Vec<_>>(), ["0"]);
        // Repeating a claim doesn't make it younger, and adding another one doesn't make it older.
        bench.put("a", node(&["198.51.100.1", "172.30.0.1"], &["10.244.9.0/24"]), false);
        let evaluated = bench.evaluate();
        assert_eq!(evaluated.refused.keys().collect::<Vec<_>>(), ["0", "a"]);
        assert_eq!((evaluated.nodes["a"].internal_ips.len(), evaluated.nodes["a"].pod_cidrs.len()), (1, 1));
        bench.nodes.remove("a");
        bench.claims.note("a", None, false);
        assert_eq!(bench.evaluate().refused, BTreeMap::new());
    }

    #[test]
    fn in_the_initial_list_the_earlier_created_node_wins() {
        let made = |created: &str| Node { created: created.into(), ..node(&["198.51.100.1"], &["10.244.9.0/24"]) };
        for (a, b, loser) in [
            ("2026-01-02T00:00:00Z", "2026-01-01T00:00:00Z", "a"),
            ("2026-01-01T00:00:00Z", "2026-01-02T00:00:00Z", "b"),
            ("2026-01-01T00:00:00Z", "", "b"),
            ("", "2026-01-01T00:00:00Z", "a"),
            ("", "", "b"),
        ] {
            for order in [["a", "b"], ["b", "a"]] {
                let mut bench = Bench::new();
                order.iter().for_each(|name| bench.put(name, made(if *name == "a" { a } else { b }), true));
                assert_eq!(bench.evaluate().refused.keys().collect::<Vec<_>>(), [loser], "{a} {b}");
            }
        }
        // This node keeps its own, whenever the others were created.
        let mut bench = Bench::new();
        let thief = Node { created: "1999-01-01T00:00:00Z".into(), ..node(&["172.30.0.2"], &["10.244.2.0/24"]) };
        assert!(bench.refused("a", thief, true).iter().all(|refused| refused.starts_with("a: ")));
    }

    /// A node gains nothing by waiting for a restart of the daemon, whatever its creation time.
    #[test]
    fn age_of_claims_survives_restarts() {
        let mut bench = Bench::new();
        bench.put("holder", node(&["198.51.100.1"], &["10.244.9.0/24"]), true);
        let restarted = |bench: &mut Bench| {
            let ages = bench.claims.take_changed().expect("something has changed");
            assert_eq!(bench.claims.take_changed(), None);
            bench.claims = Claims::remember(Some(ages));
            let nodes: Vec<_> = bench.nodes.iter().rev().map(|(name, node)| (name.clone(), node.clone())).collect();
            nodes.iter().for_each(|(name, node)| bench.claims.note(name, Some(node), true));
            bench.claims.settle();
        };
        let thief = Node { created: "1999-01-01T00:00:00Z".into(), ..node(&[], &["10.244.9.0/24"]) };
        bench.put("a-thief", thief.clone(), false);
        assert_eq!(bench.evaluate().refused.keys().collect::<Vec<_>>(), ["a-thief"]);
        restarted(&mut bench);
        assert_eq!(bench.evaluate().refused.keys().collect::<Vec<_>>(), ["a-thief"]);
        // A claim made while no daemon runs is younger too.
        bench.nodes.insert("another".into(), thief.into());
        bench.nodes.remove("a-thief");
        restarted(&mut bench);
        assert_eq!(bench.evaluate().refused.keys().collect::<Vec<_>>(), ["another"]);
        bench.nodes.remove("holder");
        restarted(&mut bench);
        assert_eq!(bench.evaluate().refused, BTreeMap::new());
        // A node that returns has lost its age.
        bench.put("holder", node(&["198.51.100.1"], &["10.244.9.0/24"]), false);
        assert_eq!(bench.evaluate().refused.keys().collect::<Vec<_>>(), ["holder"]);
    }

    #[test]
    fn thousands_of_nodes() {
        let mut bench = Bench::new();
        for i in 0..5000u32 {
            let (high, low) = (i / 250, i % 250);
            let node = node(&[&format!("10.{}.{low}.1", 100 + high)], &[&format!("10.{}.{low}.0/24", 128 + high)]);
            bench.put(&format!("m{i}"), node, true);
        }
        let everything = node(&["198.51.100.1"], &["10.128.0.0/9"]);
        assert_eq!(bench.refused("z", everything, true).len(), 1);
        assert_eq!(bench.evaluate().refused, BTreeMap::new());
    }
}
