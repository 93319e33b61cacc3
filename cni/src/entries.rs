//! A pod's table entries, derived from its record.

use std::thread;
use std::time::{Duration, Instant};

use podnet_common::addr::IfIndex;
use podnet_common::layout::Endpoint;

use crate::datapath::{DatapathError, Endpoints, PinDir, Sandboxes, Subjects};
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

/// Closes the pod until the daemon has put its network policies into effect.
pub(crate) fn close(pins: &PinDir, record: &Record) -> Result<(), DatapathError> {
    let mut subjects = Subjects::open(pins)?;
    record.ips.iter().try_for_each(|ip| subjects.close(*ip))
}

/// Waits until the pod's network policies are in effect, for at most `longest`, since the daemon may be down. Returns
/// whether they are.
pub(crate) fn await_policies(pins: &PinDir, record: &Record, longest: Duration) -> Result<bool, DatapathError> {
    let (subjects, begun) = (Subjects::open(pins)?, Instant::now());
    loop {
        let mut pending = false;
        for ip in &record.ips {
            pending |= subjects.is_pending(*ip)?;
        }
        if !pending || begun.elapsed() >= longest {
            return Ok(!pending);
        }
        thread::sleep(Duration::from_millis(1));
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
    if let Some(mut endpoints) = if_pinned(Endpoints::open(pins))? {
        record.ips.iter().try_for_each(|ip| endpoints.remove(*ip))?;
    }
    match if_pinned(Subjects::open(pins))? {
        Some(mut subjects) => record.ips.iter().try_for_each(|ip| subjects.remove(*ip)),
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
