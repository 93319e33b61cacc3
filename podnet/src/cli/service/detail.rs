//! One service in detail.

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
    /// As the tables have them.
    pub(super) frontends: Vec<FrontendDetail>,
    /// What its objects ask for, and why; none if they can't be read or there is no such service.
    pub(super) explanation: Option<Explained>,
    /// Why there is no explanation.
    pub(super) not_explained: Option<String>,
    /// How the tables differ from that.
    pub(super) differences: Vec<String>,
}

/// A frontend with its backends.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct FrontendDetail {
    #[serde(flatten)]
    pub(super) frontend: FrontendRow,
    /// Which clients may use it; none: all.
    pub(super) source_ranges: Option<Vec<IpNetwork>>,
    /// Where it leads, by kind of client.
    pub(super) choices: Vec<Choice>,
    /// Flows that were sent on to other nodes, for direct server return.
    pub(super) sent_on: Vec<SentOn>,
}

/// Which clients.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) enum Clients {
    /// All of them, those that other nodes send on excepted.
    All,
    /// This node's pods and processes.
    ThisNode,
    /// Those that come in by an uplink.
    Outside,
    /// Those that another node has sent on, for direct server return.
    SentOn,
}

/// The backends that some clients get.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Choice {
    pub(super) clients: Clients,
    /// What becomes of connections, if there is no backend.
    pub(super) if_none: Option<IfNone>,
    /// How many slots the backends share; more than backends where nodes must agree (Maglev).
    pub(super) slots: u32,
    pub(super) targets: Vec<Target>,
}

/// A backend of a frontend.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Target {
    pub(super) address: IpAddr,
    pub(super) port: u16,
    /// `namespace/name` of the pod, if it is one of this node.
    pub(super) pod: Option<String>,
    /// Whether it is a pod or a host process of this node.
    pub(super) local: bool,
    /// The name of the node that it is on, if it is another one and known.
    pub(super) node: Option<String>,
    /// How many of the frontend's slots lead there.
    pub(super) slots: usize,
    /// Flows of these clients that go there now. None for those that other nodes have sent on: they are counted as
    /// coming from outside.
    pub(super) flows: Option<usize>,
}

/// Flows that were sent on to another node.
#[derive(Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct SentOn {
    /// The node's address.
    pub(super) address: IpAddr,
    /// Its name, if it is known.
    pub(super) node: Option<String>,
    pub(super) flows: usize,
}
