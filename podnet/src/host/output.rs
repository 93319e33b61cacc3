//! The way of the host's own packets, as its stack would choose it (`RTM_GETROUTE`, what `ip route get` asks).

use std::net::IpAddr;

use futures::TryStreamExt as _;
use netlink_packet_route::route::{RouteAddress, RouteAttribute, RouteMessage, RouteType};
use podnet_common::addr::IfIndex;
use rtnetlink::RouteMessageBuilder;

use super::Host;
use super::error::{HostError, errno};

/// Where a packet of the host's goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct OutputRoute {
    /// By which interface.
    pub ifindex: IfIndex,
    /// The next router, if there is one.
    pub gateway: Option<IpAddr>,
    /// The source that the host chooses.
    pub source: Option<IpAddr>,
    /// The destination is the host's own.
    pub local: bool,
}

impl Host {
    /// The way to a destination, for a process that has chosen that source or none. `None`: there is none.
    ///
    /// # Errors
    /// [`HostError::Read`] if the kernel can't be asked.
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
        // A question has no kind.
        message.header.kind = RouteType::Unspec;
        match self.handle.route().get(message).execute().try_next().await {
            Ok(answer) => Ok(answer.and_then(|answer| output_route(&answer))),
            Err(error) if matches!(errno(&error), Some(libc::ENETUNREACH | libc::EHOSTUNREACH | libc::EACCES)) => {
                Ok(None)
            }
            // A blackhole, and a source that the host doesn't have.
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
