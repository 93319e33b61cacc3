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
    /// The service in the same namespace that it belongs to; none if it belongs to none or to another proxy.
    pub service: Option<String>,
    /// Ports that every endpoint has: target ports by the service port's name.
    pub ports: Vec<SlicePort>,
    /// The endpoints, all of one family.
    pub endpoints: Vec<Endpoint>,
    /// What of it can't be used.
    pub left_out: LeftOut,
}

/// A port of an EndpointSlice.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SlicePort {
    /// The service port's name.
    pub name: String,
    /// The target port, which isn't 0.
    pub port: u16,
    /// The protocol.
    pub protocol: Protocol,
}

/// An endpoint.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Endpoint {
    /// The first of its addresses, the only one whose meaning is defined.
    pub addr: IpAddr,
    /// Whether it takes connections.
    pub condition: Condition,
    /// Where it is and who should use it.
    pub placement: Arc<Placement>,
}

/// What an endpoint's conditions amount to (KEP-1672), from worst to best.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Condition {
    /// Not to be used.
    Unusable,
    /// On its way out but still serving: to be used if there is nothing better.
    ServingTerminating,
    /// To be used.
    Ready,
}
