//! Rewriting: a packet changes only as the flow's entry says, plus TTL, MACs and checksums.

use podnet_common::{
    addr::{Addr, IfIndex, Mac},
    layout::{CtEntry, Hook, Network, Out, macs},
    pipeline::Tables as _,
    simulator::FinalVerdict,
};

use super::{Outcome, egress, errors, flow, policy};
use crate::{
    frame::{ACK, SYN},
    view::View,
    world::{PODNET0, World},
};

/// Checks a packet that is passed or forwarded.
pub fn check(world: &World, o: &Outcome<'_>, packet: &View<'_>) {
    assert!(o.output.len() == o.input.len(), "{o}its length has changed");
    let unchanged = o.output == o.input;
    match (o.entry.hook, o.end) {
        (Hook::UplinkXdp | Hook::FromLoopback, FinalVerdict::Pass) => {
            return assert!(unchanged, "{o}it was left alone");
        }
        (Hook::FromLoopback, FinalVerdict::Forward(out, ifindex)) => {
            let c = &world.tables.config;
            let pair: [u8; 12] = bytemuck::cast(macs(c.podnet1_mac, c.podnet0_mac));
            assert!((out, ifindex) == (Out::Link, PODNET0), "{o}the way from loopback is podnet0");
            return assert!(o.output == [&pair, &o.input[12..]].concat(), "{o}it gets other MACs and nothing else");
        }
        _ => {}
    }
    if packet.error() && packet.fragment.is_none() && errors::check(world, o, packet) {
        return;
    }
    let known = flow(&world.tables, packet);
    // At egress, new connections are left to the stack; elsewhere the stack may handle them after a change of the
    // tables.
    let begins = packet.tcp_flags().is_some_and(|flags| flags & (SYN | ACK) == SYN);
    let over = |e: &CtEntry| e.closed() || e.flags & CtEntry::ONE_WAY != 0 || policy::unanswered(e, world.tables.now());
    let begins = |entry: &CtEntry| begins && (over(entry) || policy::is_servers(entry));
    let known = known.filter(|(_, entry)| !(begins(entry) && unchanged));
    let mut expected = o.input.to_vec();
    if let Some((key, entry)) = known {
        let mut ports = (key.sport, key.dport);
        if entry.flags & CtEntry::REWRITE_SRC != 0 {
            put_addresses(&mut expected, packet.v6(), 14, Some(entry.src), None);
            ports.0 = entry.sport;
        }
        if entry.flags & CtEntry::REWRITE_DST != 0 {
            put_addresses(&mut expected, packet.v6(), 14, None, Some(entry.dst));
            ports.1 = entry.dport;
        }
        put_ports(&mut expected, packet, (ports.0.get(), ports.1.get()));
    }
    let next = known.map_or(packet.dst.into(), |(_, entry)| entry.dst);
    put_way(world, o, packet, &next, &mut expected);
    same(o, packet, &expected);
}

/// Compares the output with the expected frame, except for checksums, which must be exactly as correct as before.
pub fn same(o: &Outcome<'_>, packet: &View<'_>, expected: &[u8]) {
    let mut expected = expected.to_vec();
    let Some(output) = View::of(&o.output) else { panic!("{o}it is no packet any more") };
    if !packet.v6() {
        expected[24..26].copy_from_slice(&o.output[24..26]);
    }
    if let Some(at) = packet.checksum_at() {
        expected[at..at + 2].copy_from_slice(&o.output[at..at + 2]);
    } else if packet.protocol == 132 && packet.fragment.is_none() {
        let at = packet.l4 + 8;
        expected[at..at + 4].copy_from_slice(&o.output[at..at + 4]);
    }
    assert!(o.output == expected, "{o}  not {expected:02x?}\n");
    assert!(output.header_residue() == packet.header_residue(), "{o}the IPv4 header's checksum is spoilt");
    assert!(
        output.residue() == packet.residue(),
        "{o}the checksum is spoilt: {:x?} was {:x?}",
        output.residue(),
        packet.residue()
    );
}

/// Writes the changes made by forwarding into a frame, after checking the egress. `next`: destination of the next hop
/// lookup.
pub fn put_way(world: &World, o: &Outcome<'_>, packet: &View<'_>, next: &Addr, expected: &mut [u8]) {
    let tables = &world.tables;
    let config = &tables.config;
    let FinalVerdict::Forward(out, ifindex) = o.end else { return };
    assert!(!egress(o.entry.hook), "{o}at egress the stack has routed");
    let len = o.input.len() - 14;
    let way = match out {
        Out::Stack | Out::Denied => panic!("{o}that is no forwarding"),
        Out::Pod | Out::Queue => {
            let Some(pod) = tables.endpoint(next) else { panic!("{o}there is no such pod") };
            (pod.ifindex, pod.mtu as usize, macs(pod.mac, pod.host_mac))
        }
        Out::Host => (config.podnet0, usize::MAX, macs(config.podnet0_mac, config.podnet1_mac)),
        Out::Tunnel => {
            let through = tables.network(next).filter(|network| network.flags & Network::TUNNEL != 0);
            let Some(node) = through else { panic!("{o}no tunnel leads there") };
            (config.tunnel, config.tunnel_mtu as usize, macs(node.mac, config.tunnel_mac))
        }
        Out::Uplink | Out::Link | Out::Via => {
            assert!(!world.through_tunnel(next), "{o}it goes past the tunnel");
            let Some(route) = tables.route_to(next) else { panic!("{o}there is no route") };
            let given: [Mac; 2] = [0, 6].map(|at| Mac(o.input[at..at + 6].try_into().expect("6 bytes")));
            let pair = if out == Out::Link { route.macs } else { macs(given[0], given[1]) };
            (route.ifindex, route.mtu as usize, pair)
        }
    };
    assert!(ifindex == way.0 && ifindex != IfIndex(0), "{o}it leaves by the wrong interface, not by {:?}", way.0);
    assert!(len <= way.1, "{o}{len} bytes don't fit into {}", way.1);
    expected[..12].copy_from_slice(bytemuck::bytes_of(&way.2));
    // A host packet to a port of an external address that belongs to no service leaves unchanged.
    let own = o.entry.hook == Hook::FromHost && tables.is_service_address(next) && o.output == o.input;
    if out != Out::Host && !own {
        assert!(packet.ttl > 1, "{o}its lifetime is over");
        expected[if packet.v6() { 21 } else { 22 }] = packet.ttl - 1;
    }
}

/// Writes addresses into the IP header at `at`.
pub fn put_addresses(frame: &mut [u8], v6: bool, at: usize, src: Option<Addr>, dst: Option<Addr>) {
    for (addr, n) in [(src, 0), (dst, 1)] {
        let Some(addr) = addr else { continue };
        let octets: [u8; 16] = bytemuck::cast(addr.0);
        if v6 {
            frame[at + 8 + n * 16..at + 24 + n * 16].copy_from_slice(&octets);
        } else {
            frame[at + 12 + n * 4..at + 16 + n * 4].copy_from_slice(&octets[12..]);
        }
    }
}

/// Writes the ports, or an echo's identifier, into a packet that has them.
fn put_ports(frame: &mut [u8], packet: &View<'_>, (sport, dport): (u16, u16)) {
    if packet.later() {
        return;
    }
    let l4 = packet.l4;
    if packet.echo().is_some() {
        frame[l4 + 4..l4 + 6].copy_from_slice(&(sport | dport).to_be_bytes());
    } else {
        frame[l4..l4 + 2].copy_from_slice(&sport.to_be_bytes());
        frame[l4 + 2..l4 + 4].copy_from_slice(&dport.to_be_bytes());
    }
}
