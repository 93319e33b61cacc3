//! How a guard affects services.

use std::net::IpAddr;

use super::index::Index;
use crate::guard::Guard;
use crate::model::{ObjectName, Service, ServicePort, SlicePort};
use crate::select;

/// See [`Guard::virtual_ips`]. Empty for a service that podnet doesn't implement.
pub(super) fn virtual_ips(service: &Service, guard: &Guard) -> Box<[IpAddr]> {
    if service.ignored.is_some() {
        return Box::default();
    }
    guard.virtual_ips(&service.cluster_ips, &service.load_balancer_ips)
}

/// The services from which two guards may refuse different things.
pub(super) fn evaluated_differently<'i>(
    index: &'i Index,
    a: &Guard,
    b: &Guard,
) -> impl Iterator<Item = &'i ObjectName> {
    let ports_differ = a.differs_in_ports(b);
    let differs = move |name: &&ObjectName| {
        let Some((service, slices)) = index.service(name) else { return false };
        let tunnel = |port: &SlicePort| Guard::is_tunnel(port.port, port.protocol);
        let port = |port: &ServicePort| {
            let mut places = select::all_places(select::all_addresses(service), service, port);
            places.any(|(kind, at)| a.port(kind, at, port.protocol) != b.port(kind, at, port.protocol))
        };
        select::all_addresses(service).any(|(kind, ip)| a.address(kind, ip) != b.address(kind, ip))
            || (ports_differ && (service.health_check_port.is_some() || service.ports.iter().any(port)))
            || slices.iter().any(|slice| slice.ports.iter().any(tunnel))
    };
    index.services().filter(differs)
}
