//! Repair: compares records, links and tables, and removes or restores whatever does not match.
//!
//! GC runs it with the runtime's list of attachments; the daemon runs it without one, at its start, every 30 s, and for
//! single links when it receives a notification about them. Attachments with an ADD in progress are left alone. The
//! record is authoritative: an attachment with a valid record gets everything restored that is derived from it. A
//! damaged or lost record is no evidence against a pod whose link exists: it is rewritten, from the caller's knowledge
//! or from the state of the kernel. Errors are collected and do not stop the rest.

mod rebuild;

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::net::IpAddr;
use std::path::Path;

use podnet_common::addr::IfIndex;
use podnet_common::layout::Sandbox;

use crate::datapath::{self, DatapathError, Endpoints, PinDir, Sandboxes};
use crate::entries::{endpoint, if_pinned, publish};
use crate::error::CniError;
use crate::id::AttachmentId;
use crate::netlink::{Address, Link, Netlink, Op};
use crate::netns::{NetNs, NetnsError};
use crate::ownership::{self, Mark};
use crate::record::{PodRef, Record, RecordName, State};
use crate::store::{Claimed, Content, Locked, Store};
use crate::teardown;
use crate::wiring::host_end::{self, Part};

/// The attachments to keep.
#[derive(Clone, Copy, Debug)]
pub enum Keep<'a> {
    /// All that are complete: ready, with their link.
    Whole {
        /// Except these: their pods are gone, and no DEL will follow.
        but: &'a BTreeSet<AttachmentId>,
    },
    /// Of one network, those that the runtime lists, complete or not: their DEL is still to come. Of other networks,
    /// all but leftovers of earlier boots.
    Listed {
        /// The network's name.
        network: &'a str,
        /// The runtime's list.
        listed: &'a BTreeSet<AttachmentId>,
    },
}

/// An attachment as users know it.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Subject {
    /// Container and interface.
    pub id: AttachmentId,
    /// Namespace and name of the pod, if known.
    pub pod: Option<(String, String)>,
}

impl Subject {
    /// The subject of a record.
    pub fn of(record: &Record) -> Self {
        let pod = record.pod.as_ref().map(|PodRef { namespace, name, .. }| (namespace.clone(), name.clone()));
        Self { id: record.id.clone(), pod }
    }
}

impl fmt::Display for Subject {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.pod {
            Some((namespace, name)) => write!(f, "pod {namespace}/{name}"),
            None => self.id.fmt(f),
        }
    }
}

/// A part that an attachment lacked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Missed {
    /// The kind of part, in a word.
    pub kind: &'static str,
    /// The part, in words for users.
    pub what: String,
}

impl Missed {
    /// Kinds besides those of [`host_end::Part`].
    pub const PROGRAMS: &str = "programs";
    /// See above.
    pub const ENTRIES: &str = "entries";
    /// See above.
    pub const INDEX: &str = "index";
}

/// All kinds.
pub const KINDS: [&str; 13] = [
    "name",
    "alias",
    "mac",
    "mtu",
    "controller",
    "queue",
    "up",
    "address",
    "neighbour",
    "route",
    Missed::PROGRAMS,
    Missed::ENTRIES,
    Missed::INDEX,
];

/// An attachment with restored parts.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mended {
    /// The attachment.
    pub subject: Subject,
    /// Its link.
    pub link: IfIndex,
    /// The parts that were missing.
    pub parts: Vec<Missed>,
    /// The parts that are still missing, with the reason.
    pub left: Vec<String>,
}

/// The result of a repair.
#[derive(Debug, Default)]
pub struct Report {
    /// Attachments that were removed.
    pub removed: Vec<RecordName>,
    /// Links without a record that were removed.
    pub links: Vec<String>,
    /// Entries of the table `endpoints` without a record that were removed.
    pub endpoints: Vec<IpAddr>,
    /// Entries of the table `sandboxes` without a record that were removed, by their cookies.
    pub sandboxes: Vec<u64>,
    /// Attachments with restored parts.
    pub mended: Vec<Mended>,
    /// Attachments whose records were rewritten, and whether the caller knew the content. Otherwise it was
    /// reconstructed from the state of the kernel, which contains neither pods nor host ports.
    pub rewritten: Vec<(Subject, bool)>,
    /// Pods left alone although their records are damaged or lost, as sentences.
    pub left_alone: Vec<String>,
    /// Errors.
    pub errors: Vec<CniError>,
}

impl Report {
    fn note<T>(&mut self, result: Result<T, impl Into<CniError>>) -> Option<T> {
        result.map_err(|e| self.errors.push(e.into())).ok()
    }

    /// Whether there was nothing to do and nothing failed.
    pub fn is_clean(&self) -> bool {
        self.removed.is_empty()
            && self.links.is_empty()
            && self.endpoints.is_empty()
            && self.sandboxes.is_empty()
            && self.mended.is_empty()
            && self.rewritten.is_empty()
            && self.left_alone.is_empty()
            && self.errors.is_empty()
    }
}

/// Repairs everything; without pins, everything but the tables. `known`: records as they were read earlier.
pub fn repair(store: &Store, pins: Option<&PinDir>, keep: &Keep<'_>, known: &[Record]) -> Report {
    let mut report = Report::default();
    let Some(mut repair) = report.note(Repair::begin(store, pins, keep, known)) else { return report };
    let Some(names) = report.note(store.list()) else { return report };
    for name in &names {
        let done = repair.examine(name, &mut report);
        report.note(done);
    }
    if let Some(lock) = report.note(store.lock()) {
        let done = repair.orphans(&lock, &mut report);
        report.note(done);
    }
    report
}

/// Restores the missing parts of these attachments, if they are ready.
pub fn mend<'a>(store: &Store, pins: &PinDir, names: impl IntoIterator<Item = &'a RecordName>) -> Report {
    let mut report = Report::default();
    let keep = Keep::Whole { but: &BTreeSet::new() };
    let Some(mut repair) = report.note(Repair::begin(store, Some(pins), &keep, &[])) else { return report };
    for name in names {
        let done = repair.look_after(name, &mut report);
        report.note(done);
    }
    report
}

/// Whether the link of an attachment exists.
pub fn has_link(store: &Store, record: &Record) -> Result<bool, CniError> {
    let links = ownership::links(&mut Netlink::open()?)?;
    Ok(store.host_end(&links, &record.id, Some(record), NetNs::current()?.inode()).is_some())
}

struct Repair<'a> {
    store: &'a Store,
    pins: Option<&'a PinDir>,
    keep: &'a Keep<'a>,
    known: &'a [Record],
    netlink: Netlink,
    own: NetNs,
    links: BTreeMap<IfIndex, Link>,
    addresses: Vec<Address>,
}

impl<'a> Repair<'a> {
    fn begin(
        store: &'a Store,
        pins: Option<&'a PinDir>,
        keep: &'a Keep<'a>,
        known: &'a [Record],
    ) -> Result<Self, CniError> {
        let mut netlink = Netlink::open()?;
        let links = ownership::links(&mut netlink)?;
        let addresses = netlink.addresses()?;
        Ok(Self { store, pins, keep, known, netlink, own: NetNs::current()?, links, addresses })
    }

    /// The host end of an attachment.
    fn host_end(&mut self, id: &AttachmentId, record: Option<&Record>) -> Result<Option<Link>, CniError> {
        let found = self.store.host_end(&self.links, id, record, self.own.inode()).cloned();
        if found.is_some() {
            return Ok(found);
        }
        // The ADD may have finished meanwhile, and created the link.
        self.links = ownership::links(&mut self.netlink)?;
        Ok(self.store.host_end(&self.links, id, record, self.own.inode()).cloned())
    }

    /// Keeps, repairs or removes one attachment.
    fn examine(&mut self, name: &RecordName, report: &mut Report) -> Result<(), CniError> {
        let Claimed::Yes(_claim) = self.store.try_claim(name)? else { return Ok(()) };
        let Some(content) = self.store.read(name)? else { return Ok(()) };
        if self.is_doomed(name, &content)? {
            teardown::remove(self.store, &mut self.netlink, name)?;
            report.removed.push(name.clone());
            return Ok(());
        }
        let record = match content {
            Content::Valid(record) => *record,
            Content::Damaged | Content::NoFile if name.state == State::Ready => {
                let Some(link) = self.host_end(&name.id, None)? else { return Ok(()) };
                self.rewrite(name, &link, report)?
            }
            _ => return Ok(()),
        };
        self.put_back(name, &record, report)
    }

    /// Restores the missing parts of an attachment, if it is ready.
    fn look_after(&mut self, name: &RecordName, report: &mut Report) -> Result<(), CniError> {
        let Claimed::Yes(_claim) = self.store.try_claim(name)? else { return Ok(()) };
        match self.store.read(name)? {
            Some(Content::Valid(record)) => self.put_back(name, &record, report),
            _ => Ok(()),
        }
    }

    fn is_doomed(&mut self, name: &RecordName, content: &Content) -> Result<bool, CniError> {
        Ok(match (content, *self.keep) {
            (_, Keep::Listed { listed, .. }) if listed.contains(&name.id) => false,
            (Content::Leftover, _) | (Content::NoFile, Keep::Listed { .. }) => true,
            (Content::Valid(record), Keep::Listed { network, .. }) => record.network == network,
            (Content::Damaged, Keep::Listed { network, .. }) => {
                let link = self.host_end(&name.id, None)?;
                let mark = link.map(|link| self.store.mark(&link.alias));
                !matches!(mark, Some(Mark::Of(owner)) if owner.network != network)
            }
            // The links of another namespace are not visible here. A node in a container gets a new namespace when it
            // is restarted, under the same kernel, and its pods are gone.
            (Content::Valid(record), Keep::Whole { .. }) if record.host_netns != self.own.inode() => {
                is_gone(Path::new(&record.netns))
            }
            (Content::Valid(record), Keep::Whole { but }) => {
                name.state == State::Allocating
                    || but.contains(&name.id)
                    || self.host_end(&name.id, Some(record))?.is_none()
            }
            (Content::Damaged | Content::NoFile, Keep::Whole { .. }) => {
                name.state == State::Allocating || self.host_end(&name.id, None)?.is_none()
            }
        })
    }

    /// Restores everything that is derived from a record.
    fn put_back(&mut self, name: &RecordName, record: &Record, report: &mut Report) -> Result<(), CniError> {
        if name.state != State::Ready || record.host_netns != self.own.inode() {
            return Ok(());
        }
        let Some(link) = self.host_end(&record.id, Some(record))? else { return Ok(()) };
        let mut record = record.clone();
        let mut mended =
            Mended { subject: Subject::of(&record), link: link.index, parts: Vec::new(), left: Vec::new() };
        let mut missed = |kind, what: String| mended.parts.push(Missed { kind, what });
        // The link has been moved to another network namespace and back.
        if link.index.0 != record.host_ifindex {
            record.host_ifindex = link.index.0;
            self.store.lock()?.restore(&record)?;
            missed(Missed::INDEX, "link index".into());
        }
        let alias = self.store.link_alias(&record.network, &record.id);
        let done = host_end::mend(&mut self.netlink, link.index, &record, &alias, &self.addresses)?;
        // The alias of earlier versions names no attachment.
        let renewed = |part: &&Part| matches!(part, Part::Alias(_)) && self.store.mark(&link.alias) == Mark::Store;
        done.parts.iter().filter(|part| !renewed(part)).for_each(|part| missed(part.kind(), part.to_string()));
        if let (Some(pins), true) = (self.pins, record.bpffs.is_some()) {
            if datapath::attach_pod(&mut self.netlink, pins, link.index)? {
                missed(Missed::PROGRAMS, "programs".into());
            }
            if !published(pins, &record)? {
                publish(pins, &record)?;
                missed(Missed::ENTRIES, "table entries".into());
            }
        }
        mended.left.extend(done.left.into_iter().map(|(part, error)| match error {
            Some(error) => format!("{part}: {}", CniError::from(error).msg),
            None => format!("{part}: it is still missing, although the kernel reported no error"),
        }));
        if !mended.parts.is_empty() {
            report.mended.push(mended);
        }
        Ok(())
    }
}

/// Whether a path no longer leads to a network namespace.
fn is_gone(netns: &Path) -> bool {
    matches!(NetNs::open(netns), Err(NetnsError::Missing { .. } | NetnsError::NotANamespace { .. }))
}

/// Whether all entries exist. The value in `sandboxes` may belong to another attachment of the same namespace.
fn published(pins: &PinDir, record: &Record) -> Result<bool, DatapathError> {
    let (endpoints, expected) = (Endpoints::open(pins)?, endpoint(record));
    for ip in &record.ips {
        if endpoints.get(*ip)?.is_none_or(|found| found != expected) {
            return Ok(false);
        }
    }
    match record.netns_cookie {
        Some(cookie) => Ok(Sandboxes::open(pins)?.get(cookie)?.is_some()),
        None => Ok(true),
    }
}

impl Repair<'_> {
    /// Handles links and entries without a record. The lock keeps new records from appearing meanwhile, and a record is
    /// created before its link and removed after it.
    fn orphans(&mut self, lock: &Locked<'_>, report: &mut Report) -> Result<(), CniError> {
        self.links = ownership::links(&mut self.netlink)?;
        // Links of live pods whose records could not be rewritten.
        let mut kept = BTreeSet::new();
        for link in self.without_record()? {
            if self.is_listed_or_anybodys(&link) {
                match self.adopt(lock, &link, report) {
                    Ok(true) => {}
                    Ok(false) => drop(kept.insert(link.index)),
                    Err(error) => {
                        kept.insert(link.index);
                        report.errors.push(error);
                    }
                }
                continue;
            }
            let deleted = self.netlink.run(&[Op::delete_link_index(link.index)]);
            if report.note(deleted).is_some() {
                report.links.push(link.name);
            }
        }
        let Some(pins) = self.pins else { return Ok(()) };
        let Some(mut endpoints) = if_pinned(Endpoints::open(pins))? else { return Ok(()) };
        let entries = endpoints.entries()?;
        // A link with another alias belongs to an unknown store.
        let alive = |index: &IfIndex| {
            kept.contains(index)
                || self.links.get(index).is_some_and(|link| self.store.mark(&link.alias) == Mark::Foreign)
        };
        let names = self.store.list()?;
        let held = names.iter().flat_map(|n| &n.ips);
        let held = held.chain(entries.iter().filter(|(_, entry)| alive(&entry.ifindex)).map(|(ip, _)| ip)).copied();
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

    /// The store's links without a record.
    fn without_record(&self) -> Result<Vec<Link>, CniError> {
        let names = self.store.list()?;
        let mut alone = Vec::new();
        for link in self.links.values() {
            let recorded = match self.store.mark(&link.alias) {
                Mark::Foreign => true,
                Mark::Of(owner) => names.iter().any(|name| name.id == owner.id),
                Mark::Store => {
                    names.iter().any(|name| name.id.host_ifname() == link.name)
                        || names.iter().any(|name| {
                            matches!(self.store.read(name), Ok(Some(Content::Valid(r))) if r.host_ifindex == link.index.0)
                        })
                }
            };
            if !recorded {
                alone.push(link.clone());
            }
        }
        Ok(alone)
    }

    /// Whether a link without a record is kept: there is no evidence that its pod is gone.
    fn is_listed_or_anybodys(&self, link: &Link) -> bool {
        let Keep::Listed { network, listed } = *self.keep else { return true };
        match self.store.mark(&link.alias) {
            Mark::Of(owner) => owner.network != network || listed.contains(&owner.id),
            _ => listed.iter().any(|id| id.host_ifname() == link.name),
        }
    }
}

fn addresses(sandbox: &Sandbox) -> impl Iterator<Item = IpAddr> {
    [sandbox.v4, sandbox.v6].into_iter().filter(|addr| !addr.is_none()).map(IpAddr::from)
}
