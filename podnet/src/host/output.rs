//! Routes of the host's own packets, as its stack would choose them (`RTM_GETROUTE`, as for `ip route get`).

use std::net::IpAddr;

use futures::TryStreamExt as _;
use netlink_packet_route::route::{RouteAddress, RouteAttribute, RouteMessage, RouteType};
use podnet_common::addr::IfIndex;
use rtnetlink::RouteMessageBuilder;

use super::Host;
use super::error::{HostError, errno};

/// Route of a packet that the host sends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct OutputRoute {
    /// Output interface.
    pub ifindex: IfIndex,
    /// The gateway, if there is one.
    pub gateway: Option<IpAddr>,
    /// The source address that the host chooses.
    pub source: Option<IpAddr>,
    /// Whether the destination is an address of the host.
    pub local: bool,
}

impl Host {
    /// Route to a destination, for a socket that is bound to the address `src`, if given. `None`: there is no route.
    ///
    /// # Errors
    /// [`HostError::Read`] if the kernel can't be queried.
    pub async fn output_route(&self, dst: IpAddr, src: Option<IpAddr>) -> Result<Option<OutputRoute>, HostError> {
        let length = if dst.is_ipv4() { 32 } else { 128 };
        let mut message = RouteMessageBuilder::<IpAddr>::new()
            .destination_prefix(dst, length)
            .expect("a whole address is a prefix of its family")
            .build();
        if let Some(src) = src {
            message.header.source_prefix_length = length;
            message.attributes.push(RouteAttribute::Source(src.into()));
        }
        // A request has no route type.
        message.header.kind = RouteType::Unspec;
        match self.handle.route().get(message).execute().try_next().await {
            Ok(answer) => Ok(answer.and_then(|answer| output_route(&answer))),
            Err(error) if matches!(errno(&error), Some(libc::ENETUNREACH | libc::EHOSTUNREACH | libc::EACCES)) => {
                Ok(None)
            }
            // A blackhole route, or a source that the host doesn't have.
            Err(error) if errno(&error) == Some(libc::EINVAL) => Ok(None),
            Err(source) => Err(HostError::Read { what: "route", source }),
        }
    }
}

fn output_route(message: &RouteMessage) -> Option<OutputRoute> {
    let mut route = OutputRoute {
        ifindex: IfIndex(0),
        gateway: None,
        source: None,
        local: message.header.kind == RouteType::Local,
    };
    for attribute in &message.attributes {
        match attribute {
            RouteAttribute::Oif(ifindex) => route.ifindex = IfIndex(*ifindex),
            RouteAttribute::Gateway(address) => route.gateway = ip(address),
            RouteAttribute::PrefSource(address) => route.source = ip(address),
            _ => {}
        }
    }
    (matches!(message.header.kind, RouteType::Unicast | RouteType::Local) && route.ifindex.0 != 0).then_some(route)
}

fn ip(address: &RouteAddress) -> Option<IpAddr> {
    match address {
        RouteAddress::Inet(address) => Some((*address).into()),
        RouteAddress::Inet6(address) => Some((*address).into()),
        _ => None,
    }
}
