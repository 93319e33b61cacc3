//! A pod's entries of the datapath's tables, as its record has them.

use podnet_common::addr::IfIndex;
use podnet_common::layout::Endpoint;

use crate::datapath::{DatapathError, Endpoints, PinDir, Sandboxes};
use crate::record::Record;

/// Writes the pod's entries in the tables.
pub(crate) fn publish(pins: &PinDir, record: &Record) -> Result<(), DatapathError> {
    let mut endpoints = Endpoints::open(pins)?;
    record.ips.iter().try_for_each(|ip| endpoints.insert(*ip, &endpoint(record)))?;
    match record.sandbox() {
        Some((cookie, sandbox)) => Sandboxes::open(pins)?.insert(cookie, &sandbox),
        None => Ok(()),
    }
}

/// The entry of a record's addresses.
pub(crate) fn endpoint(record: &Record) -> Endpoint {
    Endpoint {
        ifindex: IfIndex(record.host_ifindex),
        mtu: record.mtu,
        mac: record.mac,
        host_mac: record.host_mac,
        // What the pod receives waits there.
        flags: if record.bandwidth.ingress.is_some() { Endpoint::NO_PEER } else { 0 },
        ..Endpoint::default()
    }
}

/// Removes an attachment's entries. No table, no entries.
pub fn remove(pins: &PinDir, record: &Record) -> Result<(), DatapathError> {
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
