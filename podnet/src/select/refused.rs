//! Elements of a service that no service may have.

use std::net::SocketAddr;

use super::health;
use super::places::{addresses, all_addresses, all_places};
use crate::guard::Guard;
use crate::model::{EndpointSlice, LeftOut, Service};

/// Elements of a service and its slices that no service may have, with the reason.
pub fn refused<'a>(
    service: &Service,
    slices: impl Iterator<Item = (&'a str, &'a EndpointSlice)>,
    guard: &Guard,
) -> LeftOut {
    let mut left_out = LeftOut::default();
    if service.ignored.is_some() {
        return left_out;
    }
    for (kind, ip) in all_addresses(service).filter(|(_, ip)| service.families.has(ip)) {
        if let Some(why) = guard.address(kind, ip) {
            left_out.add(|| format!("{ip} is ignored: {why}"));
        }
    }
    let addresses = addresses(service, guard);
    for port in &service.ports {
        for (kind, at) in all_places(addresses.iter().copied(), service, port) {
            if let Some(why) = guard.port(kind, at, port.protocol) {
                left_out.add(|| format!("{at}/{} is ignored: {why}", port.protocol));
            }
        }
    }
    if let Some((port, why)) = health::refused(service, guard) {
        left_out.add(|| format!("healthCheckNodePort {port} is ignored: {why}"));
    }
    for (name, slice) in slices {
        // Each endpoint is examined once, independent of the ports: a slice may have thousands of both.
        let tunnel = slice.ports.iter().find(|port| Guard::is_tunnel(port.port, port.protocol));
        let Some(port) = tunnel.or(slice.ports.first()) else { continue };
        for endpoint in &slice.endpoints {
            let at = SocketAddr::new(endpoint.addr, port.port);
            if let Some(why) = guard.endpoint(at, port.protocol) {
                left_out.add(|| format!("endpoint {at}/{} of {name} is ignored: {why}", port.protocol));
            }
        }
    }
    left_out
}
