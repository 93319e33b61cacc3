//! A service in detail.

use std::net::IpAddr;

use ipnetwork::IpNetwork;
use serde::Serialize;

use super::row::FrontendRow;
use crate::frontend::IfNone;
use crate::select::Explained;

/// `podnet service show`.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct ServiceDetail {
    pub(super) namespace: String,
    pub(super) name: String,
    /// According to the tables.
    pub(super) frontends: Vec<FrontendDetail>,
    /// What its objects ask for, and why; `None` if that is unknown or the service doesn't exist.
    pub(super) explanation: Option<Explained>,
    /// Why there is no explanation.
    pub(super) not_explained: Option<String>,
    /// Differences between these and the tables.
    pub(super) differences: Vec<String>,
}

/// A frontend with its backends.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct FrontendDetail {
    #[serde(flatten)]
    pub(super) frontend: FrontendRow,
    /// Which clients may use it; `None` if all may.
    pub(super) source_ranges: Option<Vec<IpNetwork>>,
    /// Backends by kind of client.
    pub(super) choices: Vec<Choice>,
    /// Flows forwarded to other nodes for direct server return.
    pub(super) forwarded: Vec<Forwarded>,
}

/// A kind of client.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) enum Clients {
    /// All, except for packets forwarded by other nodes.
    All,
    /// This node's pods and processes.
    ThisNode,
    /// Clients that arrive on an uplink.
    Outside,
    /// Clients whose packets another node has forwarded, for direct server return.
    Forwarded,
}

/// The backends for a kind of client.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Choice {
    pub(super) clients: Clients,
    /// What happens to connections, if there is no backend.
    pub(super) if_none: Option<IfNone>,
    /// Number of slots that the backends share; more than the number of backends where nodes must agree (Maglev).
    pub(super) slots: u32,
    pub(super) targets: Vec<Target>,
}

/// A backend of a frontend.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Target {
    pub(super) address: IpAddr,
    pub(super) port: u16,
    /// `namespace/name` of the pod, if it is on this node.
    pub(super) pod: Option<String>,
    /// Whether it is a pod or host process of this node.
    pub(super) local: bool,
    /// Name of the node where it is, if it is another node and known.
    pub(super) node: Option<String>,
    /// Number of the frontend's slots that contain it.
    pub(super) slots: usize,
    /// Number of present flows of these clients to it. `None` for flows forwarded by other nodes, which are counted as
    /// coming from outside.
    pub(super) flows: Option<usize>,
}

/// Flows forwarded to another node.
#[derive(Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Forwarded {
    /// Address of the node.
    pub(super) address: IpAddr,
    /// Its name, if known.
    pub(super) node: Option<String>,
    pub(super) flows: usize,
}
