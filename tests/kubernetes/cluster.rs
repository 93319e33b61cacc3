//! Daemons with objects from the API: services work, and continue to work while the API server is unreachable.

use anyhow::{Context as _, Result, ensure};
use podnet_tests::api::{Abilities, Mood};
use podnet_tests::lab::{Lab, Pod, Service, eventually, wait_until};
use podnet_tests::traffic::{Ask, Family, Transport};
use serde_json::Value;

fn ask(client: &Pod, service: &Service) -> Result<()> {
    for family in Family::ALL {
        for transport in [Transport::Tcp, Transport::Udp] {
            let ask = Ask::new(transport, service.addr(family));
            eventually(&format!("{transport:?} {family:?}"), || Ok(ask.from(&client.place)?))?;
        }
    }
    Ok(())
}

#[test]
fn services_follow_the_api_and_survive_its_outage() -> Result<()> {
    let lab = Lab::builder().api(Abilities::default()).build()?;
    let client = lab.node(0).add_pod("client")?;
    let servers = [lab.node(0).add_server("web-0", 8080)?, lab.node(1).add_server("web-1", 8080)?];
    let service = Service::new("web", 10, 80, 8080);
    service.apply(&lab, None)?;
    service.set_endpoints(&lab, &[&servers[1]])?;
    ask(&client, &service)?;

    // The daemon restarts while the server is unreachable; services still work.
    lab.api().set_mood(Mood::HangingUp);
    let node = lab.node(0);
    let status = |wanted: bool| {
        wait_until("status", || {
            let status = node.podnet_json(&["status"])?;
            let warnings = status["warnings"].as_array().context("no warnings")?;
            let told = warnings.iter().filter_map(Value::as_str).any(|warning| warning.contains("cannot watch"));
            Ok(told == wanted)
        })
    };
    status(true)?;
    ask(&client, &service)?;
    node.kill_daemon()?;
    node.spawn_daemon()?;
    wait_until("a daemon without a server", || Ok(node.log().matches("using the Kubernetes API").count() == 2))?;
    status(true)?;
    ask(&client, &service)?;
    let late = node.add_pod("late")?;
    ask(&late, &service)?;

    // Changes made meanwhile take effect when the server is back.
    service.set_endpoints(&lab, &[&servers[0]])?;
    let gone = Service::new("gone", 11, 80, 8080);
    gone.apply(&lab, None)?;
    lab.api().set_mood(Mood::Well);
    status(false)?;
    let ask_once = Ask::new(Transport::Tcp, service.addr(Family::V4));
    wait_until("the other backend", || Ok(ask_once.from(&client.place).is_ok_and(|answer| answer.server == "web-0")))?;

    // The same if the server has lost its watch history.
    lab.api().forget();
    lab.api().disconnect();
    service.set_endpoints(&lab, &[&servers[1]])?;
    wait_until("the first backend", || Ok(ask_once.from(&client.place).is_ok_and(|answer| answer.server == "web-1")))?;
    service.delete(&lab)?;
    wait_until("no service", || Ok(!lab.node(0).podnet(&["service", "list"])?.contains("web")))?;
    ensure!(lab.node(0).podnet(&["service", "show", "default/gone"])?.contains("10.96.0.11"), "it is still there");
    Ok(())
}
