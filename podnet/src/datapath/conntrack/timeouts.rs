//! When a flow counts as idle: timeouts by protocol and state, and shorter ones under pressure.

use std::time::Duration;

use podnet_common::{
    addr::Proto,
    layout::{CtEntry, Out, Tuple},
    time,
};

/// Timeouts of idle flows, in seconds. The values are those of Linux (`nf_conntrack_*_timeout*`), except for
/// established TCP flows, where they follow kube-proxy.
mod seconds {
    pub(super) const TCP_ESTABLISHED: u64 = 86_400;
    /// Clients retransmit a SYN after one, three and seven seconds.
    pub(super) const TCP_OPENING: u64 = 30;
    pub(super) const TCP_CLOSING: u64 = 120;
    pub(super) const CLOSED: u64 = 10;
    pub(super) const UDP_REPLIED: u64 = 120;
    pub(super) const UDP_UNREPLIED: u64 = 30;
    /// A heartbeat is sent every 30 seconds (RFC 9260, section 16), and up to five go unanswered.
    pub(super) const SCTP_ESTABLISHED: u64 = 210;
    pub(super) const SCTP_OPENING: u64 = 60;
    pub(super) const ICMP: u64 = 30;
    /// Halves of flows that network policy denies. TCP retransmits at least every two minutes (`TCP_RTO_MAX`).
    pub(super) const DENIED: u64 = 300;
    /// Upper limit under pressure, for flows that are probably over.
    pub(super) const HURRY: u64 = 5;
    /// The same for UDP flows with traffic in both directions for a while, which may send keepalives every 25 seconds
    /// (WireGuard).
    pub(super) const UDP_HURRY: u64 = 30;
}

/// How long after the start of a daemon no flow is removed for its age. Without a daemon the clock doesn't advance
/// for packets of established flows, so entries of live flows may look old; within this time each live flow has had a
/// packet.
pub const SETTLING: Duration = Duration::from_secs(seconds::TCP_CLOSING + 10);

/// Whether a flow has been idle for longer than its timeout.
pub(super) fn is_over(tuple: &Tuple, entry: &CtEntry, now: u32, hurry: bool) -> bool {
    // A packet may have updated the entry since `now` was read.
    let silent = now.wrapping_sub(entry.last_seen) as i32;
    silent > 0 && silent as u32 > patience(tuple, entry, hurry)
}

/// Timeout of an idle flow, in ticks. Pressure (`hurry`) shortens it for flows that are probably over, and for those
/// of direct server return: their replies take another path, so a first SYN can't be told from an established
/// connection, and without its entry such a flow gets the same backend again by Maglev hashing.
fn patience(tuple: &Tuple, entry: &CtEntry, hurry: bool) -> u32 {
    let has = |flags| entry.flags & flags != 0;
    let one_way = has(CtEntry::ONE_WAY);
    let established = has(CtEntry::REPLIED) && !has(CtEntry::OPENING);
    let (seconds, at_most) = match tuple.proto {
        _ if entry.out == Out::Denied as u8 => (seconds::DENIED, seconds::HURRY),
        Proto::TCP | Proto::SCTP if entry.doubtful() => (seconds::TCP_CLOSING, seconds::HURRY),
        Proto::TCP | Proto::SCTP if entry.closed() => (seconds::CLOSED, seconds::HURRY),
        Proto::TCP if has(CtEntry::OPENING) => (seconds::TCP_OPENING, seconds::HURRY),
        Proto::TCP if has(CtEntry::CLOSED) => (seconds::TCP_CLOSING, seconds::HURRY),
        Proto::TCP if established => (seconds::TCP_ESTABLISHED, seconds::TCP_ESTABLISHED),
        Proto::TCP if one_way => (seconds::TCP_ESTABLISHED, seconds::HURRY),
        Proto::TCP => (seconds::TCP_OPENING, seconds::HURRY),
        Proto::SCTP if established => (seconds::SCTP_ESTABLISHED, seconds::SCTP_ESTABLISHED),
        Proto::SCTP if one_way => (seconds::SCTP_ESTABLISHED, seconds::HURRY),
        Proto::SCTP => (seconds::SCTP_OPENING, seconds::HURRY),
        Proto::ICMP | Proto::ICMPV6 => (seconds::ICMP, seconds::HURRY),
        _ if established => (seconds::UDP_REPLIED, seconds::UDP_HURRY),
        _ if one_way => (seconds::UDP_REPLIED, seconds::HURRY),
        _ => (seconds::UDP_UNREPLIED, seconds::HURRY),
    };
    time::ticks_of_seconds(if hurry { seconds.min(at_most) } else { seconds })
}
