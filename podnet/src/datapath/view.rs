//! The pinned tables as commands read them: nothing is created, loaded or changed.

use std::{io, os::fd::AsFd as _, path::Path};

use aya::{
    maps::{Map, MapData, MapError, PerCpuArray},
    programs::{ProgramError, ProgramInfo, SchedClassifier, TcAttachType},
};
use bytemuck::Pod;
use podnet_cni::datapath::{Direction, PinDir, clsact, open_pin};
use podnet_common::{
    addr::{Addr, IfIndex},
    layout::{
        Affinity, AffinityKey, Backend, Config, CtEntry, Endpoint, Frontend, FrontendKey, Hook, Interface, Network,
        Prefix, SourceRange, Tuple,
    },
    tables::{self, Table, TableOf},
    verdict,
};

use super::inspect::{View, ViewError};
use super::{batch, link, sockets};

/// The tables below `<bpffs>/podnet`.
struct PinnedView {
    pins: PinDir,
    frontends: Pinned<FrontendKey, Frontend>,
    slots: Pinned<u32, u32>,
    backends: Pinned<u32, Backend>,
    conntrack: Pinned<Tuple, CtEntry>,
    endpoints: Pinned<Addr, Endpoint>,
    networks: Pinned<Prefix, Network>,
    interfaces: Pinned<IfIndex, Interface>,
    source_ranges: Pinned<SourceRange, u32>,
    affinity: Pinned<AffinityKey, Affinity>,
    snat_ports: Pinned<u32, u32>,
    counters: PerCpuArray<MapData, u64>,
    config: Pinned<u32, Config>,
    generation: Pinned<u32, u32>,
}

/// A table opened by its pin.
pub(super) struct Pinned<K, V> {
    table: TableOf<K, V>,
    map: MapData,
}

impl<K: Pod, V: Pod> Pinned<K, V> {
    fn for_each(&self, visit: impl FnMut(&K, &V)) -> Result<(), ViewError> {
        batch::for_each(self.map.fd().as_fd(), visit).map_err(failed(self.table))
    }

    /// Entry of a key; for a trie, that of the longest matching prefix.
    pub(super) fn look_up(&self, key: &K) -> Result<Option<V>, ViewError> {
        batch::look_up(self.map.fd().as_fd(), key).map_err(failed(self.table))
    }

    /// Capacity in entries.
    pub(super) fn capacity(&self) -> Result<u32, ViewError> {
        self.map.info().map(|info| info.max_entries()).map_err(failed(self.table))
    }

    pub(super) fn entries(&self) -> Result<Vec<(K, V)>, ViewError> {
        let mut all = Vec::new();
        self.for_each(|key, value| all.push((*key, *value)))?;
        Ok(all)
    }
}

impl<V: Pod> Pinned<u32, V> {
    fn range(&self, base: u32, count: u32) -> Result<Vec<V>, ViewError> {
        batch::range(self.map.fd().as_fd(), base, count).map_err(failed(self.table))
    }

    fn get(&self, index: u32) -> Result<V, ViewError> {
        let out_of_range = || failed(self.table)(io::Error::from(io::ErrorKind::NotFound));
        self.range(index, 1)?.first().copied().ok_or_else(out_of_range)
    }
}

fn open_table(pins: &PinDir, table: Table) -> Result<MapData, ViewError> {
    MapData::from_pin(pins.table(table)).map_err(|error| match io_error(&error) {
        Some(e) if e.kind() == io::ErrorKind::NotFound => ViewError::NotPinned { directory: pins.root().into() },
        _ => failed(table)(error),
    })
}

pub(super) fn open_pinned<K, V>(pins: &PinDir, table: TableOf<K, V>) -> Result<Pinned<K, V>, ViewError> {
    Ok(Pinned { table, map: open_table(pins, table.table())? })
}

/// Opens the tables pinned in a BPF file system.
///
/// # Errors
/// [`ViewError::NotPinned`] if any of them doesn't exist.
pub fn open(bpffs: &Path) -> Result<Box<dyn View>, ViewError> {
    let pins = PinDir::new(bpffs);
    let counters = Map::PerCpuArray(open_table(&pins, tables::COUNTERS.table())?);
    Ok(Box::new(PinnedView {
        frontends: open_pinned(&pins, tables::FRONTENDS)?,
        slots: open_pinned(&pins, tables::SLOTS)?,
        backends: open_pinned(&pins, tables::BACKENDS)?,
        conntrack: open_pinned(&pins, tables::CONNTRACK)?,
        endpoints: open_pinned(&pins, tables::ENDPOINTS)?,
        networks: open_pinned(&pins, tables::NODES)?,
        interfaces: open_pinned(&pins, tables::INTERFACES)?,
        source_ranges: open_pinned(&pins, tables::SOURCE_RANGES)?,
        affinity: open_pinned(&pins, tables::AFFINITY)?,
        snat_ports: open_pinned(&pins, tables::SNAT_PORTS)?,
        counters: PerCpuArray::try_from(counters).map_err(failed(tables::COUNTERS))?,
        config: open_pinned(&pins, tables::CONFIG)?,
        generation: open_pinned(&pins, tables::GENERATION)?,
        pins,
    }))
}

impl View for PinnedView {
    fn frontends(&self) -> Result<Vec<(FrontendKey, Frontend)>, ViewError> {
        self.frontends.entries()
    }

    fn slots(&self, base: u32, count: u32) -> Result<Vec<u32>, ViewError> {
        self.slots.range(base, count)
    }

    fn backend(&self, id: u32) -> Result<Backend, ViewError> {
        self.backends.get(id)
    }

    fn endpoints(&self) -> Result<Vec<(Addr, Endpoint)>, ViewError> {
        self.endpoints.entries()
    }

    fn conntrack(&self, visit: &mut dyn FnMut(&Tuple, &CtEntry)) -> Result<(), ViewError> {
        self.conntrack.for_each(visit)
    }

    fn networks(&self) -> Result<Vec<(Prefix, Network)>, ViewError> {
        self.networks.entries()
    }

    fn interfaces(&self) -> Result<Vec<(IfIndex, Interface)>, ViewError> {
        self.interfaces.entries()
    }

    fn source_ranges(&self) -> Result<Vec<SourceRange>, ViewError> {
        Ok(self.source_ranges.entries()?.into_iter().map(|(range, _)| range).collect())
    }

    fn affinity(&self) -> Result<Vec<(AffinityKey, Affinity)>, ViewError> {
        self.affinity.entries()
    }

    fn snat_ports(&self) -> Result<Vec<u16>, ViewError> {
        let ports = self.snat_ports.range(0, self.config()?.snat_count)?;
        Ok(ports.into_iter().map(|port| port as u16).collect())
    }

    fn counters(&self) -> Result<Vec<u64>, ViewError> {
        let total = |counter: u32| self.counters.get(&counter, 0).map(|per_cpu| per_cpu.iter().sum());
        (0..verdict::COUNTERS as u32).map(|counter| total(counter).map_err(failed(tables::COUNTERS))).collect()
    }

    fn config(&self) -> Result<Config, ViewError> {
        self.config.get(0)
    }

    fn generation(&self) -> Result<u32, ViewError> {
        self.generation.get(0)
    }

    fn count(&self, table: Table) -> Result<u64, ViewError> {
        let (map, mut entries) = (open_table(&self.pins, table)?, 0);
        let info = map.info().map_err(failed(table))?;
        let sizes = (info.key_size() as usize, info.value_size() as usize);
        batch::for_each_bytes(map.fd().as_fd(), sizes, |_, _| entries += 1).map_err(failed(table))?;
        Ok(entries)
    }

    fn capacity(&self, table: Table) -> Result<u32, ViewError> {
        Ok(open_table(&self.pins, table)?.info().map_err(failed(table))?.max_entries())
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
        // Host ends of pods have clsact filters on every kernel, other links only on kernels without TCX.
        Ok(at_tcx.contains(&own) || clsact::attached(own, ifindex, direction).map_err(|e| failed(Box::new(e)))?)
    }

    fn sockets_attached(&self) -> bool {
        sockets::attached(&self.pins)
    }
}

/// Ids of the programs at TCX; none on kernels before 6.6, which lack TCX.
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
    // nix treats the null pointer for "no such interface" as an empty name.
    (!name.is_empty()).then_some(name)
}

fn failed<E: std::error::Error + Send + Sync + 'static>(table: impl Into<Table>) -> impl Fn(E) -> ViewError {
    let table = table.into().name();
    move |error| ViewError::Table { table, source: Box::new(error) }
}

fn io_error(error: &MapError) -> Option<&io::Error> {
    match error {
        MapError::SyscallError(error) => Some(&error.io_error),
        _ => None,
    }
}
