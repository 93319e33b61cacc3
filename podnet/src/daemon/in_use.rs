//! Service addresses at which a machine answers on one of the node's links.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::time::{Duration, Instant};

use podnet_common::addr::Mac;

use crate::host::snapshot::{Neighbour, Snapshot};

/// How long a machine is remembered after it was last heard: the kernel's neighbour entries are valid for only half a
/// minute.
const MEMORY: Duration = Duration::from_secs(600);

/// By service address: the machine's MAC, and when it was last heard.
#[derive(Debug, Default)]
pub(super) struct InUse(BTreeMap<IpAddr, (Mac, Instant)>);

impl InUse {
    /// Adds machines that were [`heard`]. Excludes nodes, at addresses `nodes`: one of them may answer for the address
    /// of a load balancer.
    pub(super) fn note(
        &mut self,
        heard: Vec<(IpAddr, Mac)>,
        services: &BTreeSet<IpAddr>,
        nodes: &BTreeSet<Mac>,
        now: Instant,
    ) {
        self.0.extend(heard.into_iter().filter(|(_, mac)| !nodes.contains(mac)).map(|(ip, mac)| (ip, (mac, now))));
        self.0.retain(|ip, (_, heard)| services.contains(ip) && now.duration_since(*heard) < MEMORY);
    }

    /// In the form that [`crate::control::Control::set_in_use`] takes.
    pub(super) fn machines(&self) -> BTreeMap<IpAddr, Mac> {
        self.0.iter().map(|(ip, (mac, _))| (*ip, *mac)).collect()
    }
}

/// Machines that the kernel has just heard at service addresses.
pub(super) fn heard(snapshot: &Snapshot, services: &BTreeSet<IpAddr>) -> Vec<(IpAddr, Mac)> {
    let own = |mac: &Mac| snapshot.links.iter().any(|link| link.mac == Some(*mac));
    let of_others = |neighbour: &&Neighbour| {
        let link = snapshot.link_by_index(neighbour.ifindex);
        neighbour.fresh && services.contains(&neighbour.addr) && link.is_some_and(|link| !link.is_host_end())
    };
    let heard = snapshot.neighbours.iter().filter(of_others);
    heard.filter_map(|neighbour| Some((neighbour.addr, neighbour.mac.filter(|mac| !own(mac))?))).collect()
}

#[cfg(test)]
mod tests {
    use podnet_common::addr::IfIndex;

    use super::*;
    use crate::host::snapshot::Link;

    #[test]
    fn machine_is_remembered_for_a_while_after_it_was_heard() {
        let ip = |text: &str| text.parse::<IpAddr>().unwrap();
        let mac = |last| Mac([2, 0, 0, 0, 0, last]);
        let neighbour = |addr: &str, last, fresh| Neighbour {
            ifindex: IfIndex(2),
            addr: ip(addr),
            mac: Some(mac(last)),
            permanent: false,
            fresh,
        };
        let snapshot = Snapshot {
            links: vec![Link { ifindex: IfIndex(2), name: "eth0".into(), mac: Some(mac(1)), ..Link::default() }],
            neighbours: vec![
                neighbour("192.0.2.1", 7, true),
                neighbour("2001:db8::1", 7, true),
                neighbour("192.0.2.2", 8, false),
                neighbour("192.0.2.3", 2, true),
                neighbour("192.0.2.4", 9, true),
            ],
            ..Snapshot::default()
        };
        let services = ["192.0.2.1", "192.0.2.2", "192.0.2.3", "2001:db8::1"].map(ip).into();
        let (nodes, start) = ([mac(2)].into(), Instant::now());
        let mut in_use = InUse::default();
        in_use.note(heard(&snapshot, &services), &services, &nodes, start);
        assert_eq!(in_use.machines(), [(ip("192.0.2.1"), mac(7)), (ip("2001:db8::1"), mac(7))].into());
        in_use.note(vec![], &services, &nodes, start + MEMORY / 2);
        assert_eq!(in_use.machines().len(), 2);
        in_use.note(vec![], &[ip("192.0.2.1")].into(), &nodes, start + MEMORY / 2);
        assert_eq!(in_use.machines().len(), 1, "the service has gone");
        in_use.note(vec![], &services, &nodes, start + MEMORY);
        assert!(in_use.machines().is_empty());
    }
}
