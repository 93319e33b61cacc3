//! The site of these tests, and what they count: translations by kind.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use anyhow::{Result, ensure};
use podnet::config::SocketLb;
use podnet::datapath::view;
use podnet_common::verdict::Counter;
use podnet_tests::lab::{Lab, Node, Place, Pod, Service, eventually};
use podnet_tests::traffic::{Ask, Transport};
use socket2::{Protocol, Type};

/// Timeout of an answer: long enough for TCP to retransmit several times.
pub(crate) const PATIENCE: Duration = Duration::from_secs(5);
/// Port of the pods.
pub(crate) const TARGET: u16 = 8080;
/// Number of requests.
pub(crate) const TIMES: u64 = 20;

/// Translations on a node, by kind.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Counts {
    pub(crate) connects: u64,
    pub(crate) datagrams: u64,
    pub(crate) flows: u64,
}

impl Counts {
    pub(crate) const CONNECTS: Self = Self { connects: TIMES, datagrams: 0, flows: 0 };
    pub(crate) const DATAGRAMS: Self = Self { connects: 0, datagrams: TIMES, flows: 0 };
    pub(crate) const FLOWS: Self = Self { connects: 0, datagrams: 0, flows: TIMES };

    pub(crate) fn of(node: &Node) -> Result<Self> {
        let counters = view::open(&node.bpffs())?.counters()?;
        let count = |counter: Counter| counters[counter as usize];
        Ok(Self {
            connects: count(Counter::SocketConnects),
            datagrams: count(Counter::SocketDatagrams),
            flows: count(Counter::FlowsCreated),
        })
    }

    /// Whether the counts are as expected. A socket may by chance reuse the port of an earlier one; its datagrams then
    /// belong to the earlier flow or, where their replies would be taken for replies of that flow, get another port and
    /// a flow of their own. A pod's connection that is translated at the socket has a flow too, without translation.
    pub(crate) fn is(&self, expected: Self) -> bool {
        let flows = [expected.flows, expected.flows + expected.connects];
        (self.connects, self.datagrams) == (expected.connects, expected.datagrams)
            && flows.iter().any(|flows| self.flows.abs_diff(*flows) <= 2)
    }

    /// Translations added on a node by a closure.
    pub(crate) fn added<T>(node: &Node, work: impl FnOnce() -> Result<T>) -> Result<(T, Self)> {
        let before = Self::of(node)?;
        let done = work()?;
        let after = Self::of(node)?;
        let (connects, datagrams) = (after.connects - before.connects, after.datagrams - before.datagrams);
        Ok((done, Self { connects, datagrams, flows: after.flows - before.flows }))
    }
}

/// Two nodes with a server each, a client on the first, and a Service with both servers.
pub(crate) struct Site {
    pub(crate) service: Service,
    pub(crate) client: Pod,
    pub(crate) web: Vec<Pod>,
    pub(crate) lab: Lab,
}

impl Site {
    pub(crate) fn new(mode: SocketLb) -> Result<Self> {
        let lab = Lab::builder().config(move |_, config| config.socket_lb = mode).build()?;
        let web = vec![lab.node(0).add_server("web-0", TARGET)?, lab.node(1).add_server("web-1", TARGET)?];
        let client = lab.node(0).add_pod("client")?;
        let site = Self { service: Service::new("web", 10, 80, TARGET), client, web, lab };
        site.serve(&site.service, None, &site.web)?;
        Ok(site)
    }

    pub(crate) fn node(&self) -> &Node {
        self.lab.node(0)
    }

    /// Applies a Service and waits until it answers the client.
    pub(crate) fn serve(&self, service: &Service, source: Option<&str>, backends: &[Pod]) -> Result<()> {
        service.apply(&self.lab, source)?;
        service.set_endpoints(&self.lab, &backends.iter().collect::<Vec<_>>())?;
        for (family, transport) in Transport::over_all() {
            let what = format!("{transport}/{family} to {}", service.name());
            eventually(&what, || Ok(self.client.place.ask(transport, service.addr(family))?))?;
        }
        Ok(())
    }
}

/// Kinds of sockets, and the counters that a translation in the socket hooks increments for each.
pub(crate) fn kinds(to: SocketAddr) -> [(&'static str, Ask, Counts); 3] {
    [
        ("TCP", Ask::new(Transport::Tcp, to), Counts::CONNECTS),
        ("UDP", Ask::new(Transport::Udp, to), Counts::DATAGRAMS),
        ("connected UDP", Ask::new(Transport::Udp, to).connected(), Counts::FLOWS),
    ]
    .map(|(kind, ask, counts)| (kind, ask.timeout(PATIENCE), counts))
}

/// Sends several requests, each over its own socket. The peer must be the frontend. Returns the source addresses seen
/// by the servers, and the number of answers of each server.
pub(crate) fn ask_often(place: &Place, ask: &Ask, to: SocketAddr) -> Result<(BTreeSet<IpAddr>, BTreeMap<String, u32>)> {
    let (mut seen, mut servers) = (BTreeSet::new(), BTreeMap::new());
    for _ in 0..TIMES {
        let answer = ask.from(place)?;
        ensure!(answer.peer == to, "the peer is {} instead of {to}", answer.peer);
        seen.insert(answer.seen.ip());
        *servers.entry(answer.server).or_default() += 1;
    }
    Ok((seen, servers))
}

pub(crate) fn kind(transport: Transport) -> Type {
    if transport == Transport::Tcp { Type::STREAM } else { Type::DGRAM }
}

pub(crate) fn protocol(transport: Transport) -> Protocol {
    if transport == Transport::Tcp { Protocol::TCP } else { Protocol::UDP }
}
