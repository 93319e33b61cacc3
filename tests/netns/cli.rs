//! The command line on a running node: its output while the daemon is up, while it is down, and after cleanup.

use std::net::{IpAddr, SocketAddr};

use anyhow::{Context, Result, ensure};
use podnet::config::Xdp;
use podnet_tests::lab::{Endpoint, Lab, Node, Pod, Service, client_ip, eventually};
use podnet_tests::traffic::{Ask, Family, Flow, Server, Transport};
use serde_json::{Value, json};

/// A running node with a service of two pods, and a client.
fn site() -> Result<(Lab, Pod, Service)> {
    let lab = Lab::builder().nodes(2).build()?;
    let client = lab.node(0).add_pod("client")?;
    let service = Service::new("web", 10, 80, 8080);
    service.apply(&lab, None)?;
    Ok((lab, client, service))
}

fn rows(value: Value) -> Result<Vec<Value>> {
    value.as_array().cloned().with_context(|| format!("no list: {value}"))
}

/// All backends of a frontend, for any clients.
fn targets(frontend: &Value) -> Vec<Value> {
    let choices = frontend["choices"].as_array().into_iter().flatten();
    choices.flat_map(|choice| choice["targets"].as_array().cloned().unwrap_or_default()).collect()
}

fn warnings(node: &Node) -> Result<Vec<String>> {
    let status = node.podnet_json(&["status"])?;
    let warnings = rows(status["warnings"].clone())?;
    Ok(warnings.iter().filter_map(Value::as_str).map(str::to_owned).collect())
}

/// Terminal control sequences, invisible characters, and text that imitates a line of podnet's output.
const HOSTILE: &str = "x\nwarning    forged\r\u{1b}[2J\u{1b}]0;t\u{7}\u{9b}1A\u{202e}\u{2066}\u{200b}\u{85}\u{2028}";

fn is_harmless(what: &str, bytes: &[u8]) -> Result<()> {
    let text = std::str::from_utf8(bytes).with_context(|| format!("{what} is not UTF-8"))?;
    let bad = text.chars().find(|c| HOSTILE.contains(*c) && *c != '\n' && !c.is_ascii_graphic() && *c != ' ');
    ensure!(bad.is_none(), "{what} has {bad:?}: {text:?}");
    let forged = text.lines().find(|line| line.starts_with("warning    forged"));
    ensure!(forged.is_none(), "{what} has a forged line: {text}");
    let longest = text.lines().map(str::len).max().unwrap_or_default();
    ensure!(longest < 40_000, "{what} has a line of {longest} bytes");
    Ok(())
}

#[test]
fn text_of_tenants_is_escaped_on_terminals_and_in_logs() -> Result<()> {
    let (lab, ..) = site()?;
    let node = lab.node(0);
    // YAML accepts such characters only as escapes.
    let hostile: String = HOSTILE.chars().map(|c| format!("\\u{:04x}", u32::from(c))).collect();
    let hostile = format!("\"{hostile}\"");
    let long = "y".repeat(1 << 20);
    let object = |name: &str, annotation: &str| {
        format!(
            "apiVersion: v1\nkind: Service\nmetadata:\n  name: {name}\n  annotations: {{podnet.io/source-ip: {annotation}}}\n\
             spec: {{clusterIP: 10.96.0.77, sessionAffinity: {annotation}, ports: [{{port: 80, name: {annotation}}}]}}\n"
        )
    };
    let annotated = "apiVersion: v1\nkind: Service\nmetadata: {name: told, annotations: {podnet.io/source-ip: X}}\nspec: \
                     {clusterIP: 10.96.0.78, ports: [{port: 80}]}\n";
    for (file, text) in [
        ("annotation", annotated.replace('X', &hostile)),
        ("long-annotation", annotated.replace("told", "long").replace(".78", ".79").replace('X', &long)),
        ("value", object("web2", &hostile)),
        ("name", object(&hostile, "auto")),
        ("long", object(&long, &long)),
        ("syntax", format!("kind: {hostile}\n")),
        (HOSTILE, "kind: [\n".to_owned()),
    ] {
        node.apply(file, &text)?;
    }
    let broken = format!("{HOSTILE}.yaml");
    eventually("the file is reported", || {
        let warnings = warnings(node)?;
        ensure!(warnings.iter().any(|warning| warning.contains(&broken)), "{warnings:?}");
        ensure!(warnings.iter().any(|warning| warning.contains("default/told")), "{warnings:?}");
        Ok(())
    })?;
    for args in [
        &["status"][..],
        &["service", "list"],
        &["service", "show", "default/told"],
        &["service", "show", "default/web"],
        &["service", "show", HOSTILE],
        &["service", "show", &format!("x/{HOSTILE}")],
        &["endpoint", "list"],
        &["status", "--run-dir", HOSTILE],
        &["drops", "--bpffs", HOSTILE],
    ] {
        let output = node.podnet_output(args)?;
        is_harmless(&format!("standard output of {args:?}"), &output.stdout)?;
        is_harmless(&format!("standard error of {args:?}"), &output.stderr)?;
    }
    let log = node.log();
    ensure!(log.contains("warning    forged"), "the log says nothing of it: {log}");
    is_harmless("the log", log.as_bytes())
}

#[test]
fn services_endpoints_and_flows_are_shown_while_the_daemon_is_down() -> Result<()> {
    let (lab, client, service) = site()?;
    let node = lab.node(0);
    let mut web = [node.add_pod("web-0")?, lab.node(1).add_pod("web-1")?];
    web.iter_mut().try_for_each(|pod| pod.serve(8080))?;
    service.set_endpoints(&lab, &[&web[0].ips[..], &web[1].ips[..]].concat())?;
    let mut flows = Vec::new();
    for family in Family::ALL {
        let ask = Ask::new(Transport::Tcp, service.addr(family));
        let flow = eventually("the service", || Ok(ask.open(&client.place)?))?;
        flow.ask()?;
        flows.push(flow);
    }
    ensure!(warnings(node)?.is_empty(), "a healthy node: {:?}", warnings(node)?);

    for daemon in ["up", "down"] {
        if daemon == "down" {
            node.kill_daemon()?;
            let first = warnings(node)?.into_iter().next().unwrap_or_default();
            ensure!(first.starts_with("the daemon is not running"), "{first}");
        }
        let list = rows(node.podnet_json(&["service", "list"])?)?;
        for family in Family::ALL {
            let ip = service.ip(family).to_string();
            let row = list.iter().find(|row| row["address"] == ip.as_str() && row["protocol"] == "TCP");
            let row = row.with_context(|| format!("{daemon}: {ip} is not in {list:?}"))?;
            let name = (row["namespace"].as_str(), row["name"].as_str(), row["port"].as_u64());
            assert_eq!(name, (Some("default"), Some("web"), Some(80)));
            assert_eq!((&row["source"], &row["backends"]), (&json!("preserve"), &json!(2)));
        }

        let detail = node.podnet_json(&["service", "show", "default/web"])?;
        let targets: Vec<Value> = rows(detail["frontends"].clone())?.iter().flat_map(targets).collect();
        for (pod, local) in web.iter().zip([true, false]) {
            for ip in &pod.ips {
                let target = targets.iter().find(|target| target["address"] == ip.to_string().as_str());
                let target = target.with_context(|| format!("{daemon}: {ip} is not in {targets:?}"))?;
                assert_eq!((&target["local"], &target["port"]), (&json!(local), &json!(8080)), "{daemon}");
                assert_eq!(target["pod"].is_string(), local, "{daemon}: pods of this node have names: {target}");
            }
        }
        let going: u64 = targets.iter().filter_map(|target| target["flows"].as_u64()).sum();
        assert_eq!(going, 2, "{daemon}: one flow of each family: {targets:?}");

        let endpoints = rows(node.podnet_json(&["endpoint", "list"])?)?;
        assert_eq!(endpoints.len(), 4, "{daemon}: two pods with two addresses: {endpoints:?}");
        for ip in &client.ips {
            let endpoint = endpoints.iter().find(|row| row["address"] == ip.to_string().as_str());
            let endpoint = endpoint.with_context(|| format!("{daemon}: {ip} is not in {endpoints:?}"))?;
            assert_eq!(endpoint["interface"], client.host_ifname()?.as_str());
        }

        let of = |filter: &[&str]| rows(node.podnet_json(&[&["conntrack", "list"], filter].concat())?);
        let v4 = client.ip(Family::V4).to_string();
        let listed = of(&["--service", "default/web", "--proto", "tcp", "--ip", &v4])?;
        let [flow] = &listed[..] else { anyhow::bail!("{daemon}: {listed:?}") };
        assert_eq!(flow["frontend"], service.addr(Family::V4).to_string().as_str());
        assert_eq!((&flow["state"], &flow["client"]), (&json!("established"), &flow["source"]), "{daemon}: {flow}");
        ensure!(flow["idleSeconds"].as_u64().is_some_and(|idle| idle < 60), "{daemon}: {flow}");
        ensure!(of(&["--proto", "sctp"])?.is_empty() && of(&["--service", "default/none"])?.is_empty());
        // Tables count as answers as well.
        for command in [
            &["status"][..],
            &["service", "list"],
            &["service", "show", "default/web"],
            &["conntrack", "list"],
            &["nat", "list"],
            &["affinity", "list"],
            &["drops"],
        ] {
            ensure!(!node.podnet(command)?.is_empty(), "{command:?}");
        }
    }
    flows.iter().try_for_each(|flow| flow.ask().map(drop)).context("the flows have gone on")
}

#[test]
fn reverted_setting_is_reported_and_restored_by_the_next_daemon() -> Result<()> {
    let (lab, client, _service) = site()?;
    let node = lab.node(0);
    node.kill_daemon()?;
    node.place.set_sysctl("net.ipv4.ip_forward", "0")?;
    let end = client.host_ifname()?;
    node.place.set_sysctl(&format!("net.ipv4.conf.{end}.rp_filter"), "1")?;
    node.place.run("iptables", &["--policy", "FORWARD", "DROP"])?;
    let told = warnings(node)?;
    for part in ["net.ipv4.ip_forward is 0", &format!("net.ipv4.conf.{end}.rp_filter is 1"), "chain FORWARD"] {
        ensure!(told.iter().any(|warning| warning.contains(part)), "{part} is not in {told:?}");
    }
    node.start_daemon()?;
    assert_eq!(node.place.sysctl("net.ipv4.ip_forward")?, "1");
    assert_eq!(node.place.sysctl(&format!("net.ipv4.conf.{end}.rp_filter"))?, "2");
    let told = warnings(node)?;
    ensure!(told.iter().all(|warning| warning.contains("chain FORWARD")), "the filter is its owner's: {told:?}");
    Ok(())
}

#[test]
fn cleanup_removes_all_state_and_a_new_daemon_restores_pods() -> Result<()> {
    let (lab, client, service) = site()?;
    let node = lab.node(0);
    let mut web = node.add_pod("web-0")?;
    web.serve(8080)?;
    service.set_endpoints(&lab, &web.ips)?;
    let works = || {
        let asks = Family::ALL.map(|family| client.place.ask(Transport::Tcp, service.addr(family)));
        asks.into_iter().try_for_each(|answer| answer.map(drop)).map_err(Into::into)
    };
    eventually("the service", works)?;

    let refused = node.podnet_output(&["cleanup"])?;
    ensure!(!refused.status.success(), "it must not take down what a daemon would set up again");
    ensure!(String::from_utf8_lossy(&refused.stderr).contains("already running"), "{refused:?}");
    works().context("nothing was removed")?;

    node.kill_daemon()?;
    let said = node.podnet(&["cleanup"])?;
    ensure!(said.contains("removed podnet0") && said.contains("removed the pins"), "{said}");
    assert_eq!(node.podnet(&["cleanup"])?, "nothing to remove\n");
    let links = node.place.run("ip", &["-brief", "link", "show"])?;
    ensure!(!links.contains("podnet"), "{links}");
    ensure!(links.contains(&client.host_ifname()?), "pods' interfaces are the runtime's: {links}");
    for family in ["-4", "-6"] {
        let routes = node.place.run("ip", &[family, "route", "show", "proto", "112"])?;
        let to_nodes: Vec<_> =
            routes.lines().filter(|route| route.contains("via") || route.contains("unreachable")).collect();
        ensure!(to_nodes.is_empty(), "{to_nodes:?}");
    }
    let told = node.podnet_output(&["status"])?;
    let message = String::from_utf8_lossy(&told.stderr).into_owned();
    ensure!(!told.status.success() && message.contains("not pinned"), "{message}");

    node.start_daemon()?;
    eventually("the service of pods that were there before", works)
}

/// Two nodes with a service in each mode, with endpoints on both nodes, used from outside and from inside.
struct Site {
    near: Pod,
    far: [Pod; 2],
    _outside: Vec<Server>,
    /// Open connections of external clients.
    flows: Vec<Flow>,
    lab: Lab,
}

/// The services: distinguishing property, and NodePort.
const LOCAL: (&str, u16) = ("local", 30_080);
const DIRECT: (&str, u16) = ("direct", 30_081);
const THROUGH: (&str, u16) = ("through", 30_082);

impl Site {
    fn new() -> Result<Self> {
        let lab = Lab::builder().client(true).build()?;
        let near = lab.node(0).add_server("near", 8080)?;
        let far = [lab.node(1).add_server("far", 8080)?, lab.node(1).add_server("late", 8080)?];
        let of = |number, (name, port): (&str, u16)| Service::new(name, number, 80, 8080).node_port(port);
        let local = of(20, LOCAL).external_local().affinity(600);
        local.apply(&lab, None)?;
        let late = Endpoint::of(&far[1]).not_ready();
        local.set_endpoints(&lab, &[Endpoint::of(&near), Endpoint::of(&far[0]), late])?;
        for (number, named, mode) in [(21, DIRECT, "preserve"), (22, THROUGH, "snat")] {
            let service = of(number, named);
            service.apply(&lab, Some(mode))?;
            service.set_endpoints(&lab, &[&far[0]])?;
        }
        for (node, (name, _)) in lab.nodes().iter().flat_map(|node| [LOCAL, DIRECT, THROUGH].map(|of| (node, of))) {
            eventually(name, || {
                let detail = node.podnet_json(&["service", "show", &format!("default/{name}")])?;
                ensure!(detail["differences"] == json!([]) && detail["explanation"].is_object(), "{detail:#}");
                Ok(())
            })?;
        }
        let mut flows = Vec::new();
        for family in Family::ALL {
            for (name, port) in [LOCAL, DIRECT, THROUGH] {
                let ask = Ask::new(Transport::Tcp, (lab.node(0).ip(family), port).into());
                let flow = ask.open(lab.client()).context(name)?;
                flow.ask().context(name)?;
                flows.push(flow);
            }
        }
        let serve = |family| Server::start(lab.client(), "outside", (client_ip(family), 8080).into());
        let outside = Family::ALL.map(serve).into_iter().collect::<Result<_>>()?;
        for family in Family::ALL {
            near.place.ask(Transport::Tcp, (client_ip(family), 8080).into()).context("a pod's way outside")?;
        }
        Ok(Self { near, far, _outside: outside, flows, lab })
    }

    fn far(&self, family: Family) -> SocketAddr {
        self.far[0].addr(family, 8080)
    }
}

/// The only row with these values.
fn only<'a>(rows: &'a [Value], facts: &[(&str, Value)]) -> Result<&'a Value> {
    let mut found = rows.iter().filter(|row| facts.iter().all(|(key, value)| row[*key] == *value));
    match (found.next(), found.next()) {
        (Some(row), None) => Ok(row),
        (None, _) => anyhow::bail!("{facts:?} is not in {rows:#?}"),
        (Some(_), Some(_)) => anyhow::bail!("{facts:?} is there twice: {rows:#?}"),
    }
}

#[test]
fn frontends_are_shown_with_their_clients_and_excluded_elements() -> Result<()> {
    let site = Site::new()?;
    let node = site.lab.node(0);
    let list = rows(node.podnet_json(&["service", "list"])?)?;
    let show = |name: &str| node.podnet_json(&["service", "show", &format!("default/{name}")]);
    let detail = show(LOCAL.0)?;
    assert_eq!(detail["differences"], json!([]), "{detail:#}");
    for family in Family::ALL {
        let name = if family == Family::V4 { "IPv4" } else { "IPv6" };
        let node_port = |(service, port): (&str, u16)| -> Vec<(&'static str, Value)> {
            let kind = [("kind", json!("NodePort")), ("protocol", json!("TCP")), ("family", json!(name))];
            let at = [("name", json!(service)), ("port", json!(port)), ("address", Value::Null)];
            kind.into_iter().chain(at).collect()
        };
        let row = only(&list, &node_port(LOCAL))?;
        assert_eq!((&row["backends"], &row["outsideBackends"]), (&json!(2), &json!(1)), "{row}");
        assert_eq!((&row["source"], &row["affinitySeconds"]), (&json!("auto"), &json!(600)), "{row}");
        for (service, mode) in [(DIRECT, "preserve"), (THROUGH, "snat")] {
            let row = only(&list, &node_port(service))?;
            assert_eq!((&row["source"], &row["outsideBackends"]), (&json!(mode), &Value::Null), "{row}");
        }

        let frontends = rows(detail["frontends"].clone())?;
        let choices = rows(only(&frontends, &node_port(LOCAL))?["choices"].clone())?;
        let here = site.near.ip(family).to_string();
        for (clients, backends, flows) in [("thisNode", 2, 0), ("outside", 1, 1)] {
            let targets = rows(only(&choices, &[("clients", json!(clients))])?["targets"].clone())?;
            assert_eq!(targets.len(), backends, "{targets:?}");
            let near = only(&targets, &[("address", json!(here))])?;
            assert_eq!((&near["pod"], &near["flows"]), (&json!("default/near"), &json!(flows)), "{near}");
        }
        let explained = rows(detail["explanation"]["frontends"].clone())?;
        let at: IpAddr = if family == Family::V4 { [0, 0, 0, 0].into() } else { [0; 16].into() };
        let at = [("address", json!(at)), ("protocol", json!("TCP"))];
        let choices = rows(only(&explained, &at)?["choices"].clone())?;
        for (clients, fate) in [("thisNode", "chosen"), ("outside", "notOnThisNode")] {
            let endpoints = rows(only(&choices, &[("clients", json!(clients))])?["endpoints"].clone())?;
            let far = only(&endpoints, &[("address", json!(site.far(family).ip()))])?;
            assert_eq!((&far["fate"], &far["node"]), (&json!(fate), &json!("node2")), "{far}");
        }

        let sent_on = rows(show(DIRECT.0)?["frontends"].clone())?;
        let sent_on = rows(only(&sent_on, &node_port(DIRECT))?["forwarded"].clone())?;
        let to = site.lab.node(1).ip(family);
        assert_eq!(sent_on, [json!({"address": to, "node": "node2", "flows": 1})]);
    }
    let text = node.podnet(&["service", "show", "default/local"])?;
    for part in ["policies   internal Cluster, external Local", "not ready", "not on this node"] {
        ensure!(text.contains(part), "{part} is not in:\n{text}");
    }

    node.kill_daemon()?;
    let late = Service::new(LOCAL.0, 20, 80, 8080).node_port(LOCAL.1).external_local().affinity(600);
    late.set_endpoints(&site.lab, &[&site.near])?;
    let offline = node.podnet_json(&["service", "show", "default/local", "--offline"])?;
    let told = offline["differences"].to_string();
    ensure!(told.contains("still includes the backend"), "that has not taken effect: {told}");
    let elsewhere = node.podnet_json(&["service", "show", "default/local", "--config", "/nowhere.yaml"])?;
    ensure!(elsewhere["notExplained"].to_string().contains("/nowhere.yaml"), "{elsewhere:#}");
    assert_eq!(elsewhere["frontends"].as_array().map(Vec::len), Some(8), "two ports, two kinds, two families");
    Ok(())
}

#[test]
fn flows_are_shown_by_kind_and_ports_are_counted() -> Result<()> {
    let site = Site::new()?;
    let (node, other) = (site.lab.node(0), site.lab.node(1));
    let tcp = |node: &Node, command: &[&str]| node.podnet_json(&[command, &["--proto", "tcp"]].concat());
    let of = |node: &Node, (name, _): (&str, u16)| {
        rows(tcp(node, &["conntrack", "list", "--service", &format!("default/{name}")])?)
    };
    let nat = tcp(node, &["nat", "list"])?;
    let (changed, port_use) = (rows(nat["flows"].clone())?, rows(nat["portUse"].clone())?);
    let affinity = rows(node.podnet_json(&["affinity", "list"])?)?;
    for family in Family::ALL {
        let ends = site.flows.iter().map(Flow::local).collect::<std::io::Result<Vec<_>>>()?;
        let at = |port: u16| json!(SocketAddr::new(node.ip(family), port));
        let is_clients = |flow: &Value| ends.iter().any(|end| flow["client"] == json!(end));

        let direct = of(node, DIRECT)?;
        let flow = only(&direct, &[("frontend", at(DIRECT.1))])?;
        let facts = (&flow["kind"], &flow["state"], &flow["backend"], &flow["forwardedToNode"]);
        let expected = (&json!("directReturn"), &json!("oneWay"), &Value::Null, &json!("node2"));
        assert_eq!(facts, expected, "{flow}");
        ensure!(is_clients(flow) && flow["source"] == flow["client"], "{flow}");
        let answering = of(other, DIRECT)?;
        let flow = only(&answering, &[("frontend", at(DIRECT.1))])?;
        assert_eq!((&flow["kind"], &flow["backend"]), (&json!("service"), &json!(site.far(family))), "{flow}");
        ensure!(is_clients(flow), "{flow}");

        let flow = only(&changed, &[("destination", at(THROUGH.1))])?;
        let source: SocketAddr = serde_json::from_value(flow["source"].clone())?;
        assert_eq!((source.ip(), &flow["kind"]), (node.ip(family), &json!("service")), "{flow}");
        assert_eq!(flow["service"], "default/through:tcp", "{flow}");
        let outside = SocketAddr::new(client_ip(family), 8080);
        let flow = only(&changed, &[("destination", json!(outside))])?;
        assert_eq!((&flow["kind"], &flow["service"]), (&json!("masquerade"), &Value::Null), "{flow}");
        for to in [site.far(family), outside] {
            let towards = only(&port_use, &[("destination", json!(to))])?;
            assert_eq!((&towards["used"], &towards["address"]), (&json!(1), &json!(node.ip(family))), "{towards}");
            ensure!(towards["ports"].as_u64().is_some_and(|ports| ports > 1000), "{towards}");
        }

        let stays = only(&affinity, &[("client", json!(client_ip(family)))])?;
        let backend = site.near.addr(family, 8080);
        assert_eq!((&stays["backend"], &stays["pod"]), (&json!(backend), &json!("default/near")), "{stays}");
        assert_eq!(stays["clients"], "outside", "{stays}");
        ensure!(stays["leftSeconds"].as_u64().is_some_and(|left| (500..=600).contains(&left)), "{stays}");
    }
    Ok(())
}

#[test]
fn status_shows_attachments_from_the_kernel() -> Result<()> {
    let lab = Lab::builder().nodes(1).config(|_, config| config.xdp = Xdp::Generic).build()?;
    let node = lab.node(0);
    let datapath = |node: &Node| Ok::<_, anyhow::Error>(node.podnet_json(&["status"])?["datapath"].clone());
    let found = datapath(node)?;
    let hooks = rows(found["hooks"].clone())?;
    for (hook, interface) in [
        ("from_uplink", "eth0"),
        ("to_uplink", "eth0"),
        ("uplink_xdp", "eth0"),
        ("from_host", "podnet1"),
        ("from_loopback", "lo"),
    ] {
        only(&hooks, &[("hook", json!(hook)), ("interface", json!(interface)), ("attached", json!(true))])?;
    }
    assert_eq!((&found["masquerade"], &found["sockets"]), (&json!(true), &json!("host")));
    ensure!(found["snatPorts"].as_u64().is_some_and(|ports| ports > 1000), "{found:#}");
    for family in Family::ALL {
        let addresses = rows(found["nodePortAddresses"].clone())?;
        ensure!(addresses.contains(&json!(node.ip(family))), "{addresses:?}");
    }
    let text = node.podnet(&["status"])?;
    ensure!(text.contains("to_uplink tc, xdp generic\n"), "{text}");
    ensure!(text.lines().count() < 40, "it is a screenful:\n{text}");

    node.kill_daemon()?;
    node.place.run("rm", &["/sys/fs/bpf/podnet/links/xdp_generic_eth0"])?;
    let told = warnings(node)?;
    ensure!(told.iter().any(|warning| warning.starts_with("uplink_xdp is not attached to eth0")), "{told:?}");
    Ok(())
}
