//! Session affinity: a client keeps its backend until it has been idle for the timeout, or the backend is removed.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use podnet_tests::cases;
use podnet_tests::lab::{Lab, Place, Pod, Service, eventually, vips};
use podnet_tests::traffic::{Ask, Family, Transport};

/// Port of the pods.
const TARGET: u16 = 8080;
/// External clients: enough that they don't all choose the same backends twice by chance.
const CLIENTS: u8 = 12;
/// Names of the backends.
const WEB: [&str; 4] = ["web-0", "web-1", "web-2", "web-3"];

/// Two nodes with two backends each, a client pod, and many external clients.
struct Site {
    web: Vec<Pod>,
    inside: Pod,
    lab: Lab,
}

impl Site {
    fn new() -> Result<Self> {
        let lab = Lab::builder().client(true).build()?;
        let start = |(index, name): (usize, &&str)| lab.node(index % 2).add_server(name, TARGET);
        let web = WEB.iter().enumerate().map(start).collect::<Result<_>>()?;
        let inside = lab.node(0).add_pod("inside")?;
        let lines: String = (1..=CLIENTS)
            .flat_map(|number| Family::ALL.map(|family| (family, client(family, number))))
            .map(|(family, ip)| format!("addr add {ip}/{} dev eth0\n", if family == Family::V4 { 24 } else { 64 }))
            .collect();
        lab.client().ip(&lines)?;
        lab.route_vips(lab.client(), lab.node(0))?;
        Ok(Self { web, inside, lab })
    }

    fn up(&self, service: &Service, mode: &str, web: &[&Pod]) -> Result<()> {
        service.apply(&self.lab, Some(mode))?;
        service.set_endpoints(&self.lab, web)
    }
}

/// An address of the external machine.
fn client(family: Family, number: u8) -> IpAddr {
    match family {
        Family::V4 => [172, 30, 0, 200 + number].into(),
        Family::V6 => [0xfd00, 0x30, 0, 0, 0, 0, 1, u16::from(number)].into(),
    }
}

/// Backend of each external client.
fn backends(place: &Place, transport: Transport, to: SocketAddr) -> Result<BTreeMap<u8, String>> {
    let ask = |number| {
        let ask = Ask::new(transport, to).from_ip(client(Family::of(to.ip()), number));
        Ok((number, ask.from(place).with_context(|| format!("{transport} to {to}"))?.server))
    };
    (1..=CLIENTS).map(ask).collect()
}

/// Backends that answer a place in a fixed number of requests.
fn met(place: &Place, transport: Transport, to: SocketAddr) -> Result<BTreeSet<String>> {
    (0..16).map(|_| Ok(place.ask(transport, to)?.server)).collect()
}

#[test]
fn affinity() -> Result<()> {
    cases!(
        Site::new()?,
        affinity_keeps_the_backend,
        affinity_expires_after_the_timeout,
        affinity_can_be_switched_on_a_live_service,
        affinity_to_a_removed_backend_ends_at_once
    )
}

fn affinity_keeps_the_backend(site: &Site) -> Result<()> {
    let web: Vec<_> = site.web.iter().collect();
    for (number, mode) in (1..).zip(["auto", "preserve", "snat"]) {
        let service = Service::new(mode, 20 + number, 80, TARGET)
            .load_balancer(&vips(number), 30_080 + u16::from(number))
            .affinity(600);
        site.up(&service, mode, &web)?;
        for (family, transport) in Transport::over_all() {
            let what = || format!("mode {mode}, {transport}/{family}");
            let at_node = service.at(site.lab.node(0), family);
            let at_vip = (vips(number)[family as usize], 80).into();
            for to in [at_node, at_vip] {
                site.lab.client().reaches(transport, to, &WEB).with_context(what)?;
                let first = backends(site.lab.client(), transport, to)?;
                ensure!(first.values().collect::<BTreeSet<_>>().len() > 1, "{}: all clients chose the same", what());
                for _ in 0..3 {
                    let again = backends(site.lab.client(), transport, to)?;
                    ensure!(again == first, "{}: {first:?} became {again:?}", what());
                }
            }
            for place in [&site.inside.place, &site.lab.node(0).place] {
                for to in [service.addr(family), at_node, at_vip] {
                    place.reaches(transport, to, &WEB).with_context(what)?;
                    let met = met(place, transport, to)?;
                    ensure!(met.len() == 1, "{}: {} met {met:?} at {to}", what(), place.name());
                }
            }
        }
    }
    Ok(())
}

fn affinity_expires_after_the_timeout(site: &Site) -> Result<()> {
    let timeout = Duration::from_secs(2);
    let service = Service::new("timeout", 41, 80, TARGET).node_port(30_041).affinity(2);
    site.up(&service, "auto", &site.web.iter().collect::<Vec<_>>())?;
    let to = |family| (site.lab.node(0).ip(family), 30_041).into();
    for (family, transport) in Transport::over_all() {
        site.lab.client().reaches(transport, to(family), &WEB)?;
    }
    // All at once, to share the waiting time.
    let round = || -> Result<Vec<BTreeMap<u8, String>>> {
        Transport::over_all().map(|(family, transport)| backends(site.lab.client(), transport, to(family))).collect()
    };
    let first = round()?;
    // Every use restarts the timeout: keep going for longer than the timeout.
    let start = Instant::now();
    while start.elapsed() < timeout + Duration::from_secs(2) {
        ensure!(round()? == first, "changed {} ms after the first use", start.elapsed().as_millis());
        thread::sleep(Duration::from_millis(500));
    }
    // The clock ticks about once a second and the timeout is counted in ticks, so it may take two seconds more.
    thread::sleep(timeout + Duration::from_millis(2300));
    let later = round()?;
    for (index, (first, later)) in first.iter().zip(&later).enumerate() {
        ensure!(first != later, "case {index}: all clients still have the same backends: {later:?}");
    }
    Ok(())
}

fn affinity_can_be_switched_on_a_live_service(site: &Site) -> Result<()> {
    let plain = Service::new("switched", 42, 80, TARGET).node_port(30_042);
    site.up(&plain, "auto", &site.web.iter().collect::<Vec<_>>())?;
    let at_node = |family| (site.lab.node(0).ip(family), 30_042).into();
    let outside = site.lab.client();
    for (service, one) in [(&plain, false), (&plain.clone().affinity(600), true), (&plain, false)] {
        service.apply(&site.lab, None)?;
        for (family, transport) in Transport::over_all() {
            for (place, to) in [
                (&site.inside.place, service.addr(family)),
                (&site.lab.node(1).place, service.addr(family)),
                (outside, at_node(family)),
            ] {
                let what = format!("{transport} from {} to {to}, affinity {one}", place.name());
                eventually(&what, || {
                    let met = met(place, transport, to)?;
                    ensure!((met.len() == 1) == one, "met {met:?}");
                    Ok(())
                })?;
            }
        }
    }
    Ok(())
}

fn affinity_to_a_removed_backend_ends_at_once(site: &Site) -> Result<()> {
    let service = Service::new("removed", 43, 80, TARGET).node_port(30_043).affinity(600);
    let all: Vec<_> = site.web.iter().collect();
    let places = [site.lab.client(), &site.inside.place, &site.lab.node(0).place];
    for (family, transport) in Transport::over_all() {
        site.up(&service, "auto", &all)?;
        let at_node: SocketAddr = (site.lab.node(0).ip(family), 30_043).into();
        for place in places {
            let to = if place.name() == "client" { at_node } else { service.addr(family) };
            let what = || format!("{transport} from {} to {to}", place.name());
            service.set_endpoints(&site.lab, &all)?;
            place.reaches(transport, to, &WEB)?;
            let had = met(place, transport, to)?.pop_first().context("no backend")?;
            let rest: Vec<_> = site.web.iter().filter(|pod| pod.name() != had).collect();
            service.set_endpoints(&site.lab, &rest)?;
            let names: Vec<_> = rest.iter().map(|pod| pod.name()).collect();
            place.reaches(transport, to, &names).with_context(what)?;
            let new = met(place, transport, to).with_context(what)?;
            ensure!(new.len() == 1 && !new.contains(&had), "{}: {had} is gone, met {new:?}", what());
            // A client that has another backend by now keeps it when the old one returns.
            service.set_endpoints(&site.lab, &all)?;
            eventually("the node knows it again", || {
                let detail = site.lab.node(0).podnet_json(&["service", "show", "default/removed"])?;
                let detail = detail["frontends"].to_string();
                ensure!(detail.contains(&site.pod_ip(&had, family)?.to_string()), "{had} is not in {detail}");
                Ok(())
            })?;
            ensure!(met(place, transport, to)? == new, "{}: changed when {had} came back", what());
        }
    }
    Ok(())
}

impl Site {
    fn pod_ip(&self, name: &str, family: Family) -> Result<IpAddr> {
        Ok(self.web.iter().find(|pod| pod.name() == name).context("no such pod")?.ip(family))
    }
}
