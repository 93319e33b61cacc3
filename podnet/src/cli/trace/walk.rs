//! A packet's path through this node: socket hook, hooks, and the stack between them.

use std::net::IpAddr;

use podnet_common::addr::IfIndex;
use podnet_common::layout::{CtEntry, Hook, Network, NetworkKind, Out};
use podnet_common::pipeline::Route;
use podnet_common::simulator::{self, FinalVerdict, HostPacket};
use podnet_common::verdict::Reason;

use super::facts::{self, Seen};
use super::record::{Fact, Traced};
use super::report::{HookStep, Next, Outcome, Step, Trace};
use super::socket_call::Socket;
use super::stack::set_macs;
use super::summary::{Summary, describe};
use super::tracer::{Node, Place, Process, Sender, Tracer};
use crate::cli::output::protocol;
use crate::datapath::inspect::ViewError;

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
            exit.forwarded_to = Some(entry.dst.into());
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
        let (node, flags) = remote(exit.forwarded_to.unwrap_or(summary.dst))?;
        let mut command = format!("podnet trace --from {} --to {}", summary.src, summary.receiver());
        command += &format!(" --proto {}", protocol(summary.proto).to_lowercase());
        if let Some((sport, _)) = summary.ports {
            command += &format!(" --sport {sport}");
        }
        if exit.forwarded_to.is_some() {
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
    forwarded_to: Option<IpAddr>,
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
                Out::Stack | Out::Denied => "via the stack",
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
