//! A packet's path through this node: socket hook, hooks, and the stack between them.

use std::net::IpAddr;

use podnet_common::addr::{Addr, IfIndex, Mac, Port, Proto};
use podnet_common::layout::{Config, CtEntry, Frontend, FrontendKey, Hook, Interface, Network, NetworkKind, Out};
use podnet_common::packet::{ETH, ETHERTYPE_IPV4};
use podnet_common::pipeline::{self, Call, Route, Tables};
use podnet_common::simulator::{self, FinalVerdict, HostPacket, HostSocket};
use podnet_common::verdict::Reason;

use super::facts::{self, Names, Seen};
use super::packet::{Summary, describe};
use super::record::{Fact, Traced};
use super::report::{Choice, HookStep, Next, Outcome, SocketStep, Step, Trace};
use crate::cli::output::{protocol, socket};
use crate::datapath::inspect::{View, ViewError};
use crate::datapath::live::{Live, NoWay};
use crate::host::OutputRoute;

/// The node through which packets are traced: its tables, and the kernel's routes.
pub(super) trait Node: Tables {
    /// The route of a packet that arrives at `from`.
    fn forward(&self, from: IfIndex, src: &Addr, dst: &Addr) -> Result<Route, NoWay>;
    /// The cookie of the network namespace of the pod with this address, if its sockets are known.
    fn netns_cookie(&self, addr: &Addr) -> Result<Option<u64>, ViewError>;
}

impl Node for Live<'_> {
    fn forward(&self, from: IfIndex, src: &Addr, dst: &Addr) -> Result<Route, NoWay> {
        self.way(from, src, dst).copied()
    }

    fn netns_cookie(&self, addr: &Addr) -> Result<Option<u64>, ViewError> {
        Live::netns_cookie(self, addr)
    }
}

/// The sender of a packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Sender {
    /// A pod, by its host end.
    Pod(IfIndex),
    /// A process of the host.
    Host,
    /// Another machine, by the interface on which its packets arrive.
    Outside(IfIndex),
}

/// How a process sends.
#[derive(Clone, Copy, Debug)]
pub(super) struct Process {
    /// Whether its socket is bound to a port.
    pub(super) bound: bool,
    /// Whether its datagram socket is connected.
    pub(super) connected: bool,
}

/// Context of traces.
pub(super) struct Tracer<'a, N> {
    pub(super) node: &'a N,
    pub(super) view: &'a dyn View,
    pub(super) names: &'a Names,
    /// The route of the host's own packets, to a destination from a source.
    pub(super) output: &'a dyn Fn(IpAddr, Option<IpAddr>) -> anyhow::Result<Option<OutputRoute>>,
    /// The MAC of an interface; zeros if it has none.
    pub(super) own_mac: &'a dyn Fn(IfIndex) -> Mac,
    /// Whether the report includes the bytes of frames.
    pub(super) bytes: bool,
}

/// Position of a packet.
enum Place {
    At(Hook, IfIndex),
    /// In the host's stack, having arrived on this interface.
    Stack(IfIndex),
    /// Leaving the stack on this interface.
    Out(IfIndex),
    End(Outcome),
}

impl<N: Node> Tracer<'_, N> {
    /// Traces a packet. `process`: it is the first packet of a process, whose socket may get another destination, so
    /// the frame is built only once that is known.
    pub(super) fn trace(
        &self,
        sender: Sender,
        process: Option<Process>,
        make: &dyn Fn(Option<(IpAddr, u16)>) -> anyhow::Result<Vec<u8>>,
    ) -> anyhow::Result<Trace> {
        /// More hooks than any packet passes.
        const STEPS: usize = 12;
        let mut frame = make(None)?;
        let packet = describe(&frame);
        let mut trace = Trace {
            packet,
            from: self.sender(sender, &frame),
            steps: Vec::new(),
            outcome: Outcome::Host,
            becomes: None,
            frame: None,
            next: None,
        };
        if let (Some(process), Some(summary)) = (process, Summary::of(&frame)) {
            match self.socket(sender, process, &summary)? {
                Socket::Untouched => {}
                Socket::Translated(step, destination) => {
                    trace.steps.push(Step::Socket(step));
                    frame = make(Some(destination))?;
                }
                Socket::Refused(step) => {
                    trace.steps.push(Step::Socket(step));
                    let reason = Reason::NoEndpoint;
                    trace.outcome = Outcome::Refused { reason: reason.name(), explanation: reason.explanation() };
                    return Ok(trace);
                }
            }
        }
        let mut place = match sender {
            Sender::Pod(ifindex) => Place::At(Hook::FromPod, ifindex),
            Sender::Outside(ifindex) => self.arrival(ifindex)?,
            Sender::Host => self.leave_host(&mut frame, &mut trace.steps)?,
        };
        let mut exit = Exit::default();
        for _ in 0..STEPS {
            place = match place {
                Place::At(hook, ifindex) => self.hook(hook, ifindex, &mut frame, &mut trace.steps, &mut exit)?,
                Place::Stack(from) => self.stack(from, &mut frame, &mut trace.steps),
                Place::Out(ifindex) => self.out(ifindex, &mut frame),
                Place::End(outcome) => {
                    trace.outcome = outcome;
                    break;
                }
            };
        }
        if !matches!(trace.outcome, Outcome::Dropped { .. } | Outcome::Stopped { .. }) {
            trace.becomes = Some(describe(&frame));
            trace.frame = self.bytes.then(|| hex(&frame));
            trace.next = self.next(&trace.outcome, &exit, &frame);
        }
        Ok(trace)
    }

    fn sender(&self, sender: Sender, frame: &[u8]) -> String {
        let address = Summary::of(frame).map(|summary| self.names.address(summary.src)).unwrap_or_default();
        match sender {
            Sender::Pod(ifindex) => format!("pod {address} on {}", self.names.interface(ifindex)),
            Sender::Host => format!("process on this host, {address}"),
            Sender::Outside(ifindex) => format!("{address} outside, on {}", self.names.interface(ifindex)),
        }
    }

    fn config(&self) -> Config {
        self.node.config().copied().unwrap_or_default()
    }

    /// The first hook of a packet that arrives on an interface.
    fn arrival(&self, ifindex: IfIndex) -> Result<Place, ViewError> {
        let config = self.config();
        if ifindex == config.podnet1 {
            return Ok(Place::At(Hook::FromHost, ifindex));
        }
        if !self.has_hooks(ifindex) {
            return Ok(Place::Stack(ifindex));
        }
        // Interfaces without Ethernet have another first hook; both continue in the same way.
        let xdp = self.view.attached(Hook::UplinkXdp, ifindex)?;
        Ok(Place::At(if xdp { Hook::UplinkXdp } else { Hook::FromUplink }, ifindex))
    }

    /// Whether an interface is an uplink or the tunnel.
    fn has_hooks(&self, ifindex: IfIndex) -> bool {
        let config = self.config();
        config.is_uplink(ifindex)
            || self.node.interface(&ifindex).is_some()
            || (ifindex == config.tunnel && config.tunnel != IfIndex(0))
    }

    /// Where the host's stack sends a packet of its own.
    fn leave_host(&self, frame: &mut [u8], steps: &mut Vec<Step>) -> anyhow::Result<Place> {
        let Some(summary) = Summary::of(frame) else {
            return Ok(Place::End(Outcome::Stopped {
                explanation: "not traced: not IP, sent by the host alone".to_owned(),
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

    /// Runs the programs of a hook.
    fn hook(
        &self,
        hook: Hook,
        ifindex: IfIndex,
        frame: &mut Vec<u8>,
        steps: &mut Vec<Step>,
        exit: &mut Exit,
    ) -> anyhow::Result<Place> {
        let tables = Traced::new(self.node);
        let before = Summary::of(frame);
        let input = frame.clone();
        let mut packet = HostPacket { data: std::mem::take(frame), ifindex };
        let end = simulator::follow(hook, &mut packet, &tables, &mut |stage| tables.note(Fact::Stage(stage)));
        *frame = packet.data;
        let facts = tables.into_facts();
        let seen = Seen { facts: &facts, input: before.as_ref(), end };
        let after = Summary::of(frame);
        let by = match end {
            FinalVerdict::Forward(_, by) => by,
            _ => IfIndex(0),
        };
        let route = self.route(ifindex, by, end, &seen, after.as_ref());
        let after_hook = frame.clone();
        // Packets sent through the neighbour table get their MACs there.
        if let (FinalVerdict::Forward(Out::Uplink | Out::Via, _), Some(Route { macs, .. })) = (end, route)
            && macs != [0; 3]
        {
            set_macs(frame, bytemuck::cast(macs));
        }
        let next_hop = route.map(|route| IpAddr::from(route.hop));
        let outcome = self.outcome(hook, ifindex, end, &seen, next_hop, after.as_ref());
        if let Some((_, entry)) = seen.entry()
            && entry.flags & CtEntry::ONE_WAY != 0
        {
            exit.sent_on = Some(entry.dst.into());
        }
        exit.ifindex = by;
        steps.push(Step::Hook(Box::new(HookStep {
            hook: hook.name(),
            interface: self.names.interface(ifindex),
            stages: facts
                .iter()
                .filter_map(|fact| match fact {
                    Fact::Stage(stage) => Some(stage.name()),
                    _ => None,
                })
                .collect(),
            look_ups: facts.iter().filter_map(|fact| facts::look_up(fact, self.names)).collect(),
            class: seen.class(self.names),
            admission: seen.admission(self.view, self.names)?,
            backend: seen.backend(self.view, self.names)?,
            source: match (&before, &after, end) {
                (Some(before), Some(after), FinalVerdict::Pass | FinalVerdict::Forward(..)) => {
                    facts::source(before, after, self.names)
                }
                _ => None,
            },
            route: route.map(|route| facts::way(&route, self.names)),
            verdict: verdict(end, |ifindex| self.names.interface(ifindex)),
            before: self.bytes.then(|| hex(&input)),
            after: self.bytes.then(|| hex(&after_hook)),
        })));
        Ok(outcome)
    }

    /// The route of a packet that leaves on an interface through the link or the neighbour table.
    fn route(
        &self,
        from: IfIndex,
        by: IfIndex,
        end: FinalVerdict,
        seen: &Seen<'_>,
        after: Option<&Summary>,
    ) -> Option<Route> {
        if !matches!(end, FinalVerdict::Forward(Out::Link | Out::Uplink | Out::Via, _)) {
            return None;
        }
        // A route already found for an earlier packet or stored in the flow's entry is looked up again.
        let again = || {
            let to = match seen.entry() {
                Some((_, entry)) if entry.flags & CtEntry::ONE_WAY != 0 => entry.dst,
                _ => after?.dst.into(),
            };
            let route = self.node.forward(from, &seen.input?.src.into(), &to).ok()?;
            (route.ifindex == by).then_some(route)
        };
        seen.route(by).or_else(again)
    }

    /// Position of a packet after a hook.
    fn outcome(
        &self,
        hook: Hook,
        ifindex: IfIndex,
        end: FinalVerdict,
        seen: &Seen<'_>,
        next_hop: Option<IpAddr>,
        after: Option<&Summary>,
    ) -> Place {
        let config = self.config();
        let pod = |ifindex: IfIndex| Outcome::Pod {
            interface: self.names.interface(ifindex),
            pod: after
                .map(|after| self.names.pods.name(after.dst).unwrap_or(after.dst.to_string()))
                .unwrap_or_default(),
        };
        let leaves = |ifindex, next_hop| Outcome::Leaves { interface: self.names.interface(ifindex), next_hop };
        Place::End(match end {
            FinalVerdict::Drop(reason) => Outcome::Dropped { reason: reason.name(), explanation: reason.explanation() },
            FinalVerdict::Reject(reason, to) => Outcome::Answered {
                reason: Some(reason.name()),
                explanation: Some(reason.explanation()),
                interface: self.names.interface(to),
            },
            FinalVerdict::Answer(to) => {
                Outcome::Answered { reason: None, explanation: None, interface: self.names.interface(to) }
            }
            FinalVerdict::Forward(Out::Pod | Out::Queue, to) => pod(to),
            FinalVerdict::Forward(Out::Host, _) => Outcome::Host,
            FinalVerdict::Forward(_, to) if to == config.podnet0 => return Place::At(Hook::FromHost, config.podnet1),
            FinalVerdict::Forward(Out::Via, to) => leaves(to, seen.entry().map(|(_, entry)| entry.dst.into())),
            FinalVerdict::Forward(_, to) => leaves(to, next_hop),
            FinalVerdict::Pass => match hook {
                Hook::UplinkXdp => return Place::At(Hook::FromUplink, ifindex),
                Hook::ToPod => pod(ifindex),
                Hook::ToUplink | Hook::ToRaw => leaves(ifindex, None),
                Hook::FromLoopback => Outcome::Host,
                Hook::FromPod | Hook::FromUplink | Hook::FromHost | Hook::FromRaw => return Place::Stack(ifindex),
            },
        })
    }

    /// What the stack does with a packet that arrived on an interface. Packet filters are not evaluated.
    fn stack(&self, from: IfIndex, frame: &mut [u8], steps: &mut Vec<Step>) -> Place {
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
    fn out(&self, ifindex: IfIndex, frame: &mut [u8]) -> Place {
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

    /// What a socket hook would do with the system call of a process.
    fn socket(&self, sender: Sender, process: Process, packet: &Summary) -> Result<Socket, ViewError> {
        let opens = packet.tcp_flags.is_some_and(|flags| flags == podnet_common::packet::Tcp::SYN);
        let call = match packet.proto {
            Proto::TCP if opens => "connect",
            Proto::UDP if !process.connected => "sendmsg",
            _ => return Ok(Socket::Untouched),
        };
        if !self.view.sockets_attached() || packet.fragment.is_some() {
            return Ok(Socket::Untouched);
        }
        let netns_cookie = match sender {
            Sender::Host => self.config().netns_cookie,
            Sender::Pod(_) => match self.node.netns_cookie(&packet.src.into())? {
                Some(cookie) => cookie,
                None => return Ok(Socket::Untouched),
            },
            Sender::Outside(_) => return Ok(Socket::Untouched),
        };
        let tables = Traced::new(self.node);
        let before = HostSocket {
            addr: packet.dst.into(),
            port: packet.dport(),
            proto: packet.proto,
            bound: process.bound,
            connected: process.connected,
            // A new socket, unknown to all tables; and an arbitrary value for the random number.
            cookie: u64::MAX,
            netns_cookie,
            random: 0,
            chooses_errno: crate::datapath::socket_errno(),
        };
        let mut after = before;
        let verdict = if call == "connect" {
            pipeline::connect(&mut after, &tables)
        } else {
            pipeline::sendmsg(&mut after, &tables)
        };
        let facts = tables.into_facts();
        let mut step = SocketStep {
            call,
            look_ups: facts.iter().filter_map(|fact| facts::look_up(fact, self.names)).collect(),
            backend: None,
            verdict: String::new(),
        };
        if let Call::Refuse { service } = verdict {
            step.verdict =
                format!("the call fails with ECONNREFUSED: {} has no endpoints", self.names.service(service));
            return Ok(Socket::Refused(step));
        }
        if (before.addr, before.port) == (after.addr, after.port) {
            return Ok(Socket::Untouched);
        }
        step.backend = self.chosen(&facts, after.addr, after.port)?;
        step.verdict = format!("destination replaced with {}", socket(after.addr, after.port));
        Ok(Socket::Translated(step, (after.addr.into(), after.port.get())))
    }

    fn chosen(&self, facts: &[Fact], addr: Addr, port: Port) -> Result<Option<Choice>, ViewError> {
        let frontend = facts.iter().rev().find_map(|fact| match fact {
            Fact::Frontend(key, Some(found)) if *key != FrontendKey::address(key.addr) => Some(*found),
            _ => None,
        });
        let Some(Frontend { .. }) = frontend else { return Ok(None) };
        let frontend = frontend.unwrap_or_default();
        let (of, more) = facts::shares(self.view, &frontend, self.names)?;
        let by = if frontend.slot_count == 1 { "the only backend" } else { "a random backend per socket" }.to_owned();
        let backend = format!("{}", socket(addr, port));
        Ok(Some(Choice { backend, by, of, more }))
    }

    /// The node that receives the packet next, and the command to run there.
    fn next(&self, outcome: &Outcome, exit: &Exit, frame: &[u8]) -> Option<Next> {
        let Outcome::Leaves { .. } = outcome else { return None };
        let summary = Summary::of(frame)?;
        let config = self.config();
        let remote = |addr: IpAddr| {
            let network: &Network = self.node.network(&addr.into())?;
            let kinds = [NetworkKind::RemotePods as u32, NetworkKind::RemoteNode as u32];
            (kinds.contains(&network.kind) && !network.node.is_none())
                .then(|| (IpAddr::from(network.node), network.flags))
        };
        let (node, flags) = remote(exit.sent_on.unwrap_or(summary.dst))?;
        let mut command = format!("podnet trace --from {} --to {}", summary.src, summary.receiver());
        command += &format!(" --proto {}", protocol(summary.proto).to_lowercase());
        if let Some((sport, _)) = summary.ports {
            command += &format!(" --sport {sport}");
        }
        if exit.sent_on.is_some() {
            // The other node recognises such a packet by this node's MAC.
            let mac = if flags & Network::TUNNEL != 0 { config.tunnel_mac } else { (self.own_mac)(exit.ifindex) };
            command += &format!(" --mac {mac}");
        }
        Some(Next { node: self.names.node(node), command })
    }
}

/// How a packet has left the last hook.
#[derive(Default)]
struct Exit {
    ifindex: IfIndex,
    /// The node to which it is forwarded unmodified.
    sent_on: Option<IpAddr>,
}

/// Outcome of a socket hook.
enum Socket {
    Untouched,
    Translated(SocketStep, (IpAddr, u16)),
    Refused(SocketStep),
}

fn stopped(steps: &mut Vec<Step>, does: &str) -> Place {
    steps.push(Step::Stack { does: does.to_owned() });
    Place::End(Outcome::Stopped { explanation: format!("stopped: the stack {does}") })
}

/// A verdict in words.
fn verdict(end: FinalVerdict, name: impl Fn(IfIndex) -> String) -> String {
    match end {
        FinalVerdict::Pass => "passed on".to_owned(),
        FinalVerdict::Drop(reason) => format!("dropped ({})", reason.name()),
        FinalVerdict::Reject(reason, to) => format!("rejected ({}), answer sent on {}", reason.name(), name(to)),
        FinalVerdict::Answer(to) => format!("answered on {}", name(to)),
        FinalVerdict::Forward(out, to) => {
            let how = match out {
                Out::Stack => "via the stack",
                Out::Pod => "redirected into the pod on",
                Out::Queue => "sent to the pod through the qdisc of",
                Out::Uplink => "sent to the next hop, MAC from the neighbour table, on",
                Out::Link => "sent to the next hop, known MAC, on",
                Out::Via => "forwarded unchanged to another node on",
                Out::Tunnel => "sent into the tunnel on",
                Out::Host => "delivered to the host through",
            };
            format!("{how} {}", name(to))
        }
    }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn set_macs(frame: &mut [u8], macs: [Mac; 2]) {
    if let Some(place) = frame.get_mut(..12) {
        place.copy_from_slice(bytemuck::bytes_of(&macs));
    }
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
