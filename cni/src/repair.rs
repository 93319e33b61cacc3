//! Compares the records with the links and with the tables, and removes or restores what does not fit.
//!
//! GC does it with the runtime's list of attachments, the daemon without, at its start and every 30 s.
//! Attachments that an ADD is at work on are left alone. The record decides: what has one that is sound gets its
//! programs and entries back, what has none is removed. Errors are collected; the rest goes on.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use podnet_common::addr::IfIndex;
use podnet_common::layout::Sandbox;

use crate::commands::publish;
use crate::datapath::{self, DatapathError, Endpoints, PinDir, Sandboxes};
use crate::error::{CniError, Code};
use crate::id::AttachmentId;
use crate::netlink::{Answer, Link, Netlink, Op};
use crate::netns::NetNs;
use crate::record::{Record, RecordName, State};
use crate::store::{Claimed, Content, Locked, Store};
use crate::teardown::{self, if_pinned};

/// Which attachments are to stay.
#[derive(Clone, Copy, Debug)]
pub enum Keep<'a> {
    /// Those that are whole: ready, with their link.
    Whole {
        /// Of these not: their pods are gone, and no DEL will come.
        but: &'a BTreeSet<AttachmentId>,
    },
    /// Of one network those that the runtime lists, whole or not: their DEL is still to come. Of others all but
    /// leftovers.
    Listed {
        /// The network's name.
        network: &'a str,
        /// The runtime's list.
        listed: &'a BTreeSet<AttachmentId>,
    },
}

/// What was done.
#[derive(Debug, Default)]
pub struct Report {
    /// Attachments that were removed.
    pub removed: Vec<RecordName>,
    /// Links without a record that were removed.
    pub links: Vec<String>,
    /// Entries of the endpoints table without a record that were removed.
    pub endpoints: Vec<IpAddr>,
    /// Entries of the table of sandboxes without a record that were removed, by their cookies.
    pub sandboxes: Vec<u64>,
    /// Attachments whose entries in the tables were written again.
    pub restored: Vec<AttachmentId>,
    /// What failed.
    pub errors: Vec<CniError>,
}

impl Report {
    fn note<T>(&mut self, result: Result<T, impl Into<CniError>>) -> Option<T> {
        result.map_err(|e| self.errors.push(e.into())).ok()
    }

    /// Whether everything was in order.
    pub fn is_clean(&self) -> bool {
        self.removed.is_empty()
            && self.links.is_empty()
            && self.endpoints.is_empty()
            && self.sandboxes.is_empty()
            && self.restored.is_empty()
            && self.errors.is_empty()
    }
}

/// Repairs. Without pins the tables are left alone.
pub fn repair(store: &Store, pins: Option<&PinDir>, keep: &Keep<'_>) -> Report {
    let mut report = Report::default();
    let Some(mut netlink) = report.note(Netlink::open()) else { return report };
    let Some(own) = report.note(NetNs::current()) else { return report };
    let Some(names) = report.note(store.list()) else { return report };
    for name in &names {
        let done = examine(store, &mut netlink, &own, pins, keep, name, &mut report);
        report.note(done);
    }
    if let Some(lock) = report.note(store.lock()) {
        let done = orphans(store, &lock, &mut netlink, pins, &mut report);
        report.note(done);
    }
    report
}

/// Judges one attachment.
fn examine(
    store: &Store,
    netlink: &mut Netlink,
    own: &NetNs,
    pins: Option<&PinDir>,
    keep: &Keep<'_>,
    name: &RecordName,
    report: &mut Report,
) -> Result<(), CniError> {
    let Claimed::Yes(_claim) = store.try_claim(name)? else { return Ok(()) };
    let Some(content) = store.read(name)? else { return Ok(()) };
    let doomed = match (&content, keep) {
        (_, Keep::Listed { listed, .. }) if listed.contains(&name.id) => false,
        (Content::Leftover, _) | (Content::NoFile, Keep::Listed { .. }) => true,
        // The pod may live.
        (Content::NoFile, Keep::Whole { .. }) => {
            let msg = format!("the record {name} in {} is no regular file", store.attachments_dir().display());
            return Err(
                CniError::new(Code::Io, msg).details("its pod is left alone, and its DEL will remove what is there")
            );
        }
        (Content::Valid(record), Keep::Listed { network, .. }) => record.network == *network,
        // The links of another namespace can't be seen from here.
        (Content::Valid(record), Keep::Whole { .. }) if record.host_netns != own.inode() => false,
        (Content::Valid(record), Keep::Whole { but }) => {
            name.state == State::Allocating || but.contains(&name.id) || !has_link(netlink, record)?
        }
    };
    if doomed {
        teardown::remove(store, netlink, name)?;
        report.removed.push(name.clone());
        return Ok(());
    }
    match (content, pins) {
        (Content::Valid(record), Some(pins))
            if name.state == State::Ready
                && record.bpffs.is_some()
                && record.host_netns == own.inode()
                && has_link(netlink, &record)? =>
        {
            if restore(pins, &record)? {
                report.restored.push(record.id.clone());
            }
            Ok(())
        }
        _ => Ok(()),
    }
}

fn has_link(netlink: &mut Netlink, record: &Record) -> Result<bool, CniError> {
    match netlink.run(&[Op::get_link_index(IfIndex(record.host_ifindex))]) {
        Ok(answers) => Ok(answers.into_iter().filter_map(Answer::link).any(|l| l.name == record.host_ifname)),
        Err(e) if e.errno() == Some(libc::ENODEV) => Ok(false),
        Err(e) => Err(e.into()),
    }
}

/// Attaches the programs, which are there already unless the pins are new, and writes missing entries.
fn restore(pins: &PinDir, record: &Record) -> Result<bool, DatapathError> {
    datapath::attach_pod(pins, IfIndex(record.host_ifindex))?;
    if published(pins, record)? {
        return Ok(false);
    }
    publish(pins, record)?;
    Ok(true)
}

/// Whether all entries are there. What a namespace's entry says may be another attachment's in the same namespace.
fn published(pins: &PinDir, record: &Record) -> Result<bool, DatapathError> {
    let endpoints = Endpoints::open(pins)?;
    for ip in &record.ips {
        if endpoints.get(*ip)?.is_none_or(|found| found.ifindex.0 != record.host_ifindex) {
            return Ok(false);
        }
    }
    match record.netns_cookie {
        Some(cookie) => Ok(Sandboxes::open(pins)?.get(cookie)?.is_some()),
        None => Ok(true),
    }
}

/// Removes links and entries that no record stands for. The lock keeps new records from appearing meanwhile, and a
/// record comes before its link and goes after it.
fn orphans(
    store: &Store,
    _lock: &Locked<'_>,
    netlink: &mut Netlink,
    pins: Option<&PinDir>,
    report: &mut Report,
) -> Result<(), CniError> {
    let alias = store.link_alias();
    let links: BTreeMap<IfIndex, Link> = netlink.links()?.into_iter().map(|l| (l.index, l)).collect();
    let names = store.list()?;
    let hosts: BTreeSet<String> = names.iter().map(|n| n.id.host_ifname()).collect();
    for link in links.values().filter(|l| l.alias == alias && !hosts.contains(&l.name)) {
        let deleted = netlink.run(&[Op::delete_link_index(link.index)]);
        if report.note(deleted).is_some() {
            report.links.push(link.name.clone());
        }
    }
    let Some(pins) = pins else { return Ok(()) };
    let Some(mut endpoints) = if_pinned(Endpoints::open(pins))? else { return Ok(()) };
    let entries = endpoints.entries()?;
    // A live link with another alias belongs to a store that we don't know.
    let foreign = entries.iter().filter(|(_, entry)| links.get(&entry.ifindex).is_some_and(|l| l.alias != alias));
    let held = names.iter().flat_map(|n| &n.ips).chain(foreign.map(|(ip, _)| ip)).copied();
    let held: BTreeSet<IpAddr> = held.collect();
    for (ip, _) in entries.iter().filter(|(ip, _)| !held.contains(ip)) {
        let removed = endpoints.remove(*ip);
        if report.note(removed).is_some() {
            report.endpoints.push(*ip);
        }
    }
    let Some(mut sandboxes) = if_pinned(Sandboxes::open(pins))? else { return Ok(()) };
    for (cookie, sandbox) in sandboxes.entries()? {
        if !addresses(&sandbox).any(|ip| held.contains(&ip)) {
            let removed = sandboxes.remove(cookie, &sandbox);
            if report.note(removed).is_some() {
                report.sandboxes.push(cookie);
            }
        }
    }
    Ok(())
}

fn addresses(sandbox: &Sandbox) -> impl Iterator<Item = IpAddr> {
    [sandbox.v4, sandbox.v6].into_iter().filter(|addr| !addr.is_none()).map(IpAddr::from)
}
