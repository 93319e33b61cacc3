//! Rewriting the records of live pods, from what the caller read earlier or else from the state of the kernel.

use std::collections::BTreeSet;
use std::net::IpAddr;

use podnet_common::addr::IfIndex;

use super::{Repair, Report, Subject, addresses};
use crate::datapath::{Endpoints, Sandboxes};
use crate::entries::if_pinned;
use crate::error::{CniError, Code};
use crate::id::AttachmentId;
use crate::netlink::{Answer, Link, Op};
use crate::node_info::GATEWAYS;
use crate::ownership::Mark;
use crate::record::{Record, RecordName, State};
use crate::store::Locked;

impl Repair<'_> {
    /// Rewrites a damaged record.
    pub(super) fn rewrite(&mut self, name: &RecordName, link: &Link, report: &mut Report) -> Result<Record, CniError> {
        let known = self.known.iter().find(|record| record.name() == *name).cloned();
        let whole = known.is_some();
        let record = match known {
            Some(record) => record,
            None => self.rebuild(&name.id, &name.ips, link)?,
        };
        self.store.lock()?.restore(&record)?;
        report.rewritten.push((Subject::of(&record), whole));
        Ok(record)
    }

    /// Writes a record for a link that has none. If that is not possible, returns false, leaves the pod alone and
    /// reports it.
    pub(super) fn adopt(&mut self, lock: &Locked<'_>, link: &Link, report: &mut Report) -> Result<bool, CniError> {
        let owner = match self.store.mark(&link.alias) {
            Mark::Of(owner) => Some(owner.id),
            _ => None,
        };
        let is = |record: &&Record| {
            record.host_netns == self.own.inode()
                && match &owner {
                    Some(id) => record.id == *id,
                    None => record.host_ifindex == link.index.0,
                }
        };
        let known = self.known.iter().find(is).cloned();
        let whole = known.is_some();
        let ips = match &known {
            Some(record) => record.ips.clone(),
            None => self.ips(link)?,
        };
        let mut alone = |why: String| {
            let shown: Vec<String> = ips.iter().map(IpAddr::to_string).collect();
            report.left_alone.push(format!(
                "the record of {} (link {}, {}) is lost and cannot be rebuilt: {why}; the pod keeps running without \
                 repairs, replace it",
                owner.as_ref().map_or("a pod".to_owned(), ToString::to_string),
                link.name,
                if shown.is_empty() { "no address".to_owned() } else { shown.join(", ") },
            ));
            Ok(false)
        };
        let held: BTreeSet<IpAddr> = self.store.list()?.into_iter().flat_map(|name| name.ips).collect();
        if let Some(ip) = ips.iter().find(|ip| held.contains(ip)) {
            return alone(format!("{ip} is assigned to another pod now"));
        }
        let record = match (known, &owner) {
            (Some(record), _) => Record { host_ifindex: link.index.0, ..record },
            (None, None) => return alone("the link's alias does not identify the pod".into()),
            (None, Some(_)) if ips.is_empty() => return alone("the pod's addresses are unknown".into()),
            (None, Some(id)) => self.rebuild(id, &ips, link)?,
        };
        lock.restore(&record)?;
        report.rewritten.push((Subject::of(&record), whole));
        self.put_back(&record.name(), &record, report)?;
        Ok(true)
    }

    /// A pod's addresses, from the tables and the routes.
    fn ips(&mut self, link: &Link) -> Result<Vec<IpAddr>, CniError> {
        let mut ips = BTreeSet::new();
        if let Some(endpoints) = self.endpoints()? {
            ips.extend(endpoints.entries()?.into_iter().filter(|(_, e)| e.ifindex == link.index).map(|(ip, _)| ip));
        }
        for route in
            self.netlink.routes()?.into_iter().filter(|route| route.oif == link.index && route.gateway.is_none())
        {
            let host = route.destination.filter(|d| d.prefix() == if d.is_ipv4() { 32 } else { 128 });
            ips.extend(host.map(|d| d.ip()));
        }
        // IPv4 comes first, as in every record.
        Ok(ips.into_iter().collect())
    }

    /// A record reconstructed from the state of the kernel.
    fn rebuild(&mut self, id: &AttachmentId, ips: &[IpAddr], link: &Link) -> Result<Record, CniError> {
        let network = match self.store.mark(&link.alias) {
            Mark::Of(owner) => owner.network,
            _ => String::new(),
        };
        let mut entry = None;
        if let Some(endpoints) = self.endpoints()? {
            for ip in ips {
                entry = entry.or(endpoints.get(*ip)?.filter(|entry| entry.ifindex == link.index));
            }
        }
        let mac = match entry {
            Some(entry) => Some(entry.mac),
            None => self.neighbour(link.index, ips)?,
        };
        let Some(mac) = mac else {
            let msg =
                format!("the record of {id} is unreadable and its pod's MAC address is unknown (link {})", link.name);
            return Err(CniError::new(Code::Io, msg).details("the pod keeps running without repairs; replace it"));
        };
        let mut cookie = None;
        if let Some(pins) = self.pins
            && let Some(sandboxes) = if_pinned(Sandboxes::open(pins))?
        {
            let of_pod = |(_, sandbox): &(u64, _)| addresses(sandbox).any(|ip| ips.contains(&ip));
            cookie = sandboxes.entries()?.into_iter().find(of_pod).map(|(cookie, _)| cookie);
        }
        let addresses: Vec<IpAddr> =
            self.netlink.addresses()?.iter().filter(|a| a.link == link.index).map(|a| a.network.ip()).collect();
        let gateway = |default: IpAddr| {
            let of_family = addresses.iter().find(|a| a.is_ipv4() == default.is_ipv4());
            of_family.copied().unwrap_or(default)
        };
        let has = |default: &IpAddr| ips.iter().any(|ip| ip.is_ipv4() == default.is_ipv4());
        let bpffs = self.pins.filter(|_| entry.is_some()).and_then(|pins| pins.root().parent());
        Ok(Record {
            id: id.clone(),
            state: State::Ready,
            network,
            netns: String::new(),
            netns_cookie: cookie,
            ips: ips.to_vec(),
            mac,
            host_ifname: id.host_ifname(),
            host_ifindex: link.index.0,
            host_mac: entry.map_or(link.mac, |entry| entry.host_mac),
            host_netns: self.own.inode(),
            mtu: entry.map_or(link.mtu, |entry| entry.mtu),
            gateways: GATEWAYS.into_iter().filter(has).map(gateway).collect(),
            bpffs: bpffs.map(ToOwned::to_owned),
            boot_id: self.store.boot_id().to_owned(),
            pod: None,
            port_mappings: Vec::new(),
            bandwidth: Default::default(),
        })
    }

    fn endpoints(&self) -> Result<Option<Endpoints>, CniError> {
        Ok(self.pins.map(|pins| if_pinned(Endpoints::open(pins))).transpose()?.flatten())
    }

    /// The MAC in the host's neighbour entry for one of these addresses.
    fn neighbour(&mut self, index: IfIndex, ips: &[IpAddr]) -> Result<Option<podnet_common::addr::Mac>, CniError> {
        let ops: Vec<Op> = ips.iter().map(|ip| Op::get_neighbour(index, *ip)).collect();
        let found = self.netlink.outcomes(&ops)?.into_iter().flatten().flatten();
        Ok(found
            .into_iter()
            .find_map(|answer| if let Answer::Neighbour(_, _, mac) = answer { Some(mac) } else { None }))
    }
}
