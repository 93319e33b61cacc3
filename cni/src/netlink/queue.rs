//! A token bucket filter as a link's queueing discipline (tc-tbf(8)).

use netlink_packet_core::{DefaultNla, NLM_F_CREATE, NLM_F_REPLACE, Nla as _};
use netlink_packet_route::RouteNetlinkMessage;
use netlink_packet_route::tc::{TcAttribute, TcHandle, TcMessage, TcOption};
use podnet_common::addr::IfIndex;

use super::Op;

const KIND: &str = "tbf";
/// Handle of podnet's queueing discipline.
const HANDLE: TcHandle = TcHandle { major: 0x706e, minor: 0 };

/// Attributes of linux/pkt_sched.h.
const TCA_TBF_PARMS: u16 = 1;
const TCA_TBF_RATE64: u16 = 4;
const TCA_TBF_BURST: u16 = 6;
/// `TC_LINKLAYER_ETHERNET`.
const ETHERNET: u8 = 1;

/// A token bucket.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Bucket {
    /// Rate in bytes per second.
    pub rate: u64,
    /// Size of the bucket in bytes.
    pub burst: u32,
    /// Maximum number of bytes in the queue, including the burst.
    pub limit: u32,
}

impl Op {
    /// Sets a link's queueing discipline, replacing an existing one.
    pub fn set_queue(index: IfIndex, bucket: &Bucket) -> Self {
        let mut message = TcMessage::default();
        message.header.index = index.0.cast_signed();
        message.header.parent = TcHandle::ROOT;
        message.header.handle = HANDLE;
        let option = |kind: u16, value: &[u8]| TcOption::Other(DefaultNla::new(kind, value.to_vec()));
        message.attributes.push(TcAttribute::Kind(KIND.to_owned()));
        message.attributes.push(TcAttribute::Options(vec![
            option(TCA_TBF_PARMS, &parameters(bucket)),
            option(TCA_TBF_RATE64, &bucket.rate.to_ne_bytes()),
            option(TCA_TBF_BURST, &bucket.burst.to_ne_bytes()),
        ]));
        let what = format!("limit the egress of link {} to {} bytes per second (tc-tbf(8))", index.0, bucket.rate);
        Self::new(what, RouteNetlinkMessage::NewQueueDiscipline(message), NLM_F_CREATE | NLM_F_REPLACE)
    }
}

/// `struct tc_tbf_qopt`: two `struct tc_ratespec` (rate and peak rate, 12 bytes each), limit, buffer, MTU.
fn parameters(bucket: &Bucket) -> [u8; 36] {
    let mut bytes = [0; 36];
    bytes[1] = ETHERNET;
    bytes[8..12].copy_from_slice(&u32::try_from(bucket.rate).unwrap_or(u32::MAX).to_ne_bytes());
    bytes[24..28].copy_from_slice(&bucket.limit.to_ne_bytes());
    bytes
}

/// Link, rate and limit of a queueing discipline in an answer, if it is podnet's.
pub(super) fn told(message: &TcMessage) -> Option<(IfIndex, u64, u32)> {
    let header = &message.header;
    let is_tbf = message.attributes.iter().any(|a| matches!(a, TcAttribute::Kind(kind) if kind == KIND));
    if !is_tbf || header.parent != TcHandle::ROOT || header.handle != HANDLE {
        return None;
    }
    let options = message.attributes.iter().find_map(|a| match a {
        TcAttribute::Options(options) => match options.first()? {
            TcOption::Other(nla) => Some(value(nla)),
            _ => None,
        },
        _ => None,
    })?;
    let parameters = attribute(&options, TCA_TBF_PARMS)?;
    let word = |at: usize| Some(u32::from_ne_bytes(parameters.get(at..at + 4)?.try_into().ok()?));
    // The kernel adds this attribute only for rates that do not fit into the parameters.
    let large = attribute(&options, TCA_TBF_RATE64).and_then(|bytes| Some(u64::from_ne_bytes(bytes.try_into().ok()?)));
    Some((IfIndex(header.index.cast_unsigned()), large.map_or_else(|| word(8).map(u64::from), Some)?, word(24)?))
}

fn value(nla: &DefaultNla) -> Vec<u8> {
    let mut bytes = vec![0; nla.value_len()];
    nla.emit_value(&mut bytes);
    bytes
}

/// The value of an attribute in a list of attributes.
fn attribute(mut list: &[u8], wanted: u16) -> Option<&[u8]> {
    /// `NLA_TYPE_MASK`: the type without its flags.
    const TYPE: u16 = 0x3fff;
    loop {
        let length = usize::from(u16::from_ne_bytes(list.get(..2)?.try_into().ok()?));
        let kind = u16::from_ne_bytes(list.get(2..4)?.try_into().ok()?) & TYPE;
        let value = list.get(4..length)?;
        if kind == wanted {
            return Some(value);
        }
        list = list.get(length.next_multiple_of(4)..)?;
    }
}
