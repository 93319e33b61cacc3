//! Recorded facts in readable form: lookups with names, and conclusions about a hook.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};

use podnet_common::addr::{Addr, IfIndex, Mac, Port, Proto};
use podnet_common::layout::{CtEntry, Frontend, FrontendKey, Network, NetworkKind, Out, PolicyDenial, Prefix, Tuple};
use podnet_common::pipeline::{InsertError, Route, Stage};
use podnet_common::simulator::FinalVerdict;
use podnet_common::verdict::Reason;

use super::policy::{class, denial, policy_pod, policy_rule, rule_sets, verdict};
use super::record::Fact;
use super::report::{Choice, Does, LookUp, Share, Way};
use super::summary::Summary;
use crate::cli::conntrack::NodeNames;
use crate::cli::endpoint::Pods;
use crate::cli::flow::End as FlowEnd;
use crate::cli::output::{duration, protocol, socket};
use crate::compile::{ServiceId, ServiceNames, of_node};
use crate::datapath::inspect::{View, ViewError};

/// Number of backends that are named.
const SHOWN: usize = 32;

/// Names of addresses and ids in the tables.
pub(in crate::cli) struct Names {
    pub(in crate::cli) services: ServiceNames,
    pub(in crate::cli) pods: Pods,
    pub(in crate::cli) nodes: NodeNames,
    /// The policies that deny by a rule set; empty if no daemon runs.
    pub(in crate::cli) denials: BTreeMap<PolicyDenial, Vec<String>>,
    /// The name of an interface.
    pub(in crate::cli) interface: fn(IfIndex) -> Option<String>,
}

impl Names {
    pub(super) fn interface(&self, ifindex: IfIndex) -> String {
        (self.interface)(ifindex).unwrap_or_else(|| format!("interface {}", ifindex.0))
    }

    /// A service port: `namespace/name:port`.
    pub(super) fn service(&self, id: u32) -> String {
        self.services
            .name(ServiceId(id))
            .map_or_else(|| format!("service {}", ServiceId(id).port().0), ToString::to_string)
    }

    /// An address, with the name of its pod or node, if any.
    pub(super) fn address(&self, addr: IpAddr) -> String {
        match self.pods.name(addr).or_else(|| self.nodes.get(&addr).cloned()) {
            Some(name) => format!("{addr} ({name})"),
            None => addr.to_string(),
        }
    }

    /// A node by its address.
    pub(super) fn node(&self, addr: IpAddr) -> String {
        self.nodes.get(&addr).cloned().unwrap_or_else(|| addr.to_string())
    }

    fn backend(&self, addr: Addr, port: Port) -> String {
        let at = socket(addr, port);
        match self.pods.name(at.ip()) {
            Some(name) => format!("{at} ({name})"),
            None => at.to_string(),
        }
    }
}

/// A row for a lookup or a simulated write; counters have none.
pub(super) fn look_up(fact: &Fact, names: &Names) -> Option<LookUp> {
    let row = |does, table, key: String, entry| Some(LookUp { does, table, key, entry });
    let finds = |table, key: String, entry| row(Does::Finds, table, key, entry);
    let yes = |there: bool| there.then(|| "yes".to_owned());
    match *fact {
        Fact::Stage(_) | Fact::Count(_) | Fact::Drop(_) => None,
        Fact::Flow(key, found) => finds("conntrack", tuple(&key), found.map(|entry| flow(&entry, key.proto, names))),
        Fact::FlowChanged(key, entry) => {
            row(Does::Changes, "conntrack", tuple(&key), Some(flow(&entry, key.proto, names)))
        }
        Fact::FlowInserted(key, entry, Ok(())) => {
            row(Does::Adds, "conntrack", tuple(&key), Some(flow(&entry, key.proto, names)))
        }
        Fact::FlowInserted(key, _, Err(InsertError::Exists)) => {
            finds("conntrack", tuple(&key), Some("taken by another flow".to_owned()))
        }
        Fact::FlowInserted(key, _, Err(InsertError::Full)) => {
            finds("conntrack", tuple(&key), Some("table full".to_owned()))
        }
        Fact::FlowRemoved(key) => row(Does::Removes, "conntrack", tuple(&key), None),
        Fact::Frontend(key, found) => {
            finds("frontends", frontend_key(&key), found.map(|found| frontend(&key, &found, names)))
        }
        Fact::Slot(index, found) => finds("slots", index.to_string(), found.map(|id| format!("backend {id}"))),
        Fact::Backend(id, found) => {
            finds("backends", id.to_string(), found.map(|backend| names.backend(backend.addr, backend.port)))
        }
        Fact::Endpoint(addr, found) => finds(
            "endpoints",
            IpAddr::from(addr).to_string(),
            found.map(|endpoint| {
                let pod = names.pods.name(addr.into()).unwrap_or_else(|| "a pod of this node".to_owned());
                format!("{pod} on {}, MTU {}", names.interface(endpoint.ifindex), endpoint.mtu)
            }),
        ),
        Fact::Network(addr, found) => {
            finds("nodes", IpAddr::from(addr).to_string(), found.map(|network| self::network(&network, names)))
        }
        Fact::Interface(ifindex, found) => {
            finds("interfaces", names.interface(ifindex), found.map(|found| format!("uplink, MTU {}", found.mtu)))
        }
        Fact::Route(from, src, dst, found) => finds(
            "(routes)",
            format!("from {} iif {} to {}", IpAddr::from(src), names.interface(from), IpAddr::from(dst)),
            found.map(|route| format!("{}, MTU {}", names.interface(route.ifindex), route.mtu)),
        ),
        Fact::SnatPort(index, found) => {
            finds("snat_ports", index.to_string(), found.map(|port| format!("port {port}")))
        }
        Fact::Affinity(key, found) => finds(
            "affinity",
            format!("{} to {}", IpAddr::from(key.client), names.service(key.service)),
            found.map(|last| names.backend(last.addr, last.port)),
        ),
        Fact::AffinitySet(key, last) => row(
            Does::Changes,
            "affinity",
            format!("{} to {}", IpAddr::from(key.client), names.service(key.service)),
            Some(names.backend(last.addr, last.port)),
        ),
        Fact::SourceRange(client, inside) => finds(
            "source_ranges",
            format!("{} to {}", IpAddr::from(client.addr), names.service(client.service & !(1 << 31))),
            inside.then(|| "in range".to_owned()),
        ),
        Fact::Subject(addr, found) => finds("subjects", names.address(addr.into()), found.map(rule_sets)),
        Fact::PolicyPod(link, found) => {
            finds("policy_pods", names.interface(link), found.map(|pod| policy_pod(link, &pod)))
        }
        Fact::PolicyPeer(addr, found) => finds("policy_peers", names.address(addr.into()), found.map(class)),
        Fact::PolicyBlock(addr, found) => finds("policy_blocks", names.address(addr.into()), found.map(class)),
        Fact::PolicyPort(port, found) => {
            finds("policy_ports", format!("{} port {}", protocol(port.proto), port.port.get()), found.map(class))
        }
        Fact::PolicyRule(rule, found) => finds("policy_rules", policy_rule(&rule), found.map(verdict)),
        Fact::Denial(denied) => row(
            Does::Counts,
            "policy_denials",
            denial(&denied),
            names.denials.get(&denied).map(|names| names.join(", ")),
        ),
        Fact::Fragment(key, found) => finds(
            "fragments",
            format!("{} → {} id {}", IpAddr::from(key.src), IpAddr::from(key.dst), key.id),
            found.map(|ports| format!("ports {} → {}", ports.sport.get(), ports.dport.get())),
        ),
        Fact::FragmentSet(key, ports) => row(
            Does::Adds,
            "fragments",
            format!("{} → {} id {}", IpAddr::from(key.src), IpAddr::from(key.dst), key.id),
            Some(format!("ports {} → {}", ports.sport.get(), ports.dport.get())),
        ),
        Fact::Peer(mac, is) => finds("peers", mac.to_string(), yes(is)),
        Fact::Sandbox(cookie, found) => finds(
            "sandboxes",
            format!("netns cookie {cookie}"),
            found.map(|pod| {
                let addresses = [pod.v4, pod.v6].into_iter().filter(|addr| !addr.is_none());
                addresses.map(|addr| names.address(addr.into())).collect::<Vec<_>>().join(", ")
            }),
        ),
        Fact::SockPeer(key, found) => finds(
            "sock_reverse",
            format!("socket to {}", socket(key.addr, key.port)),
            found.map(|peer| socket(peer.addr, peer.port).to_string()),
        ),
        Fact::SockPeerSet(key, peer) => row(
            Does::Adds,
            "sock_reverse",
            format!("socket to {}", socket(key.addr, key.port)),
            Some(socket(peer.addr, peer.port).to_string()),
        ),
    }
}

fn tuple(tuple: &Tuple) -> String {
    let [from, to] = [(tuple.src, tuple.sport), (tuple.dst, tuple.dport)].map(|(a, p)| FlowEnd::new(a, p, tuple.proto));
    format!("{} {from} → {to}", protocol(tuple.proto))
}

fn flow(entry: &CtEntry, proto: Proto, names: &Names) -> String {
    let [from, to] = [(entry.src, entry.sport), (entry.dst, entry.dport)].map(|(a, p)| FlowEnd::new(a, p, proto));
    let way = match Out::from_number(entry.out) {
        Out::Stack => "via the stack".to_owned(),
        Out::Host => "to the host".to_owned(),
        Out::Denied => "denied by network policy".to_owned(),
        _ => format!("out {}", names.interface(entry.out_ifindex)),
    };
    let service = if entry.service == 0 { String::new() } else { format!(" of {}", names.service(entry.service)) };
    let half = if entry.flags & CtEntry::REPLY != 0 { "replies" } else { "flow" };
    if entry.flags & CtEntry::ONE_WAY != 0 {
        return format!("{half}{service} forwarded unchanged to node {to}, {way}");
    }
    format!("{half}{service} as {from} → {to}, {way}")
}

fn frontend_key(key: &FrontendKey) -> String {
    if *key == FrontendKey::address(key.addr) {
        return format!("{}, any port", IpAddr::from(key.addr));
    }
    let scope = match key.scope {
        FrontendKey::OUTSIDE => " for external clients",
        FrontendKey::PEER => " forwarded by a node",
        _ => "",
    };
    let place = if of_node(key) {
        let family = if key.addr.is_v4() { "IPv4" } else { "IPv6" };
        format!("port {} of the node's {family} addresses", key.port.get())
    } else {
        socket(key.addr, key.port).to_string()
    };
    format!("{} {place}{scope}", protocol(key.proto))
}

fn frontend(key: &FrontendKey, found: &Frontend, names: &Names) -> String {
    if *key == FrontendKey::address(key.addr) {
        return "service address".to_owned();
    }
    let mut text = format!("{}, {} slots", names.service(found.service), found.slot_count);
    if found.affinity != 0 {
        text += &format!(", affinity {}", duration(found.affinity.into()));
    }
    text
}

/// What a network is to this node.
fn network(network: &Network, names: &Names) -> String {
    let node = || names.node(network.node.into());
    let through = if network.flags & Network::TUNNEL != 0 { ", through the tunnel" } else { "" };
    match network.kind {
        kind if kind == NetworkKind::LocalPods as u32 => "pods of this node".to_owned(),
        kind if kind == NetworkKind::RemotePods as u32 => format!("pods of {}{through}", node()),
        kind if kind == NetworkKind::Services as u32 => "service addresses".to_owned(),
        kind if kind == NetworkKind::LocalNode as u32 => "this node".to_owned(),
        kind if kind == NetworkKind::RemoteNode as u32 => format!("node {}{through}", node()),
        kind if kind == NetworkKind::NonMasquerade as u32 => "not masqueraded".to_owned(),
        _ => "external address of a service".to_owned(),
    }
}

/// The facts recorded at a hook.
pub(super) struct Seen<'a> {
    pub(super) facts: &'a [Fact],
    pub(super) input: Option<&'a Summary>,
    pub(super) end: FinalVerdict,
}

impl Seen<'_> {
    /// The entry that applies to the packet: the last one found, changed or added for its direction.
    pub(super) fn entry(&self) -> Option<(Tuple, CtEntry)> {
        let input = self.input?;
        let own = |key: &Tuple| key.src == input.src.into() && key.dst == input.dst.into() && key.proto == input.proto;
        self.facts.iter().rev().find_map(|fact| match fact {
            Fact::Flow(key, Some(entry)) | Fact::FlowChanged(key, entry) | Fact::FlowInserted(key, entry, Ok(()))
                if own(key) =>
            {
                Some((*key, *entry))
            }
            _ => None,
        })
    }

    fn begun(&self) -> bool {
        self.facts.iter().any(|fact| matches!(fact, Fact::FlowInserted(_, _, Ok(()))))
    }

    /// The frontend to which the packet is addressed.
    fn frontend(&self) -> Option<(FrontendKey, Frontend)> {
        self.facts.iter().rev().find_map(|fact| match fact {
            Fact::Frontend(key, Some(found)) if *key != FrontendKey::address(key.addr) => Some((*key, *found)),
            _ => None,
        })
    }

    /// The class that the pipeline has given to the packet.
    pub(super) fn class(&self, names: &Names) -> Option<String> {
        let input = self.input?;
        let errors = self.facts.contains(&Fact::Stage(Stage::Icmp));
        if errors {
            return Some("ICMP error about another packet".to_owned());
        }
        if let Some((_, entry)) = self.entry() {
            let age = if self.begun() { "first packet of a flow" } else { "packet of a known flow" };
            let what = if entry.flags & CtEntry::ONE_WAY != 0 {
                format!("to service {}, forwarded to another node", names.service(entry.service))
            } else if entry.service != 0 {
                let direction = if entry.flags & CtEntry::REPLY != 0 { "reply from" } else { "to" };
                format!("{direction} service {}", names.service(entry.service))
            } else if entry.flags & (CtEntry::REWRITE_SRC | CtEntry::REWRITE_DST) != 0 {
                "masqueraded".to_owned()
            } else {
                "not translated".to_owned()
            };
            return Some(format!("{age}, {what}"));
        }
        if let Some((_, frontend)) = self.frontend() {
            return Some(format!("to service {}", names.service(frontend.service)));
        }
        let dst = Addr::from(input.dst);
        let endpoint = self.facts.iter().any(|fact| matches!(fact, Fact::Endpoint(addr, Some(_)) if *addr == dst));
        if endpoint {
            return Some("to a pod of this node".to_owned());
        }
        let found = self.facts.iter().rev().find_map(|fact| match fact {
            Fact::Network(addr, found) if *addr == dst => Some(*found),
            _ => None,
        });
        match found {
            Some(Some(network)) if network.kind != NetworkKind::Nothing as u32 => {
                Some(format!("to {}", self::network(&network, names)))
            }
            Some(_) => Some("to outside the cluster".to_owned()),
            None => None,
        }
    }

    /// Whether it was admitted, and on what grounds.
    pub(super) fn admission(&self, view: &dyn View, names: &Names) -> Result<String, ViewError> {
        let refused = match self.end {
            FinalVerdict::Drop(reason) | FinalVerdict::Reject(reason, _) => Some(reason),
            _ => None,
        };
        let client = self.facts.iter().rev().find_map(|fact| match fact {
            Fact::SourceRange(client, inside) => Some((*client, *inside)),
            _ => None,
        });
        Ok(match (refused, client) {
            (Some(Reason::SourceRange), Some((client, _))) => {
                let ranges: Vec<_> = ranges(view, client.service)?.iter().map(ToString::to_string).collect();
                format!(
                    "refused: {} is not in loadBalancerSourceRanges of {}: {}",
                    IpAddr::from(client.addr),
                    names.service(client.service & !(1 << 31)),
                    ranges.join(", ")
                )
            }
            (Some(reason), _) => format!("refused: {}", reason.explanation()),
            (None, Some((client, true))) => {
                let ranges = ranges(view, client.service)?;
                let range = ranges.iter().filter(|range| range.contains(&client.addr)).max_by_key(|range| range.len);
                let range = range.map_or_else(|| "a range".to_owned(), ToString::to_string);
                format!(
                    "admitted by loadBalancerSourceRanges {range} of {}",
                    names.service(client.service & !(1 << 31))
                )
            }
            (None, _) => {
                let own = self.facts.iter().find_map(|fact| match fact {
                    Fact::Endpoint(addr, Some(endpoint)) if Some(*addr) == self.input.map(|i| i.src.into()) => {
                        Some(endpoint.ifindex)
                    }
                    _ => None,
                });
                match own {
                    Some(ifindex) => format!("admitted: source address of the pod on {}", names.interface(ifindex)),
                    None => "admitted".to_owned(),
                }
            }
        })
    }

    /// The backend, and the reason for the choice.
    pub(super) fn backend(&self, view: &dyn View, names: &Names) -> Result<Option<Choice>, ViewError> {
        let slot = self.facts.iter().rev().find_map(|fact| match fact {
            Fact::Slot(index, Some(_)) => Some(*index),
            _ => None,
        });
        let last = self.facts.iter().rev().find_map(|fact| match fact {
            Fact::Affinity(_, Some(last)) => Some(*last),
            _ => None,
        });
        let holds =
            |frontend: &Frontend| slot.is_none_or(|slot| slot.wrapping_sub(frontend.slot_base) < frontend.slot_count);
        let frontend = self.facts.iter().rev().find_map(|fact| match fact {
            Fact::Frontend(_, Some(found)) if found.slot_count != 0 && holds(found) => Some(*found),
            _ => None,
        });
        let (Some(frontend), true) = (frontend, slot.is_some() || last.is_some()) else {
            return Ok(self
                .entry()
                .filter(|(_, entry)| entry.service != 0 && entry.flags & (CtEntry::REPLY | CtEntry::ONE_WAY) == 0)
                .map(|(_, entry)| Choice {
                    backend: names.backend(entry.dst, entry.dport),
                    by: "conntrack entry of the flow".to_owned(),
                    of: Vec::new(),
                    more: 0,
                }));
        };
        let (backend, by) = match (slot, last) {
            (Some(index), _) => {
                let chosen = self.facts.iter().rev().find_map(|fact| match fact {
                    Fact::Backend(_, Some(backend)) => Some(names.backend(backend.addr, backend.port)),
                    _ => None,
                });
                let place = index.wrapping_sub(frontend.slot_base);
                let by =
                    format!("slot {place} of {}, selected by the hash of addresses and ports", frontend.slot_count);
                (chosen.unwrap_or_else(|| "none: missing from the table".to_owned()), by)
            }
            (None, Some(last)) => {
                let seconds = duration(frontend.affinity.into());
                (names.backend(last.addr, last.port), format!("session affinity, kept for {seconds}"))
            }
            (None, None) => return Ok(None),
        };
        let (of, more) = shares(view, &frontend, names)?;
        Ok(Some(Choice { backend, by, of, more }))
    }

    /// The route that was looked up for an egress interface, if any.
    pub(super) fn route(&self, by: IfIndex) -> Option<Route> {
        self.facts.iter().rev().find_map(|fact| match fact {
            Fact::Route(.., Some(route)) if route.ifindex == by => Some(*route),
            _ => None,
        })
    }
}

/// A route in readable form.
pub(super) fn way(route: &Route, names: &Names) -> Way {
    let [mac, _]: [Mac; 2] = bytemuck::cast(route.macs);
    Way {
        interface: names.interface(route.ifindex),
        via: route.hop.into(),
        mac: (route.macs != [0; 3]).then(|| mac.to_string()),
        mtu: route.mtu,
    }
}

/// The source ranges of a service port, for the family in the highest bit of `service`.
fn ranges(view: &dyn View, service: u32) -> Result<Vec<Prefix>, ViewError> {
    let ranges = view.source_ranges()?.into_iter().filter(|range| range.data.service == service);
    let mut ranges: Vec<_> =
        ranges.map(|range| Prefix { len: range.len.saturating_sub(32), addr: range.data.addr }).collect();
    ranges.sort();
    Ok(ranges)
}

/// A frontend's backends with their shares, largest first, and the number of backends omitted.
pub(super) fn shares(view: &dyn View, frontend: &Frontend, names: &Names) -> Result<(Vec<Share>, usize), ViewError> {
    let mut by_id = BTreeMap::<u32, u32>::new();
    for id in view.slots(frontend.slot_base, frontend.slot_count)? {
        *by_id.entry(id).or_default() += 1;
    }
    let mut all: Vec<_> = by_id.into_iter().collect();
    all.sort_by_key(|(id, slots)| (std::cmp::Reverse(*slots), *id));
    let more = all.len().saturating_sub(SHOWN);
    let share = |(id, slots): (u32, u32)| {
        let backend = view.backend(id)?;
        let percent = f64::from(slots) * 100.0 / f64::from(frontend.slot_count.max(1));
        Ok(Share { backend: names.backend(backend.addr, backend.port), percent })
    };
    Ok((all.into_iter().take(SHOWN).map(share).collect::<Result<_, ViewError>>()?, more))
}

/// How the source of a packet was changed.
pub(super) fn source(before: &Summary, after: &Summary, names: &Names) -> Option<String> {
    let end =
        |s: &Summary| s.ports.map_or_else(|| s.src.to_string(), |(port, _)| SocketAddr::new(s.src, port).to_string());
    let identifier = |s: &Summary| s.icmp.map(|(_, _, identifier)| identifier);
    if (before.src, before.ports.map(|p| p.0), identifier(before))
        == (after.src, after.ports.map(|p| p.0), identifier(after))
    {
        return None;
    }
    let name = names.pods.name(before.src).map(|name| format!(" ({name})")).unwrap_or_default();
    let shown = |s: &Summary| identifier(s).map(|id| format!(" id {id}")).unwrap_or_default();
    Some(format!("{}{}{name} translated to {}{}", end(before), shown(before), end(after), shown(after)))
}
