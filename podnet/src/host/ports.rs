//! The ports for source NAT, from the host's real settings: 1024–65535 less the ephemeral range, the NodePort range,
//! reserved ports, the ports on which the host's processes listen, and those of services at the node's addresses. A
//! port that both a process and NAT use would send the replies of one to the other.

use std::collections::{BTreeSet, VecDeque};
use std::fs::File;
use std::io::{self, BufReader, Read as _};
use std::iter;
use std::ops::RangeInclusive;
use std::path::{Path, PathBuf};

use super::diag;

/// Ports that Kubernetes gives to NodePort services by default.
pub const NODE_PORTS: RangeInclusive<u16> = 30_000..=32_767;
/// The first port that no privilege is needed for.
const FIRST: u16 = 1024;

/// What the host's ports are taken by.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PortUse {
    /// `net.ipv4.ip_local_port_range`: what the kernel gives to clients that don't choose.
    pub ephemeral: RangeInclusive<u16>,
    /// `net.ipv4.ip_local_reserved_ports`.
    pub reserved: Vec<RangeInclusive<u16>>,
    /// Ports of sockets that listen (TCP, SCTP) or are bound (UDP), and ports of services.
    pub taken: BTreeSet<u16>,
}

/// The host's use of ports could not be read.
#[derive(Debug, thiserror::Error)]
pub enum PortsError {
    /// A file could not be read.
    #[error("can't read {path}: {source}")]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// A file has an unexpected form.
    #[error("{path} holds `{text}`, which is not a list of ports")]
    Form {
        /// The file.
        path: PathBuf,
        /// What it holds.
        text: String,
    },
    /// Nothing remains.
    #[error(
        "no port is free for source NAT: shrink net.ipv4.ip_local_port_range or net.ipv4.ip_local_reserved_ports on \
         this node"
    )]
    None,
}

/// All free ports, ascending.
pub fn snat_ports(used: &PortUse) -> Result<Vec<u16>, PortsError> {
    let free = |port: &u16| {
        !used.ephemeral.contains(port)
            && !NODE_PORTS.contains(port)
            && !used.taken.contains(port)
            && !used.reserved.iter().any(|r| r.contains(port))
    };
    let ports: Vec<_> = (FIRST..=u16::MAX).filter(free).collect();
    if ports.is_empty() { Err(PortsError::None) } else { Ok(ports) }
}

/// The list `current` made to hold exactly the ports of `free`, which ascend, with as few places changed as possible: what is no
/// longer free gives its place to a new port, or else to the last of the list.
pub fn settle(current: &[u16], free: &[u16]) -> Vec<u16> {
    let mut sorted = current.to_vec();
    sorted.sort_unstable();
    if sorted == free {
        return current.to_vec();
    }
    // What has no place yet. Of a port that is twice in the list, the first place counts.
    let mut open: BTreeSet<u16> = free.iter().copied().collect();
    let mut places: VecDeque<Option<u16>> = current.iter().map(|port| open.take(port)).collect();
    let mut new = open.into_iter();
    let mut ports = Vec::with_capacity(free.len());
    while let Some(stays) = places.pop_front() {
        let port = stays.or_else(|| new.next());
        ports.extend(port.or_else(|| iter::from_fn(|| places.pop_back()).flatten().next()));
    }
    ports.extend(new);
    ports
}

/// Reads the use of ports in the calling thread's network namespace.
pub fn read_port_use() -> Result<PortUse, PortsError> {
    read_port_use_from(Path::new("/proc"), diag::listening().ok())
}

/// The same from another directory than `/proc`, with TCP's listeners if the kernel tells them apart.
fn read_port_use_from(proc: &Path, listening: Option<BTreeSet<u16>>) -> Result<PortUse, PortsError> {
    let sysctl = proc.join("sys/net/ipv4");
    let range_path = sysctl.join("ip_local_port_range");
    let text = read(&range_path)?;
    let form = |path: &Path, text: &str| PortsError::Form { path: path.to_owned(), text: text.trim().to_owned() };
    let numbers: Vec<u16> = text.split_whitespace().filter_map(|n| n.parse().ok()).collect();
    let [first, last] = numbers[..] else { return Err(form(&range_path, &text)) };

    let reserved_path = sysctl.join("ip_local_reserved_ports");
    let text = read(&reserved_path)?;
    let reserved = parse_reserved(&text).ok_or_else(|| form(&reserved_path, &text))?;

    let net = proc.join("thread-self/net");
    let tcp: &[_] = if listening.is_some() { &[] } else { &["tcp", "tcp6"] };
    let tables = tcp.iter().map(|table| (*table, Sockets::Listening)).chain([
        ("udp", Sockets::All),
        ("udp6", Sockets::All),
        ("sctp/eps", Sockets::Sctp),
    ]);
    let mut taken = listening.unwrap_or_default();
    for (table, sockets) in tables {
        let path = net.join(table);
        match File::open(&path).and_then(|file| sockets.ports(BufReader::new(file), &mut taken)) {
            Ok(()) => {}
            // A kernel without IPv6 or SCTP.
            Err(source) if source.kind() == io::ErrorKind::NotFound => {}
            Err(source) => return Err(PortsError::Read { path, source }),
        }
    }
    Ok(PortUse { ephemeral: first..=last, reserved, taken })
}

fn read(path: &Path) -> Result<String, PortsError> {
    let mut text = String::new();
    let read = File::open(path).and_then(|mut file| file.read_to_string(&mut text));
    read.map(|_| text).map_err(|source| PortsError::Read { path: path.to_owned(), source })
}

/// Reads a list such as `8080,9148-9150`.
fn parse_reserved(text: &str) -> Option<Vec<RangeInclusive<u16>>> {
    let entries = text.trim().split(',').filter(|e| !e.is_empty());
    entries
        .map(|entry| {
            let (first, last) = entry.split_once('-').unwrap_or((entry, entry));
            Some(first.parse().ok()?..=last.parse().ok()?)
        })
        .collect()
}

/// A table of sockets as the kernel prints it.
#[derive(Clone, Copy)]
enum Sockets {
    /// TCP's, of which those that listen come first: of a host with a million connections only these are read.
    Listening,
    /// UDP's.
    All,
    /// SCTP's endpoints.
    Sctp,
}

impl Sockets {
    /// Adds the local ports of a table such as `/proc/net/tcp`.
    fn ports(self, table: impl io::BufRead, ports: &mut BTreeSet<u16>) -> io::Result<()> {
        /// `TCP_LISTEN`.
        const LISTEN: &str = "0A";
        for line in table.lines().skip(1) {
            let line = line?;
            let fields: Vec<_> = line.split_whitespace().collect();
            if matches!(self, Self::Listening) && fields.get(3) != Some(&LISTEN) {
                break;
            }
            ports.extend(match self {
                Self::Sctp => fields.get(5).and_then(|port| port.parse().ok()),
                _ => fields.get(1).and_then(|local| u16::from_str_radix(local.rsplit_once(':')?.1, 16).ok()),
            });
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;
    use proptest::prelude::*;

    fn used(ephemeral: RangeInclusive<u16>, taken: &[u16]) -> PortUse {
        PortUse { ephemeral, reserved: vec![], taken: taken.iter().copied().collect() }
    }

    #[test]
    fn an_ordinary_host_gives_thirty_thousand() {
        let listeners = [2379, 2380, 6443, 10_250, 10_256];
        for (used, count) in [
            (used(32_768..=60_999, &[]), 28_976 + 4536),
            (used(32_768..=60_999, &listeners), 28_976 + 4536 - 5),
            (used(1024..=29_999, &[]), 32_768),
        ] {
            let ports = snat_ports(&used).unwrap();
            assert_eq!(ports.len(), count);
            assert!(ports.is_sorted() && ports.iter().all(|p| !used.taken.contains(p)));
        }
    }

    #[test]
    fn no_port_left_is_an_error_that_says_what_to_do() {
        let error = snat_ports(&used(1024..=65_535, &[])).unwrap_err();
        assert!(error.to_string().contains("ip_local_port_range"), "{error}");
    }

    #[test]
    fn few_places_change() {
        for (current, free, settled) in [
            (&[][..], &[1, 2, 3][..], &[1, 2, 3][..]),
            (&[1, 2, 3], &[1, 2, 3], &[1, 2, 3]),
            (&[1, 2, 3, 4, 5], &[1, 3, 4, 5], &[1, 5, 3, 4]),
            (&[1, 5, 3, 4], &[1, 2, 3, 4, 5], &[1, 5, 3, 4, 2]),
            (&[1, 2, 3], &[1, 3, 9], &[1, 9, 3]),
            (&[1, 2, 3], &[1, 3, 8, 9], &[1, 8, 3, 9]),
            (&[1, 2, 3, 4], &[1, 2], &[1, 2]),
            (&[1, 2, 3, 4], &[4], &[4]),
            (&[1, 1, 2, 1], &[1, 2], &[1, 2]),
            (&[7], &[], &[]),
        ] {
            assert_eq!(settle(current, free), settled, "{current:?} for {free:?}");
        }
    }

    proptest! {
        #[test]
        fn a_settled_list_holds_what_is_free_once(
            current in prop::collection::vec(1u16..40, 0..40), free in prop::collection::btree_set(1u16..40, 0..40),
        ) {
            let free: Vec<_> = free.into_iter().collect();
            let mut settled = settle(&current, &free);
            let unique: BTreeSet<_> = current.iter().collect();
            let kept = current.iter().zip(&settled).filter(|(old, new)| old == new).count();
            if unique.len() == current.len() {
                let gone = current.iter().filter(|port| !free.contains(port)).count();
                prop_assert!(kept + 2 * gone >= current.len(), "a port that goes moves one other at most");
            }
            settled.sort_unstable();
            prop_assert_eq!(settled, free);
        }
    }

    #[test]
    fn the_hosts_files_are_read() {
        let proc = tempfile::TempDir::new().unwrap();
        let put = |path: &str, text: &str| {
            let path = proc.path().join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        };
        put("sys/net/ipv4/ip_local_port_range", "32768\t60999\n");
        put("sys/net/ipv4/ip_local_reserved_ports", "8080,9148-9150\n");
        let table = |name: &str, lines: &[&str]| put(&format!("thread-self/net/{name}"), &lines.join("\n"));
        let header = "  sl  local_address rem_address   st tx_queue rx_queue";
        let listener = "   0: 0100007F:1F91 00000000:0000 0A 00000000:00000000";
        table("tcp", &[header, listener, "   1: 0100007F:C350 0100007F:1F91 01 00000000:00000000"]);
        table("tcp6", &[header, &format!("   0: {0}:192B {0}:0000 0A 00000000:00000000", "0".repeat(32))]);
        table("udp", &[header, "  7: 00000000:0035 00000000:0000 07", "  8: 0100007F:0036 0100007F:0035 01"]);
        table(
            "sctp/eps",
            &[" ENDPT     SOCK   STY SST HBKT LPORT   UID INODE LADDRS", " 0 0 2 10 29 38412 0 7 0.0.0.0"],
        );
        let used = read_port_use_from(proc.path(), None).unwrap();
        assert_eq!(used.ephemeral, 32_768..=60_999);
        assert_eq!(used.reserved, [8080..=8080, 9148..=9150]);
        assert_eq!(used.taken, BTreeSet::from([8081, 53, 54, 6443, 38_412]), "TCP's listeners, not its connections");
        let used = read_port_use_from(proc.path(), Some([22].into())).unwrap();
        assert_eq!(used.taken, BTreeSet::from([22, 53, 54, 38_412]), "TCP's listeners are known");
        put("sys/net/ipv4/ip_local_reserved_ports", "nonsense\n");
        assert!(matches!(read_port_use_from(proc.path(), None), Err(PortsError::Form { .. })));
    }
}
