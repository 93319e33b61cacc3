//! rtnetlink(7) messages that netlink-packet-route doesn't support, or not whatever bytes they contain, unparsed, on
//! connections of their own.

use std::io;

use futures::channel::mpsc::UnboundedReceiver;
use futures::future::Either;
use futures::{Stream, StreamExt as _};
use netlink_packet_route::RouteNetlinkMessage;
use podnet_cni::netlink::texts;
use rtnetlink::MulticastGroup;
use rtnetlink::packet_core::{
    DecodeError, NLM_F_DUMP, NLM_F_REQUEST, NetlinkDeserializable, NetlinkHeader, NetlinkMessage, NetlinkPayload,
    NetlinkSerializable, NlasIterator,
};
use rtnetlink::proto::{self, Connection, ConnectionHandle};
use rtnetlink::sys::{AsyncSocket as _, SocketAddr, protocols::NETLINK_ROUTE};

/// A message without the netlink header.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Raw {
    /// Message type (`RTM_*`).
    pub kind: u16,
    /// The header of that type, then attributes.
    pub payload: Vec<u8>,
}

impl Raw {
    /// Asks for all links.
    pub(super) fn links() -> Self {
        Self { kind: libc::RTM_GETLINK, payload: vec![0; size_of::<libc::ifinfomsg>()] }
    }

    /// Asks for all addresses.
    pub(super) fn addresses() -> Self {
        Self { kind: libc::RTM_GETADDR, payload: vec![0; size_of::<libc::ifaddrmsg>()] }
    }

    /// Parses it; `None` if netlink-packet-route can't. Names and aliases that are no text get question marks.
    pub(super) fn parse(mut self) -> Option<RouteNetlinkMessage> {
        texts::mend(self.kind, &mut self.payload);
        let mut header = NetlinkHeader::default();
        header.message_type = self.kind;
        let parsed = RouteNetlinkMessage::deserialize(&header, &self.payload);
        parsed.inspect_err(|error| tracing::warn!(kind = self.kind, "cannot parse a netlink message: {error}")).ok()
    }

    /// The attributes after a header of `header` bytes, by number, up to the first truncated one.
    pub(super) fn attributes(&self, header: usize) -> impl Iterator<Item = (u16, &[u8])> {
        /// Flags beside the number (`NLA_TYPE_MASK` of linux/netlink.h).
        const FLAGS: u16 = 0xc000;
        let attributes = NlasIterator::new(self.payload.get(header..).unwrap_or_default());
        attributes.map_while(Result::ok).map(|attribute| {
            let bytes = attribute.into_inner();
            let [a, b, c, d] = [0, 1, 2, 3].map(|at| bytes[at]);
            let length = usize::from(u16::from_ne_bytes([a, b]));
            (u16::from_ne_bytes([c, d]) & !FLAGS, &bytes[4..length])
        })
    }
}

impl NetlinkSerializable for Raw {
    fn message_type(&self) -> u16 {
        self.kind
    }

    fn buffer_len(&self) -> usize {
        self.payload.len()
    }

    fn serialize(&self, buffer: &mut [u8]) {
        buffer.copy_from_slice(&self.payload);
    }
}

impl NetlinkDeserializable for Raw {
    type Error = DecodeError;

    fn deserialize(header: &NetlinkHeader, payload: &[u8]) -> Result<Self, DecodeError> {
        Ok(Self { kind: header.message_type, payload: payload.to_vec() })
    }
}

/// Unsolicited messages of a connection.
pub(super) type Notices = UnboundedReceiver<(NetlinkMessage<Raw>, SocketAddr)>;

/// Opens a connection for requests. The caller must poll it.
pub(super) fn connect() -> io::Result<(Connection<Raw>, ConnectionHandle<Raw>)> {
    proto::new_connection(NETLINK_ROUTE).map(|(connection, handle, _)| (connection, handle))
}

/// Opens a connection that receives the messages of some groups. The caller must poll it.
pub(super) fn subscribe(groups: &[MulticastGroup]) -> io::Result<(Connection<Raw>, Notices)> {
    let (mut connection, _, notices) = proto::new_connection(NETLINK_ROUTE)?;
    let socket = connection.socket_mut().socket_mut();
    socket.bind_auto()?;
    groups.iter().try_for_each(|group| socket.add_membership(*group as u32))?;
    Ok((connection, notices))
}

/// Dumps all objects of a kind.
pub(super) fn dump(
    handle: &ConnectionHandle<Raw>,
    request: Raw,
) -> impl Stream<Item = Result<Raw, rtnetlink::Error>> + use<> {
    let mut request = NetlinkMessage::new(NetlinkHeader::default(), NetlinkPayload::InnerMessage(request));
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
    fn attributes_are_read_up_to_a_truncated_one() {
        let attribute = |kind: u16, value: &[u8]| {
            let length = 4 + value.len() as u16;
            let mut bytes = [&length.to_ne_bytes()[..], &kind.to_ne_bytes(), value].concat();
            bytes.resize(bytes.len().next_multiple_of(4), 0);
            bytes
        };
        let payload = [vec![9; 4], attribute(1, &[1]), attribute(0x8002, &[]), attribute(3, &[3, 4])].concat();
        let raw = |payload: &[u8]| Raw { kind: 0, payload: payload.to_vec() };
        let expected: [(u16, &[u8]); 3] = [(1, &[1]), (2, &[]), (3, &[3, 4])];
        assert_eq!(raw(&payload).attributes(4).collect::<Vec<_>>(), expected);
        assert_eq!(raw(&payload[..payload.len() - 4]).attributes(4).collect::<Vec<_>>(), expected[..2]);
        assert_eq!(raw(&payload).attributes(400).count(), 0);
    }
}
