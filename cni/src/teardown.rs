//! Removal of an attachment: first its table entries, then its link, then its record.
//!
//! The record goes last, and only when nothing else remains: so no address is allocated while anything on the node
//! still uses it, and the next command finds whatever is left.

use crate::datapath::PinDir;
use crate::entries;
use crate::error::CniError;
use crate::id::AttachmentId;
use crate::netlink::{Netlink, Op};
use crate::netns::NetNs;
use crate::ownership;
use crate::record::{Record, RecordName};
use crate::store::{Content, Store};

/// Removes whatever exists of an attachment. The caller has claimed the record.
pub fn remove(store: &Store, netlink: &mut Netlink, name: &RecordName) -> Result<(), CniError> {
    let record = match store.read(name)? {
        Some(Content::Valid(record)) => Some(record),
        _ => None,
    };
    // The tables of an earlier boot are gone; entries of an unreadable record are left to `repair`.
    if let Some(record) = &record
        && let Some(bpffs) = &record.bpffs
    {
        entries::remove(&PinDir::new(bpffs), record)?;
    }
    remove_link(store, netlink, &name.id, record.as_deref())?;
    store.lock()?.remove(name)?;
    Ok(())
}

/// Removes an attachment's link, whatever its current name; it need not exist.
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
