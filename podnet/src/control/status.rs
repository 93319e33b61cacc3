//! What the control plane tells of itself.

use std::collections::BTreeMap;
use std::time::Instant;

use crate::model::Diagnostic;
use crate::reconcile::Usage;
use crate::room::Room;
use crate::select::HealthCheck;

/// What the health servers tell.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Health {
    /// Services whose load balancer asks for their endpoints on this node, by name.
    pub checks: Vec<HealthCheck>,
    /// This node is on its way out: see [`Node::leaving`].
    pub leaving: bool,
    /// Since when the tables haven't been what they should be. That they are full doesn't count: they are so on every
    /// node, and none would be left.
    pub stale_since: Option<Instant>,
}

/// What `podnet status` shows of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ControlStatus {
    /// Whether the sources have given everything.
    pub synced: bool,
    /// Services, those without frontends included.
    pub services: usize,
    /// EndpointSlices.
    pub endpoint_slices: usize,
    /// Nodes.
    pub nodes: usize,
    /// How many table entries are taken.
    pub usage: Usage,
    /// Nodes that would take others' traffic if they counted as they are.
    pub alarms: Vec<Diagnostic>,
    /// Objects that aren't, or not wholly, put into effect.
    pub problems: Vec<Diagnostic>,
    /// By namespace, where all together ask for more than the tables hold, what each of its services gets at most.
    pub shares: BTreeMap<String, Room>,
    /// The same for people.
    pub scarcities: Vec<String>,
    /// Frontends that couldn't be written yet.
    pub pending: Vec<Pending>,
}

/// A frontend that couldn't be written yet.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pending {
    /// Its address, port and protocol number.
    pub frontend: String,
    /// How often it has been tried.
    pub failures: u32,
    /// Why it failed, the last time.
    pub reason: String,
}
