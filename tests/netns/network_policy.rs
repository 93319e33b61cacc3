//! Network policies: who may reach whom, by every way to a pod, from its first packet on.

use std::net::{SocketAddr, UdpSocket};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use podnet_tests::cases;
use podnet_tests::lab::policed::{PORT, Site, announced, app, is_denied, object, policy, reaches};
use podnet_tests::lab::{Lab, Pod, Service, client_ip, eventually, manifest, wait_until};
use podnet_tests::traffic::{Ask, Family, Outcome, Stream, Transport};
use serde_json::{Value, json};
use socket2::{Protocol, Type};

/// Longer than the default.
const POLICY_WAIT_SECONDS: u32 = 3;

#[test]
fn network_policy() -> Result<()> {
    let lab = Lab::builder().client(true).config(|_, config| config.policy_wait_seconds = POLICY_WAIT_SECONDS);
    cases!(
        Site::new(lab)?,
        isolated_pods_receive_from_allowed_peers_only,
        isolated_pods_send_to_allowed_peers_only,
        policies_see_backends_and_real_clients,
        services_without_endpoints_refuse_isolated_clients,
        blocks_with_exceptions_are_addresses_of_any_kind,
        changes_of_policies_and_labels_apply_at_once,
        denied_connections_are_cut_and_others_go_on,
        answers_to_denied_requests_begin_no_flow,
        denied_packets_are_counted_by_policy,
        reports_of_short_packets_are_whole_and_name_the_policies,
        a_restarted_daemon_keeps_the_tables,
        pods_start_closed_until_their_policies_are_known,
        rules_that_cannot_be_understood_allow_nothing_and_are_reported,
    )
}

fn isolated_pods_receive_from_allowed_peers_only(site: &Site) -> Result<()> {
    let ports = json!([{"protocol": "TCP", "port": "http"}, {"protocol": "UDP", "port": PORT}]);
    site.apply(&[policy("web", "web", json!({"ingress": [{"from": [app("friend")], "ports": ports}]}))])?;
    for web in [&site.web, &site.far_web] {
        for stranger in [&site.stranger, &site.far_stranger] {
            is_denied(stranger, web)?;
        }
        for friend in [&site.friend, &site.far_friend] {
            reaches(friend, web)?;
        }
        for other in [&site.friend, &site.stranger, &site.far_stranger] {
            // It sends what it wants, and gets the answers.
            reaches(web, other)?;
        }
    }
    // Their own node's agents always reach them, and nothing concerns other pods.
    for (node, web) in [(0, &site.web), (1, &site.far_web)] {
        for (family, transport) in Transport::over_all() {
            site.lab.node(node).place.reaches(transport, web.addr(family, PORT), &[web.name()])?;
        }
    }
    reaches(&site.stranger, &site.far_friend)?;
    let drops = site.lab.node(0).podnet_json(&["drops"])?;
    let counted = |reason: &str| {
        let rows = drops.as_array().into_iter().flatten();
        rows.filter(|row| row["reason"] == reason).filter_map(|row| row["packets"].as_u64()).sum::<u64>()
    };
    ensure!(counted("policy_ingress") > 0 && counted("policy_egress") == 0, "{drops}");
    let policies = site.lab.node(0).podnet(&["policy", "list"])?;
    let row: Vec<_> = policies.lines().nth(1).context("no policy is listed")?.split_whitespace().collect();
    // The seventh is the number of denied packets.
    ensure!(row[..6] == ["default", "web", "-", "ingress", "1", "2"] && row[7..] == ["0"], "{policies}");
    for args in [["policy", "show", "default/web"], ["policy", "explain", "pod/default/web"]] {
        let text = site.lab.node(0).podnet(&args)?;
        ensure!(text.contains("app=friend"), "{text}");
    }
    Ok(())
}

fn isolated_pods_send_to_allowed_peers_only(site: &Site) -> Result<()> {
    let to = json!([{"to": [app("web")], "ports": [{"protocol": "TCP", "port": "http"}, {"protocol": "UDP", "port": "dns"}]}]);
    site.apply(&[policy("friend", "friend", json!({"policyTypes": ["Egress"], "egress": to}))])?;
    for friend in [&site.friend, &site.far_friend] {
        for other in [&site.stranger, &site.far_stranger] {
            is_denied(friend, other)?;
            // Answers pass.
            reaches(other, friend)?;
        }
        for web in [&site.web, &site.far_web] {
            reaches(friend, web)?;
        }
    }
    for (family, transport) in Transport::over_all() {
        let service = Service::new("outside", 40, 80, PORT);
        service.apply(&site.lab, None)?;
        service.set_endpoints(&site.lab, &[&site.stranger])?;
        site.friend.place.expect(transport, service.addr(family), &Outcome::Silence)?;
        service.set_endpoints(&site.lab, &[&site.web])?;
        site.friend.place.reaches(transport, service.addr(family), &["web"])?;
    }
    Ok(())
}

/// The node answers for the service: no flow begins that a policy could deny.
fn services_without_endpoints_refuse_isolated_clients(site: &Site) -> Result<()> {
    site.apply(&[policy("closed", "friend", json!({"policyTypes": ["Ingress"]}))])?;
    is_denied(&site.stranger, &site.friend)?;
    let service = Service::new("empty", 41, 80, PORT);
    service.apply(&site.lab, None)?;
    for (family, transport) in Transport::over_all() {
        for port in [80, 81] {
            let to = SocketAddr::new(service.addr(family).ip(), port);
            site.friend.place.expect(transport, to, &Outcome::Refused)?;
        }
    }
    Ok(())
}

/// Every way to a backend that leads through a service.
fn policies_see_backends_and_real_clients(site: &Site) -> Result<()> {
    for (number, mode) in (50..).zip(["auto", "snat", "preserve"]) {
        let service = Service::new(&format!("web-{mode}"), number, 80, PORT).node_port(30_000 + u16::from(number));
        service.apply(&site.lab, Some(mode))?;
        service.set_endpoints(&site.lab, &[&site.web])?;
    }
    let outside = |family| format!("{}/{}", client_ip(family), if family == Family::V4 { 32 } else { 128 });
    let blocks = Family::ALL.map(|family| json!({"ipBlock": {"cidr": outside(family)}}));
    for allowed in [false, true] {
        let mut from = vec![app("friend")];
        if allowed {
            from.extend(blocks.clone());
        }
        site.apply(&[policy("web", "web", json!({"ingress": [{"from": from}]}))])?;
        for (number, mode) in (50..).zip(["auto", "snat", "preserve"]) {
            let service = Service::new(&format!("web-{mode}"), number, 80, PORT).node_port(30_000 + u16::from(number));
            for (family, transport) in Transport::over_all() {
                let check = |from: &podnet_tests::lab::Place, to: SocketAddr, allowed: bool| {
                    let result = if allowed {
                        from.reaches(transport, to, &["web"]).map(drop)
                    } else {
                        from.expect(transport, to, &Outcome::Silence)
                    };
                    result.with_context(|| format!("{mode}, {}", from.name()))
                };
                let node_port = service.at(site.lab.node(0), family);
                check(site.lab.client(), node_port, allowed)?;
                check(&site.friend.place, service.addr(family), true)?;
                check(&site.friend.place, node_port, true)?;
                check(&site.stranger.place, service.addr(family), false)?;
                check(&site.stranger.place, node_port, false)?;
                if mode != "snat" {
                    check(&site.far_friend.place, service.addr(family), true)?;
                }
                check(&site.far_stranger.place, service.addr(family), false)?;
                // A pod can't be cut off from itself.
                check(&site.web.place, service.addr(family), true)?;
                check(&site.lab.node(0).place, service.addr(family), true)?;
            }
        }
    }
    Ok(())
}

fn blocks_with_exceptions_are_addresses_of_any_kind(site: &Site) -> Result<()> {
    let block = |cidr: &str, except: &[String]| json!({"ipBlock": {"cidr": cidr, "except": except}});
    let except = |pod: &Pod| Family::ALL.map(|family| format!("{}/{}", pod.ip(family), [32, 128][family as usize]));
    let [four, six] = except(&site.stranger);
    let from = json!([block("10.0.0.0/8", &[four]), block("fd00::/16", &[six])]);
    site.apply(&[policy("web", "web", json!({"ingress": [{"from": from}]}))])?;
    is_denied(&site.stranger, &site.web)?;
    reaches(&site.friend, &site.web)?;
    reaches(&site.far_stranger, &site.web)
}

fn changes_of_policies_and_labels_apply_at_once(site: &Site) -> Result<()> {
    let allow = |from: Value| policy("web", "web", json!({"ingress": [{"from": [from]}]}));
    reaches(&site.stranger, &site.web)?;
    site.apply(&[policy("web", "web", json!({"policyTypes": ["Ingress"]}))])?;
    is_denied(&site.friend, &site.web)?;
    site.apply(&[allow(app("friend"))])?;
    reaches(&site.friend, &site.web)?;
    is_denied(&site.far_stranger, &site.web)?;
    // The stranger's label, and the namespace's.
    let mut objects = site.objects();
    for object in objects.iter_mut().filter(|object| object["metadata"]["name"] == "far-stranger") {
        object["metadata"]["labels"]["app"] = json!("friend");
    }
    site.lab.apply("pods", &manifest::yaml(&objects))?;
    reaches(&site.far_stranger, &site.web)?;
    site.apply(&[allow(json!({"namespaceSelector": {"matchLabels": {"team": "red"}}}))])?;
    is_denied(&site.friend, &site.web)?;
    let mut objects = site.objects();
    objects[0]["metadata"]["labels"]["team"] = json!("red");
    site.lab.apply("pods", &manifest::yaml(&objects))?;
    reaches(&site.friend, &site.web)?;
    site.apply(&[])?;
    reaches(&site.stranger, &site.web)
}

fn denied_connections_are_cut_and_others_go_on(site: &Site) -> Result<()> {
    let streams = |from: &Pod| -> Result<Vec<(Transport, Stream)>> {
        let start = |(family, transport)| {
            let pause = std::time::Duration::from_millis(10);
            Ok((transport, Stream::start(&from.place, transport, site.web.addr(family, PORT), pause)?))
        };
        Transport::over_all().map(start).collect()
    };
    let allowed = [streams(&site.friend)?, streams(&site.far_friend)?];
    let denied = [streams(&site.stranger)?, streams(&site.far_stranger)?];
    let all = || allowed.iter().chain(&denied).flatten();
    wait_until("all streams go", || Ok(all().all(|(_, stream)| stream.answered() > 20)))?;
    site.apply(&[policy("web", "web", json!({"ingress": [{"from": [app("friend")]}]}))])?;
    is_denied(&site.stranger, &site.web)?;
    for (transport, stream) in denied.iter().flatten() {
        eventually(&format!("{transport} stands"), || {
            let before = stream.answered();
            std::thread::sleep(std::time::Duration::from_millis(300));
            ensure!(stream.answered() == before, "{} answers in 300 ms", stream.answered() - before);
            Ok(())
        })?;
    }
    let before: Vec<_> = allowed.iter().flatten().map(|(_, stream)| stream.answered()).collect();
    wait_until("the allowed ones go on", || {
        Ok(allowed.iter().flatten().zip(&before).all(|((_, stream), before)| stream.answered() > before + 50))
    })?;
    for (transport, stream) in allowed.into_iter().flatten() {
        let report = stream.stop();
        ensure!(report.is_clean(), "{transport}: {report:?}");
    }
    Ok(())
}

/// Requests have been delivered when the policy comes; their answers belong to no flow, since the pod wasn't a subject.
fn answers_to_denied_requests_begin_no_flow(site: &Site) -> Result<()> {
    site.apply(&[])?;
    reaches(&site.far_stranger, &site.web)?;
    let kind = |family| {
        let (server, client) = ((site.web.ip(family), 5300).into(), (site.far_stranger.ip(family), 0).into());
        let socket = |pod: &Pod, addr: SocketAddr| -> Result<UdpSocket> {
            let socket = pod.place.socket_for(addr, Type::DGRAM, Protocol::UDP)?;
            socket.bind(&addr.into())?;
            socket.set_read_timeout(Some(Duration::from_secs(5)))?;
            Ok(socket.into())
        };
        let (server_socket, client) = (socket(&site.web, server)?, socket(&site.far_stranger, client)?);
        client.connect(server)?;
        client.send(b"request")?;
        let (_, from) = server_socket.recv_from(&mut [0; 16])?;
        Ok((server_socket, client, from))
    };
    let requests = Family::ALL.map(kind).into_iter().collect::<Result<Vec<_>>>()?;
    site.apply(&[policy("web", "web", json!({"ingress": [{"from": [app("friend")]}]}))])?;
    is_denied(&site.stranger, &site.web)?;
    for (server, client, from) in &requests {
        let drop = site.lab.node(0).first_drop("policy_ingress", || Ok(_ = server.send_to(b"answer", from)?))?;
        ensure!(drop["policies"] == json!(["default/web"]), "{drop}");
        let again = || Ok(_ = client.send(b"another request")?);
        let drop = site.lab.node(0).first_drop("policy_ingress", again)?;
        ensure!(drop["policies"] == json!(["default/web"]), "{drop}");
    }
    site.apply(&[])
}

fn denied_packets_are_counted_by_policy(site: &Site) -> Result<()> {
    let node = site.lab.node(0);
    let counted = |policy: &str, direction: &str| -> Result<u64> {
        let list = node.podnet_json(&["policy", "list"])?;
        let found = list.as_array().into_iter().flatten().find(|row| row["name"] == policy);
        found.and_then(|row| row["denied"][direction].as_u64()).with_context(|| format!("no {policy} in {list}"))
    };
    let ingress = policy("to-web", "web", json!({"ingress": [{"from": [app("friend")]}]}));
    let egress =
        policy("from-stranger", "stranger", json!({"policyTypes": ["Egress"], "egress": [{"to": [app("friend")]}]}));
    site.apply(std::slice::from_ref(&ingress))?;
    is_denied(&site.stranger, &site.web)?;
    wait_until("denied packets are counted", || Ok(counted("to-web", "ingress")? >= 4))?;
    ensure!(counted("to-web", "egress")? == 0);
    let to = site.web.addr(Family::V4, PORT).to_string();
    let trace = || node.podnet(&["trace", "--from", "pod/default/stranger", "--to", &to]);
    let text = trace()?;
    ensure!(text.contains("no rule allows it") && text.contains("default/to-web"), "{text}");
    // The sender's own policies come first, and counts of unchanged policies go on.
    let before = counted("to-web", "ingress")?;
    site.apply(&[ingress, egress])?;
    is_denied(&site.stranger, &site.web)?;
    wait_until("denied packets are counted", || Ok(counted("from-stranger", "egress")? >= 4))?;
    ensure!(counted("to-web", "ingress")? >= before, "{} after {before}", counted("to-web", "ingress")?);
    let text = trace()?;
    ensure!(text.contains("default/from-stranger") && !text.contains("default/to-web"), "{text}");
    Ok(())
}

fn reports_of_short_packets_are_whole_and_name_the_policies(site: &Site) -> Result<()> {
    site.apply(&[policy("to-web", "web", json!({"ingress": [{"from": [app("friend")]}]}))])?;
    is_denied(&site.stranger, &site.web)?;
    let service = Service::new("reported", 70, 80, PORT);
    service.apply(&site.lab, None)?;
    service.set_endpoints(&site.lab, &[&site.web])?;
    site.friend.place.reaches(Transport::Udp, service.addr(Family::V6), &["web"])?;
    for family in Family::ALL {
        let direct = site.web.addr(family, PORT);
        for (from, to) in
            [(&site.stranger, direct), (&site.far_stranger, direct), (&site.stranger, service.addr(family))]
        {
            let source = json!(from.addr(family, PORT).ip());
            let expected = (&source, &json!(to.ip()), &json!(to.port()), &json!(["default/to-web"]));
            // Earlier attempts may still be repeated.
            eventually("its report", || {
                // One byte of payload.
                let ask = Ask::new(Transport::Udp, to).timeout(std::time::Duration::from_millis(100));
                let drop = site.lab.node(0).first_drop("policy_ingress", || {
                    ensure!(ask.from(&from.place).is_err(), "it is denied");
                    Ok(())
                })?;
                let ends = (&drop["source"], &drop["destination"], &drop["destinationPort"], &drop["policies"]);
                ensure!(ends == expected, "{drop}");
                Ok(())
            })?;
        }
    }
    service.delete(&site.lab)
}

fn a_restarted_daemon_keeps_the_tables(site: &Site) -> Result<()> {
    let node = site.lab.node(0);
    let ports = json!([{"protocol": "TCP", "port": "http"}, {"protocol": "UDP", "port": PORT}]);
    site.apply(&[policy("web", "web", json!({"ingress": [{"from": [app("friend")], "ports": ports}]}))])?;
    is_denied(&site.stranger, &site.web)?;
    reaches(&site.friend, &site.web)?;
    // Rule sets, classes and rules by their ids.
    let entries = || -> Result<Vec<Value>> {
        let mut entries = Vec::new();
        for family in Family::ALL {
            let to = site.web.addr(family, PORT).to_string();
            let trace = node.podnet_json(&["trace", "--from", "pod/default/friend", "--to", &to])?;
            let steps = trace[0]["steps"].as_array().into_iter().flatten();
            let look_ups = steps.flat_map(|step| step["lookUps"].as_array());
            let of_policy = |look_up: &&Value| {
                look_up["table"].as_str().is_some_and(|table| table == "subjects" || table.starts_with("policy_"))
            };
            entries.extend(look_ups.flatten().filter(of_policy).cloned());
        }
        ensure!(
            entries.iter().any(|entry| entry["table"] == "policy_rules" && !entry["entry"].is_null()),
            "{entries:?}"
        );
        Ok(entries)
    };
    let before = entries()?;
    node.kill_daemon()?;
    node.start_daemon()?;
    eventually("the daemon knows the policies and the pods", || {
        let after = entries()?;
        ensure!(after == before, "{after:?} instead of {before:?}");
        Ok(())
    })?;
    reaches(&site.friend, &site.web)?;
    is_denied(&site.stranger, &site.web)
}

fn pods_start_closed_until_their_policies_are_known(site: &Site) -> Result<()> {
    let node = site.lab.node(0);
    let deny = policy("late", "late", json!({"ingress": [{"from": [app("friend")]}]}));
    site.apply(std::slice::from_ref(&deny))?;
    let mut objects = site.objects();
    objects.extend(["late-1", "late-2"].map(|name| announced(name, node, "late")));
    site.lab.apply("pods", &manifest::yaml(&objects))?;
    eventually("the node knows of the policy", || {
        let published = std::fs::read_to_string(node.run_dir().join("node.json"))?;
        ensure!(published.contains("policed"), "{published}");
        Ok(())
    })?;
    // The daemon knows the pod's labels before it starts.
    let pod = node.add_server("late-1", PORT)?;
    is_denied(&site.stranger, &pod)?;
    reaches(&site.friend, &pod)?;
    // Without a daemon it starts closed, but its node reaches it.
    node.kill_daemon()?;
    let begun = Instant::now();
    let pod = node.add_server("late-2", PORT)?;
    let wait = Duration::from_secs(POLICY_WAIT_SECONDS.into());
    ensure!(begun.elapsed() >= wait, "ADD has not waited for a daemon: {:?}", begun.elapsed());
    is_denied(&site.friend, &pod)?;
    for (family, transport) in Transport::over_all() {
        node.place.reaches(transport, pod.addr(family, PORT), &["late-2"])?;
    }
    node.start_daemon()?;
    reaches(&site.friend, &pod)?;
    is_denied(&site.stranger, &pod)?;
    // A pod that no policy selects is open as soon as that is known.
    let free = node.add_server("free", PORT)?;
    is_denied(&site.stranger, &free)?;
    objects.push(object(&free, "free"));
    site.lab.apply("pods", &manifest::yaml(&objects))?;
    reaches(&site.stranger, &free)
}

fn rules_that_cannot_be_understood_allow_nothing_and_are_reported(site: &Site) -> Result<()> {
    let from = json!([{"podSelector": {"matchLabels": {"app": "stranger"}}, "fridays": true}]);
    let spec = json!({"ingress": [{"from": from}, {"from": [app("friend")]}]});
    site.apply(&[policy("web", "web", spec)])?;
    is_denied(&site.stranger, &site.web)?;
    reaches(&site.friend, &site.web)?;
    let warnings = site.lab.node(0).podnet_json(&["status"])?["warnings"].to_string();
    ensure!(warnings.contains("default/web") && warnings.contains("fridays"), "{warnings}");
    Ok(())
}
