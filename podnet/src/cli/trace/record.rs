//! Tables that record all accesses.

use std::cell::RefCell;

use podnet_common::addr::{Addr, IfIndex, Mac};
use podnet_common::layout::{
    Affinity, AffinityKey, Backend, Config, CtEntry, Endpoint, FragmentKey, FragmentPorts, Frontend, FrontendKey, Hook,
    Interface, Network, PolicyDenial, PolicyPod, PolicyRule, PolicyVerdict, ProtoPort, Sandbox, ServiceClient, SockKey,
    SockPeer, Subject, Tuple,
};
use podnet_common::pipeline::{CachedRoute, DirectPath, Handover, InsertError, Route, Stage, Tables};
use podnet_common::verdict::{Counter, Reason};

/// An event on a packet's path.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Fact {
    /// The packet went to another stage.
    Stage(Stage),
    /// `conntrack` was looked up.
    Flow(Tuple, Option<CtEntry>),
    /// An entry of `conntrack` was changed to this one.
    FlowChanged(Tuple, CtEntry),
    /// An entry was added to `conntrack`.
    FlowInserted(Tuple, CtEntry, Result<(), InsertError>),
    /// An entry of `conntrack` was removed.
    FlowRemoved(Tuple),
    /// `frontends` was looked up.
    Frontend(FrontendKey, Option<Frontend>),
    /// `slots` was looked up.
    Slot(u32, Option<u32>),
    /// `backends` was looked up.
    Backend(u32, Option<Backend>),
    /// `endpoints` was looked up.
    Endpoint(Addr, Option<Endpoint>),
    /// `nodes` was looked up.
    Network(Addr, Option<Network>),
    /// `interfaces` was looked up.
    Interface(IfIndex, Option<Interface>),
    /// The route from an interface and a source to a destination was looked up in the routing table.
    Route(IfIndex, Addr, Addr, Option<Route>),
    /// `snat_ports` was looked up.
    SnatPort(u32, Option<u32>),
    /// `affinity` was looked up.
    Affinity(AffinityKey, Option<Affinity>),
    /// An entry of `affinity` was written.
    AffinitySet(AffinityKey, Affinity),
    /// `source_ranges` was looked up.
    SourceRange(ServiceClient, bool),
    /// `subjects` was looked up.
    Subject(Addr, Option<Subject>),
    /// `policy_pods` was looked up. `None`: the entry in the slot of the interface isn't its own.
    PolicyPod(IfIndex, Option<PolicyPod>),
    /// `policy_peers` was looked up.
    PolicyPeer(Addr, Option<u32>),
    /// `policy_blocks` was looked up.
    PolicyBlock(Addr, Option<u32>),
    /// `policy_ports` was looked up.
    PolicyPort(ProtoPort, Option<u32>),
    /// `policy_rules` was looked up.
    PolicyRule(PolicyRule, Option<PolicyVerdict>),
    /// A packet denied by network policy was counted.
    Denial(PolicyDenial),
    /// `fragments` was looked up.
    Fragment(FragmentKey, Option<FragmentPorts>),
    /// An entry of `fragments` was written.
    FragmentSet(FragmentKey, FragmentPorts),
    /// `peers` was looked up.
    Peer(Mac, bool),
    /// `sandboxes` was looked up.
    Sandbox(u64, Option<Sandbox>),
    /// `sock_reverse` was looked up.
    SockPeer(SockKey, Option<SockPeer>),
    /// An entry of `sock_reverse` was written.
    SockPeerSet(SockKey, SockPeer),
    /// A counter was incremented.
    Count(Counter),
    /// A drop was counted.
    Drop(Reason),
}

/// Tables whose accesses are recorded.
pub(super) struct Traced<'t, T> {
    tables: &'t T,
    facts: RefCell<Vec<Fact>>,
}

impl<'t, T> Traced<'t, T> {
    pub(super) fn new(tables: &'t T) -> Self {
        Self { tables, facts: RefCell::default() }
    }

    /// Records an event.
    pub(super) fn note(&self, fact: Fact) {
        let mut facts = self.facts.borrow_mut();
        // A repeated lookup, as other programs need it again, adds nothing new.
        let look_up = !matches!(fact, Fact::Stage(_) | Fact::Count(_) | Fact::Drop(_));
        if !(look_up && facts.contains(&fact)) {
            facts.push(fact);
        }
    }

    /// All events, in order.
    pub(super) fn into_facts(self) -> Vec<Fact> {
        self.facts.into_inner()
    }
}

impl<T: Tables> Tables for Traced<'_, T> {
    fn now(&self) -> u32 {
        self.tables.now()
    }

    fn advance(&self) -> u32 {
        self.tables.advance()
    }

    fn config(&self) -> Option<&Config> {
        self.tables.config()
    }

    fn interface(&self, ifindex: &IfIndex) -> Option<&Interface> {
        let found = self.tables.interface(ifindex);
        self.note(Fact::Interface(*ifindex, found.copied()));
        found
    }

    fn frontend(&self, key: &FrontendKey) -> Option<&Frontend> {
        let found = self.tables.frontend(key);
        self.note(Fact::Frontend(*key, found.copied()));
        found
    }

    fn slot(&self, index: u32) -> Option<u32> {
        let found = self.tables.slot(index);
        self.note(Fact::Slot(index, found));
        found
    }

    fn backend(&self, id: u32) -> Option<&Backend> {
        let found = self.tables.backend(id);
        self.note(Fact::Backend(id, found.copied()));
        found
    }

    fn endpoint(&self, addr: &Addr) -> Option<&Endpoint> {
        let found = self.tables.endpoint(addr);
        self.note(Fact::Endpoint(*addr, found.copied()));
        found
    }

    fn prefix(&self, addr: &Addr) -> Option<&Network> {
        let found = self.tables.prefix(addr);
        self.note(Fact::Network(*addr, found.copied()));
        found
    }

    fn flow<R>(&self, key: &Tuple, f: impl FnOnce(&mut CtEntry) -> R) -> Option<R> {
        let mut found = None;
        let result = self.tables.flow(key, |entry| {
            let before = *entry;
            let result = f(entry);
            found = Some((before, *entry));
            result
        });
        self.note(Fact::Flow(*key, found.map(|(before, _)| before)));
        if let Some((before, after)) = found
            && before != after
        {
            self.note(Fact::FlowChanged(*key, after));
        }
        result
    }

    fn insert_flow(&self, key: &Tuple, entry: &CtEntry) -> Result<(), InsertError> {
        let result = self.tables.insert_flow(key, entry);
        self.note(Fact::FlowInserted(*key, *entry, result));
        result
    }

    fn remove_flow(&self, key: &Tuple) {
        self.tables.remove_flow(key);
        self.note(Fact::FlowRemoved(*key));
    }

    fn held(&self, slot: u32) -> u32 {
        self.tables.held(slot)
    }

    fn add_held(&self, slot: u32, entries: u32) {
        self.tables.add_held(slot, entries);
    }

    fn handover<R>(&self, f: impl FnOnce(&mut Handover) -> R) -> Option<R> {
        self.tables.handover(f)
    }

    fn cached_route<R>(&self, slot: u32, f: impl FnOnce(&mut CachedRoute) -> R) -> Option<R> {
        self.tables.cached_route(slot, f)
    }

    fn direct_path<R>(&self, slot: u32, f: impl FnOnce(&mut DirectPath) -> R) -> Option<R> {
        self.tables.direct_path(slot, f)
    }

    fn route(&self, from: IfIndex, src: &Addr, dst: &Addr, route: &mut Route) -> bool {
        let found = self.tables.route(from, src, dst, route);
        self.note(Fact::Route(from, *src, *dst, found.then_some(*route)));
        found
    }

    fn snat_port(&self, index: u32) -> Option<u32> {
        let found = self.tables.snat_port(index);
        self.note(Fact::SnatPort(index, found));
        found
    }

    fn affinity(&self, key: &AffinityKey) -> Option<Affinity> {
        let found = self.tables.affinity(key);
        self.note(Fact::Affinity(*key, found));
        found
    }

    fn set_affinity(&self, key: &AffinityKey, value: &Affinity) {
        self.tables.set_affinity(key, value);
        self.note(Fact::AffinitySet(*key, *value));
    }

    fn in_source_ranges(&self, client: &ServiceClient) -> bool {
        let found = self.tables.in_source_ranges(client);
        self.note(Fact::SourceRange(*client, found));
        found
    }

    fn subject(&self, addr: &Addr) -> Option<Subject> {
        let found = self.tables.subject(addr);
        self.note(Fact::Subject(*addr, found));
        found
    }

    fn policy_pod(&self, link: IfIndex) -> Option<&PolicyPod> {
        let found = self.tables.policy_pod(link);
        if link != IfIndex(0) {
            self.note(Fact::PolicyPod(link, found.copied().filter(|pod| pod.ingress.get(link).is_some())));
        }
        found
    }

    fn policy_peer(&self, addr: &Addr) -> Option<u32> {
        let found = self.tables.policy_peer(addr);
        self.note(Fact::PolicyPeer(*addr, found));
        found
    }

    fn policy_block(&self, addr: &Addr) -> Option<u32> {
        let found = self.tables.policy_block(addr);
        self.note(Fact::PolicyBlock(*addr, found));
        found
    }

    fn policy_port(&self, port: &ProtoPort) -> Option<u32> {
        let found = self.tables.policy_port(port);
        self.note(Fact::PolicyPort(*port, found));
        found
    }

    fn policy_rule(&self, rule: &PolicyRule) -> Option<PolicyVerdict> {
        let found = self.tables.policy_rule(rule);
        self.note(Fact::PolicyRule(*rule, found));
        found
    }

    fn count_denial(&self, denial: &PolicyDenial) {
        self.tables.count_denial(denial);
        self.note(Fact::Denial(*denial));
    }

    fn fragment(&self, key: &FragmentKey) -> Option<FragmentPorts> {
        let found = self.tables.fragment(key);
        self.note(Fact::Fragment(*key, found));
        found
    }

    fn set_fragment(&self, key: &FragmentKey, ports: &FragmentPorts) {
        self.tables.set_fragment(key, ports);
        self.note(Fact::FragmentSet(*key, *ports));
    }

    fn is_peer(&self, mac: &Mac) -> bool {
        let found = self.tables.is_peer(mac);
        self.note(Fact::Peer(*mac, found));
        found
    }

    fn sandbox(&self, netns_cookie: u64) -> Option<&Sandbox> {
        let found = self.tables.sandbox(netns_cookie);
        self.note(Fact::Sandbox(netns_cookie, found.copied()));
        found
    }

    fn sock_peer(&self, key: &SockKey) -> Option<SockPeer> {
        let found = self.tables.sock_peer(key);
        self.note(Fact::SockPeer(*key, found));
        found
    }

    fn set_sock_peer(&self, key: &SockKey, peer: &SockPeer) -> bool {
        let done = self.tables.set_sock_peer(key, peer);
        self.note(Fact::SockPeerSet(*key, *peer));
        done
    }

    fn count(&self, counter: Counter) {
        self.tables.count(counter);
        self.note(Fact::Count(counter));
    }

    fn count_drop(&self, reason: Reason) {
        self.tables.count_drop(reason);
        self.note(Fact::Drop(reason));
    }

    fn report(&self, hook: Hook, reason: Reason) {
        self.tables.report(hook, reason);
        self.note(Fact::Drop(reason));
    }
}
