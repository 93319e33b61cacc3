//! Answers of services' health check servers to load balancers.

use std::collections::BTreeSet;
use std::net::{IpAddr, SocketAddr};

use super::settings::Settings;
use crate::frontend::FrontendKind;
use crate::guard::{Guard, Why};
use crate::model::{Condition, EndpointSlice, ObjectName, Protocol, Service};

/// A service with externalTrafficPolicy Local, whose load balancer checks each node for endpoints.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HealthCheck {
    /// `healthCheckNodePort`: a TCP port of the node, never 0.
    pub port: u16,
    /// The service.
    pub service: ObjectName,
    /// Number of ready endpoints on this node. Terminating ones don't count, though they may still be served: the load
    /// balancer has to stop sending (KEP-1669).
    pub local_endpoints: usize,
}

/// The service's health check port, if the node needs it for itself, and the reason.
pub(super) fn refused(service: &Service, guard: &Guard) -> Option<(u16, Why)> {
    let port = service.health_check_port?;
    let at = SocketAddr::from(([0, 0, 0, 0], port));
    Some((port, guard.port(FrontendKind::NodePort, at, Protocol::Tcp)?))
}

/// Health check of a service, if it has one; `slices` are the service's own.
pub fn health<'a>(
    name: &ObjectName,
    service: &Service,
    slices: impl Iterator<Item = &'a EndpointSlice>,
    settings: &Settings,
    guard: &Guard,
) -> Option<HealthCheck> {
    let port = service.health_check_port.filter(|_| service.ignored.is_none() && refused(service, guard).is_none())?;
    let here: BTreeSet<IpAddr> = slices
        .flat_map(|slice| &slice.endpoints)
        .filter(|endpoint| endpoint.condition == Condition::Ready && endpoint.placement.is_on(&settings.node))
        .map(|endpoint| endpoint.addr)
        .filter(|addr| service.families.has(addr))
        .collect();
    // A dual-stack pod has two addresses.
    let v4 = here.iter().filter(|addr| addr.is_ipv4()).count();
    Some(HealthCheck { port, service: name.clone(), local_endpoints: v4.max(here.len() - v4) })
}
