//! First program of every hook: the fast path of established flows. All other packets continue in a stage.

use crate::{
    addr::{Addr, IfIndex, Mac, Proto},
    layout::{CtEntry, Frontend, FrontendKey, NetworkKind, Out, Tuple},
    packet::{ETHERTYPE_ARP, ETHERTYPE_IPV4, ETHERTYPE_IPV6, Ethernet, Packet, Tcp},
    verdict::Reason,
};

use super::{
    Action, HookPoint, Stage, Tables, Verdict, admit, classify, direct,
    family::{Family, FragmentKind, Parsed, V4, V6, parse},
    frontend,
    handover::Purpose,
    headers::Headers,
    policy,
    rewrite::{fits, translate},
    scope,
    track::{self, Seen},
};

/// Number of bytes to make readable: Ethernet, the longest IPv4 header or IPv6 with an extension header, TCP.
pub(super) const HEADERS: u32 = 14 + 60 + 20;

/// Handles a packet at a TC hook.
#[inline(always)]
pub fn enter<At: HookPoint, P: Packet, T: Tables>(p: &mut P, t: &T) -> Verdict {
    any::<At, P, T>(p, t).counted::<At, T>(t)
}

#[inline(always)]
fn any<At: HookPoint, P: Packet, T: Tables>(p: &mut P, t: &T) -> Verdict {
    // A frame of a VLAN, which only shares the interface.
    if p.tagged() {
        return if At::FROM_POD { Verdict::drop(Reason::NotIp) } else { Verdict::PASS };
    }
    p.pull(HEADERS);
    let Some(ethernet) = p.load::<Ethernet>(0) else { return Verdict::drop(Reason::Malformed) };
    match ethernet.ethertype {
        ETHERTYPE_IPV4 => family::<At, V4, P, T>(p, t, &ethernet),
        ETHERTYPE_IPV6 => family::<At, V6, P, T>(p, t, &ethernet),
        ETHERTYPE_ARP if At::FROM_POD => match admit::arp(p, t, &ethernet) {
            Ok(()) => Verdict::PASS,
            Err(reason) => Verdict::drop(reason),
        },
        _ if At::FROM_POD => Verdict::drop(Reason::NotIp),
        _ => Verdict::PASS,
    }
}

/// Handles a packet at XDP, before the kernel allocates an skb: forwards packets of established flows that leave by an
/// uplink, and drops packets that may not enter the node. Everything else passes to the TC hooks.
#[inline(always)]
pub fn express<At: HookPoint, P: Packet, T: Tables>(p: &mut P, t: &T) -> Verdict {
    let Some(ethernet) = p.load::<Ethernet>(0) else { return Verdict::drop(Reason::Malformed).counted::<At, T>(t) };
    let verdict = match ethernet.ethertype {
        ETHERTYPE_IPV4 => express_family::<At, V4, P, T>(p, t, &ethernet),
        ETHERTYPE_IPV6 => express_family::<At, V6, P, T>(p, t, &ethernet),
        _ => Verdict::PASS,
    };
    verdict.counted::<At, T>(t)
}

#[inline(always)]
fn express_family<At: HookPoint, F: Family, P: Packet, T: Tables>(p: &mut P, t: &T, ethernet: &Ethernet) -> Verdict {
    let Some(v) = parse::<F, P>(p) else { return Verdict::drop(Reason::Malformed) };
    // The source would match flows of the IPv4 address.
    if F::mapped(&v.tuple.src) {
        return Verdict::drop(Reason::MappedAddress);
    }
    if v.ports && v.fragment == FragmentKind::Unfragmented {
        let now = t.now();
        let sent = t.flow(&v.tuple, |entry| {
            // A frame addressed to another machine but flooded to this one must not be forwarded a second time. And not
            // every interface transmits packets redirected by XDP, so only main uplinks are used.
            let [_, own]: [Mac; 2] = bytemuck::cast(entry.macs);
            let sends = if entry.out_ifindex == p.ifindex() {
                own == ethernet.dst
            } else {
                t.config().is_some_and(|config| config.is_uplink(entry.out_ifindex))
            };
            if entry.out != Out::Link as u8 || !sends {
                return Verdict::PASS;
            }
            established::<At, F, P, T>(p, t, now, &v, entry)
        });
        // Others are left to the TC hooks.
        if let Some(verdict) = sent
            && matches!(verdict.action, Action::Forward | Action::Drop)
        {
            return verdict;
        }
    }
    if let Err(reason) = admit::check_source::<At, P, T>(p, t, ethernet, &v.tuple, F::V6) {
        return Verdict::drop(reason);
    }
    if !admit::may_use_cluster_ip::<At, T>(t)
        && t.network(&v.tuple.dst).is_some_and(|n| n.kind == NetworkKind::Services as u32)
        && frontend::exact(t, &v.tuple, FrontendKey::ANY).is_none_or(|f| f.flags & Frontend::EXTERNAL == 0)
    {
        return Verdict::drop(Reason::ClusterIpFromOutside);
    }
    Verdict::PASS
}

#[inline(always)]
fn family<At: HookPoint, F: Family, P: Packet, T: Tables>(p: &mut P, t: &T, ethernet: &Ethernet) -> Verdict {
    let Some(v) = parse::<F, P>(p) else { return Verdict::drop(Reason::Malformed) };
    // The source would match entries of the IPv4 address; such addresses are invalid on the wire (RFC 4038, section
    // 4.2). No flow has a mapped address in IPv6, so the destination can wait for the other checks.
    if F::mapped(&v.tuple.src) {
        return Verdict::drop(Reason::MappedAddress);
    }
    if v.fragment != FragmentKind::Unfragmented {
        return hand_over(t, &v, Stage::Track, false);
    }
    if v.ports {
        let now = t.now();
        match t.flow(&v.tuple, |entry| established::<At, F, P, T>(p, t, now, &v, entry)) {
            Some(verdict) if verdict.action == Action::Tail => return hand_over(t, &v, verdict.stage, true),
            Some(verdict) => return verdict,
            None => {}
        }
    }
    if v.icmp_error {
        return hand_over(t, &v, Stage::Icmp, false);
    }
    if !At::EGRESS {
        return match direct::forward::<At, F, P, T>(p, t, ethernet, &v) {
            verdict if verdict.action == Action::Tail => hand_over(t, &v, verdict.stage, false),
            verdict => verdict,
        };
    }
    // The stack has routed the packet. Replies to it must not be taken for those of a closed flow. Later packets of a
    // flow to an invalid destination would be dropped.
    let verdict = t.handover(|h| {
        classify::replies_collide::<At, T>(t, &v.tuple, v.tcp_flags, &mut h.insert);
        let valid = v.ports && !F::mapped(&v.tuple.dst) && !scope::unspecified(&v.tuple.dst);
        if valid && frontend::source_is_frontend(t, &v.tuple, &mut h.insert.key) {
            return Verdict::tail(Stage::Begin);
        }
        // May be evaluated.
        let isolated = At::TO_POD && policy::applies::<At, T>(t) && t.subject(&v.tuple.dst).is_some();
        if isolated { Verdict::tail(Stage::Track) } else { Verdict::PASS }
    });
    match verdict {
        Some(verdict) if verdict.action == Action::Tail => hand_over(t, &v, verdict.stage, false),
        _ => Verdict::PASS,
    }
}

/// Hands the packet to another stage. `known`: its tuple has an entry.
#[inline(always)]
fn hand_over<F: Family, T: Tables>(t: &T, v: &Parsed<F>, stage: Stage, known: bool) -> Verdict {
    let written = t.handover(|h| {
        h.packet = Headers::of(v);
        h.classify.stale_flow = known as u32;
        // Flows that begin at egress hooks are tracked only.
        h.begin.purpose = Purpose::Track as u8;
    });
    match written {
        Some(()) => Verdict::tail(stage),
        None => Verdict::drop(Reason::Internal),
    }
}

/// Fast path: forwards a packet of a known flow. Packets that need a lookup are left to [`Stage::Track`]; so are those
/// that change the flow's state, unless a packet of this half was tracked in this tick.
#[inline(always)]
fn established<At: HookPoint, F: Family, P: Packet, T: Tables>(
    p: &mut P,
    t: &T,
    now: u32,
    v: &Parsed<F>,
    entry: &mut CtEntry,
) -> Verdict {
    // Other protocols are not handled on the fast path.
    if entry.needs_lookup() || !(v.tuple.proto == Proto::TCP || v.tuple.proto == Proto::UDP) {
        return Verdict::tail(Stage::Track);
    }
    if !At::EGRESS && !fits::<F, P>(p, v, entry.out_mtu as u32) {
        return Verdict::tail(Stage::Track);
    }
    let from = p.ifindex();
    let changes_state = entry.last_seen != now
        || entry.in_ifindex != At::side(from)
        || v.tcp_flags & (Tcp::SYN | Tcp::FIN | Tcp::RST) != 0;
    if changes_state
        && let Some(stage) = change_state::<At, T>(t, &v.tuple, entry, Seen { tcp_flags: v.tcp_flags }, from)
    {
        return Verdict::tail(stage);
    }
    translate::<At, F, P, false>(p, v, entry, &Addr::NONE)
}

/// Records a packet that changes its flow's state in both halves. Or else returns the stage to which the packet is
/// left.
// Out of line: inlined, it would slow down all other packets.
#[inline(never)]
fn change_state<At: HookPoint, T: Tables>(
    t: &T,
    tuple: &Tuple,
    entry: &mut CtEntry,
    seen: Seen,
    from: IfIndex,
) -> Option<Stage> {
    let now = t.now();
    // At egress hooks, `track` finds out whether network policy evaluates the packet.
    if !At::EGRESS && track::begins_new_flow::<At>(entry, seen, now) {
        return Some(Stage::Classify);
    }
    if !track::record_in_tick::<At>(entry, tuple.proto, seen, from, now) {
        return Some(Stage::Track);
    }
    t.handover(|h| track::update_other_half(t, tuple, entry, &mut h.insert, now));
    None
}
