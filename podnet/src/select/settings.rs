//! Settings that apply to all services on this node.

use crate::model::{Node, SourceIp};

/// Settings that apply to all services on this node.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Settings {
    /// Source address that backends see, unless the service specifies it.
    pub source_ip: SourceIp,
    /// This node's name.
    pub node: String,
    /// Its zone, if known.
    pub zone: Option<String>,
    /// Slots of a Maglev table.
    pub spread: u32,
}

impl Settings {
    /// Settings of a node whose object may not exist yet.
    pub fn new(source_ip: SourceIp, name: &str, node: Option<&Node>) -> Self {
        Self { source_ip, node: name.into(), zone: node.and_then(|node| node.zone.clone()), spread: 0 }
    }
}
