//! MAC addresses: parsing, validation and generation.

use std::fs::File;
use std::io::{self, Read as _};

use podnet_common::addr::Mac;
use serde::{Deserialize as _, Deserializer, Serializer, de::Error as _};

/// Parses six bytes in hexadecimal, separated by ':' or '-'.
pub fn parse(text: &str) -> Option<Mac> {
    let mut bytes = [0; 6];
    let mut parts = text.split([':', '-']);
    for byte in &mut bytes {
        let part = parts.next().filter(|p| matches!(p.len(), 1..=2) && p.bytes().all(|b| b.is_ascii_hexdigit()))?;
        *byte = u8::from_str_radix(part, 16).ok()?;
    }
    parts.next().is_none().then_some(Mac(bytes))
}

/// Whether an interface can have it: neither a group address nor zero.
pub fn is_unicast(mac: Mac) -> bool {
    mac.0[0] & 1 == 0 && mac != Mac::default()
}

/// A random, locally administered MAC. The kernel would generate one too, but udev's MACAddressPolicy replaces such
/// addresses at some later time; it leaves those alone that were set explicitly.
pub fn random() -> io::Result<Mac> {
    let mut bytes = [0; 6];
    File::open("/dev/urandom")?.read_exact(&mut bytes)?;
    bytes[0] = bytes[0] & 0xfe | 0x02;
    Ok(Mac(bytes))
}

/// For `#[serde(with = "crate::mac")]`.
pub fn serialize<S: Serializer>(mac: &Mac, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_str(mac)
}

/// For `#[serde(with = "crate::mac")]`.
pub fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Mac, D::Error> {
    let text = String::deserialize(deserializer)?;
    parse(&text).ok_or_else(|| D::Error::custom(format!("`{text}` is not a MAC address")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_and_back() {
        let mac = Mac([2, 0, 0x5e, 0x10, 0xff, 1]);
        assert_eq!(mac.to_string(), "02:00:5e:10:ff:01");
        assert_eq!(parse("02:00:5e:10:ff:01"), Some(mac));
        assert_eq!(parse("2-0-5E-10-FF-1"), Some(mac));
        for bad in ["", "02:00:5e:10:ff", "02:00:5e:10:ff:01:02", "02:00:5e:10:ff:1ff", "02:00:5e:10:ff:+1", "x"] {
            assert_eq!(parse(bad), None, "{bad}");
        }
    }

    #[test]
    fn random_ones_are_local_and_unicast() {
        let macs: Vec<Mac> = (0..64).map(|_| random().unwrap()).collect();
        assert!(macs.iter().all(|m| is_unicast(*m) && m.0[0] & 2 == 2));
        assert!(macs.windows(2).all(|w| w[0] != w[1]));
    }
}
