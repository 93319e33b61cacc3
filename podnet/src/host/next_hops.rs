//! Nexthop objects (ip-nexthop(8)), to which routes refer by id.
//!
//! With the setting `net.ipv4.nexthop_compat_mode=0` a route message has this id instead of gateway and interface, and
//! the kernel announces no route when its object is replaced.

use std::collections::BTreeMap;

use podnet_common::addr::IfIndex;
use rtnetlink::packet_core::{parse_ip, parse_u32};

use super::raw::Raw;
use super::snapshot::Hop;

/// Length of `struct nhmsg` of linux/nexthop.h; attributes follow.
const HEADER: usize = 8;

/// Request for a dump of all objects.
pub(super) fn request() -> Raw {
    const RTM_GETNEXTHOP: u16 = 106;
    Raw { kind: RTM_GETNEXTHOP, payload: vec![0; HEADER] }
}

/// Whether a message announces a new, changed or deleted object.
pub(super) fn is_about(message: &Raw) -> bool {
    /// `RTM_NEWNEXTHOP` and `RTM_DELNEXTHOP`, of linux/rtnetlink.h.
    const KINDS: [u16; 2] = [104, 105];
    KINDS.contains(&message.kind)
}

/// Target of an object.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Target {
    /// A gateway or an interface.
    Hop(Hop),
    /// A group of objects, none of which is a group itself.
    Group(Vec<u32>),
}

/// Reads the message of an object; `None` for objects that podnet can't use: blackholes, and those for a tunnel's
/// forwarding table.
fn object(message: &Raw) -> Option<(u32, Target)> {
    /// Attributes of linux/nexthop.h.
    const ID: u16 = 1;
    const GROUP: u16 = 2;
    const OIF: u16 = 5;
    const GATEWAY: u16 = 6;
    /// Length of `struct nexthop_grp`, which begins with a member's id.
    const MEMBER: usize = 8;

    let (mut id, mut dev, mut via, mut members) = (None, None, None, None);
    for (kind, value) in message.attributes(HEADER) {
        match kind {
            ID => id = parse_u32(value).ok(),
            GROUP => members = Some(value.chunks_exact(MEMBER).filter_map(|m| parse_u32(&m[..4]).ok()).collect()),
            OIF => dev = parse_u32(value).ok().map(IfIndex),
            GATEWAY => via = parse_ip(value).ok(),
            _ => {}
        }
    }
    let hop = dev.map(|dev| Target::Hop(Hop { via, dev }));
    Some((id?, members.map(Target::Group).or(hop)?))
}

/// All objects.
#[derive(Clone, Debug, Default)]
pub(super) struct NextHops(BTreeMap<u32, Target>);

impl NextHops {
    /// Collects the messages of a dump.
    pub(super) fn of(messages: &[Raw]) -> Self {
        Self(messages.iter().filter_map(object).collect())
    }

    /// Hops of routes with an object; `None` if it leads nowhere or doesn't exist.
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn routes_use_the_hops_of_objects_and_group_members() {
        let hop = |dev, via: Option<&str>| Hop { via: via.map(|via| via.parse().unwrap()), dev: IfIndex(dev) };
        let (gateway, link) = (hop(2, Some("fe80::1")), hop(3, None));
        let hops = NextHops(BTreeMap::from([
            (1, Target::Hop(gateway)),
            (2, Target::Hop(link)),
            (4, Target::Group(vec![2, 1, 9])),
            (5, Target::Group(vec![9])),
        ]));
        assert_eq!(hops.get(1), Some(vec![gateway]));
        assert_eq!(hops.get(4), Some(vec![link, gateway]));
        for nowhere in [5, 9] {
            assert_eq!(hops.get(nowhere), None);
        }
    }
}
