//! The pinned tables as commands read them: nothing is created, loaded or changed.

use std::{
    io,
    os::fd::AsFd as _,
    path::{Path, PathBuf},
};

use aya::{
    maps::{Array, Map, MapData, MapError, PerCpuArray},
    programs::{ProgramError, ProgramInfo, SchedClassifier, TcAttachType},
};
use podnet_cni::datapath::{Direction, PinDir, Plain, clsact, open_pin};
use podnet_common::{
    addr::{Addr, IfIndex},
    layout::{
        Affinity, AffinityKey, Backend, Config, CtEntry, Endpoint, Frontend, FrontendKey, Hook, Interface, Network,
        Prefix, SourceRange, Tuple,
    },
    verdict,
};

use super::{batch, link, sockets};
use crate::cli::view::{Table, View, ViewError};

/// The tables below `<bpffs>/podnet`.
struct PinnedView {
    pins: PinDir,
    frontends: MapData,
    slots: MapData,
    backends: Array<MapData, Plain<Backend>>,
    conntrack: MapData,
    endpoints: MapData,
    networks: MapData,
    interfaces: MapData,
    source_ranges: MapData,
    affinity: MapData,
    snat_ports: MapData,
    counters: PerCpuArray<MapData, u64>,
    config: Array<MapData, Plain<Config>>,
    generation: Array<MapData, u32>,
}

/// Opens the tables that are pinned in a BPF file system.
///
/// # Errors
/// [`ViewError::NotPinned`] if any of them isn't there.
pub fn open(bpffs: &Path) -> Result<Box<dyn View>, ViewError> {
    let pins = PinDir::new(bpffs);
    let open = |table, path: PathBuf| {
        MapData::from_pin(&path).map_err(|error| match io_error(&error) {
            Some(e) if e.kind() == io::ErrorKind::NotFound => ViewError::NotPinned { directory: pins.root().into() },
            _ => failed(table)(error),
        })
    };
    let table = |name| open(name, pins.map(name));
    let frozen = |name| open(name, pins.frozen_map(name));
    let counters = Map::PerCpuArray(frozen("counters")?);
    Ok(Box::new(PinnedView {
        frontends: table("frontends")?,
        slots: table("slots")?,
        backends: Array::try_from(Map::Array(table("backends")?)).map_err(failed("backends"))?,
        conntrack: table("conntrack")?,
        endpoints: frozen("endpoints")?,
        networks: table("nodes")?,
        interfaces: table("interfaces")?,
        source_ranges: table("source_ranges")?,
        affinity: table("affinity")?,
        snat_ports: table("snat_ports")?,
        counters: PerCpuArray::try_from(counters).map_err(failed("counters"))?,
        config: Array::try_from(Map::Array(table("config")?)).map_err(failed("config"))?,
        generation: Array::try_from(Map::Array(frozen("generation")?)).map_err(failed("generation"))?,
        pins,
    }))
}

impl View for PinnedView {
    fn frontends(&self) -> Result<Vec<(FrontendKey, Frontend)>, ViewError> {
        entries("frontends", &self.frontends)
    }

    fn slots(&self, base: u32, count: u32) -> Result<Vec<u32>, ViewError> {
        batch::range(self.slots.fd().as_fd(), base, count).map_err(failed("slots"))
    }

    fn backend(&self, id: u32) -> Result<Backend, ViewError> {
        self.backends.get(&id, 0).map(|backend| backend.0).map_err(failed("backends"))
    }

    fn endpoints(&self) -> Result<Vec<(Addr, Endpoint)>, ViewError> {
        entries("endpoints", &self.endpoints)
    }

    fn conntrack(&self, visit: &mut dyn FnMut(&Tuple, &CtEntry)) -> Result<(), ViewError> {
        batch::for_each(self.conntrack.fd().as_fd(), visit).map_err(failed("conntrack"))
    }

    fn networks(&self) -> Result<Vec<(Prefix, Network)>, ViewError> {
        entries("nodes", &self.networks)
    }

    fn interfaces(&self) -> Result<Vec<(IfIndex, Interface)>, ViewError> {
        entries("interfaces", &self.interfaces)
    }

    fn source_ranges(&self) -> Result<Vec<SourceRange>, ViewError> {
        Ok(entries::<_, u32>("source_ranges", &self.source_ranges)?.into_iter().map(|(range, _)| range).collect())
    }

    fn affinity(&self) -> Result<Vec<(AffinityKey, Affinity)>, ViewError> {
        entries("affinity", &self.affinity)
    }

    fn snat_ports(&self) -> Result<Vec<u16>, ViewError> {
        let count = self.config()?.snat_count;
        let ports: Vec<u32> = batch::range(self.snat_ports.fd().as_fd(), 0, count).map_err(failed("snat_ports"))?;
        Ok(ports.into_iter().map(|port| port as u16).collect())
    }

    fn counters(&self) -> Result<Vec<u64>, ViewError> {
        let total = |counter: u32| self.counters.get(&counter, 0).map(|per_cpu| per_cpu.iter().sum());
        (0..verdict::COUNTERS as u32).map(|counter| total(counter).map_err(failed("counters"))).collect()
    }

    fn config(&self) -> Result<Config, ViewError> {
        self.config.get(&0, 0).map(|config| config.0).map_err(failed("config"))
    }

    fn generation(&self) -> Result<u32, ViewError> {
        self.generation.get(&0, 0).map_err(failed("generation"))
    }

    fn capacity(&self, table: Table) -> Result<u32, ViewError> {
        let capacity = |data: &MapData| data.info().map(|info| info.max_entries()).map_err(failed(table.name()));
        match table {
            Table::Frontends => capacity(&self.frontends),
            Table::Slots => capacity(&self.slots),
            Table::Backends => Ok(self.backends.len()),
            Table::Conntrack => capacity(&self.conntrack),
            Table::Endpoints => capacity(&self.endpoints),
            Table::Nodes => capacity(&self.networks),
            Table::SourceRanges => capacity(&self.source_ranges),
            Table::Affinity => capacity(&self.affinity),
        }
    }

    fn attached(&self, hook: Hook, ifindex: IfIndex) -> Result<bool, ViewError> {
        let failed = |source: Box<dyn std::error::Error + Send + Sync>| ViewError::Hook { hook: hook.name(), source };
        let direction = match hook {
            Hook::FromPod | Hook::FromUplink | Hook::FromRaw | Hook::FromHost => Direction::Ingress,
            Hook::ToPod | Hook::ToUplink | Hook::ToRaw | Hook::FromLoopback => Direction::Egress,
            Hook::UplinkXdp => return xdp_attached(&self.pins, ifindex).map_err(|e| failed(Box::new(e))),
        };
        let Some(interface) = interface_name(ifindex) else { return Ok(false) };
        let own = ProgramInfo::from_pin(self.pins.hook(hook)).map_err(|e| failed(Box::new(e)))?.id();
        let at_tcx = tcx_programs(&interface, direction).map_err(|e| failed(Box::new(e)))?;
        // Pods' host ends have clsact filters on every kernel, other links where there is no TCX.
        Ok(at_tcx.contains(&own) || clsact::attached(own, ifindex, direction).map_err(|e| failed(Box::new(e)))?)
    }

    fn sockets_attached(&self) -> bool {
        sockets::attached(&self.pins)
    }
}

/// The ids of the programs at TCX; none on kernels before 6.6, which have no TCX.
fn tcx_programs(interface: &str, direction: Direction) -> Result<Vec<u32>, ProgramError> {
    let direction = match direction {
        Direction::Ingress => TcAttachType::Ingress,
        Direction::Egress => TcAttachType::Egress,
    };
    match SchedClassifier::query_tcx(interface, direction) {
        Ok((_, programs)) => Ok(programs.iter().map(ProgramInfo::id).collect()),
        Err(ProgramError::SyscallError(e)) if e.io_error.raw_os_error() == Some(libc::EINVAL) => Ok(Vec::new()),
        Err(e) => Err(e),
    }
}

/// Whether a pinned link holds the XDP program at an interface.
fn xdp_attached(pins: &PinDir, ifindex: IfIndex) -> io::Result<bool> {
    let links = match std::fs::read_dir(pins.links()) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(false),
        links => links?,
    };
    for entry in links {
        let entry = entry?;
        if entry.file_name().to_str().is_some_and(|name| name.starts_with("xdp_")) {
            let pinned = open_pin(&entry.path()).map_err(io::Error::other)?;
            if link::interface(&pinned)? == ifindex {
                return Ok(true);
            }
        }
    }
    Ok(false)
}

/// The name of an interface of this namespace.
pub fn interface_name(ifindex: IfIndex) -> Option<String> {
    let name = nix::net::if_::if_indextoname(ifindex.0).ok()?.into_string().ok()?;
    // nix takes the null pointer that means "none" for an empty name.
    (!name.is_empty()).then_some(name)
}

/// All entries of a table.
fn entries<K: bytemuck::Pod, V: bytemuck::Pod>(table: &'static str, map: &MapData) -> Result<Vec<(K, V)>, ViewError> {
    let mut all = Vec::new();
    batch::for_each(map.fd().as_fd(), |key: &K, value: &V| all.push((*key, *value))).map_err(failed(table))?;
    Ok(all)
}

fn failed<E: std::error::Error + Send + Sync + 'static>(table: &'static str) -> impl Fn(E) -> ViewError {
    move |error| ViewError::Table { table, source: Box::new(error) }
}

fn io_error(error: &MapError) -> Option<&io::Error> {
    match error {
        MapError::SyscallError(error) => Some(&error.io_error),
        _ => None,
    }
}
