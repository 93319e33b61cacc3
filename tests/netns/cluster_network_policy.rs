//! ClusterNetworkPolicies: what administrators decide before and after NetworkPolicies.

use anyhow::{Result, ensure};
use podnet_tests::cases;
use podnet_tests::lab::policed::{PORT, Site, app, is_denied, object, policy, reaches};
use podnet_tests::lab::{Lab, Service, eventually, manifest};
use podnet_tests::traffic::{Outcome, Stream, Transport};
use serde_json::{Value, json};

#[test]
fn cluster_network_policy() -> Result<()> {
    cases!(
        Site::new(Lab::builder().client(true))?,
        admin_precedes_network_policies_and_baseline_follows,
        egress_to_nodes_networks_and_the_own_node,
        a_pod_reaches_itself_by_its_own_address_only,
        existing_connections_follow_a_change,
        pods_of_all_namespaces_start_closed,
        invalid_rules_deny_and_are_reported,
    )
}

/// A policy for the pods with this label `app` of all namespaces.
fn cluster_policy(name: &str, tier: &str, priority: u16, app: &str, rules: Value) -> Value {
    let mut spec = json!({
        "tier": tier,
        "priority": priority,
        "subject": {"pods": {"namespaceSelector": {}, "podSelector": {"matchLabels": {"app": app}}}},
    });
    for direction in ["ingress", "egress"] {
        if let Some(rules) = rules.get(direction) {
            spec[direction] = rules.clone();
        }
    }
    json!({
        "apiVersion": "policy.networking.k8s.io/v1alpha2",
        "kind": "ClusterNetworkPolicy",
        "metadata": {"name": name},
        "spec": spec,
    })
}

fn pods(app: &str) -> Value {
    json!({"pods": {"namespaceSelector": {"matchLabels": {"team": "blue"}}, "podSelector": {"matchLabels": {"app": app}}}})
}

fn rule(action: &str, from: Value) -> Value {
    json!({"action": action, "from": [from]})
}

fn admin_precedes_network_policies_and_baseline_follows(site: &Site) -> Result<()> {
    let everyone = json!({"namespaces": {}});
    let baseline = |rules| cluster_policy("default", "Baseline", 10, "web", json!({ "ingress": rules }));
    let admin = |priority, rules| cluster_policy("admin", "Admin", priority, "web", json!({ "ingress": rules }));
    let of_friends = policy("web", "web", json!({"ingress": [{"from": [app("friend")]}]}));
    let [friends, strangers] = [[&site.friend, &site.far_friend], [&site.stranger, &site.far_stranger]];
    let expect = |policies: &[Value], friendly: bool, strange: bool| -> Result<()> {
        site.apply(policies)?;
        for (pods, allowed) in [(friends, friendly), (strangers, strange)] {
            let evaluate = if allowed { reaches } else { is_denied };
            pods.into_iter()
                .try_for_each(|from| [&site.web, &site.far_web].into_iter().try_for_each(|to| evaluate(from, to)))?;
        }
        Ok(())
    };
    expect(&[], true, true)?;
    let denies = baseline(json!([rule("Accept", pods("stranger")), rule("Deny", everyone.clone())]));
    expect(std::slice::from_ref(&denies), false, true)?;
    // NetworkPolicies override it.
    expect(&[denies.clone(), of_friends.clone()], true, false)?;
    // The first rule decides, by its priority.
    let accepts = admin(20, json!([rule("Accept", everyone.clone())]));
    expect(&[accepts.clone(), of_friends.clone()], true, true)?;
    let mut first = admin(10, json!([rule("Pass", pods("friend")), rule("Deny", everyone)]));
    first["metadata"]["name"] = json!("first");
    expect(&[accepts.clone(), first.clone(), of_friends], true, false)?;
    expect(&[accepts, first, denies], false, false)?;
    let list = site.lab.node(0).podnet_json(&["policy", "list"])?;
    ensure!(list[0]["tier"] == json!({"name": "Admin", "priority": 20}) && list[0]["subjects"] == 1, "{list}");
    expect(&[], true, true)
}

fn egress_to_nodes_networks_and_the_own_node(site: &Site) -> Result<()> {
    let nodes = [site.lab.node(0), site.lab.node(1)];
    let _servers = nodes.map(|node| node.serve(PORT)).into_iter().collect::<Result<Vec<_>>>()?;
    let check = |own: bool, other: bool, pod: bool| -> Result<()> {
        for (family, transport) in Transport::over_all() {
            for (node, allowed) in nodes.into_iter().zip([own, other]) {
                let to = (node.ip(family), PORT).into();
                if allowed {
                    site.web.place.reaches(transport, to, &[node.name()])?;
                } else {
                    site.web.place.expect(transport, to, &Outcome::Silence)?;
                }
            }
        }
        if pod { reaches(&site.web, &site.far_friend) } else { is_denied(&site.web, &site.far_friend) }
    };
    let apply = |rules: Value| site.apply(&[cluster_policy("out", "Admin", 0, "web", json!({ "egress": rules }))]);
    check(true, true, true)?;
    apply(json!([{"action": "Deny", "to": [{"nodes": {}}]}]))?;
    check(false, false, true)?;
    apply(json!([{"action": "Deny", "to": [{"networks": ["0.0.0.0/0", "::/0"]}]}]))?;
    check(false, false, false)?;
    apply(json!([
        {"action": "Accept", "to": [{"nodes": {}}], "protocols": [
            {"tcp": {"destinationPort": {"number": PORT}}},
            {"udp": {"destinationPort": {"range": {"start": 8000, "end": 9000}}}},
        ]},
        {"action": "Deny", "to": [{"networks": ["0.0.0.0/0", "::/0"]}]},
    ]))?;
    check(true, true, false)?;
    // Whatever they say, nodes reach their pods.
    apply(json!([{"action": "Deny", "to": [{"networks": ["0.0.0.0/0", "::/0"]}]}]))?;
    check(false, false, false)?;
    for (family, transport) in Transport::over_all() {
        nodes[0].place.reaches(transport, site.web.addr(family, PORT), &[site.web.name()])?;
    }
    site.apply(&[])
}

fn a_pod_reaches_itself_by_its_own_address_only(site: &Site) -> Result<()> {
    let service = Service::new("itself", 60, 80, PORT);
    service.apply(&site.lab, None)?;
    service.set_endpoints(&site.lab, &[&site.web])?;
    let denies = json!({"ingress": [rule("Deny", json!({"namespaces": {}}))]});
    site.apply(&[cluster_policy("closed", "Admin", 0, "web", denies)])?;
    let denied = || is_denied(&site.stranger, &site.web);
    let drop = site.lab.node(0).first_drop("policy_ingress", denied)?;
    ensure!(drop["policies"] == json!(["closed"]), "{drop}");
    reaches(&site.web, &site.web)?;
    for (family, transport) in Transport::over_all() {
        site.web.place.expect(transport, service.addr(family), &Outcome::Silence)?;
    }
    site.apply(&[])?;
    service.delete(&site.lab)
}

fn existing_connections_follow_a_change(site: &Site) -> Result<()> {
    let pause = std::time::Duration::from_millis(10);
    let start =
        |(family, transport)| Stream::start(&site.far_friend.place, transport, site.web.addr(family, PORT), pause);
    let streams = Transport::over_all().map(start).collect::<std::io::Result<Vec<_>>>()?;
    eventually("all streams go", || {
        ensure!(streams.iter().all(|stream| stream.answered() > 20));
        Ok(())
    })?;
    site.apply(&[cluster_policy("cut", "Admin", 0, "web", json!({"ingress": [rule("Deny", pods("friend"))]}))])?;
    is_denied(&site.friend, &site.web)?;
    for stream in &streams {
        eventually("the stream stands", || {
            let before = stream.answered();
            std::thread::sleep(std::time::Duration::from_millis(300));
            ensure!(stream.answered() == before, "{} answers in 300 ms", stream.answered() - before);
            Ok(())
        })?;
    }
    site.apply(&[])
}

fn pods_of_all_namespaces_start_closed(site: &Site) -> Result<()> {
    let node = site.lab.node(0);
    let published = || std::fs::read_to_string(node.run_dir().join("node.json"));
    let none_starts_closed = || {
        eventually("none starts closed", || {
            let published = published()?;
            ensure!(!published.contains("oliced"), "{published}");
            Ok(())
        })
    };
    site.apply(&[])?;
    none_starts_closed()?;
    site.apply(&[cluster_policy("any", "Baseline", 0, "none", json!({"ingress": [rule("Deny", pods("friend"))]}))])?;
    eventually("all start closed", || {
        let published = published()?;
        ensure!(published.contains(r#""allPoliced":true"#), "{published}");
        Ok(())
    })?;
    let pod = node.add_server("late", PORT)?;
    is_denied(&site.friend, &pod)?;
    // It is open once its object shows that no policy applies to it.
    let mut objects = site.objects();
    objects.push(object(&pod, "late"));
    site.lab.apply("pods", &manifest::yaml(&objects))?;
    reaches(&site.friend, &pod)?;
    site.apply(&[])?;
    none_starts_closed()
}

fn invalid_rules_deny_and_are_reported(site: &Site) -> Result<()> {
    let rules = json!({"ingress": [
        {"action": "Accept", "from": [pods("friend")], "fridays": true},
        {"action": "Accept", "from": [pods("stranger")]},
        {"action": "Pass", "from": [{"domainNames": ["example.com"]}]},
    ]});
    site.apply(&[cluster_policy("odd", "Admin", 0, "web", rules)])?;
    is_denied(&site.friend, &site.web)?;
    reaches(&site.stranger, &site.web)?;
    let warnings = site.lab.node(0).podnet_json(&["status"])?["warnings"].to_string();
    for part in ["ClusterNetworkPolicy odd", "spec.ingress[0].fridays", "spec.ingress[2].from[0].domainNames"] {
        ensure!(warnings.contains(part), "{part}: {warnings}");
    }
    let shown = site.lab.node(0).podnet_json(&["policy", "show", "odd"])?;
    ensure!(shown["ingress"][1]["action"] == "Deny" && shown["ingress"][1]["peers"].is_null(), "{shown}");
    site.apply(&[])
}
