//! ADD: reserve addresses, wire the pod, write table entries, mark the record ready; undo everything on failure.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::path::Path;

use ipnetwork::{IpNetwork, Ipv4Network, Ipv6Network};
use podnet_common::addr::IfIndex;

use super::node::{Node, refuse_own};
use crate::config::Config;
use crate::datapath::{self, DatapathError, PinDir};
use crate::entries;
use crate::env::Attachment;
use crate::error::{CniError, Code};
use crate::mac;
use crate::netlink::{Netlink, Op};
use crate::netns::{NetNs, NetnsError};
use crate::record::{PodRef, Record, RecordName, State};
use crate::result::{CniResult, Interface, Ip, Route};
use crate::store::{Claimed, Content, Reservation, Store, StoreError};
use crate::teardown;
use crate::text::chain;
use crate::wiring::{self, WiringError};

pub(super) fn add(config: &Config, attachment: &Attachment) -> Result<CniResult, CniError> {
    let previous = config.prev_result.as_ref().map(CniResult::parse).transpose()?;
    let pod = NetNs::open(attachment.netns()?)?;
    let own = NetNs::current()?;
    refuse_own(attachment, &pod, &own)?;
    let node = Node::load(config)?;
    if let Some(pins) = node.pins() {
        datapath::ready(&pins)?;
    }
    let store = Store::open(&config.state_dir)?;
    let mut netlink = Netlink::open()?;
    let draft = draft(config, attachment, &node, &own, &pod, &store)?;
    remove_earlier(&store, &mut netlink, &draft);
    let mut reservation = reserve(&store, &mut netlink, &draft, &node, config)?;

    let mut undo = Undo { store: &store, steps: vec![Step::Record(reservation.record.name())] };
    match connect(&store, &mut netlink, &mut reservation, &pod, &node, &mut undo) {
        Ok(record) => {
            let result = result(&record, config);
            // Keeps the flock until the process ends: until then the runtime does not know of the attachment, and GC
            // must leave it alone.
            std::mem::forget(reservation);
            Ok(match previous {
                Some(previous) => result.chained_to(previous),
                None => result,
            })
        }
        Err(error) => Err(undo.run(&mut netlink, error)),
    }
}

/// The record without addresses, which are not allocated yet.
fn draft(
    config: &Config,
    attachment: &Attachment,
    node: &Node,
    own: &NetNs,
    pod: &NetNs,
    store: &Store,
) -> Result<Record, CniError> {
    let random = || mac::random().map_err(|e| CniError::from(WiringError::Random(e)));
    let netns = attachment.netns()?.to_str();
    let netns = netns.ok_or_else(|| CniError::new(Code::InvalidEnvironment, "CNI_NETNS is not UTF-8"))?;
    Ok(Record {
        id: attachment.id.clone(),
        state: State::Allocating,
        network: config.name.clone(),
        netns: netns.to_owned(),
        netns_cookie: node.bpffs.as_ref().map(|_| cookie(pod)).transpose()?,
        ips: Vec::new(),
        mac: config.runtime.mac.map_or_else(random, Ok)?,
        host_ifname: attachment.id.host_ifname(),
        host_ifindex: 0,
        host_mac: random()?,
        host_netns: own.inode(),
        mtu: node.mtu,
        gateways: node.gateways.clone(),
        bpffs: node.bpffs.clone(),
        boot_id: store.boot_id().to_owned(),
        pod: attachment.pod.clone(),
        port_mappings: config.runtime.port_mappings.clone(),
        bandwidth: config.runtime.bandwidth,
    })
}

fn cookie(pod: &NetNs) -> Result<u64, CniError> {
    Ok(pod.run(datapath::netns_cookie)?.map_err(DatapathError::Cookie)?)
}

/// Reserves the addresses. Leftovers of a killed ADD of the same attachment are removed first.
fn reserve(
    store: &Store,
    netlink: &mut Netlink,
    draft: &Record,
    node: &Node,
    config: &Config,
) -> Result<Reservation, CniError> {
    let attempt = || {
        let (requested, ports) = (&config.runtime.ips, &draft.port_mappings);
        store.lock()?.reserve(&draft.id, &node.pools, requested, ports, |ips: Vec<IpAddr>| {
            let family = |g: &IpAddr| ips.iter().any(|ip| ip.is_ipv4() == g.is_ipv4());
            let gateways = draft.gateways.iter().copied().filter(family).collect();
            Record { ips, gateways, ..draft.clone() }
        })
    };
    match attempt() {
        Err(StoreError::Exists { name }) => {
            let claimed = store.try_claim(&name)?;
            if matches!(claimed, Claimed::Busy) {
                return Err(StoreError::Busy(Box::new(name.id)).into());
            }
            // Another ADD has just finished or failed.
            if matches!(claimed, Claimed::Gone) {
                return Ok(attempt()?);
            }
            if name.state == State::Ready && matches!(store.read(&name)?, Some(Content::Valid(_))) {
                return Err(StoreError::Exists { name }.into());
            }
            tracing::warn!(attachment = %name.id, "removing leftovers of an interrupted ADD");
            teardown::remove(store, netlink, &name)?;
            Ok(attempt()?)
        }
        // The port belongs to an earlier sandbox of the same pod, which this one replaces.
        Err(StoreError::HostPort { holder, .. }) if is_earlier_sandbox(&holder, draft) => {
            match remove_sandbox(store, netlink, &holder.name())? {
                true => reserve(store, netlink, draft, node, config),
                false => Err(StoreError::Busy(Box::new(holder.id)).into()),
            }
        }
        other => Ok(other?),
    }
}

/// Whether a record belongs to the same pod in another container.
fn is_earlier_sandbox(holder: &Record, draft: &Record) -> bool {
    let known = |pod: &&PodRef| !pod.uid.is_empty();
    let pod = holder.pod.as_ref().filter(known);
    pod.is_some() && pod == draft.pod.as_ref() && holder.id.container != draft.id.container
}

/// Removes leftovers of earlier sandboxes of the pod: a runtime that has lost its state does not call DEL for them.
///
/// A pod has one sandbox at a time, so all others are obsolete. Still, one is removed only if no process runs in it:
/// the plugin sees all processes that the runtime has started. A failure to remove one does not keep the pod from
/// starting.
fn remove_earlier(store: &Store, netlink: &mut Netlink, draft: &Record) {
    let mut remove = || -> Result<(), CniError> {
        let Some(pod) = draft.pod.as_ref().filter(|pod| !pod.uid.is_empty()) else { return Ok(()) };
        for name in store.list()?.iter().filter(|name| name.id.container != draft.id.container) {
            let Some(Content::Valid(record)) = store.read_with_uid(name, &pod.uid)? else { continue };
            if is_earlier_sandbox(&record, draft) && is_deserted(&record)? {
                remove_sandbox(store, netlink, name)?;
            }
        }
        Ok(())
    };
    if let Err(error) = remove() {
        tracing::warn!("cannot remove leftovers of earlier sandboxes of the pod: {}", error.text());
    }
}

/// Whether the network namespace of an attachment exists without a process in it. False if its path is gone: as long as
/// its link exists, such a namespace is kept by a process in it.
fn is_deserted(record: &Record) -> Result<bool, CniError> {
    let netns = match NetNs::open(Path::new(&record.netns)) {
        Err(NetnsError::Missing { .. } | NetnsError::NotANamespace { .. }) => return Ok(false),
        other => other?,
    };
    // The path may lead to another namespace by now.
    if record.netns_cookie.is_some() && record.netns_cookie != Some(cookie(&netns)?) {
        return Ok(false);
    }
    let processes = netns.has_processes();
    let failed = |e| {
        CniError::new(Code::Io, format!("cannot find the processes in the network namespace {}: {e}", record.netns))
    };
    Ok(!processes.map_err(failed)?)
}

/// Removes an earlier sandbox's attachment. Returns false if another command on it is in progress.
fn remove_sandbox(store: &Store, netlink: &mut Netlink, name: &RecordName) -> Result<bool, CniError> {
    match store.try_claim(name)? {
        Claimed::Busy => return Ok(false),
        Claimed::Gone => {}
        Claimed::Yes(_claim) => {
            tracing::warn!(attachment = %name.id, "removing leftovers of an earlier sandbox of the pod");
            teardown::remove(store, netlink, name)?;
        }
    }
    Ok(true)
}

/// Creates everything that the record announces, and marks it ready.
fn connect(
    store: &Store,
    netlink: &mut Netlink,
    reservation: &mut Reservation,
    pod: &NetNs,
    node: &Node,
    undo: &mut Undo<'_>,
) -> Result<Record, CniError> {
    let mut record = reservation.record.clone();
    let index = wiring::create(netlink, &record, pod)?;
    undo.steps.push(Step::Link(index));
    record.host_ifindex = index.0;
    // Before the link is up: no packet bypasses the programs, or policies.
    let policed = node.pins().is_some() && node.polices(record.pod.as_ref());
    if let Some(pins) = node.pins() {
        datapath::attach_pod(netlink, &pins, index)?;
        undo.steps.push(Step::Entries(pins.clone(), Box::new(record.clone())));
        if policed {
            entries::close(&pins, &record)?;
        }
    }
    wiring::configure_host(netlink, &record, &store.link_alias(&record.network, &record.id))?;
    wiring::configure_pod(pod, &record)?;
    wiring::settle(netlink, &record)?;
    match node.pins() {
        Some(pins) => entries::publish(&pins, &record)?,
        None => wiring::forward(&record)?,
    }
    record.state = State::Ready;
    store.lock()?.finish(reservation, &record)?;
    if let Some(pins) = node.pins().filter(|_| policed) {
        // From here on nothing can fail: the attachment is complete, and a pod whose policies can't be read is closed.
        let reason = match entries::await_policies(&pins, &record, node.policy_wait) {
            Ok(true) => None,
            Ok(false) => Some("the daemon has not applied its network policies".to_owned()),
            Err(error) => Some(chain(&error)),
        };
        if let Some(reason) = reason {
            tracing::warn!(
                attachment = %record.id,
                "the pod starts closed (it can communicate only with its node): {reason}; check `podnet status`"
            );
        }
    }
    Ok(record)
}

/// The destinations of default routes.
const EVERYWHERE_V4: Option<Ipv4Network> = Ipv4Network::new_checked(Ipv4Addr::UNSPECIFIED, 0);
const EVERYWHERE_V6: Option<Ipv6Network> = Ipv6Network::new_checked(Ipv6Addr::UNSPECIFIED, 0);

fn result(record: &Record, config: &Config) -> CniResult {
    let host = Interface {
        name: record.host_ifname.clone(),
        mac: record.host_mac.to_string(),
        mtu: Some(record.mtu),
        ..Interface::default()
    };
    let pod = Interface {
        name: record.id.ifname.as_str().to_owned(),
        mac: record.mac.to_string(),
        mtu: Some(record.mtu),
        sandbox: record.netns.clone(),
        ..Interface::default()
    };
    let ip = |ip: &IpAddr| Ip { address: IpNetwork::from(*ip), gateway: record.gateway(*ip), interface: Some(1) };
    let route = |gateway: &IpAddr| {
        let dst = match gateway {
            IpAddr::V4(_) => EVERYWHERE_V4.map(IpNetwork::V4),
            IpAddr::V6(_) => EVERYWHERE_V6.map(IpNetwork::V6),
        };
        dst.map(|dst| Route { dst, gw: Some(*gateway), other: serde_json::Map::new() })
    };
    CniResult {
        interfaces: vec![host, pod],
        ips: record.ips.iter().map(ip).collect(),
        routes: record.gateways.iter().filter_map(route).collect(),
        dns: config.dns.clone(),
    }
}

/// A completed step.
enum Step {
    Record(RecordName),
    Link(IfIndex),
    Entries(PinDir, Box<Record>),
}

/// Undoes the steps of a failed ADD, last first.
struct Undo<'a> {
    store: &'a Store,
    steps: Vec<Step>,
}

impl Undo<'_> {
    /// Continues after errors and appends them to `cause`. A record stays as long as anything of its attachment does,
    /// so that DEL or GC can finish.
    fn run(self, netlink: &mut Netlink, mut cause: CniError) -> CniError {
        let mut clean = true;
        for step in self.steps.into_iter().rev() {
            let undone = match &step {
                Step::Entries(pins, record) => entries::remove(pins, record).map_err(CniError::from),
                Step::Link(index) => netlink.run(&[Op::delete_link_index(*index)]).map(drop).map_err(CniError::from),
                Step::Record(name) if clean => self.store.lock().and_then(|l| l.remove(name)).map_err(CniError::from),
                Step::Record(_) => Ok(()),
            };
            if let Err(error) = undone {
                clean = false;
                let before = if cause.details.is_empty() { String::new() } else { format!("{}; ", cause.details) };
                cause.details = format!("{before}rolling back failed as well: {}", error.text());
            }
        }
        cause
    }
}
