//! Network policies and machines behind an interface that `uplinks` omits: their packets have passed no hook when the
//! node's stack sends them to a pod.

use std::net::IpAddr;
use std::ops::Deref;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use podnet_tests::cases;
use podnet_tests::lab::policed::{PORT, Site, app, policy};
use podnet_tests::lab::{Lab, Node, Place, Pod, Service, eventually};
use podnet_tests::traffic::{Ask, Family, Outcome, Server, Transport};
use serde_json::{Value, json};

/// The interface of the first node.
const LAN: &str = "lan";

/// Timeout of a request that is repeated.
const SHORT: Duration = Duration::from_millis(300);

/// Pods, and a machine behind [`LAN`].
struct Guest {
    machine: Place,
    _servers: Vec<Server>,
    site: Site,
}

#[test]
fn interface_without_hooks() -> Result<()> {
    cases!(
        Guest::new()?,
        ingress_is_evaluated,
        answers_pass_whoever_began,
        host_masquerades,
        node_is_never_evaluated,
        services_are_evaluated,
    )
}

impl Deref for Guest {
    type Target = Site;

    fn deref(&self) -> &Site {
        &self.site
    }
}

impl Guest {
    fn new() -> Result<Self> {
        let site = Site::new(Lab::builder().config(|_, config| config.uplinks = vec!["eth0".into()]))?;
        let (node, machine) = (site.lab.node(0), site.lab.add_machine("guest")?);
        node.place.wire(LAN, &machine, "eth0", 1500)?;
        let mut servers = Vec::new();
        for family in Family::ALL {
            let (length, nodad) = if family == Family::V4 { (24, "") } else { (64, " nodad") };
            let [here, there] = [1, 2].map(|host| ip(host, family));
            node.place.ip(&format!("addr add {here}/{length} dev {LAN}{nodad}\n"))?;
            machine.ip(&format!("addr add {there}/{length} dev eth0{nodad}\nroute add default via {here}\n"))?;
            servers.push(Server::start(&machine, "guest", (there, PORT).into())?);
        }
        // As firewalls do that track connections: all packets of a connection must pass here, in both directions.
        let strict =
            "table inet strict { chain forward { type filter hook forward priority 0; ct state invalid drop\n}\n}";
        node.place.run("nft", &[strict])?;
        Ok(Self { machine, _servers: servers, site })
    }

    fn node(&self) -> &Node {
        self.site.lab.node(0)
    }

    /// Applies a policy for the pods `web`.
    fn web(&self, spec: Value) -> Result<()> {
        self.site.apply(&[policy("web", "web", spec)])
    }

    /// Whether the machine and the pod `web` reach each other.
    fn expect(&self, to_pod: bool, from_pod: bool) -> Result<()> {
        let web = &self.site.web;
        for (family, transport) in Transport::over_all() {
            let there = (ip(2, family), PORT).into();
            let ways = [
                (to_pod, &self.machine, web.addr(family, PORT), web.name(), ip(2, family)),
                (from_pod, &web.place, there, "guest", web.ip(family)),
            ];
            for (allowed, client, to, server, seen) in ways {
                let outcome = if allowed { Outcome::answer(server, seen) } else { Outcome::Silence };
                client.expect(transport, to, &outcome).with_context(|| format!("{transport}/{family} to {server}"))?;
            }
        }
        Ok(())
    }
}

/// Addresses on the link: the node's is 1, the machine's is 2.
fn ip(host: u16, family: Family) -> IpAddr {
    match family {
        Family::V4 => [192, 168, 9, host as u8].into(),
        Family::V6 => [0xfd00, 0x168, 9, 0, 0, 0, 0, host].into(),
    }
}

/// `ipBlock` peers with the machine's network.
fn lan() -> [Value; 2] {
    ["192.168.9.0/24", "fd00:168:9::/64"].map(|cidr| json!({"ipBlock": {"cidr": cidr}}))
}

fn ingress_is_evaluated(guest: &Guest) -> Result<()> {
    guest.site.apply(&[])?;
    guest.expect(true, true).context("no policy")?;
    guest.web(json!({"ingress": [{"from": [app("friend")]}]}))?;
    let before = guest.node().drops()?.get("policy_ingress").copied().unwrap_or(0);
    guest.expect(false, true).context("other peers are allowed")?;
    let denied = guest.node().drops()?.get("policy_ingress").copied().unwrap_or(0) - before;
    ensure!(denied >= 4, "{denied} packets are counted");
    guest.web(json!({"ingress": [{"from": lan()}]}))?;
    guest.expect(true, true).context("its block is allowed")
}

fn answers_pass_whoever_began(guest: &Guest) -> Result<()> {
    guest.web(json!({"policyTypes": ["Ingress", "Egress"], "ingress": [{"from": lan()}]}))?;
    guest.expect(true, false).context("the machine begins")?;
    guest.web(json!({"policyTypes": ["Ingress", "Egress"], "egress": [{"to": lan()}]}))?;
    guest.expect(false, true).context("the pod begins")
}

/// The host translates the pod's source and the answers.
fn host_masquerades(guest: &Guest) -> Result<()> {
    let node = &guest.node().place;
    node.run(
        "nft",
        &["table inet hide { chain post { type nat hook postrouting priority 100; oifname lan masquerade\n}\n}"],
    )?;
    guest.web(json!({"policyTypes": ["Ingress", "Egress"], "egress": [{"to": lan()}]}))?;
    for (family, transport) in Transport::over_all() {
        let (there, seen) = ((ip(2, family), PORT).into(), ip(1, family));
        guest.site.web.place.expect(transport, there, &Outcome::answer("guest", seen))?;
    }
    node.run("nft", &["delete table inet hide"]).map(drop)
}

fn node_is_never_evaluated(guest: &Guest) -> Result<()> {
    guest.web(json!({"policyTypes": ["Ingress", "Egress"]}))?;
    guest.expect(false, false)?;
    let web: &Pod = &guest.site.web;
    for (family, transport) in Transport::over_all() {
        guest.node().place.reaches(transport, web.addr(family, PORT), &[web.name()])?;
    }
    // A new address is the node's at once.
    for (family, address) in Family::ALL.into_iter().zip(["192.168.10.1/32", "fd00:168:10::1/128"]) {
        let nodad = if family == Family::V4 { "" } else { " nodad" };
        guest.node().place.ip(&format!("addr add {address} dev {LAN}{nodad}\n"))?;
        let own = address.split('/').next().unwrap_or_default().parse()?;
        eventually("an answer to the new address", || {
            let ask = Ask::new(Transport::Udp, web.addr(family, PORT)).from_ip(own).timeout(SHORT);
            Ok(ask.from(&guest.node().place)?)
        })?;
    }
    guest.site.apply(&[])
}

/// The node's route to service addresses leads the machine's packets past the hooks of pods.
fn services_are_evaluated(guest: &Guest) -> Result<()> {
    // It sees only the requests of such a connection.
    guest.node().place.run("nft", &["delete table inet strict"])?;
    let service = Service::new("inside", 61, 80, PORT);
    service.apply(&guest.lab, None)?;
    service.set_endpoints(&guest.lab, &[&guest.web])?;
    let web = guest.web.name();
    let expect = |allowed: bool| -> Result<()> {
        for (family, transport) in Transport::over_all() {
            let to = service.addr(family);
            let outcome = if allowed { Outcome::answer(web, ip(2, family)) } else { Outcome::Silence };
            guest.machine.expect(transport, to, &outcome).with_context(|| format!("{transport}/{family}"))?;
            guest.node().place.reaches(transport, to, &[web])?;
        }
        Ok(())
    };
    guest.site.apply(&[])?;
    expect(true).context("no policy")?;
    guest.web(json!({"ingress": [{"from": [app("friend")]}]}))?;
    expect(false).context("other peers are allowed")?;
    guest.web(json!({"ingress": [{"from": lan()}]}))?;
    expect(true).context("its block is allowed")
}
