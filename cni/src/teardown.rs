//! Removing an attachment: its entries in tables, its link, then its record.
//!
//! The record goes last and only when nothing else remains, so that no address is given out while something on the
//! node still uses it, and whoever comes next finds what is left.

use crate::datapath::{DatapathError, Endpoints, PinDir, Sandboxes};
use crate::error::CniError;
use crate::netlink::{Netlink, Op};
use crate::record::{Record, RecordName};
use crate::store::{Content, Store};

/// Removes whatever of an attachment is there. The caller has claimed the record.
pub fn remove(store: &Store, netlink: &mut Netlink, name: &RecordName) -> Result<(), CniError> {
    let content = store.read(name)?;
    // What an earlier boot had in its tables is gone with it; what is unreadable is left to `repair`.
    if let Some(Content::Valid(record)) = &content
        && let Some(bpffs) = &record.bpffs
    {
        remove_entries(&PinDir::new(bpffs), record)?;
    }
    netlink.run(&[Op::delete_link(&name.id.host_ifname())])?;
    store.lock()?.remove(name)?;
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
