//! Which node an address belongs to. A node's credentials can write the addresses of its pods into their status, so an
//! address counts as that of a pod, or of a node, only if no other node owns it.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Arc;

use ipnetwork::IpNetwork;

use crate::model::Node;

/// The nodes' addresses and pod CIDRs: those that are admitted, so no two nodes have the same.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Owners {
    addresses: BTreeMap<IpAddr, Box<str>>,
    /// By network address. The ranges are disjoint.
    ranges: BTreeMap<IpAddr, (IpNetwork, Box<str>)>,
}

impl Owners {
    /// Those of all nodes, by name.
    pub fn new(nodes: &BTreeMap<String, Arc<Node>>) -> Self {
        let mut owners = Self::default();
        for (name, node) in nodes {
            owners.addresses.extend(node.internal_ips.iter().map(|ip| (*ip, name.as_str().into())));
            let ranges = node.pod_cidrs.iter().map(|range| (range.network(), (*range, name.as_str().into())));
            owners.ranges.extend(ranges);
        }
        owners
    }

    /// Whether an address can be that of a pod of a node. A pod without a node can have any that is no node's.
    pub(super) fn allow_pod(&self, node: &str, ip: &IpAddr) -> bool {
        let range = self.range(ip);
        !self.addresses.contains_key(ip) && (node.is_empty() || range.is_none_or(|owner| owner == node))
    }

    /// Whether an address can be that of a node.
    pub(super) fn allow_node(&self, name: &str, ip: &IpAddr) -> bool {
        match self.addresses.get(ip) {
            Some(owner) => **owner == *name,
            None => self.range(ip).is_none(),
        }
    }

    /// The node in whose pod CIDR an address is.
    fn range(&self, ip: &IpAddr) -> Option<&str> {
        let (_, (range, node)) = self.ranges.range(..=*ip).next_back()?;
        range.contains(*ip).then_some(node)
    }

    /// Whether an address belongs to a node.
    pub(super) fn own(&self, ip: &IpAddr) -> bool {
        self.addresses.contains_key(ip) || self.range(ip).is_some()
    }

    /// The part that others don't have.
    pub(super) fn without(&self, others: &Self) -> Self {
        let addresses = self.addresses.iter().filter(|(ip, node)| others.addresses.get(*ip) != Some(*node));
        let ranges = self.ranges.iter().filter(|(ip, range)| others.ranges.get(*ip) != Some(*range));
        Self {
            addresses: addresses.map(|(ip, node)| (*ip, node.clone())).collect(),
            ranges: ranges.map(|(ip, range)| (*ip, range.clone())).collect(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn owners(nodes: &[(&str, &[&str], &[&str])]) -> Owners {
        let node = |addresses: &[&str], ranges: &[&str]| Node {
            internal_ips: addresses.iter().map(|ip| ip.parse().unwrap()).collect(),
            pod_cidrs: ranges.iter().map(|range| range.parse().unwrap()).collect(),
            ..Node::default()
        };
        let nodes =
            nodes.iter().map(|(name, addresses, ranges)| ((*name).to_owned(), Arc::new(node(addresses, ranges))));
        Owners::new(&nodes.collect())
    }

    #[test]
    fn an_address_in_a_nodes_range_is_that_of_a_pod_there() {
        let owners = owners(&[
            ("n1", &["192.0.2.1", "fd00::1"], &["10.1.0.0/24", "fd00:1::/64"]),
            ("n2", &["192.0.2.2"], &["10.1.2.0/24"]),
        ]);
        for (ip, n1, n2, node1) in [
            ("10.1.0.7", true, false, false),
            ("fd00:1::7", true, false, false),
            ("10.1.2.255", false, true, false),
            ("192.0.2.1", false, false, true),
            ("fd00::1", false, false, true),
            ("192.0.2.2", false, false, false),
            // Between the ranges, before them and after.
            ("10.1.1.7", true, true, true),
            ("10.0.0.1", true, true, true),
            ("203.0.113.1", true, true, true),
            ("fe80::1", true, true, true),
        ] {
            let ip = ip.parse().unwrap();
            assert_eq!((owners.allow_pod("n1", &ip), owners.allow_pod("n2", &ip)), (n1, n2), "{ip}");
            assert_eq!(owners.allow_node("n1", &ip), node1, "{ip}");
            assert_eq!(
                owners.allow_pod("", &ip),
                !["192.0.2.1", "fd00::1", "192.0.2.2"].map(|own| own.parse().unwrap()).contains(&ip)
            );
        }
    }

    #[test]
    fn the_difference_has_what_moves() {
        let before = owners(&[("n1", &["192.0.2.1"], &["10.1.0.0/24"]), ("n2", &[], &["10.1.1.0/24"])]);
        let after = owners(&[("n1", &["192.0.2.1"], &["10.1.0.0/24"]), ("n3", &[], &["10.1.0.0/23"])]);
        let (gone, new) = (before.without(&after), after.without(&before));
        let own = |owners: &Owners, ip: &str| owners.own(&ip.parse().unwrap());
        assert!(own(&gone, "10.1.1.7") && !own(&gone, "192.0.2.1"));
        assert!(own(&new, "10.1.1.7") && !own(&new, "10.2.0.1"));
        assert_eq!(after.without(&after), Owners::default());
    }
}
