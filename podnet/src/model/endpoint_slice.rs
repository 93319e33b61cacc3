//! EndpointSlices.

use std::net::IpAddr;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use super::left_out::LeftOut;
use super::placement::Placement;
use super::protocol::Protocol;

/// An EndpointSlice.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct EndpointSlice {
    /// Its `metadata.uid`; empty in a file.
    pub uid: Box<str>,
    /// Name of its service, in the same namespace; `None` if it belongs to none or to another proxy.
    pub service: Option<String>,
    /// Ports of all its endpoints: target ports by the name of the service port.
    pub ports: Vec<SlicePort>,
    /// The endpoints, all of one family.
    pub endpoints: Vec<Endpoint>,
    /// Elements that are left out as invalid.
    pub left_out: LeftOut,
}

/// A port of an EndpointSlice.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SlicePort {
    /// Name of the service port.
    pub name: String,
    /// The target port, never 0.
    pub port: u16,
    /// The protocol.
    pub protocol: Protocol,
}

/// An endpoint.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Endpoint {
    /// The first of its addresses, the only one with a defined meaning.
    pub addr: IpAddr,
    /// Whether it accepts connections.
    pub condition: Condition,
    /// Its location, and the clients that it is meant for.
    pub placement: Arc<Placement>,
}

/// Summary of an endpoint's conditions (KEP-1672), from worst to best.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Condition {
    /// Not used.
    Unusable,
    /// Terminating but still serving: used if there is nothing better.
    ServingTerminating,
    /// Used.
    Ready,
}
