//! The packet pipeline on the host: packets in memory, tables in collections of the standard library.
//!
//! Runs the same code as the kernel, for packet tests, fuzzing and `podnet trace`. GSO, VLAN tags and checksum offload
//! are not simulated.

mod socket;

use std::{
    cell::{Cell, RefCell},
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
    vec::Vec,
};

use bytemuck::Pod;

use crate::{
    addr::{Addr, IfIndex, Mac},
    checksum,
    layout::{
        Affinity, AffinityKey, Backend, Config, CtEntry, Endpoint, FragmentKey, FragmentPorts, Frontend, FrontendKey,
        Hook, Interface, Network, Out, PolicyDenial, PolicyPod, PolicyRule, PolicyVerdict, Prefix, ProtoPort, Sandbox,
        ServiceClient, SockKey, SockPeer, SourceRange, Subject, Tuple,
    },
    packet::{ETH, Packet},
    pipeline::{
        self, Action, CachedRoute, DirectPath, FromHost, FromLoopback, FromPod, FromUplink, Handover, HookPoint,
        InsertError, Route, Stage, Tables, ToPod, ToRaw, ToUplink, UplinkXdp, Verdict,
    },
    verdict::{Counter, Reason},
};

pub use socket::HostSocket;

/// A packet in memory.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HostPacket {
    /// The frame, including its Ethernet header.
    pub data: Vec<u8>,
    /// Interface that the hook is attached to.
    pub ifindex: IfIndex,
}

impl Packet for HostPacket {
    fn frame_len(&self) -> u32 {
        self.data.len() as u32
    }

    fn ifindex(&self) -> IfIndex {
        self.ifindex
    }

    fn tagged(&self) -> bool {
        false
    }

    fn segment_len(&self, _headers: u32) -> u32 {
        self.frame_len().saturating_sub(ETH as u32)
    }

    fn pull(&mut self, _n: u32) {}

    fn renew(&mut self) {}

    fn load<T: Pod>(&self, offset: usize) -> Option<T> {
        let end = offset.checked_add(size_of::<T>())?;
        Some(bytemuck::pod_read_unaligned(self.data.get(offset..end)?))
    }

    fn store<T: Pod>(&mut self, offset: usize, value: &T) -> Option<()> {
        let end = offset.checked_add(size_of::<T>())?;
        self.data.get_mut(offset..end)?.copy_from_slice(bytemuck::bytes_of(value));
        Some(())
    }

    fn update_l4_checksum(&mut self, offset: usize, pseudo: u64, data: u64, udp: bool, _v6: bool) -> Option<()> {
        let old: u16 = self.load(offset)?;
        let new = checksum::apply(old, u64::from(checksum::fold32(pseudo)) + u64::from(checksum::fold32(data)));
        self.store(offset, &if udp && new == 0 { 0xffff } else { new })
    }

    fn resize(&mut self, len: u32) -> Option<()> {
        self.data.resize(len as usize, 0);
        Some(())
    }
}

/// Tables in memory.
#[derive(Clone, Debug, Default)]
pub struct HostTables {
    /// Current time in ticks.
    pub now: Cell<u32>,
    /// `config`.
    pub config: Config,
    /// `frontends`.
    pub frontends: BTreeMap<FrontendKey, Frontend>,
    /// `slots`.
    pub slots: BTreeMap<u32, u32>,
    /// `backends`.
    pub backends: BTreeMap<u32, Backend>,
    /// `endpoints`.
    pub endpoints: BTreeMap<Addr, Endpoint>,
    /// `nodes`.
    pub networks: BTreeMap<Prefix, Network>,
    /// `interfaces`.
    pub interfaces: BTreeMap<IfIndex, Interface>,
    /// `conntrack`.
    pub conntrack: RefCell<BTreeMap<Tuple, CtEntry>>,
    /// Capacity of `conntrack`; `None` if unlimited.
    pub conntrack_max: Option<usize>,
    /// `holders`.
    pub holders: RefCell<BTreeMap<u32, u32>>,
    /// `snat_ports`.
    pub snat_ports: Vec<u16>,
    /// `affinity`.
    pub affinity: RefCell<BTreeMap<AffinityKey, Affinity>>,
    /// `source_ranges`.
    pub source_ranges: BTreeSet<SourceRange>,
    /// `subjects`.
    pub subjects: BTreeMap<Addr, Subject>,
    /// `policy_peers`.
    pub policy_peers: BTreeMap<Addr, u32>,
    /// `policy_blocks`.
    pub policy_blocks: BTreeMap<Prefix, u32>,
    /// `policy_pods`.
    pub policy_pods: BTreeMap<u32, PolicyPod>,
    /// `policy_ports`.
    pub policy_ports: BTreeMap<ProtoPort, u32>,
    /// `policy_rules`.
    pub policy_rules: BTreeMap<PolicyRule, PolicyVerdict>,
    /// `policy_denials`.
    pub policy_denials: RefCell<BTreeMap<PolicyDenial, u64>>,
    /// `fragments`.
    pub fragments: RefCell<BTreeMap<FragmentKey, FragmentPorts>>,
    /// `peers`.
    pub peers: BTreeSet<Mac>,
    /// `sandboxes`.
    pub sandboxes: BTreeMap<u64, Sandbox>,
    /// `sock_reverse`.
    pub sock_reverse: RefCell<BTreeMap<SockKey, SockPeer>>,
    /// Routing table, by destination. A route without a next hop is to a shared link.
    pub routes: BTreeMap<Prefix, Route>,
    /// Counters, by kind.
    pub counters: RefCell<BTreeMap<Counter, u64>>,
    /// Drop counters, by reason.
    pub drops: RefCell<BTreeMap<Reason, u64>>,
    handover: RefCell<Handover>,
    /// `next_hops`.
    next_hops: RefCell<BTreeMap<u32, CachedRoute>>,
    /// `direct_paths`.
    direct_paths: RefCell<BTreeMap<u32, DirectPath>>,
}

impl HostTables {
    /// The entry of [`Self::routes`] for a destination.
    pub fn route_to(&self, dst: &Addr) -> Option<&Route> {
        longest(&self.routes, dst)
    }

    /// Clears the route and direct path caches.
    pub fn clear_route_caches(&self) {
        self.next_hops.borrow_mut().clear();
        self.direct_paths.borrow_mut().clear();
    }

    /// Whether an address is an external address of a service ([`Network::SERVICE_ADDRESS`]).
    pub fn is_service_address(&self, addr: &Addr) -> bool {
        self.prefix(addr).is_some_and(|network| network.flags & Network::SERVICE_ADDRESS != 0)
    }
}

impl Tables for HostTables {
    fn now(&self) -> u32 {
        self.now.get()
    }

    fn advance(&self) -> u32 {
        self.now.get()
    }

    fn config(&self) -> Option<&Config> {
        Some(&self.config)
    }

    fn frontend(&self, key: &FrontendKey) -> Option<&Frontend> {
        self.frontends.get(key)
    }

    fn slot(&self, index: u32) -> Option<u32> {
        self.slots.get(&index).copied()
    }

    fn backend(&self, id: u32) -> Option<&Backend> {
        self.backends.get(&id)
    }

    fn endpoint(&self, addr: &Addr) -> Option<&Endpoint> {
        self.endpoints.get(addr)
    }

    fn prefix(&self, addr: &Addr) -> Option<&Network> {
        longest(&self.networks, addr)
    }

    fn interface(&self, ifindex: &IfIndex) -> Option<&Interface> {
        self.interfaces.get(ifindex)
    }

    fn flow<R>(&self, key: &Tuple, f: impl FnOnce(&mut CtEntry) -> R) -> Option<R> {
        let mut entry = *self.conntrack.borrow().get(key)?;
        let result = f(&mut entry);
        self.conntrack.borrow_mut().entry(*key).and_modify(|stored| *stored = entry);
        Some(result)
    }

    fn insert_flow(&self, key: &Tuple, entry: &CtEntry) -> Result<(), InsertError> {
        let mut conntrack = self.conntrack.borrow_mut();
        if conntrack.contains_key(key) {
            return Err(InsertError::Exists);
        }
        if self.conntrack_max.is_some_and(|max| conntrack.len() >= max) {
            return Err(InsertError::Full);
        }
        conntrack.insert(*key, *entry);
        Ok(())
    }

    fn remove_flow(&self, key: &Tuple) {
        self.conntrack.borrow_mut().remove(key);
    }

    fn held(&self, slot: u32) -> u32 {
        self.holders.borrow().get(&slot).copied().unwrap_or_default()
    }

    fn add_held(&self, slot: u32, entries: u32) {
        *self.holders.borrow_mut().entry(slot).or_default() += entries;
    }

    fn handover<R>(&self, f: impl FnOnce(&mut Handover) -> R) -> Option<R> {
        Some(f(&mut self.handover.borrow_mut()))
    }

    fn cached_route<R>(&self, slot: u32, f: impl FnOnce(&mut CachedRoute) -> R) -> Option<R> {
        (slot < CachedRoute::SLOTS).then(|| f(self.next_hops.borrow_mut().entry(slot).or_default()))
    }

    fn direct_path<R>(&self, slot: u32, f: impl FnOnce(&mut DirectPath) -> R) -> Option<R> {
        (slot < DirectPath::SLOTS).then(|| f(self.direct_paths.borrow_mut().entry(slot).or_default()))
    }

    fn route(&self, _from: IfIndex, _src: &Addr, dst: &Addr, route: &mut Route) -> bool {
        let Some(found) = self.route_to(dst) else { return false };
        *route = *found;
        if route.hop.is_none() {
            route.hop = *dst;
        }
        true
    }

    fn snat_port(&self, index: u32) -> Option<u32> {
        self.snat_ports.get(index as usize).map(|port| u32::from(*port))
    }

    fn affinity(&self, key: &AffinityKey) -> Option<Affinity> {
        self.affinity.borrow().get(key).copied()
    }

    fn set_affinity(&self, key: &AffinityKey, value: &Affinity) {
        self.affinity.borrow_mut().insert(*key, *value);
    }

    fn in_source_ranges(&self, client: &ServiceClient) -> bool {
        let holds = |range: &&SourceRange| {
            let prefix = Prefix { len: range.len.saturating_sub(32), addr: range.data.addr };
            range.data.service == client.service && prefix.contains(&client.addr)
        };
        self.source_ranges.iter().any(|range| holds(&range))
    }

    fn subject(&self, addr: &Addr) -> Option<Subject> {
        self.subjects.get(addr).copied()
    }

    fn policy_peer(&self, addr: &Addr) -> Option<u32> {
        self.policy_peers.get(addr).copied()
    }

    fn policy_block(&self, addr: &Addr) -> Option<u32> {
        longest(&self.policy_blocks, addr).copied()
    }

    fn policy_pod(&self, link: IfIndex) -> Option<&PolicyPod> {
        self.policy_pods.get(&PolicyPod::slot(link))
    }

    fn policy_port(&self, port: &ProtoPort) -> Option<u32> {
        self.policy_ports.get(port).copied()
    }

    fn policy_rule(&self, rule: &PolicyRule) -> Option<PolicyVerdict> {
        self.policy_rules.get(rule).copied()
    }

    fn count_denial(&self, denial: &PolicyDenial) {
        if let Some(packets) = self.policy_denials.borrow_mut().get_mut(denial) {
            *packets += 1;
        }
    }

    fn fragment(&self, key: &FragmentKey) -> Option<FragmentPorts> {
        self.fragments.borrow().get(key).copied()
    }

    fn set_fragment(&self, key: &FragmentKey, ports: &FragmentPorts) {
        self.fragments.borrow_mut().insert(*key, *ports);
    }

    fn is_peer(&self, mac: &Mac) -> bool {
        self.peers.contains(mac)
    }

    fn sandbox(&self, netns_cookie: u64) -> Option<&Sandbox> {
        self.sandboxes.get(&netns_cookie)
    }

    fn sock_peer(&self, key: &SockKey) -> Option<SockPeer> {
        self.sock_reverse.borrow().get(key).copied()
    }

    fn set_sock_peer(&self, key: &SockKey, peer: &SockPeer) -> bool {
        self.sock_reverse.borrow_mut().insert(*key, *peer);
        true
    }

    fn count(&self, counter: Counter) {
        *self.counters.borrow_mut().entry(counter).or_default() += 1;
    }

    fn count_drop(&self, reason: Reason) {
        *self.drops.borrow_mut().entry(reason).or_default() += 1;
    }

    fn report(&self, _hook: Hook, reason: Reason) {
        self.count_drop(reason);
    }
}

/// Value of the longest prefix that contains an address.
fn longest<'a, T>(prefixes: &'a BTreeMap<Prefix, T>, addr: &Addr) -> Option<&'a T> {
    let matching = prefixes.iter().filter(|(prefix, _)| prefix.contains(addr));
    matching.max_by_key(|(prefix, _)| prefix.len).map(|(_, value)| value)
}

/// Prefix of a CIDR in the format of `nodes`.
pub fn prefix(addr: IpAddr, len: u8) -> Prefix {
    Prefix { len: u32::from(len) + if addr.is_ipv4() { 96 } else { 0 }, addr: addr.into() }
}

/// Final outcome for a packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FinalVerdict {
    /// Continues as if the hook weren't there.
    Pass,
    /// Dropped.
    Drop(Reason),
    /// Forwarded: kind of egress and interface.
    Forward(Out, IfIndex),
    /// Rejected: reason and interface by which the answer to the sender leaves.
    Reject(Reason, IfIndex),
    /// Echo request turned into a reply, which leaves by this interface.
    Answer(IfIndex),
}

impl FinalVerdict {
    /// Reason of a drop or reject.
    pub fn reason(self) -> Option<Reason> {
        match self {
            Self::Drop(reason) | Self::Reject(reason, _) => Some(reason),
            Self::Pass | Self::Forward(..) | Self::Answer(_) => None,
        }
    }
}

/// Runs a packet through a hook and its stages.
pub fn run<T: Tables>(hook: Hook, packet: &mut HostPacket, tables: &T) -> FinalVerdict {
    follow(hook, packet, tables, &mut |_| {})
}

/// Same as [`run`], but calls `on_stage` with each stage after the first program.
pub fn follow<T: Tables>(
    hook: Hook,
    packet: &mut HostPacket,
    tables: &T,
    on_stage: &mut dyn FnMut(Stage),
) -> FinalVerdict {
    match hook {
        Hook::FromPod => stages::<FromPod, T>(packet, tables, on_stage),
        Hook::ToPod => stages::<ToPod, T>(packet, tables, on_stage),
        // `from_raw` adds an Ethernet header; packets in memory always have one.
        Hook::FromUplink | Hook::FromRaw => stages::<FromUplink, T>(packet, tables, on_stage),
        Hook::ToUplink => stages::<ToUplink, T>(packet, tables, on_stage),
        Hook::ToRaw => stages::<ToRaw, T>(packet, tables, on_stage),
        Hook::FromHost => stages::<FromHost, T>(packet, tables, on_stage),
        Hook::FromLoopback => final_verdict(pipeline::loopback::<FromLoopback, _, _>(packet, tables), None),
        Hook::UplinkXdp => final_verdict(pipeline::express::<UplinkXdp, _, _>(packet, tables), None),
    }
}

fn stages<At: HookPoint, T: Tables>(
    packet: &mut HostPacket,
    tables: &T,
    on_stage: &mut dyn FnMut(Stage),
) -> FinalVerdict {
    /// Kernel limit (`MAX_TAIL_CALL_CNT`), minus the tail call of the dispatcher.
    const TAIL_CALLS: usize = 32;
    let mut verdict = pipeline::enter::<At, _, _>(packet, tables);
    let mut refused = None;
    for _ in 0..TAIL_CALLS {
        let stage = match verdict {
            Verdict { action: Action::Tail, stage, .. } => stage,
            Verdict { action: Action::Reject, reason, .. } => {
                refused = Some(reason);
                Stage::answering(reason)
            }
            _ => break,
        };
        on_stage(stage);
        verdict = match stage {
            Stage::Track => pipeline::track::<At, _, _>(packet, tables),
            Stage::Reject => pipeline::reject::<At, _, _>(packet, tables),
            Stage::Icmp => pipeline::icmp::<At, _, _>(packet, tables),
            Stage::Error => pipeline::error::<At, _, _>(packet, tables),
            Stage::Begin => pipeline::begin::<At, _, _>(packet, tables),
            Stage::Insert => pipeline::insert::<At, _, _>(packet, tables),
            Stage::Classify => pipeline::classify::<At, _, _>(packet, tables),
            Stage::Sctp => pipeline::sctp::<At, _, _>(packet, tables),
            Stage::Send => pipeline::send::<At, _, _>(packet, tables),
            Stage::External => pipeline::external::<At, _, _>(packet, tables),
            Stage::Quotation => pipeline::quotation::<At, _, _>(packet, tables),
        };
    }
    final_verdict(verdict, refused)
}

/// Final outcome of a verdict; `refused` is the reason if the packet was rejected.
fn final_verdict(verdict: Verdict, refused: Option<Reason>) -> FinalVerdict {
    let Verdict { action, reason, egress, .. } = verdict;
    match (action, refused) {
        (Action::Pass, _) => FinalVerdict::Pass,
        (Action::Forward, _) => FinalVerdict::Forward(egress.out, egress.ifindex),
        (Action::Answer, Some(reason)) => FinalVerdict::Reject(reason, egress.ifindex),
        (Action::Answer, None) => FinalVerdict::Answer(egress.ifindex),
        (Action::Unanswered, Some(reason)) => FinalVerdict::Drop(reason),
        (Action::Drop | Action::Reject, _) => FinalVerdict::Drop(reason),
        (Action::Unanswered, None) => FinalVerdict::Drop(Reason::Internal),
        (Action::Tail, _) => FinalVerdict::Drop(Reason::MissedTailCall),
    }
}
