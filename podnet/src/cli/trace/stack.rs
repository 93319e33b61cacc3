//! The host's stack between two hooks: where it sends a packet, and what it does with one that it cannot send. Packet
//! filters are not evaluated.

use std::net::IpAddr;

use podnet_common::addr::{IfIndex, Mac};
use podnet_common::layout::{Hook, Interface, NetworkKind};
use podnet_common::packet::{ETH, ETHERTYPE_IPV4};

use super::report::{Outcome, Step};
use super::summary::Summary;
use super::tracer::{Node, Place, Tracer};
use crate::datapath::live::NoWay;

impl<N: Node> Tracer<'_, N> {
    /// Where the host's stack sends a packet of its own.
    pub(super) fn leave_host(&self, frame: &mut [u8], steps: &mut Vec<Step>) -> anyhow::Result<Place> {
        let Some(summary) = Summary::of(frame) else {
            return Ok(Place::End(Outcome::Stopped {
                explanation: "not traced: the host itself has sent a frame that is not IP".to_owned(),
            }));
        };
        Ok(match (self.output)(summary.dst, Some(summary.src))? {
            None => stopped(steps, "has no route to the destination: the call fails"),
            Some(route) => {
                let via = route.gateway.map(|gateway| format!(" via {gateway}")).unwrap_or_default();
                steps.push(Step::Stack { does: format!("routes it to {}{via}", self.names.interface(route.ifindex)) });
                if route.local {
                    return Ok(Place::At(Hook::FromLoopback, route.ifindex));
                }
                // Only a lookup for an incoming packet returns the neighbour.
                let way = self.node.forward(route.ifindex, &summary.src.into(), &summary.dst.into());
                let macs = way.ok().filter(|way| way.ifindex == route.ifindex).map(|way| way.macs).unwrap_or_default();
                set_macs(frame, bytemuck::cast(macs));
                Place::Out(route.ifindex)
            }
        })
    }

    /// What the stack does with a packet that arrived on an interface.
    pub(super) fn stack(&self, from: IfIndex, frame: &mut [u8], steps: &mut Vec<Step>) -> Place {
        let Some(summary) = Summary::of(frame) else {
            steps.push(Step::Stack { does: "handles it: not IP".to_owned() });
            return Place::End(Outcome::Host);
        };
        if summary.dst.is_multicast() || summary.dst == IpAddr::from([255; 4]) {
            steps.push(Step::Stack { does: "receives it: broadcast or multicast".to_owned() });
            return Place::End(Outcome::Host);
        }
        let (src, dst) = (summary.src.into(), summary.dst.into());
        let way = match self.node.forward(from, &src, &dst) {
            Ok(way) => way,
            Err(NoWay::NotForwarded) => {
                let own = self.node.network(&dst).is_some_and(|n| n.kind == NetworkKind::LocalNode as u32);
                let why =
                    if own { "receives it: addressed to this node" } else { "receives it, or has no route for it" };
                steps.push(Step::Stack { does: why.to_owned() });
                return Place::End(Outcome::Host);
            }
            Err(NoWay::Blackhole) => return stopped(steps, "drops it: blackhole route"),
            Err(NoWay::Unreachable) => {
                return stopped(steps, "rejects it: unreachable, ICMP destination unreachable sent");
            }
            Err(NoWay::Prohibited) => {
                return stopped(steps, "rejects it: prohibit route, ICMP administratively prohibited sent");
            }
            Err(NoWay::ForwardingOff) => {
                return stopped(steps, "drops it: forwarding is disabled on the ingress interface");
            }
            Err(NoWay::Unknown) => return stopped(steps, "cannot forward it"),
        };
        if summary.ttl <= 1 {
            return stopped(steps, "drops it: TTL or hop limit exceeded, ICMP time exceeded sent");
        }
        if summary.len > way.mtu as usize && summary.whole_only {
            let why = format!("drops it: larger than the MTU of {} bytes, ICMP packet too big sent", way.mtu);
            return stopped(steps, &why);
        }
        let cut = if summary.len > way.mtu as usize { ", fragmented" } else { "" };
        steps.push(Step::Stack { does: format!("routes it to {}{cut}", self.names.interface(way.ifindex)) });
        decrement_ttl(frame);
        set_macs(frame, bytemuck::cast(way.macs));
        Place::Out(way.ifindex)
    }

    /// The hook of a packet that leaves the stack.
    pub(super) fn out(&self, ifindex: IfIndex, frame: &mut [u8]) -> Place {
        let config = self.config();
        if ifindex == config.podnet0 {
            set_macs(frame, [config.podnet1_mac, config.podnet0_mac]);
            return Place::At(Hook::FromHost, config.podnet1);
        }
        let endpoint = Summary::of(frame).and_then(|summary| self.node.endpoint(&summary.dst.into()));
        if let Some(endpoint) = endpoint.filter(|endpoint| endpoint.ifindex == ifindex) {
            set_macs(frame, [endpoint.mac, endpoint.host_mac]);
            return Place::At(Hook::ToPod, ifindex);
        }
        let raw = self.node.interface(&ifindex).is_some_and(|interface| interface.flags & Interface::RAW != 0);
        match (self.has_hooks(ifindex), raw) {
            (true, true) => Place::At(Hook::ToRaw, ifindex),
            (true, false) => Place::At(Hook::ToUplink, ifindex),
            (false, _) => Place::End(Outcome::Leaves { interface: self.names.interface(ifindex), next_hop: None }),
        }
    }
}

pub(super) fn set_macs(frame: &mut [u8], macs: [Mac; 2]) {
    if let Some(place) = frame.get_mut(..12) {
        place.copy_from_slice(bytemuck::bytes_of(&macs));
    }
}

fn stopped(steps: &mut Vec<Step>, does: &str) -> Place {
    steps.push(Step::Stack { does: does.to_owned() });
    Place::End(Outcome::Stopped { explanation: format!("stopped: the stack {does}") })
}

/// Decrements the TTL, as a router does.
fn decrement_ttl(frame: &mut [u8]) {
    let Some([a, b]) = frame.get(12..14).map(|ethertype| [ethertype[0], ethertype[1]]) else { return };
    if u16::from_ne_bytes([a, b]) == ETHERTYPE_IPV4 {
        let Some(header) = frame.get_mut(ETH..ETH + 20) else { return };
        header[8] = header[8].saturating_sub(1);
        // RFC 1624: the sum of a header whose word is one less in the high byte.
        let sum = u32::from(u16::from_be_bytes([header[10], header[11]])) + 0x100;
        let sum = (sum & 0xffff) + (sum >> 16);
        header[10..12].copy_from_slice(&(sum as u16).to_be_bytes());
    } else if let Some(hop_limit) = frame.get_mut(ETH + 7) {
        *hop_limit = hop_limit.saturating_sub(1);
    }
}
