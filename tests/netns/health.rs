//! The health servers: which nodes a load balancer should send to, and how the daemon and the node are.

use std::io::ErrorKind;
use std::net::SocketAddr;

use anyhow::{Context, Result, ensure};
use podnet_tests::cases;
use podnet_tests::lab::{Endpoint, Lab, Node, Place, Service, eventually, vips};
use podnet_tests::traffic::{Family, http_get};
use serde_json::{Value, json};

/// Where the pods listen.
const TARGET: u16 = 8080;
/// The health check's port.
const PORT: u16 = 31_000;

/// Two nodes and a client outside.
struct Site {
    lab: Lab,
}

#[test]
fn health() -> Result<()> {
    let site = Site { lab: Lab::builder().client(true).build()? };
    cases!(
        site,
        a_balancer_finds_the_nodes_with_local_endpoints,
        a_node_that_is_being_deleted_is_unhealthy_and_alive,
        the_servers_go_and_come_with_the_daemon_and_can_be_switched_off
    )
}

/// Waits until the node's health check has this status and this many local endpoints, over both families.
fn says(place: &Place, node: &Node, status: u16, endpoints: u64) -> Result<()> {
    for family in Family::ALL {
        let server = SocketAddr::new(node.ip(family), PORT);
        eventually(&format!("{server} says {status} and {endpoints}"), || {
            let response = http_get(place, server, "/")?;
            ensure!(response.status == status, "{response:?}");
            let body: Value = serde_json::from_str(&response.body).with_context(|| response.body.clone())?;
            ensure!(body["service"] == json!({"namespace": "default", "name": "web"}), "{body}");
            ensure!(body["localEndpoints"] == endpoints && body["serviceProxyHealthy"] == true, "{body}");
            let weight = response.header("x-load-balancing-endpoint-weight");
            ensure!(weight == Some(&endpoints.to_string()[..]), "{response:?}");
            Ok(())
        })?;
    }
    Ok(())
}

fn a_balancer_finds_the_nodes_with_local_endpoints(site: &Site) -> Result<()> {
    let lab = &site.lab;
    let pods = [lab.node(0).add_pod("web-0")?, lab.node(0).add_pod("web-1")?, lab.node(1).add_pod("web-2")?];
    let service = Service::new("web", 20, 80, TARGET).load_balancer(&vips(1), 30_080);
    let local = service.clone().external_local().health_check(PORT);
    let (client, nodes) = (lab.client(), lab.nodes());
    let [a, b, c] = pods.each_ref().map(Endpoint::of);
    local.apply(lab, None)?;
    local.set_endpoints(lab, &[a.clone(), b.clone()])?;
    says(client, &nodes[0], 200, 2)?;
    says(client, &nodes[1], 503, 0)?;
    // A node asks itself, as some balancers do.
    says(&nodes[0].place, &nodes[0], 200, 2)?;
    local.set_endpoints(lab, &[a.clone().terminating(), c.clone()])?;
    says(client, &nodes[0], 503, 0).context("a terminating endpoint doesn't count")?;
    says(client, &nodes[1], 200, 1)?;
    local.set_endpoints(lab, &[a.clone().not_ready(), b.clone(), c])?;
    says(client, &nodes[0], 200, 1).context("one that isn't ready doesn't count")?;
    let closed = |why: &str| -> Result<()> {
        for family in Family::ALL {
            let server = SocketAddr::new(nodes[0].ip(family), PORT);
            eventually(why, || {
                let error = http_get(client, server, "/").err().context("it still responds")?;
                ensure!(error.kind() == ErrorKind::ConnectionRefused, "{error}");
                Ok(())
            })?;
        }
        Ok(())
    };
    service.apply(lab, None)?;
    closed("no health check without externalTrafficPolicy Local")?;
    local.apply(lab, None)?;
    says(client, &nodes[0], 200, 1)?;
    local.clone().health_check(PORT + 1).apply(lab, None)?;
    closed("another port")?;
    local.apply(lab, None)?;
    says(client, &nodes[0], 200, 1)?;
    lab.withdraw("web")?;
    closed("the service is deleted")
}

/// Waits until a path of the daemon's own server has this status on both families.
fn status_of(place: &Place, node: &Node, path: &str, status: u16) -> Result<Value> {
    let mut body = Value::Null;
    for family in Family::ALL {
        let server = SocketAddr::new(node.ip(family), 10_256);
        eventually(&format!("{path} of {server} is {status}"), || {
            let response = http_get(place, server, path)?;
            ensure!(response.status == status, "{response:?}");
            body = serde_json::from_str(&response.body).with_context(|| response.body.clone())?;
            Ok(())
        })?;
    }
    Ok(body)
}

fn a_node_that_is_being_deleted_is_unhealthy_and_alive(site: &Site) -> Result<()> {
    let lab = &site.lab;
    let (client, nodes) = (lab.client(), lab.nodes());
    for node in nodes {
        status_of(client, node, "/healthz", 200)?;
        status_of(client, node, "/livez", 200)?;
    }
    lab.apply_nodes(|node, object| {
        if node.name() == "node1" {
            let taint = json!({"key": "ToBeDeletedByClusterAutoscaler", "effect": "NoSchedule", "value": "1"});
            object["spec"]["taints"] = json!([taint]);
        }
    })?;
    status_of(client, &nodes[0], "/healthz", 503)?;
    status_of(client, &nodes[0], "/livez", 200)?;
    status_of(client, &nodes[1], "/healthz", 200)?;
    lab.apply_nodes(|_, _| {})?;
    status_of(client, &nodes[0], "/healthz", 200)?;
    let response = http_get(client, SocketAddr::new(nodes[0].ip(Family::V4), 10_256), "/nothing")?;
    ensure!(response.status == 404, "{response:?}");
    Ok(())
}

fn the_servers_go_and_come_with_the_daemon_and_can_be_switched_off(site: &Site) -> Result<()> {
    let lab = &site.lab;
    let node = lab.node(0);
    status_of(lab.client(), node, "/livez", 200)?;
    node.kill_daemon()?;
    let server = SocketAddr::new(node.ip(Family::V4), 10_256);
    ensure!(http_get(lab.client(), server, "/livez").is_err(), "it outlived the daemon");
    node.start_daemon()?;
    status_of(lab.client(), node, "/livez", 200)?;
    node.stop_daemon()?;
    node.configure(|config| config.healthz_bind_address.0 = None)?;
    node.start_daemon()?;
    ensure!(http_get(lab.client(), server, "/livez").is_err(), "it is switched off");
    Ok(())
}
