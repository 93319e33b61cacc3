//! The datapath seen from user space: loading, pins, tables, collection. The only part of this crate that uses aya.

pub mod affinity;
mod attach;
pub mod batch;
pub mod btf;
mod cgroup;
pub mod conntrack;
mod counts;
mod error;
mod features;
mod fib;
mod holders;
mod hooks;
pub mod inspect;
mod instructions;
mod kernel;
mod link;
pub mod live;
mod load_error;
pub mod loader;
mod maps;
pub mod memory;
mod moves;
mod node_tables;
pub mod object;
mod origins;
mod policy_tables;
pub mod removal;
mod service_tables;
mod sizes;
pub mod sockets;
mod table_error;
mod test_run;
pub mod uplink_xdp;
pub mod view;

pub use counts::Counts;
pub use error::Error;
pub use features::socket_errno;
pub use holders::Hurry;
pub use hooks::{HookState, UplinkHook, UplinkState};
pub use load_error::LoadError;
pub use loader::{Loaded, Opened};
pub use node_tables::{NODES_ADVICE, NodeTables};
pub use policy_tables::{POLICIES_ADVICE, PolicyTables};
pub use service_tables::ServiceTables;
pub use sizes::Sizes;

use std::{
    collections::{BTreeMap, HashSet},
    io,
    os::fd::{AsFd, AsRawFd, BorrowedFd, RawFd},
    time::Instant,
};

use aya::{
    Ebpf,
    maps::{Array, MapData, RingBuf},
};
use aya_log::EbpfLogger;
use podnet_cni::datapath::{Endpoints, PinDir, Plain};
use podnet_common::{
    addr::IfIndex,
    layout::{Config, Event, Network, NetworkKind, Prefix},
    tables, time,
};

pub use podnet_cni::datapath::netns_cookie;

use crate::entry_counts::EntryCounts;
use crate::reconcile::Tables as _;
use hooks::Side;
use maps::{size, take, take_data};
use moves::Moves;
use origins::Origins;
use removal::Remover;

/// The tables that follow from objects.
pub struct Tables {
    /// The service tables.
    pub services: ServiceTables,
    /// The tables of network policy.
    pub policies: PolicyTables,
}

/// The flags of [`Config`] about network policy.
const POLICY_FLAGS: u32 = Config::POLICY | Config::NEW_SUBJECTS | Config::POLICY_CHANGES;

/// The running datapath of this node.
pub struct Datapath {
    ebpf: Ebpf,
    pins: PinDir,
    generation: u32,
    adopted: bool,
    kept: bool,
    origins: Origins,
    /// Tables whose contents are still being moved to new ones.
    moves: Option<Moves>,
    started: Instant,
    /// Whether a FIB lookup returns the source address.
    route_source: bool,
    conntrack_capacity: u32,
    conntrack: MapData,
    remover: Remover,
    holders: MapData,
    clock: Array<MapData, u32>,
    config: Array<MapData, Plain<Config>>,
    /// Current content of `config`.
    config_now: Config,
    snat_ports: MapData,
    /// Current content of `snat_ports`.
    snat_ports_now: Vec<u16>,
    services: ServiceTables,
    nodes: NodeTables,
    policies: PolicyTables,
    /// Interfaces known to have no uplink hooks but these.
    clear: BTreeMap<IfIndex, &'static [Side]>,
}

impl Datapath {
    /// Adopts the pinned tables, or creates them, loads the programs, and makes them the running generation.
    pub fn start(pins: PinDir, sizes: Sizes) -> Result<Self, Error> {
        let (tables, opened) = Self::open(pins, sizes)?;
        Self::run(tables, opened.load()?)
    }

    /// Only adopts or creates the tables. If other programs are running, loading the new ones takes the kernel about
    /// a second on two CPUs, in which the tables can be read.
    pub fn open(pins: PinDir, sizes: Sizes) -> Result<(Tables, Opened), Error> {
        let mut opened = loader::open(loader::built_in()?, &pins, sizes)?;
        let (services, mut policies) = (ServiceTables::take(&mut opened.ebpf)?, PolicyTables::take(&mut opened.ebpf)?);
        policies.forget_pods()?;
        Ok((Tables { services, policies }, opened))
    }

    /// Takes over the datapath once its programs run.
    pub fn run(Tables { services, policies }: Tables, loaded: Loaded) -> Result<Self, Error> {
        let Loaded { mut ebpf, generation, adopted, kept, origins, moves, pins } = loaded;
        let remover = Remover::load(&mut ebpf)?;
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
            nodes: NodeTables::take(&mut ebpf)?,
            policies,
            route_source: features::route_source(),
            clear: BTreeMap::new(),
            conntrack,
            remover,
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

    /// The service tables.
    pub fn tables(&mut self) -> &mut ServiceTables {
        &mut self.services
    }

    /// The tables of the node's network.
    pub fn node_tables(&mut self) -> &mut NodeTables {
        &mut self.nodes
    }

    /// The tables of network policy.
    pub fn policy_tables(&mut self) -> &mut PolicyTables {
        &mut self.policies
    }

    /// Puts changed tables of network policy into effect. `active`: pods of this node may be isolated.
    pub fn policies_changed(&mut self, active: bool) -> Result<(), Error> {
        /// The lowest bit of the number of changes.
        const CHANGE: u32 = 1 << Config::POLICY_CHANGES.trailing_zeros();
        let changes = self.config_now.flags.wrapping_add(CHANGE) & Config::POLICY_CHANGES;
        let kept = self.config_now.flags & !(Config::POLICY | Config::POLICY_CHANGES);
        let flags = kept | changes | if active { Config::POLICY } else { 0 };
        self.write_config(&Config { flags, ..self.config_now })
    }

    /// Sets [`Config::NEW_SUBJECTS`].
    pub fn set_new_subjects(&mut self, are_new: bool) -> Result<(), Error> {
        let kept = self.config_now.flags & !Config::NEW_SUBJECTS;
        let flags = kept | if are_new { Config::NEW_SUBJECTS } else { 0 };
        self.write_config(&Config { flags, ..self.config_now })
    }

    /// Capacities of the service tables.
    pub fn capacity(&self) -> EntryCounts {
        self.services.capacity()
    }

    /// Number of the running generation of programs.
    pub fn generation(&self) -> u32 {
        self.generation
    }

    /// Whether the state of an earlier daemon was adopted.
    pub fn adopted(&self) -> bool {
        self.adopted
    }

    /// Whether its tables whose layout differs between versions were adopted too.
    pub fn kept_tables(&self) -> bool {
        self.kept
    }

    /// Capacity of the connection table in entries. An adopted table keeps its own, whatever the configuration says.
    pub fn conntrack_capacity(&self) -> u32 {
        self.conntrack_capacity
    }

    /// Writes the programs' configuration of the node. `snat_count` comes from [`Self::set_snat_ports`],
    /// [`Config::ROUTE_SOURCE`] from the kernel's features, and the flags about network policy from
    /// [`Self::policies_changed`] and [`Self::set_new_subjects`].
    pub fn set_config(&mut self, config: &Config) -> Result<(), Error> {
        let known = if self.route_source { Config::ROUTE_SOURCE } else { 0 };
        let flags =
            config.flags & !(Config::ROUTE_SOURCE | POLICY_FLAGS) | known | self.config_now.flags & POLICY_FLAGS;
        self.write_config(&Config { snat_count: self.snat_ports_now.len() as u32, flags, ..*config })
    }

    fn write_config(&mut self, config: &Config) -> Result<(), Error> {
        let config = *config;
        if config != self.config_now {
            let failed = |source| Error::Table { operation: "write", name: "config", source };
            self.config.set(0, Plain(config), 0).map_err(failed)?;
            self.config_now = config;
        }
        Ok(())
    }

    /// The ports for source NAT, by index.
    pub fn snat_ports(&self) -> &[u16] {
        &self.snat_ports_now
    }

    /// Writes the ports for source NAT: first the indexes that differ, then the number of ports.
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

    /// Advances the programs' clock. Otherwise they read the time only when a flow begins: packets of established
    /// flows use the last time stored.
    pub fn advance_clock(&mut self) -> Result<(), Error> {
        self.clock.set(0, now(), 0).map_err(|source| Error::Table { operation: "write", name: "clock", source })
    }

    /// A sweep of the connection table, to be run off the event loop. `networks` is the content of `nodes`.
    pub fn sweep<'a>(
        &self,
        stale: conntrack::Stale,
        hurry: Hurry,
        networks: impl Iterator<Item = (&'a Prefix, &'a Network)> + Clone,
    ) -> Result<conntrack::Sweep, Error> {
        let settled = !self.adopted || self.started.elapsed() > conntrack::SETTLING;
        let duplicate = |table: &MapData| table.fd().as_fd().try_clone_to_owned().map_err(Error::Collect);
        let pins = self.pins.clone();
        let pods = move || {
            let entries = Endpoints::open(&pins).and_then(|endpoints| endpoints.entries()).map_err(io::Error::other)?;
            Ok(entries.into_iter().map(|(addr, endpoint)| (addr.into(), endpoint.ifindex)).collect())
        };
        let networks = |kind: NetworkKind| {
            networks.clone().filter(move |(_, network)| network.kind == kind as u32).map(|(prefix, _)| *prefix)
        };
        Ok(conntrack::Sweep {
            table: duplicate(&self.conntrack)?,
            remover: self.remover.try_clone().map_err(Error::Collect)?,
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
            evaluated: HashSet::new(),
        })
    }

    /// Whether flows filling a sixteenth of the connection table have been added since it had `entries` entries.
    pub fn is_filling(&self, entries: u32) -> Result<bool, Error> {
        let now = holders::all(self.holders.fd().as_fd()).map_err(Error::Collect)?;
        Ok(now.saturating_sub(entries) > self.conntrack_capacity / 16)
    }

    /// A scan for expired affinities, to be run off the event loop.
    pub fn expiry(&self) -> Result<affinity::Expiry, Error> {
        let (affinity, frontends) = self.services.affinity_and_frontends().map_err(Error::Collect)?;
        Ok(affinity::Expiry { affinity, frontends, now: now() })
    }

    /// A reader of the counters, usable on any thread.
    pub fn counts(&self) -> Result<counts::Counts, Error> {
        counts::Counts::open(&self.pins)
    }

    /// Takes the reader of the programs' log.
    pub fn program_log(&mut self) -> Result<ProgramLog, Error> {
        EbpfLogger::init(&mut self.ebpf).map_err(Error::Log)
    }

    /// Takes the reader of dropped packets.
    pub fn events(&mut self) -> Result<Events, Error> {
        Ok(Events { ring: take(&mut self.ebpf, tables::EVENTS)? })
    }
}

/// Log messages of the programs, for conditions without a packet that an event could carry.
pub type ProgramLog = EbpfLogger<&'static dyn log::Log>;

/// Dropped packets, as the programs report them.
pub struct Events {
    ring: RingBuf<MapData>,
}

// The descriptor becomes readable when there are events.
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
    /// Next event, or `None` if there is none yet.
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

/// The ports left by an earlier daemon, by index.
fn read_ports(table: &MapData, count: u32) -> Result<Vec<u16>, Error> {
    if count == 0 {
        return Ok(Vec::new());
    }
    let ports: Vec<u32> = batch::range(table.fd().as_fd(), 0, count.min(tables::SNAT_PORTS.capacity() as u32))
        .map_err(|source| Error::Batch { operation: "read", name: "snat_ports", source })?;
    Ok(ports.into_iter().map(|port| port as u16).collect())
}
