//! Fields of packets that people name: TCP flags, types of ICMP messages, positions of fragments.

use podnet_common::addr::Proto;
use podnet_common::packet::Tcp;

/// IPv6 fragment header (RFC 8200, section 4.5).
pub(super) const FRAGMENT_HEADER: u8 = 44;
/// IPv4 flags: don't fragment, more fragments.
pub(super) const DONT_FRAGMENT: u16 = 0x4000;
pub(super) const MORE_FRAGMENTS: u16 = 0x2000;
/// PSH and URG, which the pipeline ignores.
const PSH: u8 = 8;
const URG: u8 = 32;

/// A fragment of a datagram.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Fragment {
    /// Offset in bytes, a multiple of 8.
    pub(super) offset: u16,
    /// More fragments follow.
    pub(super) more: bool,
}

/// Type of an ICMP message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct IcmpType {
    pub(super) kind: u8,
    pub(super) code: u8,
    /// Identifier of an echo, otherwise the upper half of the rest of the header.
    pub(super) identifier: u16,
}

/// Names of TCP flags.
const FLAGS: [(u8, &str); 6] =
    [(Tcp::SYN, "SYN"), (Tcp::ACK, "ACK"), (Tcp::FIN, "FIN"), (Tcp::RST, "RST"), (PSH, "PSH"), (URG, "URG")];

pub(super) fn flag_names(flags: u8) -> String {
    let names: Vec<_> = FLAGS.iter().filter(|(flag, _)| flags & flag != 0).map(|(_, name)| *name).collect();
    if names.is_empty() { "without flags".to_owned() } else { names.join(",") }
}

/// Parses comma-separated names of TCP flags.
pub(super) fn parse_flags(text: &str) -> Result<u8, String> {
    let mut flags = 0;
    for word in text.split(',').filter(|word| !word.eq_ignore_ascii_case("none")) {
        let flag = FLAGS.iter().find(|(_, name)| name.eq_ignore_ascii_case(word));
        flags |= flag.ok_or_else(|| format!("{word} is not a TCP flag: use syn, ack, fin, rst, psh, urg or none"))?.0;
    }
    Ok(flags)
}

/// Names of ICMP types, for IPv4 and IPv6.
const ICMP_NAMES: [(&str, u8, u8); 6] = [
    ("echo-request", 8, 128),
    ("echo-reply", 0, 129),
    ("unreachable", 3, 1),
    ("time-exceeded", 11, 3),
    ("parameter-problem", 12, 4),
    ("too-big", 3, 2),
];

pub(super) fn icmp_name(proto: Proto, kind: u8) -> Option<&'static str> {
    let name = ICMP_NAMES.iter().find(|(_, v4, v6)| kind == if proto == Proto::ICMP { *v4 } else { *v6 });
    name.map(|(name, ..)| *name)
}

/// Parses an ICMP type: a name or number, optionally with a code.
pub(super) fn parse_icmp(text: &str, v6: bool) -> Result<IcmpType, String> {
    let (kind, code) = text.split_once(':').unwrap_or((text, "0"));
    let code = code.parse().map_err(|_| format!("{code} is not an ICMP code"))?;
    if let Some((_, four, six)) = ICMP_NAMES.iter().find(|(name, ..)| *name == kind) {
        // In IPv4, "too big" is a code of destination unreachable (RFC 1191).
        let code = if kind == "too-big" && !v6 { 4 } else { code };
        return Ok(IcmpType { kind: if v6 { *six } else { *four }, code, identifier: 0 });
    }
    let names: Vec<_> = ICMP_NAMES.iter().map(|(name, ..)| *name).collect();
    let kind = kind.parse().map_err(|_| format!("{kind} is not an ICMP type: use a number, {}", names.join(", ")))?;
    Ok(IcmpType { kind, code, identifier: 0 })
}

/// Parses the position of a fragment: `first`, or an offset in bytes, with `+` if more fragments follow.
pub(super) fn parse_fragment(text: &str) -> Result<Fragment, String> {
    if text == "first" {
        return Ok(Fragment { offset: 0, more: true });
    }
    let (number, more) = text.strip_suffix('+').map_or((text, false), |number| (number, true));
    match number.parse() {
        Ok(offset) if offset % 8 == 0 && offset <= 0xfff8 => Ok(Fragment { offset, more }),
        _ => Err(format!("{text} is not a fragment offset: use first, or a multiple of 8 in bytes")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn arguments_are_parsed_or_errors_explain() {
        assert_eq!(parse_flags("syn,ACK"), Ok(Tcp::SYN | Tcp::ACK));
        assert_eq!(parse_flags("none"), Ok(0));
        assert!(parse_flags("synack").unwrap_err().contains("synack"));
        assert_eq!(parse_icmp("too-big", false), Ok(IcmpType { kind: 3, code: 4, identifier: 0 }));
        assert_eq!(parse_icmp("too-big", true), Ok(IcmpType { kind: 2, code: 0, identifier: 0 }));
        assert_eq!(parse_icmp("3:1", false), Ok(IcmpType { kind: 3, code: 1, identifier: 0 }));
        assert!(parse_icmp("ping", false).unwrap_err().contains("echo-request"));
        assert_eq!(parse_fragment("8+"), Ok(Fragment { offset: 8, more: true }));
        assert!(parse_fragment("7").is_err() && parse_fragment("last").is_err());
    }
}
