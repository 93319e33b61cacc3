//! A pod's table entries, derived from its record.

use podnet_common::addr::IfIndex;
use podnet_common::layout::Endpoint;

use crate::datapath::{DatapathError, Endpoints, PinDir, Sandboxes};
use crate::record::Record;

/// Writes the pod's table entries.
pub(crate) fn publish(pins: &PinDir, record: &Record) -> Result<(), DatapathError> {
    let mut endpoints = Endpoints::open(pins)?;
    record.ips.iter().try_for_each(|ip| endpoints.insert(*ip, &endpoint(record)))?;
    match record.sandbox() {
        Some((cookie, sandbox)) => Sandboxes::open(pins)?.insert(cookie, &sandbox),
        None => Ok(()),
    }
}

/// The value in `endpoints` for a record's addresses.
pub(crate) fn endpoint(record: &Record) -> Endpoint {
    Endpoint {
        ifindex: IfIndex(record.host_ifindex),
        mtu: record.mtu,
        mac: record.mac,
        host_mac: record.host_mac,
        // Traffic to the pod is shaped by the queueing discipline of the host end.
        flags: if record.bandwidth.ingress.is_some() { Endpoint::NO_PEER } else { 0 },
        ..Endpoint::default()
    }
}

/// Removes an attachment's entries. Tables that are not pinned have none.
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

/// A table, or `None` if it is not pinned.
pub(crate) fn if_pinned<T>(opened: Result<T, DatapathError>) -> Result<Option<T>, DatapathError> {
    match opened {
        Err(DatapathError::NotPinned { .. }) => Ok(None),
        other => other.map(Some),
    }
}
