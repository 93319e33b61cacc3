//! Status of the control plane.

use std::collections::BTreeMap;
use std::time::Instant;

use crate::entry_counts::EntryCounts;
use crate::model::Diagnostic;
use crate::reconcile::Usage;
use crate::select::HealthCheck;

/// State of the health servers.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Health {
    /// Health checks of services, by name of the service.
    pub checks: Vec<HealthCheck>,
    /// This node is leaving the cluster: see [`Node::leaving`](crate::model::Node::leaving).
    pub leaving: bool,
    /// Since when the tables have differed from the desired state. A full table doesn't count: it is full on every
    /// node, and load balancers would have no node left.
    pub stale_since: Option<Instant>,
}

/// The control plane's part of `podnet status`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ControlStatus {
    /// Whether the sources are synced.
    pub synced: bool,
    /// Number of services, including those without frontends.
    pub services: usize,
    /// Number of EndpointSlices.
    pub endpoint_slices: usize,
    /// Number of Nodes.
    pub nodes: usize,
    /// Table entries in use.
    pub usage: Usage,
    /// Nodes with claims that would take traffic of others.
    pub alarms: Vec<Diagnostic>,
    /// Objects that are not, or only partly, in effect.
    pub problems: Vec<Diagnostic>,
    /// Limit of each service, for namespaces limited because demands exceed the size of the tables.
    pub shares: BTreeMap<String, EntryCounts>,
    /// The same, in readable form.
    pub scarcities: Vec<String>,
    /// Frontends that couldn't be written yet.
    pub pending: Vec<Pending>,
}

/// A frontend that couldn't be written yet.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pending {
    /// Address, port and protocol number.
    pub frontend: String,
    /// Number of failed attempts.
    pub failures: u32,
    /// Reason of the last failure.
    pub reason: String,
}
