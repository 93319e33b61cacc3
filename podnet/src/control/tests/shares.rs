//! Services that ask for more than their share of the tables.

use podnet_common::layout::FrontendKey;

use super::*;

/// A service with this number of external IPs and ports.
fn greedy(name: &str, namespace: &str, ips: usize, ports: usize) -> String {
    let ips: Vec<_> = (0..ips).map(|i| format!("198.51.{}.{}", i / 250, i % 250 + 1)).collect();
    let ports: Vec<_> = (1..=ports).map(|port| format!("{{name: p{port}, port: {port}}}")).collect();
    format!(
        "---\n{{apiVersion: v1, kind: Service, metadata: {{name: {name}, namespace: {namespace}}}, spec: {{externalIPs: \
         [{}], ports: [{}]}}}}\n",
        ips.join(", "),
        ports.join(", ")
    )
}

fn reasons(bench: &Bench, service: &str) -> Vec<String> {
    let problems = bench.control.status().problems;
    problems.into_iter().filter(|p| p.place.to_string().ends_with(&format!("/{service}"))).map(|p| p.reason).collect()
}

/// Number of frontends at an address, over all ports.
fn at(bench: &Bench, ip: &str) -> usize {
    let ip: IpAddr = ip.parse().unwrap();
    let address = FrontendKey::address(ip.into());
    bench.tables.frontends.keys().filter(|key| key.addr == address.addr && **key != address).count()
}

#[test]
fn greedy_service_leaves_room_for_others_even_after_a_restart() {
    let mut bench = Bench::with(MemoryTables::new(1000, 1000, 1000));
    bench.write("a-greedy.yaml", &greedy("greedy", "tenant", 26, 260));
    bench.write("web.yaml", &service("web", "10.96.0.1"));
    bench.round();
    let share = 256;
    assert_eq!(bench.control.status().pending, []);
    assert_eq!(at(&bench, "10.96.0.1"), 1);
    assert_eq!(bench.tables.frontends.len(), share + 2);
    let named = reasons(&bench, "greedy");
    assert!(
        named.iter().any(|reason| reason
            .contains("exceeds its share of the table `frontends` (256 entries, the limit for every Service)")),
        "{named:?}"
    );
    assert_eq!(bench.control.status().scarcities, [""; 0], "there is room for all others");
    let complaint = bench.control.complaint().unwrap();
    assert_eq!(complaint.key.to_string(), "Service tenant/greedy");
    assert!(bench.control.complaint().is_none());

    let before = bench.dump();
    bench.restart();
    let (_, outcome) = bench.round();
    assert_eq!((outcome.changed, bench.dump()), (0, before), "the next daemon decides alike");
    bench.write("new.yaml", &service("new", "10.96.0.2"));
    bench.round();
    assert_eq!(at(&bench, "10.96.0.2"), 1);
}

#[test]
fn adopted_frontends_over_the_limit_are_removed() {
    let mut bench = Bench::with(MemoryTables::new(1000, 1000, 1000));
    bench.write("greedy.yaml", &greedy("greedy", "tenant", 1, 60));
    bench.round();
    // Tables filled by an earlier daemon beyond the present limits.
    let (key, value) = bench.tables.frontends.iter().next_back().map(|(key, value)| (*key, *value)).unwrap();
    for i in 0..bench.tables.frontends_max - bench.tables.frontends.len() {
        let addr = IpAddr::from([203, 0, (i >> 8) as u8, i as u8]).into();
        bench.tables.frontends.insert(FrontendKey { addr, ..key }, value);
    }
    bench.write("web.yaml", &service("web", "10.96.0.1"));
    bench.restart();
    bench.round();
    assert_eq!((at(&bench, "10.96.0.1"), bench.control.status().pending), (1, vec![]));
}

#[test]
fn only_a_greedy_namespace_is_limited() {
    let mut bench = Bench::with(MemoryTables::new(1000, 1000, 1000));
    for i in 0..30 {
        let text = greedy(&format!("g{i:02}"), "tenant", 1, 50).replace("198.51.0", &format!("198.51.{i}"));
        bench.write(&format!("g{i:02}.yaml"), &text);
    }
    bench.round();
    let all = bench.tables.frontends.len();
    assert!(all > 900 && all <= 1000, "{all}: no other needs it");
    for i in 1..=90 {
        bench.write(&format!("s{i}.yaml"), &service(&format!("s{i}"), &format!("10.96.0.{i}")));
    }
    let (_, outcome) = bench.round();
    assert_eq!((outcome.pending, bench.control.status().pending), (0, vec![]));
    assert!((1..=90).all(|i| at(&bench, &format!("10.96.0.{i}")) == 1));
    assert!(bench.tables.frontends.len() <= 1000);
    assert!(reasons(&bench, "g07").iter().any(|reason| reason.contains("the limit for each Service of its namespace")));
    let status = bench.control.status();
    assert_eq!(
        (status.scarcities.len(), status.shares.keys().map(String::as_str).collect::<Vec<_>>()),
        (1, vec!["tenant"])
    );
    assert!(
        status.scarcities[0]
            .starts_with("namespace tenant: 1530 entries of the table `frontends` requested, 820 granted"),
        "{:?}",
        status.scarcities
    );
    assert_eq!(status.shares["tenant"].frontends, 27);
    let before = bench.dump();
    bench.restart();
    bench.round();
    assert_eq!(bench.dump(), before);
    for i in 2..30 {
        bench.write(&format!("g{i:02}.yaml"), "# none\n");
    }
    bench.round();
    assert!(reasons(&bench, "g00").iter().all(|reason| !reason.contains("share")), "there is room for it again");
    assert_eq!(bench.tables.frontends.len(), 2 * 90 + 2 * 51);
}

#[test]
fn cluster_ips_take_precedence() {
    let mut bench = Bench::with(MemoryTables::new(1000, 1000, 1000));
    let text = greedy("greedy", "tenant", 20, 50).replace("externalIPs", "clusterIP: 10.96.7.7, externalIPs");
    bench.write("a.yaml", &text);
    bench.round();
    assert_eq!((at(&bench, "10.96.7.7"), at(&bench, "198.51.0.1") < 12), (50, true));
}

#[test]
fn source_ranges_and_backends_have_shares_too() {
    let mut bench = Bench::with(MemoryTables::new(1000, 1000, 1000));
    bench.tables.source_ranges_max = 1000;
    bench.restart();
    let ranges: Vec<_> = (0..40).map(|i| format!("10.{i}.0.0/16")).collect();
    let ports: Vec<_> = (1..=40).map(|port| format!("{{name: p{port}, port: {port}}}")).collect();
    let text = format!(
        "---\n{{apiVersion: v1, kind: Service, metadata: {{name: ranged}}, spec: {{type: LoadBalancer, clusterIP: \
         10.96.0.9, loadBalancerSourceRanges: [{}], ports: [{}]}}, status: {{loadBalancer: {{ingress: [{{ip: \
         192.0.2.1}}]}}}}}}\n",
        ranges.join(", "),
        ports.join(", ")
    );
    bench.write("ranged.yaml", &text);
    let endpoints: Vec<_> = (1..=300).map(|i| format!("10.244.{}.{}", i / 200, i % 200 + 1)).collect();
    let endpoints: Vec<_> = endpoints.iter().map(String::as_str).collect();
    bench.write("wide.yaml", &(service("wide", "10.96.0.1") + &slice("wide", &endpoints)));
    bench.round();
    assert!(bench.tables.source_ranges.len() <= 256, "{}", bench.tables.source_ranges.len());
    assert_eq!(at(&bench, "192.0.2.1"), 6, "each port has forty");
    assert!(reasons(&bench, "ranged").iter().any(|reason| reason.contains("`source_ranges`")));
    assert_eq!(at(&bench, "10.96.0.1"), 0);
    assert!(reasons(&bench, "wide").iter().any(|reason| reason.contains("`slots`")), "{:?}", reasons(&bench, "wide"));
}

#[test]
fn host_ports_have_the_share_of_one_service() {
    let mut bench = Bench::with(MemoryTables::new(1000, 1000, 1000));
    bench.control.set_host_ports((1..=500).map(|port| host_port("0.0.0.0", port, Protocol::Tcp)).collect());
    bench.round();
    assert_eq!(bench.tables.frontends.len(), 256);
}
