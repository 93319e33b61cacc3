use std::{net::IpAddr, time::Instant};

use podnet_common::{
    addr::{Port, Proto},
    layout::{Backend, FrontendKey},
    time,
};

use super::{collector::LAST_ANSWERS, *};

fn tuple(proto: Proto) -> Tuple {
    Tuple { sport: Port::new(40_000), dport: Port::new(80), proto, ..Tuple::default() }
}

fn entry(flags: u8, last_seen: u32) -> CtEntry {
    CtEntry { flags, last_seen, service: 1, dport: Port::new(8080), ..CtEntry::default() }
}

#[test]
fn idle_flows_time_out_by_their_state() {
    use CtEntry as E;
    let now = 1_000_000;
    let cases = [
        (Proto::TCP, E::OPENING, 30),
        (Proto::TCP, E::OPENING | E::REPLIED, 30),
        (Proto::TCP, E::OPENING | E::FIN_CLIENT, 30),
        (Proto::TCP, 0, 30),
        (Proto::TCP, E::REPLIED, 86_400),
        (Proto::TCP, E::REPLIED | E::FIN_CLIENT, 120),
        (Proto::TCP, E::REPLIED | E::FIN_CLIENT | E::FIN_BACKEND, 10),
        (Proto::TCP, E::REPLIED | E::DOUBTFUL, 120),
        (Proto::TCP, E::ONE_WAY, 86_400),
        (Proto::TCP, E::ONE_WAY | E::FIN_CLIENT, 120),
        (Proto::TCP, E::ONE_WAY | E::CLOSED, 10),
        (Proto::UDP, 0, 30),
        (Proto::UDP, E::REPLIED, 120),
        (Proto::UDP, E::REPLIED | E::OPENING, 30),
        (Proto::UDP, E::ONE_WAY, 120),
        (Proto::SCTP, 0, 60),
        (Proto::SCTP, E::REPLIED, 210),
        (Proto::SCTP, E::REPLIED | E::OPENING, 60),
        (Proto::SCTP, E::ONE_WAY, 210),
        (Proto::SCTP, E::REPLIED | E::CLOSED, 10),
        (Proto::ICMP, 0, 30),
        (Proto::ICMPV6, E::REPLIED, 30),
    ];
    for (proto, flags, seconds) in cases {
        let limit = time::ticks_of_seconds(seconds);
        assert!(!is_over(&tuple(proto), &entry(flags, now - limit), now, false), "{proto:?} {flags}");
        assert!(is_over(&tuple(proto), &entry(flags, now - limit - 1), now, false), "{proto:?} {flags}");
    }
}

#[test]
fn hurry_spares_established_connections() {
    use CtEntry as E;
    let now = 1_000_000;
    let old = now - time::ticks_of_seconds(7);
    for (proto, flags, over) in [
        (Proto::TCP, E::REPLIED, false),
        (Proto::TCP, E::REPLIED | E::OPENING, true),
        (Proto::TCP, E::REPLIED | E::CLOSED, true),
        (Proto::TCP, E::ONE_WAY, true),
        (Proto::UDP, E::REPLIED, false),
        (Proto::UDP, E::REPLIED | E::OPENING, true),
        (Proto::UDP, 0, true),
        (Proto::SCTP, E::REPLIED, false),
        (Proto::SCTP, E::OPENING, true),
        (Proto::ICMP, E::REPLIED, true),
    ] {
        assert_eq!(is_over(&tuple(proto), &entry(flags, old), now, true), over, "{proto:?} {flags}");
    }
}

#[test]
fn a_packet_seen_after_the_clock_was_read_keeps_its_flow() {
    assert!(!is_over(&tuple(Proto::UDP), &entry(0, 11), 10, true));
}

/// Both halves of a flow to a service, and that of a flow forwarded to another node.
fn flows() -> [(Tuple, CtEntry); 3] {
    let reply = (
        Tuple { sport: Port::new(8080), dport: Port::new(40_000), proto: Proto::UDP, ..Tuple::default() },
        CtEntry { flags: CtEntry::REPLY, service: 1, sport: Port::new(80), ..CtEntry::default() },
    );
    [(tuple(Proto::UDP), entry(0, 0)), reply, (tuple(Proto::UDP), entry(CtEntry::ONE_WAY, 0))]
}

#[test]
fn both_halves_of_a_udp_flow_have_the_same_path() {
    let ways: Vec<_> = flows().iter().map(|(tuple, entry)| Way::of(tuple, entry).unwrap()).collect();
    assert_eq!(ways[0], ways[1]);
    let frontend = FrontendKey { port: Port::new(80), proto: Proto::UDP, ..FrontendKey::default() };
    let backend = Backend { port: Port::new(8080), proto: Proto::UDP, ..Backend::default() };
    assert_eq!((ways[0].frontend(), ways[0].end()), (frontend, End::Backend(backend)));
    assert_eq!((ways[2].frontend(), ways[2].end()), (frontend, End::Node(IpAddr::from([0; 16]))));
    assert_eq!(Way::of(&tuple(Proto::TCP), &entry(0, 0)), None, "TCP goes on until it ends itself");
    let masqueraded = CtEntry { service: 0, flags: CtEntry::REWRITE_SRC, ..CtEntry::default() };
    assert_eq!(Way::of(&tuple(Proto::UDP), &masqueraded), None, "no service's");
}

#[test]
fn flows_with_a_stale_path_are_removed() {
    for (tuple, entry) in flows() {
        let way = Way::of(&tuple, &entry).unwrap();
        let reply = entry.flags & CtEntry::REPLY != 0;
        let at_first = if reply { Fate::Stays(Some(way)) } else { Fate::Stale };
        for (stale, fate) in [
            (Stale::new(), Fate::Stays(Some(way))),
            (Stale::from([(way, false)]), at_first),
            (Stale::from([(way, true)]), Fate::Stale),
        ] {
            assert_eq!(evaluate(&tuple, &entry, &stale, &Pods::default(), &Node::default()), fate, "{stale:?}");
        }
    }
}

#[test]
fn flows_of_unknown_pods_are_found() {
    let (client, gone) = (Addr::v4(u32::from_ne_bytes([10, 0, 1, 5])), IfIndex(8));
    let pods = vec![Prefix::new([10, 0, 1, 0].into(), 24)];
    let node = Node { pods, ..Node::default() };
    let pods = Pods::from_iter([(client, IfIndex(7))]);
    let from = |ifindex, flags| CtEntry { in_ifindex: ifindex, flags, ..CtEntry::default() };
    let into = |ifindex| CtEntry { out: Out::Pod as u8, out_ifindex: ifindex, ..CtEntry::default() };
    for (src, entry, fate) in [
        (client, into(IfIndex(7)), Fate::Stays(None)),
        (client, into(gone), Fate::UnknownPod(gone)),
        (client, from(IfIndex(7), 0), Fate::Stays(None)),
        (client, from(gone, 0), Fate::UnknownPod(gone)),
        // Without an interface yet, or leaving by it.
        (client, from(IfIndex(0), 0), Fate::Stays(None)),
        (client, from(IfIndex(!8), 0), Fate::Stays(None)),
        // Replies, and flows from other sources, arrive on any interface.
        (client, from(gone, CtEntry::REPLY), Fate::Stays(None)),
        (Addr::v4(u32::from_ne_bytes([10, 0, 2, 5])), from(gone, 0), Fate::Stays(None)),
    ] {
        let tuple = Tuple { src, ..tuple(Proto::TCP) };
        assert_eq!(evaluate(&tuple, &entry, &Stale::new(), &pods, &node), fate, "{src:?} {entry:?}");
    }
}

#[test]
fn sweeps_follow_each_other_until_no_path_is_stale() {
    let [one, _, other] = flows().map(|(tuple, entry)| Way::of(&tuple, &entry).unwrap());
    let both = HashSet::from([one, other]);
    let only_one = |way: &Way| *way == one;
    let start = Instant::now();
    let mut collector = Collector::default();
    let calm = |stale| Some((stale, Hurry::default()));
    let swept = |ways: HashSet<Way>| Some(Swept { ways, ..Swept::default() });
    assert_eq!(collector.begin(|_| true, start), None, "no sweep was requested");
    collector.demand();
    assert_eq!(collector.begin(|_| false, start), calm(Stale::new()), "no way is known yet");
    collector.demand();
    assert_eq!(collector.begin(|_| true, start), None, "one at a time");
    collector.end(swept(both.clone()), |_| true);
    assert_eq!(collector.begin(|_| true, start), calm(Stale::new()), "the other that was asked for");
    collector.end(swept(both.clone()), only_one);
    assert_eq!(collector.begin(only_one, start), calm(Stale::from([(other, false)])), "at once");
    collector.end(swept(both), only_one);
    assert_eq!(collector.begin(only_one, start), None, "what has waited for answers waits for its time");
    collector.demand();
    assert_eq!(collector.begin(only_one, start + LAST_ANSWERS), calm(Stale::from([(other, true)])));
    collector.end(swept(HashSet::from([one])), only_one);
    assert_eq!(collector.begin(|_| false, start), None);
    collector.demand();
    assert!(collector.begin(|_| true, start).is_some());
    collector.end(None, |_| true);
    collector.demand();
    let stale = collector.begin(|_| false, start);
    assert_eq!(stale, calm(Stale::from([(one, false)])), "a failed sweep forgets nothing");
}
