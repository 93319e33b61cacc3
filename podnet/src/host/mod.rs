//! Host networking: everything that the daemon reads from and sets up in the node's network besides the datapath.
//!
//! Data flows in one direction: [`Host::snapshot`] reads links, addresses, routes and neighbours into plain values,
//! pure functions ([`uplinks::find`], [`podnet0`], [`routes`]) decide from them, and [`Host`] carries out the resulting
//! steps. Nothing here keeps state between calls: each `ensure` or `sync` compares the actual state with the desired
//! one and changes only the difference, so that a restarted daemon adopts its predecessor's setup while traffic flows.
//!
//! This is the only module of the crate that speaks netlink. It deliberately doesn't touch addresses and routes of pods
//! (the plugin's), firewall rules (read and reported, never written), and sysctls that podnet doesn't need.

mod diag;
mod error;
mod families;
pub mod firewall;
mod lookup;
mod messages;
mod names;
mod netconf;
mod next_hops;
mod output;
pub mod podnet0;
pub mod ports;
mod raw;
pub mod routes;
pub mod settings;
pub mod snapshot;
pub mod sysctl;
pub mod tunnel;
mod tunnel_device;
pub mod uplinks;
pub mod watch;

use std::net::IpAddr;

use futures::{StreamExt as _, TryStreamExt as _};
use netlink_packet_route::address::AddressScope;
use netlink_packet_route::link::{InfoData, InfoVeth};
use netlink_packet_route::neighbour::{NeighbourFlags, NeighbourState};
use netlink_packet_route::route::{RouteMessage, RouteProtocol, RouteType};
use netlink_packet_route::rule::{RuleAction, RuleAttribute, RuleMessage};
use netlink_packet_route::{AddressFamily, RouteNetlinkMessage};
use podnet_cni::mac;
use podnet_common::addr::IfIndex;
use podnet_common::layout::MARK_DONE;
use rtnetlink::proto::ConnectionHandle;
use rtnetlink::{IpVersion, LinkMessageBuilder, LinkUnspec, LinkVeth, RouteMessageBuilder};
use tokio::task::JoinHandle;

pub use error::HostError;
pub use families::Families;
pub use names::ROUTE_PROTOCOL;
pub use output::OutputRoute;
pub use podnet0::{Podnet0, Wanted as Podnet0Wanted};
pub use routes::{NodeNetwork, NodeRoutes, RemoteNode};
pub use snapshot::{Link, Snapshot};
pub use uplinks::{Uplink, Uplinks};

use error::errno;
use next_hops::NextHops;
use raw::Raw;
use routes::{NextHop, RouteSpec, RouteStep};
use snapshot::Table;
use sysctl::Sysctl;

/// Number of concurrent route requests to the kernel.
const REQUESTS: usize = 64;

/// Netlink connections into the network namespace of the thread that opened them.
#[derive(Debug)]
pub struct Host {
    handle: rtnetlink::Handle,
    /// For messages that the first connection doesn't support.
    raw: ConnectionHandle<Raw>,
    connections: JoinHandle<()>,
    sysctl: Sysctl,
}

impl Drop for Host {
    fn drop(&mut self) {
        self.connections.abort();
    }
}

impl Host {
    /// Opens the connections; they live on the current tokio runtime.
    pub fn open() -> Result<Self, HostError> {
        let (connection, handle, _) = rtnetlink::new_connection().map_err(HostError::Socket)?;
        let (of_raw, raw) = raw::connect().map_err(HostError::Socket)?;
        let connections = tokio::spawn(async { _ = futures::join!(connection, of_raw) });
        Ok(Self { handle, raw, connections, sysctl: Sysctl::default() })
    }

    /// The same with sysctls elsewhere than at `/proc/sys`.
    pub fn with_sysctl(mut self, sysctl: Sysctl) -> Self {
        self.sysctl = sysctl;
        self
    }

    /// Reads links, addresses, routes of the main table and neighbours.
    pub async fn snapshot(&self) -> Result<Snapshot, HostError> {
        let links = read("links", raw::dump(&self.raw, Raw::links()), |raw| match raw.parse()? {
            RouteNetlinkMessage::NewLink(message) => messages::link(message),
            _ => None,
        });
        let links = links.await?;
        let addresses = read("addresses", raw::dump(&self.raw, Raw::addresses()), |raw| match raw.parse()? {
            RouteNetlinkMessage::NewAddress(message) => messages::address(message),
            _ => None,
        });
        let addresses = addresses.await?;
        let (mut routes, mut local_routes) = (Vec::new(), Vec::new());
        // Read first: the watcher reports objects created later.
        let next_hops = read("next hops", raw::dump(&self.raw, next_hops::request()), Some).await?;
        let next_hops = NextHops::of(&next_hops);
        for family in [AddressFamily::Inet, AddressFamily::Inet6] {
            let mut query = RouteMessage::default();
            query.header.address_family = family;
            let convert = |message| match messages::local_route(&message) {
                Some(local) => Some(Err(local)),
                None => messages::route(message, |id| next_hops.get(id)).map(Ok),
            };
            for route in read("routes", self.handle.route().get(query).execute(), convert).await? {
                match route {
                    Ok(route) => routes.push(route),
                    Err(local) => local_routes.push(local),
                }
            }
        }
        let (main, services): (Vec<_>, Vec<_>) = routes.into_iter().partition(|(table, _)| *table == Table::Main);
        let [routes, service_routes] =
            [main, services].map(|routes| routes.into_iter().map(|(_, route)| route).collect());
        let (v4, v6) = (self.service_rules(true).await?, self.service_rules(false).await?);
        let service_rules = Families { v4: !v4.is_empty(), v6: !v6.is_empty() };
        let neighbours = read("neighbours", self.handle.neighbours().get().execute(), messages::neighbour).await?;
        Ok(Snapshot { links, addresses, routes, local_routes, service_routes, service_rules, neighbours })
    }

    /// The rules of a family that lead to podnet's own table: at most one.
    async fn service_rules(&self, v4: bool) -> Result<Vec<RuleMessage>, HostError> {
        let family = if v4 { IpVersion::V4 } else { IpVersion::V6 };
        let own = |rule: RuleMessage| messages::is_service_rule(&rule).then_some(rule);
        read("rules", self.handle.rule().get(family).execute(), own).await
    }

    /// Creates or adopts podnet0 and podnet1, and brings them into line with `wanted`.
    ///
    /// A correct pair is left untouched, since traffic flows over it. The snapshot must be current; it is replaced by a
    /// new one if the pair is created.
    pub async fn ensure_podnet0(&self, snapshot: &mut Snapshot, wanted: &Podnet0Wanted) -> Result<Podnet0, HostError> {
        let created = match podnet0::examine(snapshot, wanted.families())? {
            podnet0::Pair::Right => false,
            podnet0::Pair::Missing => {
                self.create_pair().await?;
                true
            }
            podnet0::Pair::Broken(ifindex) => {
                self.delete_link(ifindex, podnet0::NEAR).await?;
                self.create_pair().await?;
                true
            }
        };
        if created {
            *snapshot = self.snapshot().await?;
        }
        let near = snapshot.link(podnet0::NEAR).ok_or(HostError::Vanished { name: podnet0::NEAR })?;
        let far = snapshot.link(podnet0::FAR).ok_or(HostError::Vanished { name: podnet0::FAR })?;
        let (steps, mut problems) = podnet0::plan(snapshot, near, far, wanted);
        // Before the interface comes up: it must not get a link-local address.
        let settings = settings::podnet0(wanted.families());
        for failure in settings::apply(&self.sysctl, &settings).failed {
            match failure.is_of_ipv6() {
                true => problems.push(failure.into()),
                false => return Err(failure.into()),
            }
        }
        let changed = created || !steps.is_empty();
        // Routes and rules come last, don't depend on each other, and may be many. A rejected one (a rule, if the
        // kernel supports a single table only) is reported as a problem of its own, so that no object can prevent the
        // setup of the node.
        let (ways, first): (Vec<_>, Vec<_>) = steps.iter().partition(|step| step.is_way());
        for step in first {
            match self.podnet0_step(step).await {
                // IPv6 may be disabled on the host, which doesn't affect IPv4.
                Err(error) if step.is_of_ipv6() => problems.push(error),
                result => result?,
            }
        }
        let done = futures::stream::iter(ways.into_iter().map(|step| self.podnet0_step(step)));
        let failed = done.buffer_unordered(REQUESTS).filter_map(|result| std::future::ready(result.err()));
        problems.extend(failed.collect::<Vec<_>>().await);
        Ok(Podnet0 {
            near: near.ifindex,
            far: far.ifindex,
            near_mac: near.mac.unwrap_or_default(),
            far_mac: far.mac.unwrap_or_default(),
            created,
            changed,
            problems,
        })
    }

    /// Removes podnet0 and podnet1 with all routes over them. True if there was anything to remove.
    pub async fn remove_podnet0(&self) -> Result<bool, HostError> {
        let snapshot = self.snapshot().await?;
        for v4 in [true, false] {
            self.remove_service_rule(v4).await?;
        }
        match podnet0::examine(&snapshot, Families::default())? {
            podnet0::Pair::Missing => Ok(false),
            podnet0::Pair::Broken(ifindex) => self.delete_link(ifindex, podnet0::NEAR).await.map(|()| true),
            podnet0::Pair::Right => {
                let ifindex = snapshot.link(podnet0::NEAR).map(|l| l.ifindex).unwrap_or_default();
                self.delete_link(ifindex, podnet0::NEAR).await.map(|()| true)
            }
        }
    }

    /// Creates the tunnel's device if some nodes need it, without setting it up: the programs that check its packets
    /// must be attached first. The snapshot is replaced by a new one if the device is new.
    pub async fn prepare_tunnel(&self, snapshot: &mut Snapshot, network: &NodeNetwork<'_>) -> tunnel::Prepared {
        let (peers, errors) = routes::tunnel_peers(snapshot, network);
        let mut prepared = tunnel::Prepared { errors, ..tunnel::Prepared::default() };
        if let (false, Some(&local)) = (peers.is_empty(), network.addresses.first()) {
            let mtu = tunnel::mtu(network.mtu, local);
            let wanted = tunnel::Wanted { mac: tunnel::mac_of(network.name), local, mtu, peers };
            match self.make_tunnel(snapshot, &wanted, Families::of(network.addresses), &mut prepared.errors).await {
                Ok(made) => prepared.tunnel = Some(made),
                Err(e) => prepared.errors.push(e),
            }
            prepared.wanted = Some(wanted);
        }
        prepared
    }

    /// Brings the routes to other nodes' pods and for this node's, and the prepared tunnel, into line with the current
    /// nodes, and triggers resolution of unknown MACs.
    ///
    /// Continues after errors, which are part of the result. The snapshot must include podnet0 if it exists.
    pub async fn sync_node_routes(
        &self,
        snapshot: &Snapshot,
        network: &NodeNetwork<'_>,
        prepared: tunnel::Prepared,
    ) -> Result<NodeRoutes, HostError> {
        let tunnel::Prepared { tunnel, wanted, mut errors } = prepared;
        if let (Some(_), Some(wanted)) = (tunnel, &wanted) {
            self.fill_tunnel(snapshot, wanted, &mut errors).await.unwrap_or_else(|e| errors.push(e));
        }
        let mut plan = routes::plan(snapshot, network, tunnel);
        plan.result.errors = errors;
        for step in &plan.steps {
            match self.route_step(step).await {
                Ok(()) => plan.result.changed += 1,
                Err(e) => plan.result.errors.push(e),
            }
        }
        for address in plan.result.addresses.iter().filter(|address| address.mac.is_none()) {
            let Some(dev) = address.dev else { continue };
            match self.resolve(dev, address.addr).await {
                Ok(()) => {}
                // A full table has no room for the others either.
                Err(e @ HostError::NeighboursFull) => {
                    plan.result.errors.push(e);
                    break;
                }
                Err(e) => plan.result.errors.push(e),
            }
        }
        if wanted.is_none()
            && let Ok(Some((link, _))) = tunnel::own(snapshot)
            && let Err(e) = self.delete_link(link.ifindex, tunnel::NAME).await
        {
            plan.result.errors.push(e);
        }
        Ok(plan.result)
    }

    /// Removes all of these routes and the tunnel. Returns how many routes there were.
    pub async fn remove_node_routes(&self) -> Result<usize, HostError> {
        let nothing = tunnel::Prepared::default();
        let result = self.sync_node_routes(&self.snapshot().await?, &NodeNetwork::default(), nothing).await?;
        match result.errors.into_iter().next() {
            Some(e) => Err(e),
            None => Ok(result.changed),
        }
    }

    /// Triggers the kernel's resolution of a neighbour's MAC, as a packet to it would.
    async fn resolve(&self, dev: IfIndex, addr: IpAddr) -> Result<(), HostError> {
        self.handle
            .neighbours()
            .add(dev.0, addr)
            .state(NeighbourState::None)
            .flags(NeighbourFlags::Use)
            .replace()
            .execute()
            .await
            .map_err(|source| match errno(&source) {
                Some(libc::ENOBUFS) => HostError::NeighboursFull,
                _ => HostError::Change { action: format!("resolve the MAC of {addr}"), source },
            })
    }

    /// Creates the pair with MACs chosen by podnet, since udev would later replace random ones of the kernel.
    async fn create_pair(&self) -> Result<(), HostError> {
        let mac = || mac::random().map(|mac| mac.0.to_vec()).map_err(HostError::Random);
        let far = LinkMessageBuilder::<LinkUnspec>::new().name(podnet0::FAR).address(mac()?).build();
        let pair = LinkMessageBuilder::<LinkVeth>::new(podnet0::NEAR, podnet0::FAR)
            .address(mac()?)
            .set_info_data(InfoData::Veth(InfoVeth::Peer(far)))
            .build();
        self.handle.link().add(pair).execute().await.map_err(|source| HostError::Change {
            action: format!("create the veth pair {} and {}", podnet0::NEAR, podnet0::FAR),
            source,
        })
    }

    async fn delete_link(&self, ifindex: IfIndex, name: &str) -> Result<(), HostError> {
        self.handle
            .link()
            .del(ifindex.0)
            .execute()
            .await
            .map_err(|source| HostError::Change { action: format!("delete interface {name}"), source })
    }

    async fn podnet0_step(&self, step: &podnet0::Step) -> Result<(), HostError> {
        let done = match step {
            podnet0::Step::Mtu { dev, mtu } => {
                let link = LinkUnspec::new_with_index(dev.0).mtu(*mtu).build();
                self.handle.link().set(link).execute().await
            }
            podnet0::Step::NoController { dev } => {
                let link = LinkUnspec::new_with_index(dev.0).nocontroller().build();
                self.handle.link().set(link).execute().await
            }
            podnet0::Step::Up { dev } => {
                let link = LinkUnspec::new_with_index(dev.0).up().build();
                self.handle.link().set(link).execute().await
            }
            podnet0::Step::Address { dev } => {
                let mut request = self.handle.address().add(dev.0, podnet0::ADDRESS.into(), 32);
                request.message_mut().header.scope = AddressScope::Link;
                request.execute().await
            }
            podnet0::Step::Neighbour { dev, addr, mac } => {
                let neighbours = self.handle.neighbours();
                neighbours.add(dev.0, *addr).link_layer_address(&mac.0).replace().execute().await
            }
            podnet0::Step::Route(step) => return self.route_step(step).await,
            podnet0::Step::Rule { v4 } => self.add_service_rule(*v4).await,
            podnet0::Step::NoRule { v4 } => return self.remove_service_rule(*v4).await,
        };
        done.map_err(|source| HostError::Change { action: step.to_string(), source })
    }

    /// Leads look-ups of the host's own sockets to podnet's table first: ip-rule(8) matches locally sent packets by
    /// "from lo".
    async fn add_service_rule(&self, v4: bool) -> Result<(), rtnetlink::Error> {
        let rule = self.handle.rule().add().input_interface("lo").table_id(Table::SERVICES).priority(Table::SERVICES);
        let mut rule = rule.action(RuleAction::ToTable).fw_mark(0);
        // The look-up of `bpf_redirect_neigh` also counts as local, and would lead to podnet0 again.
        rule.message_mut().attributes.push(RuleAttribute::FwMask(MARK_DONE));
        if v4 { rule.v4().execute().await } else { rule.v6().execute().await }
    }

    async fn remove_service_rule(&self, v4: bool) -> Result<(), HostError> {
        for rule in self.service_rules(v4).await? {
            let action = podnet0::Step::NoRule { v4 }.to_string();
            let removed = self.handle.rule().del(rule).execute().await;
            removed.map_err(|source| HostError::Change { action, source })?;
        }
        Ok(())
    }

    async fn route_step(&self, step: &RouteStep) -> Result<(), HostError> {
        let routes = self.handle.route();
        let done = match step {
            RouteStep::Add(spec) => match routes.add(route_message(spec)).execute().await {
                Err(e) if errno(&e) == Some(libc::EEXIST) => return Err(HostError::ForeignRoute { dst: spec.dst }),
                other => other,
            },
            RouteStep::Replace(spec) => routes.add(route_message(spec)).replace().execute().await,
            // A missing route counts as removed: the kernel removes routes along with their link or source address.
            RouteStep::Remove(spec) => match routes.del(route_message(spec)).execute().await {
                Err(e) if errno(&e) == Some(libc::ESRCH) => Ok(()),
                other => other,
            },
        };
        done.map_err(|source| HostError::Change { action: step.to_string(), source })
    }
}

/// Collects a dump, skipping entries for which `convert` returns `None`.
async fn read<M, T>(
    what: &'static str,
    messages: impl futures::Stream<Item = Result<M, rtnetlink::Error>>,
    convert: impl Fn(M) -> Option<T>,
) -> Result<Vec<T>, HostError> {
    let result: Result<Vec<M>, _> = messages.try_collect().await;
    match result {
        Ok(messages) => Ok(messages.into_iter().filter_map(convert).collect()),
        // A kernel without the family (IPv6, for example) has nothing to dump.
        Err(e) if matches!(errno(&e), Some(libc::EOPNOTSUPP | libc::EAFNOSUPPORT)) => Ok(Vec::new()),
        Err(source) => Err(HostError::Read { what, source }),
    }
}

fn route_message(spec: &RouteSpec) -> RouteMessage {
    let mut builder = RouteMessageBuilder::<IpAddr>::new()
        .destination_prefix(spec.dst.network(), spec.dst.prefix())
        .expect("an IpNetwork's prefix is no longer than its address")
        .protocol(RouteProtocol::from(ROUTE_PROTOCOL))
        .table_id(spec.table.id());
    builder = match spec.to {
        Some(NextHop { via, dev }) => {
            let builder = builder.gateway(via).expect("the gateway of a RouteSpec is of its destination's family");
            builder.output_interface(dev.0).onlink()
        }
        // Lowest priority, so that routes of other programs to the same destination take precedence.
        None => builder.kind(RouteType::Unreachable).priority(u32::MAX),
    };
    if let Some(source) = spec.source {
        builder = builder.pref_source(source).expect("the source of a RouteSpec is of its destination's family");
    }
    builder.build()
}
