//! The datapath seen from user space: loading, pins, tables, collection. The only part of this crate that uses aya.

pub mod affinity;
pub mod batch;
pub mod btf;
mod cgroup;
pub mod conntrack;
mod counts;
mod features;
mod fib;
mod holders;
mod instructions;
mod kernel;
mod link;
pub mod live;
pub mod loader;
mod moves;
mod object;
mod origins;
mod service_tables;
mod sizes;
pub mod sockets;
pub mod uplink_xdp;
pub mod view;

pub use counts::Counts;
pub use features::socket_errno;
pub use holders::Hurry;
pub use loader::{Loaded, Opened};
pub use service_tables::ServiceTables;
pub use sizes::Sizes;

use std::{
    collections::{BTreeMap, BTreeSet},
    io,
    os::fd::{AsFd, AsRawFd, BorrowedFd, RawFd},
    path::Path,
    time::Instant,
};

use aya::{
    Ebpf,
    maps::{Array, HashMap, IterableMap as _, LpmTrie, Map, MapData, MapError, RingBuf, lpm_trie::Key},
};
use aya_log::EbpfLogger;
use podnet_cni::datapath::{DatapathError, Direction, Endpoints, PinDir, Plain, attach_tc, detach_tc};
use podnet_cni::text::chain;
use podnet_common::{
    addr::{Addr, IfIndex, Mac},
    layout::{
        Config, Event, Hook, Interface, Network, NetworkKind, Peer, Prefix,
        tables::{self, Table},
    },
    time,
};
use thiserror::Error;
use tokio::io::unix::AsyncFd;

pub use podnet_cni::datapath::netns_cookie;

use crate::config::Xdp;
use crate::reconcile::Tables as _;
use crate::room::Room;
use moves::Moves;
use origins::Origins;

/// What can go wrong.
#[derive(Debug, Error)]
pub enum Error {
    /// Loading.
    #[error(transparent)]
    Load(#[from] loader::LoadError),
    /// The object lacks a map, or it is of another kind.
    #[error("the table {name} is not as this podnet expects it: {}; build daemon and eBPF object together", chain(.source))]
    Shape {
        /// Which.
        name: &'static str,
        /// Why.
        source: MapError,
    },
    /// The object lacks a map.
    #[error("the eBPF object has no table {0}; build daemon and eBPF object together")]
    Missing(&'static str),
    /// A table refused an operation.
    #[error("cannot {operation} in the table {name}: {}", chain(.source))]
    Table {
        /// What was tried.
        operation: &'static str,
        /// Which table.
        name: &'static str,
        /// Why.
        source: MapError,
    },
    /// A table refused an operation on many entries.
    #[error("cannot {operation} the table {name}: {source}")]
    Batch {
        /// What was tried.
        operation: &'static str,
        /// Which table.
        name: &'static str,
        /// Why.
        source: io::Error,
    },
    /// Collection.
    #[error("cannot collect what is over: {0}")]
    Collect(io::Error),
    /// The programs' log.
    #[error("cannot read what the programs log: {}", chain(.0))]
    Log(aya_log::Error),
    /// Attaching to an interface.
    #[error(transparent)]
    Attach(#[from] DatapathError),
    /// Socket hooks.
    #[error(transparent)]
    Socket(#[from] sockets::SocketError),
    /// Detaching socket hooks.
    #[error("cannot detach the socket hooks: {0}")]
    SocketDetach(io::Error),
}

/// An interface that leads out of the node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct UplinkHook {
    /// Its name.
    pub name: String,
    /// Its index.
    pub ifindex: IfIndex,
    /// Whether its frames begin with the IP header.
    pub raw: bool,
    /// Whether it is to carry an XDP program; `None`: that is out of the question.
    pub xdp: Option<Xdp>,
}

/// A hook, and where on a link it is.
type Side = (Hook, Direction);

/// The TC hooks of an uplink.
const UPLINK_HOOKS: [Side; 2] = [(Hook::FromUplink, Direction::Ingress), (Hook::ToUplink, Direction::Egress)];
/// Those of one whose frames begin with the IP header.
const RAW_HOOKS: [Side; 2] = [(Hook::FromRaw, Direction::Ingress), (Hook::ToRaw, Direction::Egress)];

impl UplinkHook {
    fn sides(&self) -> &'static [Side] {
        if self.raw { &RAW_HOOKS } else { &UPLINK_HOOKS }
    }
}

/// How the hooks of an uplink stand.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct UplinkState {
    /// The uplink's name.
    pub name: String,
    /// Its hooks.
    pub hooks: Vec<HookState>,
}

/// How a hook stands.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HookState {
    /// The hook.
    pub hook: Hook,
    /// How it is attached (or why it need not be), or why it could not be.
    pub how: Result<String, String>,
}

/// The running datapath of this node.
pub struct Datapath {
    ebpf: Ebpf,
    pins: PinDir,
    generation: u32,
    adopted: bool,
    kept: bool,
    origins: Origins,
    /// Tables whose content moves to those of these programs, until it has.
    moves: Option<Moves>,
    started: Instant,
    /// Whether the kernel's look-up of a route tells the source address.
    route_source: bool,
    conntrack_capacity: u32,
    conntrack: MapData,
    holders: MapData,
    clock: Array<MapData, u32>,
    config: Array<MapData, Plain<Config>>,
    /// What `config` holds.
    config_now: Config,
    snat_ports: MapData,
    /// What `snat_ports` holds.
    snat_ports_now: Vec<u16>,
    services: ServiceTables,
    networks: LpmTrie<MapData, Plain<Addr>, Plain<Network>>,
    /// What `networks` holds, once it has been read.
    networks_now: Option<BTreeMap<Prefix, Network>>,
    peers: HashMap<MapData, Plain<Peer>, u32>,
    /// What `peers` holds, once it has been read.
    peers_now: Option<BTreeSet<Mac>>,
    interfaces: HashMap<MapData, Plain<IfIndex>, Plain<Interface>>,
    /// What `interfaces` holds, once it has been read.
    interfaces_now: Option<BTreeMap<IfIndex, Interface>>,
    /// Interfaces that have no other hooks of uplinks than these.
    clear: BTreeMap<IfIndex, &'static [Side]>,
}

impl Datapath {
    /// Adopts the tables that are pinned, or makes them, loads the programs, and makes these the running generation.
    pub fn start(pins: PinDir, sizes: Sizes) -> Result<Self, Error> {
        let (services, opened) = Self::open(pins, sizes)?;
        Self::run(services, opened.load()?)
    }

    /// Adopts or makes the tables only. Loading the programs, if others run, takes the kernel about a second on two
    /// processors, in which one can read what the tables hold.
    pub fn open(pins: PinDir, sizes: Sizes) -> Result<(ServiceTables, Opened), Error> {
        let mut opened = loader::open(loader::built_in()?, &pins, sizes)?;
        Ok((ServiceTables::take(&mut opened.ebpf)?, opened))
    }

    /// The datapath, now that the programs run.
    pub fn run(services: ServiceTables, loaded: Loaded) -> Result<Self, Error> {
        let Loaded { mut ebpf, generation, adopted, kept, origins, moves, pins } = loaded;
        let conntrack = take_data(&mut ebpf, tables::CONNTRACK)?;
        let (snat_ports, holders) = (take_data(&mut ebpf, tables::SNAT_PORTS)?, take_data(&mut ebpf, tables::HOLDERS)?);
        let config: Array<_, Plain<Config>> = take(&mut ebpf, tables::CONFIG)?;
        let config_now =
            config.get(&0, 0).map_err(|source| Error::Table { operation: "read", name: "config", source })?.0;
        let conntrack_capacity = size(tables::CONNTRACK, &conntrack)?;
        Ok(Self {
            clock: take(&mut ebpf, tables::CLOCK)?,
            snat_ports_now: read_ports(&snat_ports, config_now.snat_count)?,
            snat_ports,
            config,
            config_now,
            services,
            networks: take(&mut ebpf, tables::NODES)?,
            networks_now: None,
            peers: take(&mut ebpf, tables::PEERS)?,
            peers_now: None,
            route_source: features::route_source(),
            interfaces: take(&mut ebpf, tables::INTERFACES)?,
            interfaces_now: None,
            clear: BTreeMap::new(),
            conntrack,
            holders,
            conntrack_capacity,
            ebpf,
            pins,
            generation,
            adopted,
            kept,
            origins,
            moves: Some(moves),
            started: Instant::now(),
        })
    }

    /// Where everything is pinned.
    pub fn pins(&self) -> &PinDir {
        &self.pins
    }

    /// The tables of services.
    pub fn tables(&mut self) -> &mut ServiceTables {
        &mut self.services
    }

    /// How large the tables of services are.
    pub fn room(&self) -> Room {
        self.services.capacity()
    }

    /// Number of the running generation of programs.
    pub fn generation(&self) -> u32 {
        self.generation
    }

    /// Whether an earlier daemon's state was taken over.
    pub fn adopted(&self) -> bool {
        self.adopted
    }

    /// Whether its tables were taken over too, which have another layout in other versions.
    pub fn kept_tables(&self) -> bool {
        self.kept
    }

    /// Size of the connection table, which an adopted one keeps whatever the configuration says.
    pub fn conntrack_capacity(&self) -> u32 {
        self.conntrack_capacity
    }

    /// Tells the programs what they need to know of the node. `snat_count` is what [`Self::set_snat_ports`] has made
    /// it, and [`Config::ROUTE_SOURCE`] what the kernel can do.
    pub fn set_config(&mut self, config: &Config) -> Result<(), Error> {
        let known = if self.route_source { Config::ROUTE_SOURCE } else { 0 };
        let flags = config.flags & !Config::ROUTE_SOURCE | known;
        let config = Config { snat_count: self.snat_ports_now.len() as u32, flags, ..*config };
        if config != self.config_now {
            let failed = |source| Error::Table { operation: "write", name: "config", source };
            self.config.set(0, Plain(config), 0).map_err(failed)?;
            self.config_now = config;
        }
        Ok(())
    }

    /// The ports for source NAT, in their places.
    pub fn snat_ports(&self) -> &[u16] {
        &self.snat_ports_now
    }

    /// Gives the programs the ports for source NAT: the places that differ first, then their number.
    pub fn set_snat_ports(&mut self, ports: &[u16]) -> Result<(), Error> {
        let ports = &ports[..ports.len().min(tables::SNAT_PORTS.capacity())];
        let now = &self.snat_ports_now;
        let (places, values): (Vec<u32>, Vec<u32>) = (0u32..)
            .zip(ports)
            .filter(|(place, port)| now.get(*place as usize) != Some(*port))
            .map(|(place, port)| (place, u32::from(*port)))
            .unzip();
        batch::update(self.snat_ports.fd().as_fd(), &places, &values).map_err(|source| Error::Batch {
            operation: "write",
            name: "snat_ports",
            source,
        })?;
        self.snat_ports_now = ports.to_vec();
        self.set_config(&self.config_now.clone())
    }

    /// Makes `nodes` hold exactly these networks: new ones first, so that none is missing meanwhile.
    pub fn set_networks(&mut self, wanted: &BTreeMap<Prefix, Network>) -> Result<(), Error> {
        let failed = |operation| move |source| Error::Table { operation, name: "nodes", source };
        // Put back at the end only: after a failure it is read anew.
        let actual = match self.networks_now.take() {
            Some(actual) => actual,
            None => self.read_networks()?,
        };
        for (prefix, network) in wanted {
            if actual.get(prefix) != Some(network) {
                let key = Key::new(prefix.len, Plain(prefix.addr));
                self.networks.insert(&key, Plain(*network), 0).map_err(failed("write"))?;
            }
        }
        for prefix in actual.keys().filter(|prefix| !wanted.contains_key(prefix)) {
            self.networks.remove(&Key::new(prefix.len, Plain(prefix.addr))).map_err(failed("remove"))?;
        }
        self.networks_now = Some(wanted.clone());
        Ok(())
    }

    fn read_networks(&self) -> Result<BTreeMap<Prefix, Network>, Error> {
        let mut networks = BTreeMap::new();
        let visit = |prefix: &Prefix, network: &Network| {
            networks.insert(*prefix, *network);
        };
        batch::for_each(self.networks.map().fd().as_fd(), visit).map_err(|source| Error::Batch {
            operation: "list",
            name: "nodes",
            source,
        })?;
        Ok(networks)
    }

    /// How many networks there are, as they were set.
    pub fn networks(&self) -> usize {
        self.networks_now.as_ref().map_or(0, BTreeMap::len)
    }

    /// Makes `peers` hold exactly these MACs.
    pub fn set_peers(&mut self, wanted: &BTreeSet<Mac>) -> Result<(), Error> {
        let failed = |operation| move |source| Error::Table { operation, name: "peers", source };
        let actual = match self.peers_now.take() {
            Some(actual) => actual,
            None => {
                let macs = self.peers.keys().map(|key| key.map(|peer| peer.0.mac));
                macs.collect::<Result<BTreeSet<_>, _>>().map_err(failed("list"))?
            }
        };
        let key = |mac: &Mac| Plain(Peer { mac: *mac, ..Peer::default() });
        for mac in wanted.difference(&actual) {
            self.peers.insert(key(mac), 1, 0).map_err(failed("write"))?;
        }
        for mac in actual.difference(wanted) {
            self.peers.remove(&key(mac)).map_err(failed("remove"))?;
        }
        self.peers_now = Some(wanted.clone());
        Ok(())
    }

    /// Makes `interfaces` hold exactly these, or as many as it has room for.
    pub fn set_interfaces(&mut self, wanted: BTreeMap<IfIndex, Interface>) -> Result<(), Error> {
        let failed = |operation| move |source| Error::Table { operation, name: "interfaces", source };
        let wanted: BTreeMap<_, _> = wanted.into_iter().take(tables::INTERFACES.capacity()).collect();
        let actual = match self.interfaces_now.take() {
            Some(actual) => actual,
            None => {
                let entries = self.interfaces.iter().map(|entry| entry.map(|(key, value)| (key.0, value.0)));
                entries.collect::<Result<_, _>>().map_err(failed("list"))?
            }
        };
        for ifindex in actual.keys().filter(|ifindex| !wanted.contains_key(ifindex)) {
            self.interfaces.remove(&Plain(*ifindex)).map_err(failed("remove"))?;
        }
        for (ifindex, interface) in wanted.iter().filter(|(ifindex, interface)| actual.get(ifindex) != Some(interface))
        {
            self.interfaces.insert(Plain(*ifindex), Plain(*interface), 0).map_err(failed("write"))?;
        }
        self.interfaces_now = Some(wanted);
        Ok(())
    }

    /// Attaches the hooks of uplinks, and takes them off `others`, the interfaces that are none. What fails at one
    /// doesn't concern the rest.
    pub fn attach_uplinks(&mut self, uplinks: &[UplinkHook], others: &[IfIndex]) -> Vec<UplinkState> {
        let with_xdp = uplinks.iter().filter(|uplink| uplink.xdp.is_some());
        let names: Vec<&str> = with_xdp.map(|uplink| uplink.name.as_str()).collect();
        if let Err(error) = uplink_xdp::detach_others(&self.pins, &names) {
            tracing::warn!("cannot detach the XDP program of an interface that is to have none: {error}");
        }
        let kept = uplinks.iter().map(|uplink| (uplink.ifindex, uplink.sides()));
        let kept: BTreeMap<IfIndex, &'static [Side]> =
            others.iter().map(|ifindex| (*ifindex, &[][..])).chain(kept).collect();
        self.clear.retain(|ifindex, sides| kept.get(ifindex) == Some(sides));
        for (ifindex, sides) in kept {
            if self.clear.contains_key(&ifindex) {
                continue;
            }
            let mut rest = UPLINK_HOOKS.into_iter().chain(RAW_HOOKS).filter(|side| !sides.contains(side));
            let detached = rest.try_for_each(|(hook, direction)| detach_tc(&self.pins.hook(hook), ifindex, direction));
            match detached {
                Ok(()) => drop(self.clear.insert(ifindex, sides)),
                Err(error) => tracing::warn!("{}", chain(&error)),
            }
        }
        let state = |uplink: &UplinkHook| {
            let tc = uplink.sides().iter().map(|(hook, direction)| {
                let attached = attach_tc(&self.pins.hook(*hook), uplink.ifindex, *direction);
                HookState { hook: *hook, how: attached.map(|()| "tc".to_owned()).map_err(|error| chain(&error)) }
            });
            let xdp = uplink.xdp.map(|xdp| {
                let settled = uplink_xdp::settle(&self.pins, uplink, xdp);
                let how = settled.map(|state| state.to_string()).map_err(|error| chain(&error));
                HookState { hook: Hook::UplinkXdp, how }
            });
            UplinkState { name: uplink.name.clone(), hooks: tc.chain(xdp).collect() }
        };
        uplinks.iter().map(state).collect()
    }

    /// Attaches the hooks of the tunnel, which [`Self::attach_uplinks`] sees to from then on.
    pub fn attach_tunnel(&self, tunnel: IfIndex) -> Result<(), Error> {
        for (hook, direction) in UPLINK_HOOKS {
            attach_tc(&self.pins.hook(hook), tunnel, direction)?;
        }
        Ok(())
    }

    /// Attaches the hooks for packets of host processes: to podnet1 and to the loopback interface.
    pub fn attach_host(&self, podnet1: IfIndex, loopback: IfIndex) -> Result<(), Error> {
        attach_tc(&self.pins.hook(Hook::FromHost), podnet1, Direction::Ingress)?;
        Ok(attach_tc(&self.pins.hook(Hook::FromLoopback), loopback, Direction::Egress)?)
    }

    /// Detaches the hooks of a pod.
    pub fn detach_pod(&self, host_end: IfIndex) -> Result<(), Error> {
        Ok(podnet_cni::datapath::detach_pod(&self.pins, host_end)?)
    }

    /// Attaches or detaches the socket hooks.
    pub fn set_socket_hooks(&mut self, cgroup: Option<&Path>) -> Result<(), Error> {
        match cgroup {
            Some(cgroup) => sockets::attach(&mut self.ebpf, &self.pins, cgroup, &mut self.origins)?,
            None => sockets::detach(&self.pins).map_err(Error::SocketDetach)?,
        }
        // Now no program uses an earlier daemon's tables any more.
        match self.moves.take() {
            Some(moves) => Ok(moves.finish(&self.pins)?),
            None => Ok(()),
        }
    }

    /// Lets the programs see the time, which they otherwise do when a flow begins: packets of established flows only
    /// look at what was last seen.
    pub fn advance_clock(&mut self) -> Result<(), Error> {
        self.clock.set(0, now(), 0).map_err(|source| Error::Table { operation: "write", name: "clock", source })
    }

    /// A sweep of the connection table, to be made where it keeps nobody waiting.
    pub fn sweep(&self, stale: conntrack::Stale, hurry: Hurry) -> Result<conntrack::Sweep, Error> {
        let settled = !self.adopted || self.started.elapsed() > conntrack::SETTLING;
        let duplicate = |table: &MapData| table.fd().as_fd().try_clone_to_owned().map_err(Error::Collect);
        let pins = self.pins.clone();
        let pods = move || {
            let entries = Endpoints::open(&pins).and_then(|endpoints| endpoints.entries()).map_err(io::Error::other)?;
            Ok(entries.into_iter().map(|(addr, endpoint)| (addr.into(), endpoint.ifindex)).collect())
        };
        let networks = |kind: NetworkKind| {
            let all = self.networks_now.iter().flatten();
            all.filter(move |(_, network)| network.kind == kind as u32).map(|(prefix, _)| *prefix)
        };
        Ok(conntrack::Sweep {
            table: duplicate(&self.conntrack)?,
            capacity: self.conntrack_capacity,
            holders: duplicate(&self.holders)?,
            now: settled.then(now),
            stale,
            hurry,
            pods: Box::new(pods),
            node: conntrack::Node {
                addresses: networks(NetworkKind::LocalNode).map(|prefix| prefix.addr).collect(),
                pods: networks(NetworkKind::LocalPods).collect(),
                podnet1: self.config_now.podnet1,
            },
        })
    }

    /// Whether the connection table has been filled by a sixteenth of its size since it had so many entries.
    pub fn is_filling(&self, entries: u32) -> Result<bool, Error> {
        let now = holders::all(self.holders.fd().as_fd()).map_err(Error::Collect)?;
        Ok(now.saturating_sub(entries) > self.conntrack_capacity / 16)
    }

    /// A look for affinities whose time is up, to be made where it keeps nobody waiting.
    pub fn expiry(&self) -> Result<affinity::Expiry, Error> {
        let (affinity, frontends) = self.services.affinity_and_frontends().map_err(Error::Collect)?;
        Ok(affinity::Expiry { affinity, frontends, now: now() })
    }

    /// A reader of what is counted, for any thread.
    pub fn counts(&self) -> Result<counts::Counts, Error> {
        counts::Counts::open(&self.pins)
    }

    /// The reader of what the programs log. There is one.
    pub fn program_log(&mut self) -> Result<ProgramLog, Error> {
        EbpfLogger::init(&mut self.ebpf).map_err(Error::Log)
    }

    /// The reader of dropped packets. There is one.
    pub fn events(&mut self) -> Result<Events, Error> {
        Ok(Events { ring: take(&mut self.ebpf, tables::EVENTS)? })
    }
}

/// What the programs log themselves, where there is no packet that an event could carry.
pub type ProgramLog = EbpfLogger<&'static dyn log::Log>;

/// Dropped packets, as the programs report them.
pub struct Events {
    ring: RingBuf<MapData>,
}

// The descriptor becomes readable when there are some.
impl AsFd for Events {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.ring.as_fd()
    }
}

impl AsRawFd for Events {
    fn as_raw_fd(&self) -> RawFd {
        self.ring.as_fd().as_raw_fd()
    }
}

impl Events {
    /// The next one, if there is one.
    pub fn next_event(&mut self) -> Option<Event> {
        let item = self.ring.next()?;
        bytemuck::try_pod_read_unaligned(&item).ok()
    }
}

/// The datapath's clock, in ticks.
pub fn now() -> u32 {
    // The clock always exists, so this can't fail; zero would only keep flows for longer.
    let ns = nix::time::clock_gettime(nix::time::ClockId::CLOCK_MONOTONIC)
        .map_or(0, |t| t.tv_sec() as u64 * 1_000_000_000 + t.tv_nsec() as u64);
    time::ticks(ns)
}

/// The ports that an earlier daemon has left, in their places.
fn read_ports(table: &MapData, count: u32) -> Result<Vec<u16>, Error> {
    if count == 0 {
        return Ok(Vec::new());
    }
    let ports: Vec<u32> = batch::range(table.fd().as_fd(), 0, count.min(tables::SNAT_PORTS.capacity() as u32))
        .map_err(|source| Error::Batch { operation: "read", name: "snat_ports", source })?;
    Ok(ports.into_iter().map(|port| port as u16).collect())
}

fn take_map(ebpf: &mut Ebpf, table: Table) -> Result<Map, Error> {
    ebpf.take_map(table.map()).ok_or(Error::Missing(table.name()))
}

/// Takes a table out of the loaded object.
fn take<M: TryFrom<Map, Error = MapError>>(ebpf: &mut Ebpf, table: impl Into<Table>) -> Result<M, Error> {
    let table = table.into();
    shaped(table, take_map(ebpf, table)?)
}

/// The same for operations on many entries at once, which don't ask of what kind it is.
fn take_data(ebpf: &mut Ebpf, table: impl Into<Table>) -> Result<MapData, Error> {
    let table = table.into();
    match take_map(ebpf, table)? {
        Map::HashMap(data) | Map::LruHashMap(data) | Map::Array(data) | Map::LpmTrie(data) => Ok(data),
        _ => Err(Error::Missing(table.name())),
    }
}

/// A table of the loaded object, if it holds entries that can be read and written many at once.
fn data_mut(ebpf: &mut Ebpf, table: Table) -> Option<&mut MapData> {
    match ebpf.map_mut(table.map())? {
        Map::HashMap(data) | Map::LruHashMap(data) | Map::Array(data) | Map::LpmTrie(data) => Some(data),
        _ => None,
    }
}

fn shaped<M: TryFrom<Map, Error = MapError>>(table: impl Into<Table>, map: Map) -> Result<M, Error> {
    M::try_from(map).map_err(|source| Error::Shape { name: table.into().name(), source })
}

/// How many entries a table has room for.
fn size(table: impl Into<Table>, data: &MapData) -> Result<u32, Error> {
    data.info().map(|info| info.max_entries()).map_err(|source| Error::Shape { name: table.into().name(), source })
}

/// Has the runtime tell when a descriptor is readable.
pub fn watch<T: AsRawFd>(inner: T) -> io::Result<AsyncFd<T>> {
    // SAFETY: what the daemon watches keeps one descriptor open for as long as it lives, and always names that one.
    unsafe { AsyncFd::register(inner) }.map_err(Into::into)
}
