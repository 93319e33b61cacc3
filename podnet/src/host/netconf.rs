//! Notifications about changes of the forwarding and reverse path filtering settings, for all interfaces or a single
//! one. The kernel has no notifications about other settings.

use podnet_common::addr::IfIndex;
use rtnetlink::packet_core::parse_i32;

use super::raw::Raw;

/// `RTM_NEWNETCONF`, of linux/rtnetlink.h.
const NEW: u16 = 80;

/// The interfaces that a setting applies to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Scope {
    /// All interfaces, or the default for new ones.
    Node,
    /// One interface.
    Interface(IfIndex),
}

/// Reads a message; `None` for messages about other settings, and for the first one of a new interface, which has all
/// settings.
pub(super) fn changed(message: &Raw) -> Option<Scope> {
    /// Length of `struct netconfmsg` of linux/netconf.h with padding; attributes follow.
    const HEADER: usize = 4;
    /// Attributes of linux/netconf.h.
    const IFINDEX: u16 = 1;
    const FORWARDING: u16 = 2;
    const RP_FILTER: u16 = 3;

    let (mut index, mut settings) = (None, Vec::new());
    for (kind, value) in message.attributes(HEADER).filter(|_| message.kind == NEW) {
        match kind {
            IFINDEX => index = parse_i32(value).ok(),
            other => settings.push(other),
        }
    }
    matches!(settings[..], [FORWARDING | RP_FILTER]).then_some(())?;
    // `NETCONFA_IFINDEX_ALL` and `_DEFAULT` are negative.
    Some(u32::try_from(index?).map_or(Scope::Node, |index| Scope::Interface(IfIndex(index))))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_setting_is_a_change_and_all_of_them_are_a_new_interface() {
        let message = |attributes: &[(u16, i32)]| {
            let attribute = |(kind, value): &(u16, i32)| {
                [&8u16.to_ne_bytes()[..], &kind.to_ne_bytes(), &value.to_ne_bytes()].concat()
            };
            let attributes = attributes.iter().flat_map(attribute);
            Raw { kind: NEW, payload: [2, 0, 0, 0].into_iter().chain(attributes).collect() }
        };
        let interface = Some(Scope::Interface(IfIndex(7)));
        for (attributes, expected) in [
            (&[(1, 7), (2, 0)][..], interface),
            (&[(1, 7), (3, 1)], interface),
            (&[(1, -1), (2, 0)], Some(Scope::Node)),
            (&[(1, -2), (2, 0)], Some(Scope::Node)),
            (&[(1, 7), (5, 1)], None),
            (&[(1, 7), (2, 1), (3, 0), (4, 0), (5, 0), (6, 0)], None),
            (&[(2, 1)], None),
        ] {
            assert_eq!(changed(&message(attributes)), expected, "{attributes:?}");
        }
        assert_eq!(changed(&Raw { kind: NEW + 1, ..message(&[(1, 7), (2, 0)]) }), None, "the interface goes");
    }
}
