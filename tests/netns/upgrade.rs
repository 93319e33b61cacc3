//! Upgrades to a version with other table layouts, and rollbacks from it, under traffic.
//!
//! The later version is this one with the feature `later-layouts`: every table has another version, and most layouts
//! differ. As in a real rollback, this version knows nothing of them.

use std::net::SocketAddr;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use podnet_cni::datapath::PinDir;
use podnet_common::tables::{ALL, Class};
use podnet_tests::lab::{Lab, Node, Place, Pod, Service, eventually, vips};
use podnet_tests::traffic::{Ask, Family, Flow, Load, Streams, Transport};

/// Port of the pods.
const TARGET: u16 = 8080;
/// Layout version of each daemon, relative to this version.
const STEPS: [u32; 5] = [1, 0, 1, 1, 0];
/// Interval between new flows to a frontend.
const PAUSE: Duration = Duration::from_millis(50);

/// Two nodes, a client pod on the first, servers on both, and an external client.
struct Site {
    web: [Pod; 2],
    inside: Pod,
    services: Services,
    lab: Lab,
}

struct Services {
    web: Service,
    snat: Service,
    node_port: Service,
    direct: Service,
    sticky: Service,
}

impl Site {
    fn new() -> Result<Self> {
        let lab = Lab::builder().client(true).plain_links(true).build()?;
        let web = [lab.node(0).add_server("web-0", TARGET)?, lab.node(1).add_server("web-1", TARGET)?];
        let inside = lab.node(0).add_pod("inside")?;
        lab.route_vips(lab.client(), lab.node(0))?;
        let services = Services {
            web: Service::new("web", 10, 80, TARGET),
            snat: Service::new("snat", 11, 80, TARGET),
            node_port: Service::new("node-port", 12, 80, TARGET).node_port(30_012),
            direct: Service::new("direct", 13, 80, TARGET).load_balancer(&vips(1), 30_013),
            sticky: Service::new("sticky", 14, 80, TARGET).affinity(3600),
        };
        let [near, far] = &web;
        for (service, mode, backends) in [
            (&services.web, None, &[near, far][..]),
            (&services.snat, Some("snat"), &[far]),
            (&services.node_port, None, &[far]),
            (&services.direct, Some("preserve"), &[far]),
            (&services.sticky, None, &[near, far]),
        ] {
            service.apply(&lab, mode)?;
            service.set_endpoints(&lab, backends)?;
        }
        Ok(Self { web, inside, services, lab })
    }

    /// From pods, hosts and outside, with every kind of egress.
    fn frontends(&self) -> Vec<(&Place, SocketAddr)> {
        let (Services { web, snat, node_port, direct, sticky }, node) = (&self.services, self.lab.node(0));
        let (inside, outside, host) = (&self.inside.place, self.lab.client(), &node.place);
        let of_family = |family: Family| {
            let pods = self.web.iter().map(move |pod| (inside, pod.addr(family, TARGET)));
            let services = [web, snat, sticky].map(|service| (inside, service.addr(family)));
            let vip = SocketAddr::new(vips(1)[family as usize], direct.port());
            let others = [
                (host, web.addr(family)),
                (outside, node_port.at(node, family)),
                (outside, direct.at(node, family)),
                (outside, vip),
            ];
            pods.chain(services).chain(others).collect::<Vec<_>>()
        };
        Family::ALL.into_iter().flat_map(of_family).collect()
    }

    /// Backends that answer the client pod.
    fn met(&self, family: Family) -> Result<Vec<String>> {
        let to = self.services.sticky.addr(family);
        let ask = |transport| {
            let answer = self.inside.place.ask(transport, to).with_context(|| format!("{transport} to {to}"))?;
            Ok(answer.server)
        };
        Transport::ALL.into_iter().map(ask).collect()
    }
}

/// Versions of all tables pinned on a node, except for frozen ones.
fn versions(node: &Node) -> Vec<(&'static str, u32)> {
    let pins = PinDir::new(&node.bpffs());
    let tables = ALL.iter().filter(|table| !matches!(table.class(), Class::Frozen | Class::Generation));
    let of_table = |name, table| pins.versions(table).into_iter().map(move |(version, _)| (name, version));
    tables.flat_map(|table| of_table(table.name(), *table)).collect()
}

#[test]
fn upgrade_and_rollback_of_table_layouts_lose_no_packet() -> Result<()> {
    let site = Site::new()?;
    let later = site.lab.binaries().later.clone().context(
        "the daemon with later layouts isn't built: `cargo xtask test` builds it, as `later/podnet` beside podnet",
    )?;
    let own = site.lab.binaries().podnet.clone();
    let first = versions(site.lab.node(0));
    ensure!(first.iter().all(|(_, version)| *version >= 1), "{first:?}");
    let streams = Streams::start(&site.frontends())?;
    let host: Vec<(SocketAddr, Flow)> = Family::ALL
        .into_iter()
        .map(|family| {
            let to = site.services.web.addr(family);
            Ok((to, Ask::new(Transport::Tcp, to).open(&site.lab.node(0).place)?))
        })
        .collect::<Result<_>>()?;
    let met: Vec<_> = Family::ALL.into_iter().map(|family| site.met(family)).collect::<Result<_>>()?;
    // Slow enough to stay within each sender's share of the connection table.
    let load = |(place, to)| Transport::ALL.map(|transport| (to, Load::start(place, transport, to, PAUSE)));
    let loads: Vec<_> = site.frontends().into_iter().flat_map(load).collect();
    streams.flows(50)?;
    let step = |program: &Path, added: u32| -> Result<()> {
        for node in site.lab.nodes() {
            node.kill_daemon()?;
            streams.flows(20)?;
            node.start_daemon_from(program)?;
            let expected: Vec<_> = first.iter().map(|(name, version)| (*name, version + added)).collect();
            eventually("the tables of the other version are gone", || {
                let found = versions(node);
                ensure!(found == expected, "{found:?}");
                Ok(())
            })?;
            streams.flows(50)?;
        }
        for (to, flow) in &host {
            let peer = flow.ask().context("a connection of the host")?.peer;
            ensure!(peer == *to, "the peer of a socket that was translated is {peer} instead of {to}");
        }
        for (family, met) in Family::ALL.into_iter().zip(&met) {
            for _ in 0..8 {
                ensure!(site.met(family)? == *met, "{family}: another backend than {met:?}");
            }
        }
        Ok(())
    };
    for added in STEPS {
        let program = if added == 0 { &own } else { &later };
        step(program, added).with_context(|| format!("{}", program.display()))?;
    }
    let mut lost = Vec::new();
    for (to, load) in loads {
        let report = load.stop();
        ensure!(report.answered() > 100, "new flows to {to}: {report:?}");
        lost.extend(report.errors.into_iter().map(|error| format!("to {to}: {error}")));
    }
    // A flow that begins in the milliseconds around the flip may get its first reply before its entry is copied.
    let flips = STEPS.len() * site.lab.nodes().len();
    ensure!(lost.len() <= flips, "new flows: {lost:?}");
    let drops: Vec<_> = site.lab.nodes().iter().map(|node| node.drops()).collect::<Result<_>>()?;
    streams.clean().with_context(|| format!("dropped by the nodes: {drops:?}"))
}
