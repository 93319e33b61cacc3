use super::super::tests::parse;
use super::*;
use crate::model::{Invalid, Object, Protocol};
use std::sync::Arc;

fn service(spec: &str) -> Result<Service, Invalid> {
    let yaml = format!("{{apiVersion: v1, kind: Service, metadata: {{name: web}}, spec: {spec}}}");
    parse(&yaml).map(|(_, object)| match object {
        Object::Service(service) => Arc::unwrap_or_clone(service),
        other => panic!("{other:?}"),
    })
}

fn ips(list: &[IpAddr]) -> String {
    list.iter().map(ToString::to_string).collect::<Vec<_>>().join(" ")
}

#[test]
fn a_dual_stack_service() {
    let service = service(
        "{clusterIP: 10.96.0.1, clusterIPs: [10.96.0.1, 'fd00:96::1'], ports: [{name: a, port: 80, targetPort: x}, \
         {name: b, port: 80, protocol: UDP}]}",
    )
    .unwrap();
    let ports = [("a", Protocol::Tcp), ("b", Protocol::Udp)].map(|(name, protocol)| ServicePort {
        name: name.into(),
        port: 80,
        node_port: None,
        protocol,
    });
    let expected = Service {
        cluster_ips: service.cluster_ips.clone(),
        families: Families { v4: true, v6: true },
        ports: ports.into(),
        ..Service::default()
    };
    assert_eq!(service, expected, "everything else is as if it weren't there");
    assert_eq!(ips(&service.cluster_ips), "10.96.0.1 fd00:96::1");
}

#[test]
fn every_field_of_a_load_balancer() {
    let yaml = "
apiVersion: v1
kind: Service
metadata: {name: web, annotations: {podnet.io/source-ip: preserve}}
spec:
  type: LoadBalancer
  clusterIP: 10.96.0.1
  externalIPs: [192.0.2.9, 192.0.2.9, '2001:db8::9']
  externalTrafficPolicy: Local
  internalTrafficPolicy: Local
  allocateLoadBalancerNodePorts: true
  healthCheckNodePort: 32000
  loadBalancerSourceRanges: [' 10.1.2.3/8 ', 10.0.0.0/8, '2001:db8::/32', 0.0.0.0/0]
  publishNotReadyAddresses: true
  sessionAffinity: ClientIP
  sessionAffinityConfig: {clientIP: {timeoutSeconds: 86400}}
  trafficDistribution: PreferSameNode
  ports:
  - {name: a, port: 80, nodePort: 30080}
  - {name: b, port: 80, nodePort: 30080, protocol: UDP}
  - {name: c, port: 81, nodePort: 0}
status:
  loadBalancer:
    ingress:
    - {ip: 192.0.2.1}
    - {ip: 192.0.2.2, ipMode: Proxy}
    - {hostname: lb.example}
    - {ip: '2001:db8::1', ipMode: VIP, ports: null}
";
    let Object::Service(service) = parse(yaml).unwrap().1 else { panic!() };
    assert_eq!((service.kind, service.ignored), (ServiceType::LoadBalancer, None));
    assert_eq!(service.families, Families { v4: true, v6: false });
    assert_eq!(ips(&service.load_balancer_ips), "192.0.2.1 2001:db8::1");
    assert_eq!(ips(&service.external_ips), "192.0.2.9 2001:db8::9");
    let ranges: Vec<_> = service.source_ranges.iter().flatten().map(ToString::to_string).collect();
    assert_eq!(ranges, ["10.0.0.0/8", "2001:db8::/32", "0.0.0.0/0"]);
    let node_ports: Vec<_> = service.ports.iter().map(|port| port.node_port).collect();
    assert_eq!(node_ports, [Some(30_080), Some(30_080), None]);
    assert_eq!((service.internal_policy, service.external_policy), (TrafficPolicy::Local, TrafficPolicy::Local));
    assert_eq!((service.affinity, service.health_check_port), (86_400, Some(32_000)));
    assert_eq!(service.source_ip, Some(SourceIp::Preserve));
}

/// pkg/registry/core/service dropTypeDependentFields: a service that changes its type loses the fields that don't apply
/// to the new one.
#[test]
fn fields_that_do_not_apply_to_the_type_are_dropped() {
    for (kind, node_port, ranges, check) in
        [("ClusterIP", false, false, false), ("NodePort", true, false, false), ("LoadBalancer", true, true, true)]
    {
        let yaml = format!(
            "{{apiVersion: v1, kind: Service, metadata: {{name: web}}, spec: {{type: {kind}, clusterIP: 10.96.0.1, \
             externalTrafficPolicy: Local, healthCheckNodePort: 32000, loadBalancerSourceRanges: [10.0.0.0/8], \
             ports: [{{port: 80, nodePort: 30080}}]}}, status: {{loadBalancer: {{ingress: [{{ip: 192.0.2.1}}]}}}}}}"
        );
        let Object::Service(service) = parse(&yaml).unwrap().1 else { panic!("{yaml}") };
        assert_eq!(service.ports[0].node_port.is_some(), node_port, "{kind}");
        assert_eq!((service.source_ranges.is_some(), !service.load_balancer_ips.is_empty()), (ranges, ranges));
        assert_eq!(service.health_check_port.is_some(), check, "{kind}");
    }
}

#[test]
fn defaults() {
    for (spec, affinity) in [
        ("{clusterIP: 10.96.0.1, ports: [{port: 1}]}", 0),
        ("{clusterIP: 10.96.0.1, sessionAffinity: ClientIP, ports: [{port: 1}]}", 10_800),
        ("{clusterIP: 10.96.0.1, sessionAffinity: ClientIP, sessionAffinityConfig: null, ports: [{port: 1}]}", 10_800),
        (
            "{clusterIP: 10.96.0.1, sessionAffinity: ClientIP, sessionAffinityConfig: {clientIP: {timeoutSeconds: \
             1}}, ports: [{port: 1}]}",
            1,
        ),
    ] {
        assert_eq!(service(spec).unwrap().affinity, affinity, "{spec}");
    }
    for (spec, v4, v6) in [
        ("{ports: [{port: 1}]}", true, true),
        ("{ipFamilies: [IPv6], ports: [{port: 1}]}", false, true),
        ("{ipFamilies: [IPv4], clusterIP: 'fd00:96::1', ports: [{port: 1}]}", false, true),
    ] {
        assert_eq!(service(spec).unwrap().families, Families { v4, v6 }, "{spec}");
    }
}

#[test]
fn services_that_no_proxy_serves() {
    for (spec, reason) in [
        ("{clusterIP: None}", Ignored::Headless),
        ("{clusterIPs: [None]}", Ignored::Headless),
        ("{type: ExternalName, externalName: a.b}", Ignored::ExternalName),
    ] {
        assert_eq!(service(spec).unwrap().ignored, Some(reason), "{spec}");
    }
    for (label, reason) in [
        ("service.kubernetes.io/service-proxy-name: other", Ignored::OtherProxy),
        ("service.kubernetes.io/headless: ''", Ignored::Headless),
    ] {
        let yaml = format!(
            "{{apiVersion: v1, kind: Service, metadata: {{name: w, labels: {{{label}}}}}, spec: {{clusterIP: \
             10.96.0.1, ports: [{{port: 1}}]}}}}"
        );
        let Ok((_, Object::Service(service))) = parse(&yaml) else { panic!("{label}") };
        assert_eq!(service.ignored, Some(reason), "{label}");
    }
}

#[test]
fn mistakes_name_object_and_field() {
    let timeout = |seconds: u32| {
        format!(
            "{{ports: [{{port: 1}}], sessionAffinity: ClientIP, sessionAffinityConfig: {{clientIP: {{timeoutSeconds: \
             {seconds}}}}}}}"
        )
    };
    let (longer, none) = (timeout(86_401), timeout(0));
    let field = "spec.sessionAffinityConfig.clientIP.timeoutSeconds";
    for (spec, field, part) in [
        ("{clusterIP: 10.96.0.2, clusterIPs: [10.96.0.1], ports: [{port: 1}]}", "spec.clusterIPs[0]", "differs"),
        ("{clusterIP: 10.96.0.300, ports: [{port: 1}]}", "spec.clusterIP", "`10.96.0.300` is not an IP"),
        ("{clusterIPs: ['fd00::1', 'fe80::1%eth0'], ports: [{port: 1}]}", "spec.clusterIPs[1]", "is not an IP"),
        ("{clusterIP: 10.96.0.1}", "spec.ports", "empty"),
        ("{clusterIP: 10.96.0.1, ports: [{port: 65536}]}", "spec.ports[0].port", "65536 is not between"),
        ("{clusterIP: 10.96.0.1, ports: [{}, {name: a, port: 0}]}", "spec.ports[0].port", "is missing"),
        ("{type: Foo}", "spec.type", "`Foo`"),
        (
            "{ports: [{port: 1}], internalTrafficPolicy: local}",
            "spec.internalTrafficPolicy",
            "`local` is not one of Cluster, Local",
        ),
        ("{ports: [{port: 1}], externalTrafficPolicy: Global}", "spec.externalTrafficPolicy", "`Global`"),
        ("{ports: [{port: 1}], sessionAffinity: Cookie}", "spec.sessionAffinity", "not one of None, ClientIP"),
        (&*longer, field, "between 1 and 86400"),
        (&*none, field, "between 1 and 86400"),
    ] {
        let error = service(spec).expect_err(spec);
        assert_eq!((error.object.as_str(), error.field.as_str()), ("Service default/web", field), "{spec}");
        assert!(error.reason.contains(part), "{error}");
    }
}

/// Each of these also has valid elements, which stay in effect.
#[test]
fn invalid_elements_are_left_out_and_named() {
    for (rest, named) in [
        ("clusterIP: 127.0.0.1", "spec.clusterIP: 127.0.0.1 is reserved"),
        ("clusterIPs: [10.96.0.9, 10.96.0.2]", "spec.clusterIPs[1]: 10.96.0.2 is the second of its family"),
        ("ipFamilies: [IPv4, ipv4]", "spec.ipFamilies[1]: `ipv4`"),
        ("externalIPs: [web.example]", "spec.externalIPs[0]: `web.example` is not an IP"),
        ("externalIPs: ['']", "spec.externalIPs[0]: `` is not an IP"),
        ("externalIPs: ['10.0.0.1.2', '+1.2.3.4', '1.2..3']", "spec.externalIPs[2]: `1.2..3` is not an IP"),
        ("healthCheckNodePort: 65536", "spec.healthCheckNodePort: 65536 is not between"),
        ("loadBalancerSourceRanges: [10.0.0.0/8, 10.0.0.1]", "spec.loadBalancerSourceRanges[1]: `10.0.0.1` is not"),
        ("loadBalancerSourceRanges: [10.0.0.0/33]", "spec.loadBalancerSourceRanges[0]: `10.0.0.0/33` is not"),
        (
            "loadBalancerSourceRanges: ['::ffff:10.0.0.0/104']",
            "spec.loadBalancerSourceRanges[0]: `::ffff:10.0.0.0/104`",
        ),
        ("ports: [{name: a, port: 1}, {name: b}]", "spec.ports[1].port: is missing"),
        ("ports: [{name: a, port: 1}, {name: b, port: 0}]", "spec.ports[1].port: 0 is not between"),
        ("ports: [{name: a, port: 1}, {name: b, port: 65536}]", "spec.ports[1].port: 65536 is not between"),
        ("ports: [{name: a, port: 1}, {name: b, port: 2, protocol: ICMP}]", "spec.ports[1].protocol: `ICMP`"),
        ("ports: [{name: a, port: 1}, {port: 2}]", "spec.ports[1].name: is missing"),
        ("ports: [{name: a, port: 1}, {name: a, port: 2}]", "spec.ports[1].name: `a`"),
        ("ports: [{name: a, port: 1}, {name: b, port: 1}]", "spec.ports[1].port: duplicate 1/TCP"),
        ("ports: [{name: a, port: 1, nodePort: -1}]", "spec.ports[0].nodePort: -1 is not between"),
        (
            "ports: [{name: a, port: 1, nodePort: 30000}, {name: b, port: 2, nodePort: 30000}]",
            "spec.ports[1].nodePort: duplicate 30000/TCP",
        ),
    ] {
        let ports = if rest.starts_with("ports") { "" } else { ", ports: [{port: 1}]" };
        let yaml = format!(
            "{{apiVersion: v1, kind: Service, metadata: {{name: web}}, spec: {{type: LoadBalancer, externalTrafficPolicy: \
             Local, {rest}{ports}}}, status: {{loadBalancer: {{ingress: [{{ip: 192.0.2.1}}]}}}}}}"
        );
        let Object::Service(service) = parse(&yaml).expect(rest).1 else { panic!() };
        let lines: Vec<_> = service.left_out.lines().collect();
        assert!(lines.iter().any(|line| line.starts_with(named)), "{rest}: {lines:?}");
        assert_eq!((service.ports[0].port, ips(&service.load_balancer_ips).as_str()), (1, "192.0.2.1"), "{rest}");
    }
    let yaml = "{apiVersion: v1, kind: Service, metadata: {name: w, annotations: {podnet.io/source-ip: all}}, spec: \
                {clusterIP: 10.96.0.1, ports: [{port: 1}]}}";
    let Object::Service(service) = parse(yaml).unwrap().1 else { panic!() };
    assert_eq!((service.source_ip, service.left_out.lines().count(), service.ports.len()), (None, 1, 1));
}

#[test]
fn invalid_source_ranges_admit_no_clients() {
    for (ranges, let_in) in [
        ("[10.0.0.0/8, x, 10.0.0.1]", &["10.0.0.0/8"][..]),
        ("[x]", &[]),
        ("['']", &[]),
        ("['::ffff:10.0.0.0/104']", &[]),
        // KEP-4858: parsed as by kube-proxy.
        ("[010.001.2.3/08, '2001:db8::1/32']", &["10.0.0.0/8", "2001:db8::/32"]),
    ] {
        let spec = format!("{{type: LoadBalancer, ports: [{{port: 1}}], loadBalancerSourceRanges: {ranges}}}");
        let service = service(&spec).unwrap();
        let found: Vec<_> = service.source_ranges.expect(ranges).iter().map(ToString::to_string).collect();
        assert_eq!(found, let_in, "{ranges}");
    }
}

#[test]
fn mistakes_in_the_status() {
    for (ingress, named) in [
        ("{ip: x}", "ip: `x` is not"),
        ("{ip: 127.0.0.1}", "ip: 127.0.0.1 is reserved"),
        ("{ip: '::ffff:192.0.2.9'}", "ip: ::ffff:192.0.2.9 is an IPv4 address in IPv6 form"),
        ("{ip: 192.0.2.1, ipMode: vip}", "ipMode: `vip` is not one of VIP, Proxy"),
    ] {
        let yaml = format!(
            "{{apiVersion: v1, kind: Service, metadata: {{name: web}}, spec: {{type: LoadBalancer, ports: [{{port: \
             1}}]}}, status: {{loadBalancer: {{ingress: [{{hostname: a}}, {ingress}, {{ip: 192.0.2.007}}]}}}}}}"
        );
        let Object::Service(service) = parse(&yaml).unwrap().1 else { panic!() };
        let lines: Vec<_> = service.left_out.lines().collect();
        let named = format!("status.loadBalancer.ingress[1].{named}");
        assert!(lines.len() == 1 && lines[0].starts_with(&named), "{lines:?}");
        assert_eq!(ips(&service.load_balancer_ips), "192.0.2.7");
    }
}

/// KEP-4858 and KEP-5311: values that API servers have admitted, or will, are parsed as by kube-proxy.
#[test]
fn leading_zeros_and_names_that_begin_with_a_digit() {
    let yaml = "{apiVersion: v1, kind: Service, metadata: {name: 1web, namespace: '2'}, spec: {clusterIPs: [010.096.00.0010, \
                'fd00:0096::01'], externalIPs: [192.000.002.001, 192.0.2.1], ports: [{name: '80', port: 80}]}}";
    let (key, object) = parse(yaml).unwrap();
    let Object::Service(service) = object else { panic!() };
    assert_eq!(key.to_string(), "Service 2/1web");
    assert_eq!(
        (ips(&service.cluster_ips).as_str(), ips(&service.external_ips).as_str()),
        ("10.96.0.10 fd00:96::1", "192.0.2.1")
    );
    assert_eq!(service.families, Families { v4: true, v6: true });
    assert!(service.left_out.is_empty());
}

#[test]
fn addresses_that_no_service_can_have() {
    for address in [
        "0.0.0.0",
        "127.0.0.1",
        "169.254.1.1",
        "224.0.0.1",
        "255.255.255.255",
        "::1",
        "fe80::1",
        "ff02::1",
        "::",
        "::ffff:10.96.0.1",
    ] {
        let spec = format!(
            "{{clusterIP: '{address}', externalIPs: ['{address}', 192.0.2.1], ports: [{{port: 80}}], ipFamilies: [IPv4]}}"
        );
        let service = service(&spec).unwrap();
        assert_eq!((ips(&service.cluster_ips).as_str(), ips(&service.external_ips).as_str()), ("", "192.0.2.1"));
        assert_eq!(service.left_out.lines().count(), 2, "{address}");
    }
}

fn port(i: usize) -> raw::Port {
    let name = format!("p{i}");
    raw::Port {
        name,
        port: Some((i % 65_535 + 1) as i64),
        protocol: ["TCP", "UDP"][i / 65_535].into(),
        ..raw::Port::default()
    }
}

/// Every port of both protocols: those beyond the limit aren't examined, and the rest is compared by hashes.
#[test]
fn a_service_with_all_ports_is_cut_to_the_bound() {
    let mut left_out = LeftOut::default();
    let ports = service_ports((0..131_070).map(port).collect(), false, &mut left_out).unwrap();
    assert_eq!((ports.len(), ports[limits::PORTS - 1].port), (limits::PORTS, limits::PORTS as u16));
    assert_eq!(
        left_out.lines().collect::<Vec<_>>(),
        ["spec.ports: the last 126974 are ignored: at most 4096 are allowed"]
    );
    let ips: Vec<_> = (0..70_000u32).map(|i| std::net::Ipv4Addr::from(0xc633_0000 + i).to_string()).collect();
    assert_eq!(external_ips(&ips, &mut left_out).len(), limits::ADDRESSES);
    let ranges: Vec<_> = ips.iter().map(|ip| format!("{ip}/32")).collect();
    assert_eq!(source_ranges(&ranges, &mut left_out).unwrap().len(), limits::SOURCE_RANGES);
    assert_eq!(left_out.lines().count(), 3);
}
