//! What holds for all services on this node.

use crate::model::{Node, SourceIp};

/// What holds for all services on this node.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Settings {
    /// Which source address a backend sees, where the service doesn't say.
    pub source_ip: SourceIp,
    /// This node's name.
    pub node: String,
    /// The zone that it is in, if known.
    pub zone: Option<String>,
    /// Slots of a table by which nodes choose alike.
    pub spread: u32,
}

impl Settings {
    /// For a node whose object may not be there yet.
    pub fn new(source_ip: SourceIp, name: &str, node: Option<&Node>) -> Self {
        Self { source_ip, node: name.into(), zone: node.and_then(|node| node.zone.clone()), spread: 0 }
    }
}
