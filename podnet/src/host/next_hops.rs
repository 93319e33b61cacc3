//! Next hops that are objects of their own (ip-nexthop(8)), to which routes refer by number.
//!
//! With the setting `net.ipv4.nexthop_compat_mode=0` a route's message has this number instead of gateway and interface,
//! and no route is announced when the object that it refers to is replaced. netlink-packet-route doesn't know these
//! messages, so they have connections of their own.

use std::collections::BTreeMap;
use std::io;

use futures::channel::mpsc::UnboundedReceiver;
use futures::future::Either;
use futures::{Stream, StreamExt as _};
use podnet_common::addr::IfIndex;
use rtnetlink::MulticastGroup;
use rtnetlink::packet_core::{
    DecodeError, NLM_F_DUMP, NLM_F_REQUEST, NetlinkDeserializable, NetlinkHeader, NetlinkMessage, NetlinkPayload,
    NetlinkSerializable, NlasIterator, parse_ip, parse_u32,
};
use rtnetlink::proto::{self, Connection, ConnectionHandle};
use rtnetlink::sys::{AsyncSocket as _, SocketAddr, protocols::NETLINK_ROUTE};

use super::snapshot::Hop;

/// Length of `struct nhmsg` of linux/nexthop.h, which attributes follow.
const HEADER: usize = 8;

/// A message about these objects.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Message {
    /// Asks for all of them.
    Dump,
    /// What is so of one, or was when it went.
    Object {
        /// By which routes and groups refer to it.
        id: u32,
        /// Where it leads.
        target: Target,
    },
}

/// Where an object leads.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Target {
    /// To a gateway or an interface.
    Hop(Hop),
    /// To several objects, none of which is a group.
    Group(Vec<u32>),
    /// Nowhere that podnet knows: packets are dropped, or it is for a tunnel's forwarding table.
    Other,
}

impl NetlinkSerializable for Message {
    fn message_type(&self) -> u16 {
        const RTM_NEWNEXTHOP: u16 = 104;
        const RTM_GETNEXTHOP: u16 = 106;
        match self {
            Self::Dump => RTM_GETNEXTHOP,
            Self::Object { .. } => RTM_NEWNEXTHOP,
        }
    }

    fn buffer_len(&self) -> usize {
        HEADER
    }

    fn serialize(&self, buffer: &mut [u8]) {
        buffer.fill(0);
    }
}

impl NetlinkDeserializable for Message {
    type Error = DecodeError;

    fn deserialize(_: &NetlinkHeader, payload: &[u8]) -> Result<Self, DecodeError> {
        /// Attributes, of linux/nexthop.h.
        const ID: u16 = 1;
        const GROUP: u16 = 2;
        const OIF: u16 = 5;
        const GATEWAY: u16 = 6;
        /// Length of `struct nexthop_grp`, which begins with a member's number.
        const MEMBER: usize = 8;

        let (mut id, mut dev, mut via, mut members) = (0, None, None, None);
        for attribute in NlasIterator::new(payload.get(HEADER..).unwrap_or_default()) {
            let attribute = attribute?;
            let value = attribute.value();
            match attribute.kind() {
                ID => id = parse_u32(value)?,
                GROUP => members = Some(value.chunks_exact(MEMBER).filter_map(|m| parse_u32(&m[..4]).ok()).collect()),
                OIF => dev = Some(IfIndex(parse_u32(value)?)),
                GATEWAY => via = Some(parse_ip(value)?),
                _ => {}
            }
        }
        let target = match (members, dev) {
            (Some(members), _) => Target::Group(members),
            (None, Some(dev)) => Target::Hop(Hop { via, dev }),
            (None, None) => Target::Other,
        };
        Ok(Self::Object { id, target })
    }
}

/// All objects.
#[derive(Clone, Debug, Default)]
pub(super) struct NextHops(BTreeMap<u32, Target>);

impl NextHops {
    /// Puts the messages of a dump together.
    pub(super) fn of(messages: Vec<Message>) -> Self {
        let object = |message| match message {
            Message::Object { id, target } => Some((id, target)),
            Message::Dump => None,
        };
        Self(messages.into_iter().filter_map(object).collect())
    }

    /// Where packets of routes with an object go; `None`: nowhere, or there is no such object.
    pub(super) fn get(&self, id: u32) -> Option<Vec<Hop>> {
        let members = match self.0.get(&id)? {
            Target::Group(members) => members,
            _ => &vec![id],
        };
        let hop = |id| match self.0.get(id) {
            Some(Target::Hop(hop)) => Some(*hop),
            _ => None,
        };
        let hops: Vec<Hop> = members.iter().filter_map(hop).collect();
        Some(hops).filter(|hops| !hops.is_empty())
    }
}

/// What comes unasked on a connection.
pub(super) type Notices = UnboundedReceiver<(NetlinkMessage<Message>, SocketAddr)>;

/// Opens a connection for questions; somebody has to drive it.
pub(super) fn connect() -> io::Result<(Connection<Message>, ConnectionHandle<Message>)> {
    proto::new_connection(NETLINK_ROUTE).map(|(connection, handle, _)| (connection, handle))
}

/// Opens a connection on which changes of objects are announced; somebody has to drive it.
pub(super) fn subscribe() -> io::Result<(Connection<Message>, Notices)> {
    let (mut connection, _, notices) = proto::new_connection(NETLINK_ROUTE)?;
    let socket = connection.socket_mut().socket_mut();
    socket.bind_auto()?;
    socket.add_membership(MulticastGroup::Nexthop as u32)?;
    Ok((connection, notices))
}

/// Asks for all objects.
pub(super) fn dump(
    handle: &ConnectionHandle<Message>,
) -> impl Stream<Item = Result<Message, rtnetlink::Error>> + use<> {
    let mut request = NetlinkMessage::new(NetlinkHeader::default(), NetlinkPayload::InnerMessage(Message::Dump));
    request.header.flags = NLM_F_REQUEST | NLM_F_DUMP;
    match handle.request(request, SocketAddr::new(0, 0)) {
        Ok(answers) => Either::Left(answers.map(|message| match message.into_parts().1 {
            NetlinkPayload::InnerMessage(message) => Ok(message),
            NetlinkPayload::Error(error) => Err(rtnetlink::Error::NetlinkError(error)),
            _ => Err(rtnetlink::Error::RequestFailed),
        })),
        Err(_) => Either::Right(futures::stream::iter([Err(rtnetlink::Error::RequestFailed)])),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn routes_go_where_their_objects_and_all_members_of_these_lead() {
        let hop = |dev, via: Option<&str>| Hop { via: via.map(|via| via.parse().unwrap()), dev: IfIndex(dev) };
        let object = |id, target| Message::Object { id, target };
        let (gateway, link) = (hop(2, Some("fe80::1")), hop(3, None));
        let hops = NextHops::of(vec![
            object(1, Target::Hop(gateway)),
            object(2, Target::Hop(link)),
            object(3, Target::Other),
            object(4, Target::Group(vec![2, 1, 9])),
            object(5, Target::Group(vec![3])),
        ]);
        assert_eq!(hops.get(1), Some(vec![gateway]));
        assert_eq!(hops.get(4), Some(vec![link, gateway]));
        for nowhere in [3, 5, 9] {
            assert_eq!(hops.get(nowhere), None);
        }
    }
}
