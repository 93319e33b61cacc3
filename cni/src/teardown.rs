//! Removing an attachment: its entries in tables, its link, then its record.
//!
//! The record goes last and only when nothing else remains, so that no address is given out while something on the
//! node still uses it, and whoever comes next finds what is left.

use crate::datapath::{DatapathError, Endpoints, PinDir, Sandboxes};
use crate::error::CniError;
use crate::id::AttachmentId;
use crate::netlink::{Netlink, Op};
use crate::netns::NetNs;
use crate::ownership;
use crate::record::{Record, RecordName};
use crate::store::{Content, Store};

/// Removes whatever of an attachment is there. The caller has claimed the record.
pub fn remove(store: &Store, netlink: &mut Netlink, name: &RecordName) -> Result<(), CniError> {
    let record = match store.read(name)? {
        Some(Content::Valid(record)) => Some(record),
        _ => None,
    };
    // What an earlier boot had in its tables is gone with it; what is unreadable is left to `repair`.
    if let Some(record) = &record
        && let Some(bpffs) = &record.bpffs
    {
        remove_entries(&PinDir::new(bpffs), record)?;
    }
    remove_link(store, netlink, &name.id, record.as_deref())?;
    store.lock()?.remove(name)?;
    Ok(())
}

/// Removes an attachment's link, under whichever name it goes by now; it need not exist.
pub fn remove_link(
    store: &Store,
    netlink: &mut Netlink,
    id: &AttachmentId,
    record: Option<&Record>,
) -> Result<(), CniError> {
    let links = ownership::links(netlink)?;
    if let Some(link) = store.host_end(&links, id, record, NetNs::current()?.inode()) {
        netlink.run(&[Op::delete_link_index(link.index)])?;
    }
    Ok(())
}

/// Removes an attachment's entries. No table, no entries.
pub fn remove_entries(pins: &PinDir, record: &Record) -> Result<(), DatapathError> {
    if let Some((cookie, sandbox)) = record.sandbox()
        && let Some(mut sandboxes) = if_pinned(Sandboxes::open(pins))?
    {
        sandboxes.remove(cookie, &sandbox)?;
    }
    match if_pinned(Endpoints::open(pins))? {
        Some(mut endpoints) => record.ips.iter().try_for_each(|ip| endpoints.remove(*ip)),
        None => Ok(()),
    }
}

/// A table, or none where it is not pinned.
pub(crate) fn if_pinned<T>(opened: Result<T, DatapathError>) -> Result<Option<T>, DatapathError> {
    match opened {
        Err(DatapathError::NotPinned { .. }) => Ok(None),
        other => other.map(Some),
    }
}
