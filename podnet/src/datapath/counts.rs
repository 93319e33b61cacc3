//! The data that metrics read at a scrape: the counters, and the pods' addresses.

use std::{collections::BTreeSet, fmt, io};

use aya::maps::{Map, MapData, PerCpuArray};
use podnet_cni::datapath::{Endpoints, PinDir};
use podnet_common::{tables, verdict};

use super::{error::Error, maps::shaped};
use crate::metrics::{KernelReader, PodCounts};

/// The tables, open for reading.
pub struct Counts {
    counters: PerCpuArray<MapData, u64>,
    pins: PinDir,
}

impl fmt::Debug for Counts {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Counts").field("pins", &self.pins).finish_non_exhaustive()
    }
}

impl Counts {
    pub(super) fn open(pins: &PinDir) -> Result<Self, Error> {
        let opened = MapData::from_pin(pins.table(tables::COUNTERS));
        let data =
            opened.map_err(|source| Error::Table { operation: "open", name: tables::COUNTERS.name(), source })?;
        Ok(Self { counters: shaped(tables::COUNTERS, Map::PerCpuArray(data))?, pins: pins.clone() })
    }
}

impl KernelReader for Counts {
    fn counters(&self) -> io::Result<Vec<u64>> {
        let total = |counter: u32| self.counters.get(&counter, 0).map(|per_cpu| per_cpu.iter().sum());
        (0..verdict::COUNTERS as u32).map(|counter| total(counter).map_err(io::Error::other)).collect()
    }

    fn pods(&self) -> io::Result<PodCounts> {
        let endpoints = Endpoints::open(&self.pins).and_then(|endpoints| endpoints.entries());
        let endpoints = endpoints.map_err(io::Error::other)?;
        let pods: BTreeSet<_> = endpoints.iter().map(|(_, endpoint)| endpoint.ifindex).collect();
        Ok(PodCounts { pods: pods.len(), addresses: endpoints.len() })
    }
}
