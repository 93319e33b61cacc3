//! XDP on the uplinks: packets that it forwards never reach the stack; all others are handled as without XDP.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use podnet::config::Xdp;
use podnet_tests::cases;
use podnet_tests::lab::{Lab, Node, Pod, Service, client_ip, eventually, wait_until};
use podnet_tests::traffic::{Ask, Family, Frames, Outcome, Stream, Transport};

/// Port of the pods.
const TARGET: u16 = 8080;

/// An external client, and a backend on each node.
struct Site {
    backends: [Pod; 2],
    lab: Lab,
}

impl Site {
    fn new(xdp: Xdp) -> Result<Self> {
        let lab = Lab::builder().client(true).plain_links(true).config(move |_, config| config.xdp = xdp).build()?;
        let backends = [lab.node(0).add_server("near", TARGET)?, lab.node(1).add_server("far", TARGET)?];
        Ok(Self { backends, lab })
    }

    fn service(&self, number: u8, mode: &str, backend: usize) -> Result<Service> {
        let service = Service::new(&format!("s{number}"), number, 80, TARGET).node_port(30_000 + u16::from(number));
        service.apply(&self.lab, Some(mode))?;
        service.set_endpoints(&self.lab, &[&self.backends[backend]])?;
        Ok(service)
    }
}

/// XDP mode as shown by iproute2: `xdp` in the driver, `xdpgeneric` in the stack.
fn attached(node: &Node) -> Result<Option<String>> {
    let text = node.place.run("ip", &["link", "show", "dev", "eth0"])?;
    let name = text.split_whitespace().find(|word| word.starts_with("xdp"));
    Ok(name.map(|name| name.split_once('/').map_or(name, |(mode, _)| mode).to_owned()))
}

#[test]
fn mode_follows_the_configuration_and_veth_is_off_by_default() -> Result<()> {
    let lab = Lab::builder().nodes(1).build()?;
    let node = lab.node(0);
    for (xdp, wanted) in [
        (None, None),
        (Some(Xdp::Auto), None),
        (Some(Xdp::Generic), Some("xdpgeneric")),
        (Some(Xdp::Native), Some("xdp")),
        (Some(Xdp::Off), None),
    ] {
        if let Some(xdp) = xdp {
            node.stop_daemon()?;
            node.configure(|config| config.xdp = xdp)?;
            node.start_daemon()?;
        }
        eventually(&format!("{xdp:?}"), || {
            let found = attached(node)?;
            ensure!(found.as_deref() == wanted, "{found:?} instead of {wanted:?}");
            Ok(())
        })?;
    }
    Ok(())
}

/// Ports of a TCP or UDP frame without IP options.
fn ports(frame: &[u8]) -> Option<[u16; 2]> {
    let (proto, at) = match frame.get(12..14)? {
        [8, 0] => (*frame.get(23)?, 34),
        [0x86, 0xdd] => (*frame.get(20)?, 54),
        _ => return None,
    };
    let port = |at: usize| Some(u16::from_be_bytes([*frame.get(at)?, *frame.get(at + 1)?]));
    matches!(proto, 6 | 17).then_some([port(at)?, port(at + 2)?])
}

#[test]
fn generic_xdp() -> Result<()> {
    cases!(
        Site::new(Xdp::Generic)?,
        xdp_forwards_established_flows_to_remote_backends,
        other_traffic_works_as_without_xdp
    )
}

#[test]
fn native_xdp() -> Result<()> {
    cases!(
        Site::new(Xdp::Native)?,
        xdp_forwards_established_flows_to_remote_backends,
        other_traffic_works_as_without_xdp
    )
}

fn xdp_forwards_established_flows_to_remote_backends(site: &Site) -> Result<()> {
    let (node, client) = (site.lab.node(0), site.lab.client());
    for (number, mode) in (20..).zip(["auto", "snat", "preserve"]) {
        let service = site.service(number, mode, 1)?;
        for (family, transport) in Transport::over_all() {
            let to = service.at(node, family);
            let what = || format!("mode {mode}, {transport}/{family}");
            let seen = if mode == "preserve" { client_ip(family) } else { node.ip(family) };
            client.expect(transport, to, &Outcome::answer("far", seen)).with_context(what)?;
            let flow = Ask::new(transport, to).connected().open(client)?;
            (0..3).try_for_each(|_| flow.ask().map(drop)).with_context(what)?;
            // A packet socket is in front of TC and behind XDP, and does not see packets sent by XDP.
            let tap = Frames::on(&node.place, "eth0")?;
            const QUESTIONS: usize = 100;
            (0..QUESTIONS).try_for_each(|_| flow.ask().map(drop)).with_context(what)?;
            let mut met = 0;
            tap.expect(Duration::from_millis(50), |frame| {
                let of_flow = ports(frame).is_some_and(|ports| ports.contains(&to.port()) || ports.contains(&TARGET));
                met += usize::from(of_flow);
                false
            })?;
            // Once per tick, a flow's packet is left to TC, which updates its state.
            ensure!(met <= QUESTIONS / 5, "{}: the stack met {met} packets of {QUESTIONS} exchanges", what());
        }
    }
    Ok(())
}

fn other_traffic_works_as_without_xdp(site: &Site) -> Result<()> {
    let (node, client) = (site.lab.node(0), site.lab.client());
    let pod = site.lab.node(0).add_pod("client-pod")?;
    let _servers = node.serve(8081)?;
    for (number, (mode, backend)) in
        (30..).zip([("auto", 0), ("auto", 1), ("snat", 0), ("snat", 1), ("preserve", 0), ("preserve", 1)])
    {
        let service = site.service(number, mode, backend)?;
        let name = ["near", "far"][backend];
        for (family, transport) in Transport::over_all() {
            let to = service.at(node, family);
            let what = || format!("mode {mode}, {name} backend, {transport}/{family}");
            client.reaches(transport, to, &[name]).with_context(what)?;
            pod.place.reaches(transport, service.addr(family), &[name]).with_context(what)?;
            client.reaches(transport, (node.ip(family), 8081).into(), &["node1"]).with_context(what)?;
            let bytes = if transport == Transport::Tcp { 200_000 } else { 5000 };
            for ask in [Ask::new(transport, to).payload("y".repeat(bytes)), Ask::new(transport, to).reply_of(bytes)] {
                eventually("a large exchange", || {
                    let answer = ask.clone().from(client)?;
                    ensure!(
                        answer.payload.len() == bytes || answer.payload.starts_with("y"),
                        "{}",
                        answer.payload.len()
                    );
                    Ok(())
                })
                .with_context(what)?;
            }
            client.ping(node.ip(family))?;
        }
        let stream = Stream::start(client, Transport::Tcp, service.at(node, Family::V4), Duration::from_millis(1))?;
        wait_until("200 messages", || Ok(stream.answered() >= 200))?;
        // An established flow survives its daemon in XDP as well.
        let goes_on = |what: &str| {
            let before = stream.answered();
            let found = wait_until("50 more messages", || Ok(stream.answered() >= before + 50));
            found.with_context(|| format!("mode {mode}, {name} backend, {what}: {:?}", node.drops()))
        };
        node.kill_daemon()?;
        node.disown_programs()?;
        goes_on("without the daemon")?;
        node.start_daemon()?;
        goes_on("with the next daemon")?;
        let report = stream.stop();
        ensure!(report.is_clean(), "mode {mode}, {name} backend: {report:?}");
    }
    Ok(())
}
