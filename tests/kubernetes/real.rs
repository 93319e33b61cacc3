//! A real API server: daemons follow its allocations through restarts, and it accepts the deployment's manifests.

use std::fs;
use std::net::{IpAddr, SocketAddr, TcpListener};
use std::path::Path;

use anyhow::{Context as _, Result, ensure};
use podnet::config::Kubernetes;
use podnet_tests::lab::{ControlPlane, Lab, eventually, manifest, wait_until};
use podnet_tests::traffic::{Ask, Family, Transport};
use serde_json::{Value, json};

#[test]
#[ignore = "needs KUBEBUILDER_ASSETS, a directory with kube-apiserver and etcd"]
fn services_follow_a_real_api_server() -> Result<()> {
    let lab = Lab::builder().daemons(false).build()?;
    let mut server = ControlPlane::start(&lab)?;
    for (number, node) in lab.nodes().iter().enumerate() {
        let addrs: Vec<IpAddr> = Family::ALL.iter().map(|family| node.ip(*family)).collect();
        let mut object = manifest::node(node.name(), node.pod_cidrs(), &addrs);
        object["spec"]["podCIDR"] = node.pod_cidrs()[0].clone().into();
        server.apply(&object)?;
        let kubeconfig = lab.dir().join(format!("kubeconfig-{number}"));
        fs::write(&kubeconfig, server.kubeconfig())?;
        node.configure(|config| {
            config.manifests = None;
            config.kubernetes = Some(Kubernetes { kubeconfig: Some(kubeconfig), ..Kubernetes::default() });
        })?;
        node.start_daemon()?;
    }
    // A port taken by another process is a problem of the node; it is reported once it has persisted.
    lab.node(1).stop_daemon()?;
    let taken = lab.node(1).place.netns().run(|| TcpListener::bind("127.0.0.1:10249"))??;
    lab.node(1).start_daemon()?;

    let client = lab.node(0).add_pod("client")?;
    let backends = [lab.node(0).add_server("web-0", 8080)?, lab.node(1).add_server("web-1", 8080)?];

    // The server allocates the addresses.
    let service = server.apply(&json!({
        "apiVersion": "v1", "kind": "Service", "metadata": {"name": "web", "namespace": "default"},
        "spec": {"ipFamilyPolicy": "RequireDualStack", "ports": [{"name": "http", "port": 80, "protocol": "TCP"}]},
    }))?;
    let ips: Vec<IpAddr> = serde_json::from_value(service["spec"]["clusterIPs"].clone())?;
    ensure!(ips.len() == 2, "{service}");
    let lead_to = |server: &ControlPlane, backend: usize| -> Result<()> {
        for family in Family::ALL {
            server.apply(&json!({
                "apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice", "addressType": family.name(),
                "metadata": {"name": format!("web-{}", family.name().to_lowercase()), "namespace": "default",
                    "labels": {"kubernetes.io/service-name": "web"}},
                "ports": [{"name": "http", "port": 8080, "protocol": "TCP"}],
                "endpoints": [{"addresses": [backends[backend].ip(family)], "conditions": {"ready": true}}],
            }))?;
        }
        Ok(())
    };
    let answered_by = |backend: usize| {
        ips.iter().try_for_each(|ip| {
            let ask = Ask::new(Transport::Tcp, SocketAddr::new(*ip, 80));
            let expected = format!("web-{backend}");
            wait_until(&format!("{expected} at {ip}"), || {
                Ok(ask.from(&client.place).is_ok_and(|answer| answer.server == expected))
            })
        })
    };
    lead_to(&server, 1)?;
    answered_by(1)?;

    let told = |kind: &str| {
        eventually(&format!("an Event of type {kind}"), || {
            let events = server.list("events.k8s.io/v1", "Event", "reportingController=podnet")?;
            let is_it = |event: &&Value| event["type"] == kind && event["regarding"]["name"] == lab.node(1).name();
            ensure!(events.iter().any(|event| is_it(&event)), "{events:?}");
            Ok(())
        })
    };
    told("Warning")?;
    drop(taken);
    told("Normal")?;

    server.pause();
    answered_by(1)?;
    server.resume()?;
    lead_to(&server, 0)?;
    answered_by(0)?;
    let shown = lab.node(0).podnet(&["service", "show", "default/web"])?;
    ensure!(shown.contains(&format!("{}", backends[0].ip(Family::V4))), "{shown}");
    Ok(())
}

#[test]
#[ignore = "needs KUBEBUILDER_ASSETS, a directory with kube-apiserver and etcd"]
fn real_api_server_accepts_the_manifests() -> Result<()> {
    let lab = Lab::builder().nodes(1).daemons(false).build()?;
    let server = ControlPlane::start(&lab)?;
    let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("../deploy/podnet.yaml");
    let objects: Vec<Value> = serde_saphyr::from_multiple(&fs::read_to_string(file)?)?;
    for object in &objects {
        let taken = server.dry_run(object).with_context(|| format!("{} is refused", object["kind"]))?;
        ensure!(taken["metadata"]["uid"].is_string(), "{taken}");
    }
    let mut wrong = objects.last().context("no objects")?.clone();
    wrong["spec"]["template"]["spec"]["hostNetwrok"] = true.into();
    let error = server.dry_run(&wrong).unwrap_err();
    ensure!(format!("{error:#}").contains("hostNetwrok"), "{error:#}");
    Ok(())
}
