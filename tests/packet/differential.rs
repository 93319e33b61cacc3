//! Many packets, well-formed and malformed, through host and kernel: equal verdicts, bytes, counters and flows.

use std::net::IpAddr;

use anyhow::{Result, ensure};
use podnet_common::layout::{CtEntry, Hook};

use crate::{
    cluster::{Addresses, Both, CLIENT_MAC, HOST_MAC, NODE2_MAC, addresses, in_namespace},
    frame::{ACK, FIN, Frame, RST, SYN, Transport},
};

/// Small random number generator with a fixed sequence, so that failures are reproducible.
struct Numbers(u64);

impl Numbers {
    fn next(&mut self) -> u64 {
        // xorshift64* (Vigna 2016).
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }

    fn below(&mut self, n: usize) -> usize {
        (self.next() >> 33) as usize % n
    }

    fn of<T: Copy>(&mut self, choices: &[T]) -> T {
        choices[self.below(choices.len())]
    }
}

fn random_frame(n: &mut Numbers, a: &Addresses) -> (Hook, Frame) {
    let hook = n.of(&[
        Hook::FromPod,
        Hook::FromPod,
        Hook::FromUplink,
        Hook::FromHost,
        Hook::ToPod,
        Hook::ToUplink,
        Hook::UplinkXdp,
    ]);
    let pool: [IpAddr; 15] = [
        a.client, a.backend, a.remote, a.node, a.node2, a.outside, a.hairpin, a.local, a.far, a.snat, a.itself, a.host,
        a.empty, a.twin, a.nobody,
    ];
    let likely = match hook {
        Hook::FromPod => a.client,
        Hook::FromHost => a.node,
        _ => a.remote,
    };
    let src = if n.below(4) == 0 { n.of(&pool) } else { likely };
    let ports = [80, 80, 80, 81, 8080, 40_000, 40_001, 40_002];
    let (src, dst) = ((src, n.of(&ports)), (n.of(&pool), n.of(&ports)));
    let mut frame = match n.below(8) {
        0..=2 => Frame::tcp(src, dst, n.of(&[SYN, SYN, ACK, ACK, SYN | ACK, FIN | ACK, RST, 0, 0xff])),
        3..=5 => Frame::udp(src, dst),
        6 if src.0.is_ipv4() => {
            Frame::new(src.0, dst.0, Transport::Udp { sport: src.1, dport: dst.1, checksum: false })
        }
        7 if n.below(2) == 0 => random_error(n, src, dst),
        _ => Frame::new(src.0, dst.0, Transport::Raw(n.of(&[1, 2, 47, 50, 58, 89, 132, 255]), vec![8; 24])),
    };
    frame = match hook {
        Hook::FromPod => frame.macs(CLIENT_MAC, HOST_MAC),
        _ => frame.macs(NODE2_MAC, HOST_MAC),
    };
    frame.ttl = n.of(&[64, 64, 64, 2, 1, 0]);
    frame.extra = n.of(&[0, 0, 0, 1, 2, 3]);
    frame.fragment = n.of(&[None, None, None, None, Some(0x2000), Some(0x0001), Some(0x4000), Some(0x0009)]);
    frame.payload = vec![n.below(256) as u8; n.of(&[0, 1, 13, 100, 1400, 1500])];
    (hook, frame)
}

/// ICMP error about a packet that may have been sent in the other direction.
fn random_error(n: &mut Numbers, src: (IpAddr, u16), dst: (IpAddr, u16)) -> Frame {
    let about = if n.below(2) == 0 { Frame::tcp(dst, src, ACK) } else { Frame::udp(dst, src) };
    let (protocol, kind) = if src.0.is_ipv4() { (1, n.of(&[3, 11, 12, 5])) } else { (58, n.of(&[1, 2, 3, 4])) };
    let quoted = about.bytes()[14..].to_vec();
    Frame::new(src.0, dst.0, Transport::Raw(protocol, [vec![kind, 1, 7, 7, 0, 0, 5, 0], quoted].concat()))
}

/// Damages some of the packets: truncates them, changes bytes, or replaces everything behind the Ethernet header.
fn damage(n: &mut Numbers, mut bytes: Vec<u8>) -> Vec<u8> {
    match n.below(6) {
        0 => {
            let len = 14 + n.below(bytes.len() - 14 + 1);
            bytes.truncate(len);
        }
        1 => {
            for _ in 0..=n.below(4) {
                let at = 14 + n.below((bytes.len() - 14).min(60));
                bytes[at] = n.next() as u8;
            }
        }
        2 if n.below(4) == 0 => bytes[14..].iter_mut().for_each(|b| *b = n.next() as u8),
        _ => {}
    }
    bytes
}

#[test]
fn random_packets_get_equal_results_on_host_and_in_kernel() {
    in_namespace(|uplink| {
        let both = Both { remembers_routes: true, ..Both::new(uplink, |_| {})? };
        let mut n = Numbers(0x706f_646e_6574);
        let mut ends = std::collections::BTreeMap::<String, u32>::new();
        for round in 0..30_000 {
            let v6 = n.below(2) == 1;
            let (hook, frame) = random_frame(&mut n, &addresses(v6));
            let bytes = damage(&mut n, frame.bytes());
            let (end, _) =
                both.run(hook, &bytes).map_err(|error| error.context(format!("round {round}, {frame:?}")))?;
            *ends.entry(format!("{end:?}")).or_default() += 1;
        }
        // Without a variety of verdicts the test would prove little.
        ensure!(ends.len() >= 16, "only these ends were met: {ends:#?}");
        same_flows(&both)
    });
}

/// `podnet trace` runs on the tables in the kernel, with its routes and neighbours.
#[test]
fn trace_predicts_results_of_random_packets() {
    in_namespace(|uplink| {
        let both = Both::new(uplink, |_| {})?;
        let mut n = Numbers(0x0074_7261_6365);
        let mut ends = std::collections::BTreeSet::new();
        for round in 0..10_000 {
            let v6 = n.below(2) == 1;
            let (hook, frame) = random_frame(&mut n, &addresses(v6));
            let bytes = damage(&mut n, frame.bytes());
            let end = both.trace(hook, &bytes).map_err(|error| error.context(format!("round {round}, {frame:?}")))?;
            ends.insert(format!("{end:?}"));
        }
        ensure!(ends.len() >= 16, "only these ends were met: {ends:#?}");
        Ok(())
    });
}

/// Packets of an established flow, of its replies and of new flows, truncated to every length.
#[test]
fn packets_truncated_to_any_length_get_equal_results() {
    in_namespace(|uplink| {
        let both = Both::new(uplink, |_| {})?;
        for v6 in [false, true] {
            let a = addresses(v6);
            for extra in 0..4 {
                let mut there = Frame::tcp((a.client, 40_100), (a.far, 80), ACK).macs(CLIENT_MAC, HOST_MAC);
                there.extra = extra;
                let mut back = Frame::udp((a.remote, 8080), (a.client, 40_100)).macs(NODE2_MAC, HOST_MAC);
                back.extra = extra;
                for (hook, frame) in [(Hook::FromPod, there), (Hook::FromUplink, back.clone()), (Hook::UplinkXdp, back)]
                {
                    let bytes = frame.bytes();
                    for len in 14..=bytes.len() {
                        both.run(hook, &bytes[..len])?;
                    }
                    both.run(hook, &bytes)?;
                }
            }
        }
        same_flows(&both)
    });
}

fn same_flows(both: &Both) -> Result<()> {
    let host: std::collections::BTreeMap<_, _> =
        both.host.conntrack.borrow().iter().map(|(k, v)| (*k, CtEntry { last_seen: 0, ..*v })).collect();
    let kernel = both.kernel.conntrack()?;
    for (key, entry) in &host {
        ensure!(kernel.get(key) == Some(entry), "{key:?}\n  host   {entry:?}\n  kernel {:?}", kernel.get(key));
    }
    ensure!(kernel.len() == host.len(), "the kernel has {} flows, the host {}", kernel.len(), host.len());
    ensure!(!host.is_empty(), "no flow was made");
    let counted: std::collections::BTreeMap<_, _> =
        both.host.holders.borrow().iter().filter(|(_, count)| **count != 0).map(|(k, v)| (*k, *v)).collect();
    ensure!(both.kernel.held()? == counted, "host {counted:?}, kernel {:?}", both.kernel.held()?);
    Ok(())
}
