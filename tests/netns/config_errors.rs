//! Errors in manifests and in the configuration are reported, and never affect what works.

use anyhow::{Context, Result, ensure};
use podnet_tests::lab::{Lab, Service, eventually};
use podnet_tests::traffic::{Family, Transport};
use serde_json::Value;

/// Source errors in `podnet status`: file name, line, reason.
fn errors(status: &Value) -> Vec<(String, Option<u64>, String)> {
    let sources = find(status, "sources").and_then(Value::as_array).cloned().unwrap_or_default();
    let errors = sources.iter().filter_map(|source| source["errors"].as_array()).flatten();
    errors
        .map(|error| {
            let file = error["place"].as_str().unwrap_or_default();
            let name = file.rsplit('/').next().unwrap_or_default().to_owned();
            (name, error["line"].as_u64(), error["reason"].as_str().unwrap_or_default().to_owned())
        })
        .collect()
}

/// Value of a key at any depth.
fn find<'a>(value: &'a Value, key: &str) -> Option<&'a Value> {
    let object = value.as_object()?;
    object.get(key).or_else(|| object.values().find_map(|inner| find(inner, key)))
}

#[test]
fn broken_manifest_is_reported_and_keeps_its_last_valid_state() -> Result<()> {
    let lab = Lab::builder().nodes(1).build()?;
    let node = lab.node(0);
    let mut web = node.add_pod("web-0")?;
    web.serve(8080)?;
    let client = node.add_pod("client")?;
    let service = Service::new("web", 10, 80, 8080);
    service.apply(&lab, None)?;
    service.set_endpoints(&lab, &web.ips)?;
    let works = || {
        for family in Family::ALL {
            client.place.ask(Transport::Tcp, service.addr(family))?;
        }
        Ok(())
    };
    eventually("the service", works)?;
    assert_eq!(errors(&node.podnet_json(&["status"])?), []);

    let good = service.manifest(None);
    let broken = [
        ("not YAML", good.replace("spec:", "spec: [")),
        ("a port out of range", good.replace(" port: 80\n", " port: 80000\n")),
        ("an address that is none", good.replace("10.96.0.10", "10.96.0.1000")),
    ];
    for (what, text) in broken {
        ensure!(text != good, "{what}: nothing was broken");
        lab.apply("web", &text)?;
        eventually(what, || {
            let errors = errors(&node.podnet_json(&["status"])?);
            let (file, _, reason) = errors.first().context("no error is reported")?;
            ensure!(file == "web.yaml" && !reason.is_empty(), "{errors:?}");
            Ok(())
        })?;
        works().with_context(|| format!("{what}: the last good state is gone"))?;
        // Other manifests are still read.
        let other = Service::new("other", 11, 80, 8080);
        other.apply(&lab, None)?;
        other.set_endpoints(&lab, &web.ips)?;
        eventually("another service", || Ok(client.place.ask(Transport::Tcp, other.addr(Family::V4))?))?;
        lab.withdraw("other")?;
        lab.withdraw("other-endpoints")?;
    }
    lab.apply("web", &good)?;
    eventually("the error goes away", || {
        let errors = errors(&node.podnet_json(&["status"])?);
        ensure!(errors.is_empty(), "{errors:?}");
        Ok(())
    })?;
    works()
}

#[test]
fn errors_are_reported_with_their_line() -> Result<()> {
    let lab = Lab::builder().nodes(1).build()?;
    let text = Service::new("web", 10, 80, 8080).manifest(None) + "---\n" + "kind: [\n";
    let line = text.lines().count() as u64;
    lab.apply("web", &text)?;
    eventually("the error", || {
        let errors = errors(&lab.node(0).podnet_json(&["status"])?);
        let (_, reported, _) = errors.first().context("no error is reported")?;
        let reported = reported.context("no line is reported")?;
        // The parser detects an unclosed bracket at the end.
        ensure!((line..=line + 1).contains(&reported), "line {reported} instead of {line}");
        Ok(())
    })
}

#[test]
fn configuration_errors_are_reported() -> Result<()> {
    let lab = Lab::builder().nodes(1).daemons(false).build()?;
    let node = lab.node(0);
    let good = std::fs::read_to_string(node.config_file())?;
    for (what, text, named) in [
        ("an unknown key", good.replacen('{', "{ \"sourceIPs\": \"auto\",", 1), "sourceIPs"),
        ("a bad value", good.replace("\"auto\"", "\"automatic\""), "automatic"),
        ("a missing key", good.replace("\"node\"", "\"nodes\""), "node"),
    ] {
        ensure!(text != good, "{what}: nothing was broken");
        std::fs::write(node.config_file(), text)?;
        let output = node.podnet_output(&["daemon", "--config", &node.config_file().display().to_string()])?;
        ensure!(!output.status.success(), "{what}: the daemon ran");
        let message = String::from_utf8_lossy(&output.stderr).into_owned() + &String::from_utf8_lossy(&output.stdout);
        ensure!(message.contains(named) && message.contains("config.yaml"), "{what}: {message}");
    }
    Ok(())
}
