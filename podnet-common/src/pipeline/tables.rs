//! The tables that the pipeline reads and writes.

use crate::{
    addr::{Addr, IfIndex, Mac, Proto},
    layout::{
        Affinity, AffinityKey, Backend, Config, CtEntry, Endpoint, FragmentKey, FragmentPorts, Frontend, FrontendKey,
        Hook, Interface, Network, NetworkKind, PolicyDenial, PolicyPod, PolicyRule, PolicyVerdict, ProtoPort, Sandbox,
        ServiceClient, SockKey, SockPeer, Subject, Tuple,
    },
    verdict::{Counter, Reason},
};

use super::{CachedRoute, DirectPath, Handover, Route, rules};

/// Failed insertion into `conntrack`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum InsertError {
    /// The key exists.
    Exists,
    /// The table is full.
    Full,
}

/// The tables as the pipeline uses them, implemented over BPF maps in the kernel and in memory on the host.
pub trait Tables {
    /// Current time in [ticks](crate::time), as of the last [`Self::advance`]. Reading the clock for every packet would
    /// cost more than this lookup.
    fn now(&self) -> u32;
    /// Reads the clock and updates the time that [`Self::now`] returns.
    fn advance(&self) -> u32;
    /// `config`.
    fn config(&self) -> Option<&Config>;
    /// `interfaces`.
    fn interface(&self, ifindex: &IfIndex) -> Option<&Interface>;
    /// `frontends`.
    fn frontend(&self, key: &FrontendKey) -> Option<&Frontend>;
    /// `slots`.
    fn slot(&self, index: u32) -> Option<u32>;
    /// `backends`.
    fn backend(&self, id: u32) -> Option<&Backend>;
    /// `endpoints`.
    fn endpoint(&self, addr: &Addr) -> Option<&Endpoint>;
    /// `nodes`: longest prefix that contains the address.
    fn prefix(&self, addr: &Addr) -> Option<&Network>;
    /// Same as [`Self::prefix`], but only for ranges of the cluster.
    #[inline(always)]
    fn network(&self, addr: &Addr) -> Option<&Network> {
        self.prefix(addr).filter(|network| network.kind != NetworkKind::Nothing as u32)
    }
    /// Calls `f` with an entry of `conntrack`, if it exists. `f` may use other entries.
    fn flow<R>(&self, key: &Tuple, f: impl FnOnce(&mut CtEntry) -> R) -> Option<R>;
    /// Inserts an entry into `conntrack`; fails if the key exists or the table is full.
    fn insert_flow(&self, key: &Tuple, entry: &CtEntry) -> Result<(), InsertError>;
    /// Removes an entry from `conntrack`.
    fn remove_flow(&self, key: &Tuple);
    /// `holders`: count in a slot.
    fn held(&self, slot: u32) -> u32;
    /// Adds to the count in a slot of `holders`.
    fn add_held(&self, slot: u32, entries: u32);
    /// Calls `f` with the records handed over between stages (`scratch`).
    fn handover<R>(&self, f: impl FnOnce(&mut Handover) -> R) -> Option<R>;
    /// Calls `f` with a slot of `next_hops`; `None` unless it is below [`CachedRoute::SLOTS`].
    fn cached_route<R>(&self, slot: u32, f: impl FnOnce(&mut CachedRoute) -> R) -> Option<R>;
    /// Calls `f` with a slot of `direct_paths`; `None` unless it is below [`DirectPath::SLOTS`].
    fn direct_path<R>(&self, slot: u32, f: impl FnOnce(&mut DirectPath) -> R) -> Option<R>;
    /// Looks up the kernel's route for a packet received on `from` and writes it to `route`. False if there is none.
    fn route(&self, from: IfIndex, src: &Addr, dst: &Addr, route: &mut Route) -> bool;
    /// `snat_ports`, by index: a port in host byte order.
    fn snat_port(&self, index: u32) -> Option<u32>;
    /// `affinity`.
    fn affinity(&self, key: &AffinityKey) -> Option<Affinity>;
    /// Inserts or replaces an entry of `affinity`.
    fn set_affinity(&self, key: &AffinityKey, value: &Affinity);
    /// Whether `source_ranges` contains this client.
    fn in_source_ranges(&self, client: &ServiceClient) -> bool;
    /// `subjects`.
    fn subject(&self, addr: &Addr) -> Option<Subject>;
    /// `policy_pods`: the entry in the slot of an interface, perhaps that of another.
    fn policy_pod(&self, link: IfIndex) -> Option<&PolicyPod>;
    /// `policy_peers`.
    fn policy_peer(&self, addr: &Addr) -> Option<u32>;
    /// `policy_blocks`.
    fn policy_block(&self, addr: &Addr) -> Option<u32>;
    /// `policy_ports`; 0 and `None` are the same.
    fn policy_port(&self, port: &ProtoPort) -> Option<u32>;
    /// `policy_rules`.
    fn policy_rule(&self, rule: &PolicyRule) -> Option<PolicyVerdict>;
    /// What of a rule set denies a packet: [`rules::denied_by`]. The kernel's programs have a function for it that the
    /// verifier checks on its own, not once for each way to get there.
    fn denied_by(&self, set: u32, class: u32, ports: u32, proto: Proto, exempt: bool) -> u32 {
        rules::denied_by(set, class, ports, proto, exempt, |rule| self.policy_rule(rule))
    }
    /// Increments an entry of `policy_denials`, if it exists.
    fn count_denial(&self, denial: &PolicyDenial);
    /// `fragments`.
    fn fragment(&self, key: &FragmentKey) -> Option<FragmentPorts>;
    /// Inserts or replaces an entry of `fragments`.
    fn set_fragment(&self, key: &FragmentKey, ports: &FragmentPorts);
    /// Whether `peers` contains this MAC.
    fn is_peer(&self, mac: &Mac) -> bool;
    /// `sandboxes`: the pod with this network namespace cookie.
    fn sandbox(&self, netns_cookie: u64) -> Option<&Sandbox>;
    /// `sock_reverse`.
    fn sock_peer(&self, key: &SockKey) -> Option<SockPeer>;
    /// Inserts or replaces an entry of `sock_reverse`. False if there is no room.
    fn set_sock_peer(&self, key: &SockKey, peer: &SockPeer) -> bool;
    /// Increments a counter.
    fn count(&self, counter: Counter);
    /// Increments the drop counter of a reason.
    fn count_drop(&self, reason: Reason);
    /// Counts a packet dropped or rejected at a hook, and reports it in `events` if there is room.
    fn report(&self, hook: Hook, reason: Reason);
}
