//! BPF programs as traffic filters of a link (tc-bpf(8)), on both sides of its clsact qdisc.

use std::os::fd::{AsRawFd as _, BorrowedFd};

use netlink_packet_core::{NLM_F_CREATE, NLM_F_EXCL};
use netlink_packet_route::RouteNetlinkMessage;
use netlink_packet_route::tc::{TcAttribute, TcBpfFlags, TcFilterBpfOption, TcHandle, TcMessage, TcOption};
use podnet_common::addr::IfIndex;

use super::request::Op;

/// Priority and handle of podnet's filters: a second attempt to add one finds the first.
const PRIORITY: u16 = 1;
const HANDLE: TcHandle = TcHandle { major: 0, minor: 0x706e };

/// Where on a link a program runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Direction {
    /// On packets that the link receives.
    Ingress,
    /// On packets that the link sends.
    Egress,
}

impl Direction {
    /// The side of the clsact qdisc, which is a filter's parent (linux/pkt_sched.h).
    pub(super) fn parent(self) -> TcHandle {
        let minor = match self {
            Self::Ingress => TcHandle::MIN_INGRESS,
            Self::Egress => TcHandle::MIN_EGRESS,
        };
        TcHandle { minor, ..TcHandle::CLSACT }
    }
}

impl Op {
    /// Adds a clsact qdisc to a link, unless it has one.
    pub fn add_clsact(index: IfIndex) -> Self {
        let mut message = TcMessage::default();
        message.header.index = index.0.cast_signed();
        message.header.parent = TcHandle::CLSACT;
        message.header.handle = TcHandle { minor: 0, ..TcHandle::CLSACT };
        message.attributes.push(TcAttribute::Kind("clsact".to_owned()));
        let what = format!("add a clsact qdisc to link {}", index.0);
        let message = RouteNetlinkMessage::NewQueueDiscipline(message);
        Self { tolerated: &[libc::EEXIST], ..Self::new(what, message, NLM_F_CREATE | NLM_F_EXCL) }
    }

    /// Adds a program as a filter in direct-action mode (EEXIST if podnet has one there). The link needs a clsact
    /// qdisc. `name` is for people to read.
    pub fn add_filter(index: IfIndex, direction: Direction, program: BorrowedFd<'_>, name: &str) -> Self {
        let mut message = filter(index, direction);
        let options = [
            TcFilterBpfOption::ProgFd(program.as_raw_fd().cast_unsigned()),
            TcFilterBpfOption::ProgName(name.to_owned()),
            TcFilterBpfOption::Flags(TcBpfFlags::DirectAction),
        ];
        message.attributes.push(TcAttribute::Kind("bpf".to_owned()));
        message.attributes.push(TcAttribute::Options(options.map(TcOption::Bpf).to_vec()));
        let what = format!("add the program {name} to link {}", index.0);
        Self::new(what, RouteNetlinkMessage::NewTrafficFilter(message), NLM_F_CREATE | NLM_F_EXCL)
    }

    /// Deletes podnet's filter. Neither it nor the qdisc need exist.
    pub fn delete_filter(index: IfIndex, direction: Direction) -> Self {
        let what = format!("delete podnet's filter of link {}", index.0);
        let message = RouteNetlinkMessage::DelTrafficFilter(filter(index, direction));
        // Without a clsact qdisc, the parent is invalid.
        Self { tolerated: &[libc::ENOENT, libc::EINVAL], ..Self::new(what, message, 0) }
    }
}

fn filter(index: IfIndex, direction: Direction) -> TcMessage {
    /// `ETH_P_ALL` of linux/if_ether.h: packets of every protocol.
    const EVERY_PROTOCOL: u16 = 3;
    let mut message = TcMessage::default();
    message.header.index = index.0.cast_signed();
    message.header.parent = direction.parent();
    message.header.handle = HANDLE;
    message.header.info = u32::from(PRIORITY) << 16 | u32::from(EVERY_PROTOCOL.to_be());
    message
}

/// The id of the program that a filter runs.
pub(super) fn program(message: &TcMessage) -> Option<u32> {
    let options =
        message.attributes.iter().filter_map(|a| if let TcAttribute::Options(o) = a { Some(o) } else { None });
    options.flatten().find_map(|option| match option {
        TcOption::Bpf(TcFilterBpfOption::ProgId(id)) => Some(*id),
        _ => None,
    })
}
