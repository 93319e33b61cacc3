//! Beginning flows: who a flow's first packet is for, which backend gets it, and with which source. What is decided goes on
//! to [`insert`](super::insert) in `scratch`.

use crate::{
    addr::{Addr, IfIndex},
    layout::{
        Affinity, AffinityKey, Backend, Config, CtEntry, Frontend, FrontendKey, Hook, NetworkKind, Scratch,
        ServiceClient, Tuple,
    },
    packet::{ETHERTYPE_IPV4, ETHERTYPE_IPV6, Ethernet, Packet},
    time,
    verdict::Reason,
};

use super::{
    Place, Stage, Tables, Verdict, checks,
    direct::{answers_collide, answers_need_flow},
    family::{Family, V4, V6},
    flow::{Seen, examine, find_way, touched},
    frontend::{self, Found},
    hot::HEADERS,
    shares,
};

/// Handles the first packet of a flow, and fragments and errors that belong to none. Follows [`super::enter`],
/// [`super::track`] or [`super::icmp`] at the same hook.
#[inline(always)]
pub fn begin<At: Place, P: Packet, T: Tables>(p: &mut P, t: &T) -> Verdict {
    p.pull(HEADERS);
    let Some(ethernet) = p.load::<Ethernet>(0) else { return Verdict::Drop(Reason::Malformed) };
    match ethernet.ethertype {
        ETHERTYPE_IPV4 => family::<At, V4, P, T>(p, t, &ethernet),
        ETHERTYPE_IPV6 => family::<At, V6, P, T>(p, t, &ethernet),
        _ => Verdict::Drop(Reason::Malformed),
    }
}

#[inline(always)]
fn family<At: Place, F: Family, P: Packet, T: Tables>(p: &mut P, t: &T, ethernet: &Ethernet) -> Verdict {
    t.scratch(|s| {
        let seen = match examine::<At, F, P, T>(p, t, ethernet, &mut s.tuple) {
            Ok(seen) => seen,
            Err(reason) => return Verdict::Drop(reason),
        };
        if seen.ports {
            make::<At, T>(t, s, p.ifindex(), ethernet, seen)
        } else if seen.error && At::HOOK as u32 == Hook::FromUplink as u32 && told::<At, T>(t, s, ethernet) {
            Verdict::Tail(Stage::Icmp)
        } else {
            Verdict::Tail(Stage::Direct)
        }
    })
    .unwrap_or(Verdict::Drop(Reason::NoProgram))
}

/// Makes the entry of a flow for the packet with the tuple in `s`, if it is to be translated or sent on.
#[inline(always)]
fn make<At: Place, T: Tables>(t: &T, s: &mut Scratch, from: IfIndex, ethernet: &Ethernet, seen: Seen) -> Verdict {
    let Some(config) = t.config() else { return Verdict::Drop(Reason::NoProgram) };
    s.entry = CtEntry {
        last_seen: t.advance(),
        in_ifindex: from,
        sport: s.tuple.sport,
        dport: s.tuple.dport,
        src: s.tuple.src,
        dst: s.tuple.dst,
        ..CtEntry::default()
    };
    s.hash = hash(&s.tuple);
    s.tries = 0;
    s.from_range = 0;
    if At::EGRESS {
        // Of a process of the host, so that what answers it is known; the stack has found its way.
        s.entry.in_ifindex = At::side(from);
        s.entry.out_mtu = u16::MAX;
        s.entry.flags = CtEntry::OPENING;
        return if shares::admit::<At, T>(t, s, config) { Verdict::Tail(Stage::Insert) } else { Verdict::Pass };
    }
    let made = match frontend::find::<At, T>(t, ethernet, &s.tuple, seen.tcp_flags) {
        Some(found) => to_service::<At, T>(t, s, config, &found, ethernet),
        None if checks::masquerades::<At, T>(t, config, &s.tuple) => to_outside::<T>(t, s, config),
        None if answers_need_flow::<At, T>(t, &s.tuple) || answers_collide::<At, T>(t, &s.tuple, seen.tcp_flags) => {
            find_way::<T>(t, from, &s.tuple.src, &mut s.entry);
            Ok(())
        }
        None => {
            forget::<T>(t, s);
            Err(Verdict::Tail(Stage::Direct))
        }
    };
    match made {
        Ok(()) if !shares::admit::<At, T>(t, s, config) => Verdict::Drop(Reason::ConntrackShare),
        Ok(()) => {
            if s.entry.flags & CtEntry::ONE_WAY == 0 {
                s.entry.flags |= CtEntry::OPENING;
                s.entry.last_seen = touched(s.tuple.proto, true, s.entry.last_seen);
            }
            Verdict::Tail(Stage::Insert)
        }
        Err(verdict) => verdict,
    }
}

/// Removes what a closed flow with the same tuple has left, which would else have the packets that follow.
#[inline(always)]
fn forget<T: Tables>(t: &T, s: &mut Scratch) {
    if t.flow(&s.tuple, |left| s.key = left.reply_key(s.tuple.proto)).is_some() {
        t.remove_flow(&s.tuple);
        t.remove_flow(&s.key);
    }
}

/// Fills the entry of a flow to a service. `Err`: there is none.
#[inline(always)]
fn to_service<At: Place, T: Tables>(
    t: &T,
    s: &mut Scratch,
    config: &Config,
    found: &Found<'_>,
    ethernet: &Ethernet,
) -> Result<(), Verdict> {
    let frontend = found.frontend;
    let client = &s.tuple.src;
    if frontend.flags & Frontend::EXTERNAL == 0 && !checks::may_use_cluster_ip::<At, T>(t) {
        return Err(Verdict::Drop(Reason::ClusterIpFromOutside));
    }
    if frontend.flags & Frontend::SOURCE_RANGES != 0 {
        // A process that asks an address of its own node has that very one for its source.
        let itself = At::HOOK as u32 == Hook::FromHost as u32 && client.same(&s.tuple.dst);
        let judged = if itself { node_address(config, &Addr::NONE, client.is_v4()) } else { *client };
        if !t.in_source_ranges(&ServiceClient::new(frontend.service, judged)) {
            return Err(Verdict::Drop(Reason::SourceRange));
        }
    }
    let frontend = scoped::<At, T>(t, found)?;
    if frontend.slot_count == 0 {
        let dropped = frontend.flags & Frontend::DROP != 0;
        return Err(if dropped { Verdict::Drop(Reason::NoLocalEndpoint) } else { Verdict::Reject(Reason::NoEndpoint) });
    }
    s.entry.service = frontend.service;
    // The node that has sent it on has chosen by the hash itself, so that all that comes has similar ones.
    let hash = if found.sent_on { mix(!s.hash) } else { s.hash };
    if !choose(t, &mut s.entry, client, frontend, hash) {
        return Err(Verdict::Drop(Reason::StaleTable));
    }
    if At::HOOK as u32 == Hook::FromUplink as u32
        && frontend.flags & Frontend::DIRECT_RETURN != 0
        // What a node that doesn't know this one yet has sent back would go to and fro.
        && !t.is_peer(&ethernet.src)
        && let Some(node) = other_node(t, &s.entry.dst)
        && t.network(client).is_none_or(|n| n.kind == NetworkKind::NonMasquerade as u32)
    {
        s.entry.flags = CtEntry::ONE_WAY;
        s.entry.dst = *node;
        s.entry.dport = s.tuple.dport;
        find_way::<T>(t, s.entry.in_ifindex, client, &mut s.entry);
        return Ok(());
    }
    s.entry.flags = CtEntry::REWRITE_DST;
    let source = source::<At, T>(t, config, frontend, client, &s.entry.dst);
    if source != Source::Own {
        s.entry.flags |= CtEntry::REWRITE_SRC;
    }
    let v4 = client.is_v4();
    if let Source::Hairpin { shared } = source {
        s.entry.src = if v4 { config.hairpin_v4 } else { config.hairpin_v6 };
        s.from_range = shared as u32;
    }
    if source == Source::Node {
        // The way depends on whether it is the client's own; which of the node's it is comes with the way.
        s.entry.src = node_address(config, &Addr::NONE, v4);
    }
    let here = find_way::<T>(t, s.entry.in_ifindex, client, &mut s.entry);
    // A backend outside of the cluster answers the node, as it does without a service.
    let masquerades = source == Source::Own && checks::leaves_cluster::<At, T>(t, config, &s.entry.dst);
    if source == Source::Node || (masquerades && checks::is_uplink(t, s.entry.out_ifindex)) {
        s.entry.flags |= CtEntry::REWRITE_SRC;
        s.entry.src = node_address(config, &here, v4);
        s.from_range = 1;
    }
    if s.entry.src.is_none() { Err(Verdict::Drop(Reason::NoRoute)) } else { Ok(()) }
}

/// The entry that counts for this packet's client.
#[inline(always)]
fn scoped<'t, At: Place, T: Tables>(t: &'t T, found: &Found<'t>) -> Result<&'t Frontend, Verdict> {
    if At::HOOK as u32 != Hook::FromUplink as u32 {
        return Ok(found.frontend);
    }
    let scope = if found.sent_on {
        FrontendKey::PEER
    } else if found.frontend.flags & Frontend::OUTSIDE_DIFFERS != 0 {
        FrontendKey::OUTSIDE
    } else {
        return Ok(found.frontend);
    };
    match t.frontend(&FrontendKey { scope, ..found.key }) {
        Some(frontend) if !found.sent_on || frontend.slot_count != 0 => Ok(frontend),
        _ if found.sent_on => Err(Verdict::Drop(Reason::NotForThisNode)),
        _ => Err(Verdict::Drop(Reason::StaleTable)),
    }
}

/// Chooses a backend: the client's last one, if there is affinity, or by the flow's hash, evenly over many flows.
#[inline(always)]
fn choose<T: Tables>(t: &T, entry: &mut CtEntry, client: &Addr, frontend: &Frontend, hash: u32) -> bool {
    let now = entry.last_seen;
    let key = AffinityKey { client: *client, service: frontend.service };
    if frontend.affinity != 0
        && let Some(last) = t.affinity(&key)
        // Another processor may have noted a later time already.
        && now.wrapping_sub(last.last_used) as i32 <= time::ticks_of_seconds(frontend.affinity as u64) as i32
    {
        (entry.dst, entry.dport) = (last.addr, last.port);
    } else {
        let Some(Backend { addr, port, .. }) = pick(t, frontend, hash) else { return false };
        (entry.dst, entry.dport) = (*addr, *port);
    }
    if frontend.affinity != 0 {
        t.set_affinity(&key, &Affinity { addr: entry.dst, port: entry.dport, _pad: 0, last_used: now });
    }
    true
}

/// The backend that a hash picks, evenly over many. `None`: a table lacks it.
#[inline(always)]
pub(super) fn pick<'t, T: Tables>(t: &'t T, frontend: &Frontend, hash: u32) -> Option<&'t Backend> {
    let index = ((hash as u64 * frontend.slot_count as u64) >> 32) as u32;
    t.backend(t.slot(frontend.slot_base.wrapping_add(index))?)
}

/// Makes the entry of a flow that an error tells of, whose tuple [`icmp`](super::icmp) has left as the key in `s`, if this node
/// would send its packets on for direct server return: Maglev chooses the same backend everywhere, so the error finds it
/// wherever it comes in.
// On its own, since the stack is small.
#[inline(never)]
fn told<At: Place, T: Tables>(t: &T, s: &mut Scratch, ethernet: &Ethernet) -> bool {
    if t.is_peer(&ethernet.src) || !s.key.dst.same(&s.tuple.dst) {
        return false;
    }
    let Some(found) = frontend::find::<At, T>(t, ethernet, &s.key, 0) else { return false };
    let Ok(frontend) = scoped::<At, T>(t, &found) else { return false };
    s.entry = CtEntry {
        last_seen: t.advance(),
        service: frontend.service,
        // Whether the connection goes on isn't known.
        flags: CtEntry::ONE_WAY | CtEntry::FIN_BACKEND,
        src: s.key.src,
        sport: s.key.sport,
        dport: s.key.dport,
        ..CtEntry::default()
    };
    if frontend.flags & Frontend::DIRECT_RETURN == 0
        || frontend.slot_count == 0
        || !choose(t, &mut s.entry, &s.key.src, frontend, hash(&s.key))
    {
        return false;
    }
    let Some(node) = other_node(t, &s.entry.dst) else { return false };
    s.entry.dst = *node;
    s.entry.dport = s.key.dport;
    s.tuple = s.key;
    let Some(config) = t.config() else { return false };
    if !shares::admit::<At, T>(t, s, config) || t.insert_flow(&s.key, &s.entry).is_err() {
        return false;
    }
    shares::count(t, s, 1);
    true
}

/// The node of a backend, if it is another one, on the link or in the tunnel.
#[inline(always)]
fn other_node<'t, T: Tables>(t: &'t T, backend: &Addr) -> Option<&'t Addr> {
    let network = t.network(backend)?;
    let remote = network.kind == NetworkKind::RemotePods as u32 || network.kind == NetworkKind::RemoteNode as u32;
    (remote && network.mac.0 != [0; 6] && !network.node.is_none()).then_some(&network.node)
}

/// The source that a flow's packets get.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Source {
    /// The client's own.
    Own,
    /// The hairpin address. `shared`: all processes of the host have it.
    Hairpin { shared: bool },
    /// The node's.
    Node,
}

#[inline(always)]
fn source<At: Place, T: Tables>(t: &T, config: &Config, frontend: &Frontend, client: &Addr, backend: &Addr) -> Source {
    let from_host = At::HOOK as u32 == Hook::FromHost as u32;
    let from_uplink = At::HOOK as u32 == Hook::FromUplink as u32;
    // The backend is the client: its stack would take a packet from its own address for a forgery.
    if backend.same(client) && !from_uplink {
        return Source::Hairpin { shared: false };
    }
    let here = t.network(backend).is_some_and(|n| n.kind == NetworkKind::LocalNode as u32);
    // From outside to another node's pod, whose answer would otherwise go past this node.
    let through = from_uplink && !here && t.endpoint(backend).is_none();
    let snat = frontend.flags & Frontend::SNAT != 0 || through;
    if !from_host && !snat {
        return Source::Own;
    }
    if here {
        // From the host's address to the host's address the answer would never come by here.
        return Source::Hairpin { shared: true };
    }
    // A process that asks one of the host's addresses has that one itself, which others needn't know a way to.
    let known = client.same(&config.node_v4) || client.same(&config.node_v6) || t.endpoint(backend).is_some();
    if from_host && known { Source::Own } else { Source::Node }
}

/// Fills the entry of a pod's flow to what is outside of the cluster.
#[inline(always)]
fn to_outside<T: Tables>(t: &T, s: &mut Scratch, config: &Config) -> Result<(), Verdict> {
    s.entry.flags = CtEntry::REWRITE_SRC;
    let here = find_way::<T>(t, s.entry.in_ifindex, &s.tuple.src, &mut s.entry);
    // On another way no answer would be translated back, so the stack has it. It may be a broadcast, which the host gets.
    if !checks::is_uplink(t, s.entry.out_ifindex) {
        let tunnelled = checks::tunnelled::<T>(t, &s.tuple);
        return Err(if tunnelled { Verdict::Drop(Reason::TunnelFromOutside) } else { Verdict::Pass });
    }
    s.entry.src = node_address(config, &here, s.tuple.src.is_v4());
    s.from_range = 1;
    if s.entry.src.is_none() { Err(Verdict::Drop(Reason::NoRoute)) } else { Ok(()) }
}

/// The address that the route has for the host, or the node's first.
#[inline(always)]
fn node_address(config: &Config, of_route: &Addr, v4: bool) -> Addr {
    match (of_route.is_none(), v4) {
        (false, _) => *of_route,
        (true, true) => config.node_v4,
        (true, false) => config.node_v6,
    }
}

/// Hash of a flow's addresses and ports.
#[inline(always)]
fn hash(v: &Tuple) -> u32 {
    let ports = (v.sport.wire() as u32) << 16 | v.dport.wire() as u32;
    let src = v.src.0[0] ^ v.src.0[1].rotate_left(8) ^ v.src.0[2].rotate_left(16) ^ v.src.0[3];
    let dst = v.dst.0[0] ^ v.dst.0[1].rotate_left(8) ^ v.dst.0[2].rotate_left(16) ^ v.dst.0[3];
    mix(mix(src ^ ports) ^ dst)
}

/// Finaliser with full avalanche (Wellons, "hash-prospector", triple32's two-round sibling).
#[inline(always)]
pub const fn mix(mut h: u32) -> u32 {
    h ^= h >> 16;
    h = h.wrapping_mul(0x7feb_352d);
    h ^= h >> 15;
    h = h.wrapping_mul(0x846c_a68b);
    h ^ (h >> 16)
}
