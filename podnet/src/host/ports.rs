//! Ports for source NAT, from the host's settings: 1024–65535 except the ephemeral range, the NodePort range, reserved
//! ports, the ports on which the host's processes listen, and those of services at the node's addresses. If a process
//! and NAT used the same port, each could get the replies of the other.
//!
//! If the ephemeral range leaves too few, podnet reserves a part of it, `RESERVED`: the kernel then assigns these ports
//! to no more sockets. Ports still held by sockets aren't used for NAT.

use std::collections::{BTreeSet, VecDeque};
use std::fs::File;
use std::io::{self, BufReader, Read as _};
use std::iter;
use std::ops::RangeInclusive;
use std::path::{Path, PathBuf};

use super::diag;

/// Default NodePort range of Kubernetes.
pub const NODE_PORTS: RangeInclusive<u16> = 30_000..=32_767;
/// First unprivileged port.
const FIRST: u16 = 1024;
/// Range reserved for source NAT if the ephemeral range leaves fewer than [`ENOUGH`] ports: the dynamic ports (RFC
/// 6335, section 6). If all of it is reserved, podnet has reserved it.
const RESERVED: RangeInclusive<u16> = 49_152..=u16::MAX;
/// With this many ports per destination none has to be reserved.
const ENOUGH: usize = 4096;
/// The sysctl for the reservation, below `/proc/sys`.
pub const RESERVATION: &str = "net/ipv4/ip_local_reserved_ports";

/// Ports in use on the host.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PortUse {
    /// `net.ipv4.ip_local_port_range`: the ports that the kernel assigns to clients without a bind.
    pub ephemeral: RangeInclusive<u16>,
    /// `net.ipv4.ip_local_reserved_ports`.
    pub reserved: Vec<RangeInclusive<u16>>,
    /// Ports of listening (TCP, SCTP) or bound (UDP) sockets, and ports of services; if ports are to be reserved, also
    /// those of TCP connections in that range.
    pub taken: BTreeSet<u16>,
}

/// The ports for source NAT.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Supply {
    /// All free ports, ascending.
    Free(Vec<u16>),
    /// These ports, once [`RESERVATION`] has this value; without it there are too few.
    Reserve {
        /// The value.
        list: String,
        /// The ports that are free without the reservation.
        meanwhile: Vec<u16>,
    },
}

/// Errors of reading the use of ports.
#[derive(Debug, thiserror::Error)]
pub enum PortsError {
    /// A file could not be read.
    #[error("cannot read {path}: {source}")]
    Read {
        /// The file.
        path: PathBuf,
        /// The cause.
        source: io::Error,
    },
    /// A file has an unexpected format.
    #[error("{path} holds `{text}`, which is not a list of ports")]
    Form {
        /// The file.
        path: PathBuf,
        /// Its content.
        text: String,
    },
    /// No port remains.
    #[error(
        "no free ports for source NAT: shrink net.ipv4.ip_local_port_range or net.ipv4.ip_local_reserved_ports on \
         this node"
    )]
    None,
}

/// The ports that may be used, and the reservation that this requires.
pub fn supply(used: &PortUse) -> Result<Supply, PortsError> {
    let ports = used.free();
    if used.are_enough() {
        return Ok(Supply::Free(ports));
    }
    if !used.is_reserved() {
        let ranges = used.reserved.iter().chain([&RESERVED]);
        let list = ranges.map(|range| format!("{}-{}", range.start(), range.end())).collect::<Vec<_>>().join(",");
        return Ok(Supply::Reserve { list, meanwhile: ports });
    }
    let own = RESERVED.filter(|port| !used.taken.contains(port));
    let ports: Vec<_> = ports.into_iter().chain(own).collect::<BTreeSet<_>>().into_iter().collect();
    if ports.is_empty() { Err(PortsError::None) } else { Ok(ports) }.map(Supply::Free)
}

impl PortUse {
    /// Ports that no other program can get, ascending.
    fn free(&self) -> Vec<u16> {
        (FIRST..=u16::MAX).filter(|port| self.is_spare(*port) && !self.taken.contains(port)).collect()
    }

    /// Whether a port is outside the ephemeral range and the NodePort range, and isn't reserved.
    fn is_spare(&self, port: u16) -> bool {
        !self.ephemeral.contains(&port)
            && !NODE_PORTS.contains(&port)
            && !self.reserved.iter().any(|range| range.contains(&port))
    }

    /// Whether no reservation is needed. Ports count even if they are in use, so that starting or ending a process
    /// never changes the result.
    fn are_enough(&self) -> bool {
        (FIRST..=u16::MAX).filter(|port| self.is_spare(*port)).count() >= ENOUGH
    }

    /// Whether the whole range for podnet's reservation is reserved.
    fn is_reserved(&self) -> bool {
        RESERVED.into_iter().all(|port| self.reserved.iter().any(|range| range.contains(&port)))
    }
}

/// Changes the list `current` to exactly the ports of `free`, which ascend, with as few changed indexes as possible: a
/// port that is no longer free is replaced by a new port, or else by the last of the list.
pub fn settle(current: &[u16], free: &[u16]) -> Vec<u16> {
    let mut sorted = current.to_vec();
    sorted.sort_unstable();
    if sorted == free {
        return current.to_vec();
    }
    // Ports without an index yet. If a port is in the list twice, its first index counts.
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
    read_port_use_from(Path::new("/proc"), diag::listening().ok(), || diag::held(*RESERVED.start()).ok())
}

/// The same from another directory than `/proc`, with TCP's listeners and the ports of [`RESERVED`] held by sockets if
/// the kernel can report them.
fn read_port_use_from(
    proc: &Path,
    listening: Option<BTreeSet<u16>>,
    held: impl FnOnce() -> Option<BTreeSet<u16>>,
) -> Result<PortUse, PortsError> {
    let sysctl = proc.join("sys/net/ipv4");
    let range_path = sysctl.join("ip_local_port_range");
    let text = read(&range_path)?;
    let form = |path: &Path, text: &str| PortsError::Form { path: path.to_owned(), text: text.trim().to_owned() };
    let numbers: Vec<u16> = text.split_whitespace().filter_map(|n| n.parse().ok()).collect();
    let [first, last] = numbers[..] else { return Err(form(&range_path, &text)) };

    let reserved_path = sysctl.join("ip_local_reserved_ports");
    let text = read(&reserved_path)?;
    let reserved = parse_reserved(&text).ok_or_else(|| form(&reserved_path, &text))?;

    let mut used = PortUse { ephemeral: first..=last, reserved, taken: listening.clone().unwrap_or_default() };
    let wanted = if used.are_enough() { Sockets::Listening } else { Sockets::All };
    let held = if used.are_enough() { Some(BTreeSet::new()) } else { held() };
    let known = listening.is_some() && held.is_some();
    used.taken.extend(held.into_iter().flatten());
    let net = proc.join("thread-self/net");
    let tcp: &[_] = if known { &[] } else { &["tcp", "tcp6"] };
    let tables = tcp.iter().map(|table| (*table, wanted)).chain([
        ("udp", Sockets::All),
        ("udp6", Sockets::All),
        ("sctp/eps", Sockets::Sctp),
    ]);
    for (table, sockets) in tables {
        let path = net.join(table);
        match File::open(&path).and_then(|file| sockets.ports(BufReader::new(file), &mut used.taken)) {
            Ok(()) => {}
            // The kernel lacks IPv6 or SCTP.
            Err(source) if source.kind() == io::ErrorKind::NotFound => {}
            Err(source) => return Err(PortsError::Read { path, source }),
        }
    }
    Ok(used)
}

fn read(path: &Path) -> Result<String, PortsError> {
    let mut text = String::new();
    let read = File::open(path).and_then(|mut file| file.read_to_string(&mut text));
    read.map(|_| text).map_err(|source| PortsError::Read { path: path.to_owned(), source })
}

/// Parses a list such as `8080,9148-9150`.
fn parse_reserved(text: &str) -> Option<Vec<RangeInclusive<u16>>> {
    let entries = text.trim().split(',').filter(|e| !e.is_empty());
    entries
        .map(|entry| {
            let (first, last) = entry.split_once('-').unwrap_or((entry, entry));
            Some(first.parse().ok()?..=last.parse().ok()?)
        })
        .collect()
}

/// A table of sockets in the kernel's text format.
#[derive(Clone, Copy)]
enum Sockets {
    /// TCP's, with listeners first: on a host with a million connections only these are read.
    Listening,
    /// UDP's, or all of TCP's.
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
    fn an_ordinary_host_has_thirty_thousand_ports() {
        let listeners = [2379, 2380, 6443, 10_250, 10_256];
        for (used, count) in [
            (used(32_768..=60_999, &[]), 28_976 + 4536),
            (used(32_768..=60_999, &listeners), 28_976 + 4536 - 5),
            (used(1024..=29_999, &[]), 32_768),
        ] {
            let Supply::Free(ports) = supply(&used).unwrap() else { panic!("{used:?}: none has to be reserved") };
            assert_eq!(ports.len(), count);
            assert!(ports.is_sorted() && ports.iter().all(|p| !used.taken.contains(p)));
        }
    }

    #[test]
    fn a_wide_ephemeral_range_is_reserved_in_part() {
        for (ephemeral, reserved, list, meanwhile) in [
            (1024..=65_535, vec![], "49152-65535", 0),
            (1024..=65_535, vec![8080..=8080, 50_000..=50_010], "8080-8080,50000-50010,49152-65535", 0),
            (1024..=64_000, vec![], "49152-65535", 1535),
            (1024..=60_000, vec![60_001..=63_000], "60001-63000,49152-65535", 2535),
        ] {
            let mut used = PortUse { reserved, ..used(ephemeral, &[50_001, 65_000]) };
            let Supply::Reserve { list: asked, meanwhile: free } = supply(&used).unwrap() else {
                panic!("{used:?}: there are too few")
            };
            let taken = usize::from(used.ephemeral.end() < &65_000);
            assert_eq!((&asked[..], free.len()), (list, meanwhile - taken), "{used:?}");
            // The kernel merges overlapping ranges.
            used.reserved.retain(|range| !RESERVED.contains(range.start()));
            used.reserved.push(RESERVED);
            let Supply::Free(ports) = supply(&used).unwrap() else { panic!("{used:?}: they are reserved") };
            assert_eq!(ports, RESERVED.filter(|p| ![50_001, 65_000].contains(p)).collect::<Vec<_>>(), "{used:?}");
        }
    }

    #[test]
    fn no_port_left_is_an_error_that_says_what_to_do() {
        let all: Vec<_> = RESERVED.collect();
        let error = supply(&PortUse { reserved: vec![RESERVED], ..used(1024..=65_535, &all) }).unwrap_err();
        assert!(error.to_string().contains("ip_local_port_range"), "{error}");
    }

    #[test]
    fn few_indexes_change() {
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
        let unasked = || panic!("there are enough");
        let used = read_port_use_from(proc.path(), None, unasked).unwrap();
        assert_eq!(used.ephemeral, 32_768..=60_999);
        assert_eq!(used.reserved, [8080..=8080, 9148..=9150]);
        assert_eq!(used.taken, BTreeSet::from([8081, 53, 54, 6443, 38_412]), "TCP's listeners, not its connections");
        let used = read_port_use_from(proc.path(), Some([22].into()), unasked).unwrap();
        assert_eq!(used.taken, BTreeSet::from([22, 53, 54, 38_412]), "TCP's listeners are known");
        // Ports of connections count if ports are reserved.
        put("sys/net/ipv4/ip_local_port_range", "1024\t65535\n");
        for (listening, held, tcp) in
            [(None, None, &[8081, 50_000, 6443][..]), (Some([22].into()), Some([50_001].into()), &[22, 50_001])]
        {
            let used = read_port_use_from(proc.path(), listening, || held).unwrap();
            assert_eq!(used.taken, tcp.iter().copied().chain([53, 54, 38_412]).collect());
        }
        put("sys/net/ipv4/ip_local_reserved_ports", "nonsense\n");
        assert!(matches!(read_port_use_from(proc.path(), None, || None), Err(PortsError::Form { .. })));
    }
}
