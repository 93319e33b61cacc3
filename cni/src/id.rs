//! The identity of an attachment: the container and the name of the interface in it.

use std::fmt;
use std::hash::Hasher as _;

use serde::{Deserialize, Serialize};
use thiserror::Error;

/// A container's id, assigned by the runtime: a letter or digit, followed by `[A-Za-z0-9_.-]`.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct ContainerId(String);

/// The name of an interface.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct IfName(String);

/// Why an id is invalid.
#[derive(Debug, Error, PartialEq, Eq)]
pub enum IdError {
    /// The container's id.
    #[error(
        "container id `{0}` is not valid: it must start with a letter or digit, followed by letters, digits, '_', '.' \
         or '-', and have at most {max} bytes",
        max = ContainerId::MAX
    )]
    Container(String),
    /// The interface's name.
    #[error(
        "interface name `{0}` is not valid: 1 to 15 bytes, neither '.' nor '..', without '/', ':', white space or \
         control characters"
    )]
    Interface(String),
}

/// Whether the CNI specification allows a text as container id and as network name.
pub fn is_identifier(text: &str) -> bool {
    text.starts_with(|c: char| c.is_ascii_alphanumeric())
        && text.bytes().all(|b| b.is_ascii_alphanumeric() || b"_.-".contains(&b))
}

impl ContainerId {
    /// Maximum length in bytes; a record's file name (NAME_MAX is 255) must contain it. Runtimes use 64.
    pub const MAX: usize = 140;

    /// The text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl TryFrom<String> for ContainerId {
    type Error = IdError;
    fn try_from(id: String) -> Result<Self, IdError> {
        if is_identifier(&id) && id.len() <= Self::MAX { Ok(Self(id)) } else { Err(IdError::Container(id)) }
    }
}

impl From<ContainerId> for String {
    fn from(id: ContainerId) -> Self {
        id.0
    }
}

impl IfName {
    /// The text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl TryFrom<String> for IfName {
    type Error = IdError;
    fn try_from(name: String) -> Result<Self, IdError> {
        let fits = (1..=15).contains(&name.len()) && name != "." && name != "..";
        if fits && !name.contains(|c: char| c == '/' || c == ':' || c.is_whitespace() || c.is_control()) {
            Ok(Self(name))
        } else {
            Err(IdError::Interface(name))
        }
    }
}

impl From<IfName> for String {
    fn from(name: IfName) -> Self {
        name.0
    }
}

/// An interface of a container: the key of an attachment.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct AttachmentId {
    /// The container.
    #[serde(rename = "containerID")]
    pub container: ContainerId,
    /// The interface in it.
    pub ifname: IfName,
}

impl AttachmentId {
    /// Prefix of the names of all host ends, and the number of hexadecimal digits after it.
    const HOST_PREFIX: &str = "pn";
    const HOST_DIGITS: usize = 11;

    /// Name of the host end of the pod's veth pair. It depends on the id alone, so the link can be found even if its
    /// record is unreadable.
    pub fn host_ifname(&self) -> String {
        let mut hash = Fnv::default();
        hash.write(self.container.0.as_bytes());
        hash.write(&[0]);
        hash.write(self.ifname.0.as_bytes());
        format!("{}{:0digits$x}", Self::HOST_PREFIX, hash.finish() >> 20, digits = Self::HOST_DIGITS)
    }

    /// Whether a name has the form of a host end's.
    pub fn is_host_ifname(name: &str) -> bool {
        let digits = name.strip_prefix(Self::HOST_PREFIX);
        digits
            .is_some_and(|d| d.len() == Self::HOST_DIGITS && d.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f')))
    }
}

impl fmt::Display for AttachmentId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} of container {}", self.ifname.0, self.container.0)
    }
}

/// FNV-1a: stable across builds, unlike the standard library's hashers.
#[derive(Debug)]
pub struct Fnv(u64);

impl Default for Fnv {
    fn default() -> Self {
        Self(0xcbf2_9ce4_8422_2325)
    }
}

impl std::hash::Hasher for Fnv {
    fn write(&mut self, bytes: &[u8]) {
        for b in bytes {
            self.0 = (self.0 ^ u64::from(*b)).wrapping_mul(0x100_0000_01b3);
        }
    }
    fn finish(&self) -> u64 {
        self.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;

    fn container(text: &str) -> Result<ContainerId, IdError> {
        text.to_owned().try_into()
    }
    fn ifname(text: &str) -> Result<IfName, IdError> {
        text.to_owned().try_into()
    }

    #[test]
    fn container_ids() {
        for good in ["a", "0", "A.b_c-d", &"f".repeat(64)] {
            assert!(container(good).is_ok(), "{good}");
        }
        for bad in ["", "-a", ".", "_x", "a b", "a/b", "a:b", "ä", "a\n", &"f".repeat(141)] {
            assert!(container(bad).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn interface_names() {
        for good in ["eth0", "a", "net1.100", "exactly15bytes_"] {
            assert!(ifname(good).is_ok(), "{good}");
        }
        for bad in ["", ".", "..", "a/b", "a:b", "a b", "a\tb", "a\u{7}", "sixteen_bytes_xx", "fünfzehn_bytes"] {
            if bad != "fünfzehn_bytes" {
                assert!(ifname(bad).is_err(), "{bad:?}");
            }
        }
        assert!(ifname("fünfzehn_bytes").is_ok(), "15 bytes of UTF-8 are a name to the kernel");
    }

    #[test]
    fn host_names_differ_and_fit() {
        let names: BTreeSet<String> = (0..2000)
            .flat_map(|i| {
                ["eth0", "net1"].map(|n| AttachmentId {
                    container: container(&format!("c{i}")).unwrap(),
                    ifname: ifname(n).unwrap(),
                })
            })
            .map(|id| id.host_ifname())
            .collect();
        assert_eq!(names.len(), 4000);
        assert!(names.iter().all(|n| AttachmentId::is_host_ifname(n)), "{names:?}");
        assert!(!["pnet0", "pn-lan", "pn0123456789ab", "eth0"].into_iter().any(AttachmentId::is_host_ifname));
    }

    #[test]
    fn the_host_name_is_part_of_the_format_on_disk() {
        let id = AttachmentId { container: container("c1").unwrap(), ifname: ifname("eth0").unwrap() };
        let again = AttachmentId { container: container("c1").unwrap(), ifname: ifname("eth0").unwrap() };
        assert_eq!(id.host_ifname(), again.host_ifname());
    }
}
