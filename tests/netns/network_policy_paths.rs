//! Network policies on the paths to a pod that lead through other addresses or hooks: host ports, load balancer
//! addresses, direct server return, source NAT, the tunnel, and the socket hooks of pods.

use std::io::ErrorKind;
use std::net::{IpAddr, SocketAddr};
use std::thread;
use std::time::Duration;

use anyhow::{Context as _, Result, bail, ensure};
use podnet::config::SocketLb;
use podnet::datapath::view;
use podnet_common::verdict::Counter;
use podnet_tests::cases;
use podnet_tests::lab::policed::{HOST_PORT, PORT, Site, app, policy};
use podnet_tests::lab::{Builder, Lab, Node, Place, Pod, Service, client_ip, eventually, far_ip, vips};
use podnet_tests::traffic::{Ask, Family, Outcome, Transport};
use serde_json::{Value, json};

/// Timeout of a request through the socket hooks that may get no answer.
const SILENCE: Duration = Duration::from_millis(300);

#[test]
fn on_one_link() -> Result<()> {
    cases!(
        site(Lab::builder())?,
        host_ports,
        load_balancer_addresses,
        direct_server_return,
        source_nat,
        pods_and_cluster_ips
    )
}

#[test]
fn through_the_tunnel() -> Result<()> {
    cases!(
        site(Lab::builder().routed(true))?,
        host_ports,
        load_balancer_addresses,
        direct_server_return,
        source_nat,
        pods_and_cluster_ips,
        packets_go_through_the_tunnel
    )
}

#[test]
fn through_the_socket_hooks() -> Result<()> {
    let site = site(Lab::builder().config(|_, config| config.socket_lb = SocketLb::All))?;
    cases!(site, pods_and_cluster_ips, sockets_of_pods)
}

/// Two machines outside, which send packets for load balancer addresses to node1.
fn site(lab: Builder) -> Result<Site> {
    let site = Site::new(lab.client(true).far(true))?;
    let lab = &site.lab;
    [lab.client(), lab.fabric()].into_iter().try_for_each(|machine| lab.route_vips(machine, lab.node(0)))?;
    Ok(site)
}

/// A client, and the address as which servers see it.
type Seen<'a> = (&'a Place, fn(&Site, Family) -> IpAddr);

fn node1_ip(site: &Site, family: Family) -> IpAddr {
    site.lab.node(0).ip(family)
}

/// A path to a pod: the address to which clients send, IPv4 and IPv6.
struct Path<'a> {
    name: String,
    to: [SocketAddr; 2],
    server: &'a Pod,
}

impl<'a> Path<'a> {
    fn new(name: &str, server: &'a Pod, to: impl Fn(Family) -> SocketAddr) -> Self {
        Self { name: format!("{name} of {}", server.name()), to: Family::ALL.map(to), server }
    }

    /// The ways from outside to a service with this backend, through node1.
    fn through_node1(site: &Site, service: &Service, server: &'a Pod) -> Result<[Self; 2]> {
        let vip = service.ingress(Family::V4).zip(service.ingress(Family::V6)).context("no load balancer address")?;
        let vips: [IpAddr; 2] = vip.into();
        Ok([
            Self::new("load balancer address", server, |family| (vips[family as usize], service.port()).into()),
            Self::new("NodePort", server, |family| service.at(site.lab.node(0), family)),
        ])
    }

    /// All these clients get answers.
    fn answers(&self, clients: &[&Place]) -> Result<()> {
        self.each(clients, |client, transport, to, _| {
            client.reaches(transport, to, &[self.server.name()])?;
            Ok(())
        })
    }

    /// All these clients get answers, and the server sees each as `seen`.
    fn answers_as(&self, clients: &[Seen<'_>], site: &Site) -> Result<()> {
        clients.iter().try_for_each(|(client, seen)| {
            self.each(&[client], |client, transport, to, family| {
                client.expect(transport, to, &Outcome::answer(self.server.name(), seen(site, family)))
            })
        })
    }

    /// None of these clients gets an answer, and these nodes count their packets as dropped for this reason.
    fn denies(&self, clients: &[&Place], reason: &str, nodes: &[&Node]) -> Result<()> {
        let before = dropped(nodes, reason)?;
        self.each(clients, |client, transport, to, _| client.expect(transport, to, &Outcome::Silence))?;
        let (count, requests) = (dropped(nodes, reason)? - before, clients.len() as u64 * 4);
        ensure!(count >= requests, "{}: {count} packets of {requests} requests are counted as {reason}", self.name);
        Ok(())
    }

    /// Sends requests of all these clients, over both families and transports, at the same time.
    fn each(
        &self,
        clients: &[&Place],
        request: impl Fn(&Place, Transport, SocketAddr, Family) -> Result<()> + Sync,
    ) -> Result<()> {
        let request = &request;
        let outcomes: Vec<_> = thread::scope(|scope| {
            let one = |client: &'_ Place| {
                let client = client.clone();
                Transport::over_all()
                    .map(|(family, transport)| {
                        let (client, to) = (client.clone(), self.to[family as usize]);
                        scope.spawn(move || request(&client, transport, to, family))
                    })
                    .collect::<Vec<_>>()
            };
            let running: Vec<_> = clients.iter().flat_map(|client| one(client)).collect();
            running.into_iter().map(|thread| thread.join().expect("a request does not panic")).collect()
        });
        outcomes.into_iter().collect::<Result<()>>().with_context(|| self.name.clone())
    }
}

/// Packets that these nodes have dropped for this reason.
fn dropped(nodes: &[&Node], reason: &str) -> Result<u64> {
    nodes.iter().map(|node| Ok(node.drops()?.get(reason).copied().unwrap_or(0))).sum()
}

/// `ipBlock` peers with these addresses only.
fn blocks(ip: impl Fn(Family) -> IpAddr) -> [Value; 2] {
    Family::ALL.map(|family| {
        let length = if family == Family::V4 { 32 } else { 128 };
        json!({"ipBlock": {"cidr": format!("{}/{length}", ip(family))}})
    })
}

/// The pods `web` accept connections from these peers only.
fn web_accepts(site: &Site, peers: &[Value]) -> Result<()> {
    site.apply(&[policy("web", "web", json!({"ingress": [{"from": peers}]}))])
}

/// The friends on both nodes, and the strangers.
fn peers(site: &Site) -> [[&Place; 2]; 2] {
    [[&site.friend, &site.far_friend], [&site.stranger, &site.far_stranger]].map(|pods| pods.map(|pod| &pod.place))
}

/// On each of these paths, only the clients that the policy names get through: two machines outside, and these pods.
fn real_clients_count(site: &Site, paths: &[Path<'_>], friends: &[&Place], strangers: &[&Place]) -> Result<()> {
    let (client, far) = ([site.lab.client()], [site.lab.far()]);
    let each = |allowed: &[&[&Place]], denied: &[&[&Place]]| {
        paths.iter().try_for_each(|path| {
            path.answers(&allowed.concat())?;
            path.denies(&denied.concat(), "policy_ingress", &[path.server.node()])
        })
    };
    site.apply(&[])?;
    each(&[&client, &far, friends, strangers], &[]).context("no policy")?;
    web_accepts(site, &blocks(client_ip))?;
    each(&[&client], &[&far, friends, strangers]).context("the client's block")?;
    web_accepts(site, &[&blocks(far_ip)[..], &[app("friend")]].concat())?;
    each(&[&far, friends], &[&client, strangers]).context("another block, and pods")
}

fn host_ports(site: &Site) -> Result<()> {
    let path = |web| Path::new("hostPort", web, |family| (Pod::node(web).ip(family), HOST_PORT).into());
    let [friends, strangers] = peers(site);
    real_clients_count(site, &[path(&site.web), path(&site.far_web)], &friends, &strangers)
}

fn load_balancer_addresses(site: &Site) -> Result<()> {
    let mut paths = Vec::new();
    for (number, mode) in (1..).zip(["auto", "preserve"]) {
        let service =
            Service::new(mode, 20 + number, 80, PORT).load_balancer(&vips(number), 30_020 + u16::from(number));
        service.apply(&site.lab, Some(mode))?;
        service.set_endpoints(&site.lab, &[&site.web])?;
        paths.extend(Path::through_node1(site, &service, &site.web)?);
    }
    let [friends, strangers] = peers(site);
    real_clients_count(site, &paths, &friends, &strangers)
}

/// Clients send to node1, the backend on node2 answers, except pods of node2 that ask at node1's address: there the
/// node is the client.
fn direct_server_return(site: &Site) -> Result<()> {
    let service = Service::new("direct", 30, 80, PORT).load_balancer(&vips(10), 30_030);
    service.apply(&site.lab, Some("preserve"))?;
    service.set_endpoints(&site.lab, &[&site.far_web])?;
    let [vip, node_port] = Path::through_node1(site, &service, &site.far_web)?;
    let (client, far): (Seen<'_>, Seen<'_>) =
        ((site.lab.client(), |_, family| client_ip(family)), (site.lab.far(), |_, family| far_ip(family)));
    site.apply(&[])?;
    [&vip, &node_port].into_iter().try_for_each(|path| path.answers_as(&[client, far], site))?;
    let [friends, strangers] = peers(site);
    real_clients_count(site, std::slice::from_ref(&vip), &friends, &strangers)?;
    real_clients_count(site, std::slice::from_ref(&node_port), &friends[..1], &strangers[..1])?;
    node_port.denies(&friends[1..], "policy_ingress", &[site.lab.node(1)])?;
    web_accepts(site, &blocks(|family| site.lab.node(0).ip(family)))?;
    let others = [client.0, far.0, friends[0]];
    [&vip, &node_port].into_iter().try_for_each(|path| path.denies(&others, "policy_ingress", &[site.lab.node(1)]))?;
    node_port.answers_as(&[(friends[1], node1_ip)], site)
}

/// The node of the client translates its address. If the backend is on the same node, the client counts, and on
/// another, the client's node.
fn source_nat(site: &Site) -> Result<()> {
    let services = [(40, "near", &site.web), (41, "away", &site.far_web)].map(|(number, name, web)| {
        let service = Service::new(name, number, 80, PORT).load_balancer(&vips(number), 30_000 + u16::from(number));
        service.apply(&site.lab, Some("snat"))?;
        service.set_endpoints(&site.lab, &[web])?;
        Path::through_node1(site, &service, web)
    });
    let [near, away] = services;
    let (near, away) = (near?, away?);
    let [node1, node2] = [site.lab.node(0), site.lab.node(1)];
    let [client, far] = [site.lab.client(), site.lab.far()];
    let [friend, stranger] = [&site.friend.place, &site.stranger.place];
    let all = [client, far, friend, stranger];
    site.apply(&[])?;
    for path in near.iter().chain(&away) {
        path.answers_as(&all.map(|client| -> Seen<'_> { (client, node1_ip) }), site)?;
    }
    web_accepts(site, &[&blocks(client_ip)[..], &[app("friend")]].concat())?;
    for path in &near {
        path.answers_as(&[(client, node1_ip), (friend, node1_ip)], site)?;
        path.denies(&[far, stranger], "policy_ingress", &[node1])?;
    }
    away.iter().try_for_each(|path| path.denies(&all, "policy_ingress", &[node2]))?;
    web_accepts(site, &blocks(|family| node1.ip(family)))?;
    away.iter().try_for_each(|path| path.answers_as(&all.map(|client| -> Seen<'_> { (client, node1_ip) }), site))?;
    near.iter().try_for_each(|path| path.denies(&all, "policy_ingress", &[node1]))?;
    // The client's own policies are evaluated before the translation.
    let spec = json!({"policyTypes": ["Egress"], "egress": [{"to": [app("web")]}]});
    let nothing = json!({"policyTypes": ["Egress"]});
    site.apply(&[policy("friend", "friend", spec), policy("stranger", "stranger", nothing)])?;
    near.iter().chain(&away).try_for_each(|path| {
        path.answers(&[friend, client])?;
        path.denies(&[stranger], "policy_egress", &[node1])
    })
}

/// Each of these pods as backend of a service, with the paths to it: its own address and the ClusterIP.
fn with_services<'a>(site: &Site, pods: [&'a Pod; 4]) -> Result<Vec<Path<'a>>> {
    let mut paths = Vec::new();
    for (number, pod) in (50..).zip(pods) {
        let service = Service::new(pod.name(), number, 80, PORT);
        service.apply(&site.lab, None)?;
        service.set_endpoints(&site.lab, &[pod])?;
        paths.push(Path::new("address", pod, |family| pod.addr(family, PORT)));
        paths.push(Path::new("ClusterIP", pod, |family| service.addr(family)));
    }
    Ok(paths)
}

/// From pods to those of their own node and of the other one, with policies for either end and for both.
fn pods_and_cluster_ips(site: &Site) -> Result<()> {
    let paths = with_services(site, [&site.web, &site.far_web, &site.stranger, &site.far_stranger])?;
    let (to_web, to_strangers) = paths.split_at(4);
    let [friends, strangers] = peers(site);
    let nodes = [site.lab.node(0), site.lab.node(1)].map(|node| &**node);
    site.apply(&[])?;
    paths.iter().try_for_each(|path| path.answers(&friends))?;
    to_web.iter().try_for_each(|path| path.answers(&strangers))?;
    web_accepts(site, &[app("friend")])?;
    to_web.iter().try_for_each(|path| {
        path.answers(&friends)?;
        path.denies(&strangers, "policy_ingress", &[path.server.node()])
    })?;
    let egress = policy("friend", "friend", json!({"policyTypes": ["Egress"], "egress": [{"to": [app("web")]}]}));
    site.apply(std::slice::from_ref(&egress))?;
    to_web.iter().try_for_each(|path| path.answers(&friends))?;
    to_strangers.iter().try_for_each(|path| path.denies(&friends, "policy_egress", &nodes))?;
    // One end allows it, the other does not.
    let ingress = policy("web", "web", json!({"ingress": [{"from": [app("stranger")]}]}));
    site.apply(&[egress, ingress])?;
    to_web.iter().try_for_each(|path| {
        path.answers(&strangers)?;
        path.denies(&friends, "policy_ingress", &[path.server.node()])
    })
}

/// Flows of the cases before this one.
fn packets_go_through_the_tunnel(site: &Site) -> Result<()> {
    for node in site.lab.nodes() {
        let flows = node.podnet_json(&["conntrack", "list"])?;
        let mut ways = flows.as_array().context("no list")?.iter().map(|flow| &flow["egress"]);
        ensure!(ways.any(|way| way == "tunnel"), "{}: {flows}", node.name());
    }
    Ok(())
}

/// TCP, and UDP with and without connecting the socket, from ports that the kernel chooses: the socket hooks of pods
/// translate all but connected UDP.
fn sockets_of_pods(site: &Site) -> Result<()> {
    let paths = with_services(site, [&site.web, &site.far_web, &site.stranger, &site.far_stranger])?;
    let cluster_ips: Vec<_> = paths.iter().skip(1).step_by(2).collect();
    let (to_web, to_strangers) = cluster_ips.split_at(2);
    let friends = [&site.friend, &site.far_friend];
    let strangers = [&site.stranger, &site.far_stranger];
    site.apply(&[])?;
    cluster_ips.iter().try_for_each(|path| socket_requests(path, &friends, true))?;
    let egress = policy("friend", "friend", json!({"policyTypes": ["Egress"], "egress": [{"to": [app("web")]}]}));
    let ingress = policy("web", "web", json!({"ingress": [{"from": [app("friend")]}]}));
    site.apply(&[egress, ingress])?;
    let nodes = [site.lab.node(0), site.lab.node(1)].map(|node| &**node);
    let before = dropped(&nodes, "policy_egress")?;
    to_strangers.iter().try_for_each(|path| socket_requests(path, &friends, false))?;
    ensure!(dropped(&nodes, "policy_egress")? >= before + 24, "fewer packets than requests are counted");
    let before = dropped(&nodes, "policy_ingress")?;
    to_web.iter().try_for_each(|path| {
        socket_requests(path, &friends, true)?;
        socket_requests(path, &strangers, false)
    })?;
    ensure!(dropped(&nodes, "policy_ingress")? >= before + 24, "fewer packets than requests are counted");
    Ok(())
}

/// Requests of pods, which are answered, or none of which is.
fn socket_requests(path: &Path<'_>, clients: &[&Pod], answered: bool) -> Result<()> {
    for (client, to) in clients.iter().flat_map(|client| path.to.map(|to| (client, to))) {
        let udp = Ask::new(Transport::Udp, to);
        for (kind, ask) in [("TCP", Ask::new(Transport::Tcp, to)), ("UDP", udp.clone()), ("connected", udp.connected())]
        {
            let ask = ask.timeout(SILENCE);
            let translated = || -> Result<u64> {
                let counters = view::open(&client.node().bpffs())?.counters()?;
                Ok([Counter::SocketConnects, Counter::SocketDatagrams].iter().map(|one| counters[*one as usize]).sum())
            };
            let before = translated()?;
            eventually("the outcome", || match ask.from(&client.place) {
                Ok(answer) if answered && answer.server == path.server.name() => Ok(()),
                Err(error) if !answered && error.kind() == ErrorKind::TimedOut => Ok(()),
                outcome => bail!("{outcome:?}"),
            })
            .with_context(|| format!("{kind} from {} to {}, {to}", client.name(), path.name))?;
            ensure!(kind == "connected" || translated()? > before, "{kind} to {to} is not translated at the socket");
        }
    }
    Ok(())
}
