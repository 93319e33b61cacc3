//! Names and aliases of interfaces that are no text: the kernel accepts any bytes, while netlink-packet-route rejects a
//! whole message with one that is not UTF-8.

/// Length of the netlink header.
const HEADER: usize = 16;
/// Flags beside the number of an attribute (`NLA_TYPE_MASK` of linux/netlink.h).
const FLAGS: u16 = 0xc000;

/// Replaces bytes that are no UTF-8 by `?`, in the first message of a buffer.
pub(super) fn mend_first(messages: &mut [u8]) {
    let [a, b, c, d, e, f, ..] = *messages else { return };
    let length = u32::from_ne_bytes([a, b, c, d]) as usize;
    if let Some(payload) = messages.get_mut(HEADER..length) {
        mend(u16::from_ne_bytes([e, f]), payload);
    }
}

/// Replaces bytes that are no UTF-8 by `?`. The message is of this type (`RTM_*`), and without the netlink header.
pub fn mend(kind: u16, payload: &mut [u8]) {
    let (header, texts, nests): (usize, &[u16], &[u16]) = match kind {
        libc::RTM_NEWLINK | libc::RTM_DELLINK => {
            (16, &[libc::IFLA_IFNAME, libc::IFLA_IFALIAS, libc::IFLA_ALT_IFNAME], &[libc::IFLA_PROP_LIST])
        }
        libc::RTM_NEWADDR | libc::RTM_DELADDR => (8, &[libc::IFA_LABEL], &[]),
        _ => return,
    };
    mend_attributes(payload.get_mut(header..).unwrap_or_default(), texts, nests);
}

fn mend_attributes(mut rest: &mut [u8], texts: &[u16], nests: &[u16]) {
    while let [a, b, c, d, ..] = *rest {
        let (length, kind) = (usize::from(u16::from_ne_bytes([a, b])), u16::from_ne_bytes([c, d]) & !FLAGS);
        let Some(value) = rest.get_mut(4..length) else { return };
        if nests.contains(&kind) {
            mend_attributes(value, texts, &[]);
        } else if texts.contains(&kind) && str::from_utf8(value).is_err() {
            value.iter_mut().filter(|byte| !byte.is_ascii()).for_each(|byte| *byte = b'?');
        }
        rest = rest.get_mut(length.next_multiple_of(4)..).unwrap_or_default();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn attribute(kind: u16, value: &[u8]) -> Vec<u8> {
        let length = 4 + value.len() as u16;
        let mut bytes = [&length.to_ne_bytes()[..], &kind.to_ne_bytes(), value].concat();
        bytes.resize(bytes.len().next_multiple_of(4), 0);
        bytes
    }

    #[test]
    fn only_what_is_no_text_is_replaced() {
        let link = |alias: &[u8], other: &[u8]| {
            let names = attribute(libc::IFLA_ALT_IFNAME, other);
            let attributes = [
                attribute(libc::IFLA_ADDRESS, &[0xff; 6]),
                attribute(libc::IFLA_IFNAME, "bürö0\0".as_bytes()),
                attribute(libc::IFLA_IFALIAS, alias),
                attribute(libc::IFLA_PROP_LIST | 0x8000, &names),
            ];
            [vec![0; 16], attributes.concat()].concat()
        };
        let mut message = link(b"B\xfcro\0", b"\xff\0");
        mend(libc::RTM_NEWLINK, &mut message);
        assert_eq!(message, link(b"B?ro\0", b"?\0"));
        let mut truncated = message[..message.len() - 3].to_vec();
        mend(libc::RTM_NEWLINK, &mut truncated);
        assert_eq!(truncated, message[..message.len() - 3]);

        let address = |label| [vec![0; 8], attribute(libc::IFA_LABEL, label)].concat();
        let mut message = [vec![0; HEADER], address(b"eth\xe90\0")].concat();
        let length = message.len() as u32;
        message[..4].copy_from_slice(&length.to_ne_bytes());
        message[4..6].copy_from_slice(&libc::RTM_NEWADDR.to_ne_bytes());
        mend_first(&mut message);
        assert_eq!(message[HEADER..], address(b"eth?0\0"));
        mend_first(&mut []);
    }
}
