//! Usage of the tables, and the kernel's counters. The counters are read at each scrape and not kept in the daemon, so
//! they continue across restarts. Large tables aren't read for a scrape: their entries are counted when they are
//! written or swept.

use std::{
    fmt, io,
    sync::{
        Arc,
        atomic::{AtomicI64, Ordering},
    },
};

use podnet_cni::text::chain;
use podnet_common::{
    tables::{ENDPOINTS, SIZED, Table},
    verdict::{COUNTERS_BASE, Counter, Reason},
};
use prometheus_client::{
    collector::Collector,
    encoding::{DescriptorEncoder, EncodeLabelSet, EncodeMetric as _},
    metrics::{MetricType, counter::ConstCounter, gauge::ConstGauge},
};
use tracing::warn;

/// Reads the kernel's tables, on the thread that serves the scrape.
pub trait KernelReader: fmt::Debug + Send + Sync {
    /// The table `counters`, by number, each summed over the CPUs.
    fn counters(&self) -> io::Result<Vec<u64>>;

    /// Contents of `endpoints`: a few hundred entries, written by the plugin independently of the daemon.
    fn pods(&self) -> io::Result<PodCounts>;
}

/// Contents of `endpoints`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PodCounts {
    /// Pods of this node.
    pub pods: usize,
    /// Addresses of these pods.
    pub addresses: usize,
}

/// Usage of the tables, as far as counted. Clones share their values.
#[derive(Clone, Debug)]
pub struct Fills(Arc<[Fill; SIZED.len()]>);

#[derive(Debug)]
struct Fill {
    /// Negative: not counted yet.
    entries: AtomicI64,
    capacity: AtomicI64,
}

impl Default for Fills {
    fn default() -> Self {
        Self(Arc::new(SIZED.map(|_| Fill { entries: AtomicI64::new(-1), capacity: AtomicI64::new(-1) })))
    }
}

impl Fills {
    /// Sets the number of entries of a table.
    pub fn set_entries(&self, table: impl Into<Table>, entries: usize) {
        self.set(table.into(), entries, |fill| &fill.entries);
    }

    /// Sets the size of a table, in entries.
    pub fn set_capacity(&self, table: impl Into<Table>, entries: usize) {
        self.set(table.into(), entries, |fill| &fill.capacity);
    }

    fn set(&self, table: Table, entries: usize, of: impl Fn(&Fill) -> &AtomicI64) {
        let fill = SIZED.iter().zip(self.0.iter()).find(|(sized, _)| **sized == table);
        debug_assert!(fill.is_some(), "{} is none of them", table.name());
        if let Some((_, fill)) = fill {
            of(fill).store(entries as i64, Ordering::Relaxed);
        }
    }

    fn encode(&self, encoder: &mut DescriptorEncoder<'_>) -> Result<(), fmt::Error> {
        type Of = fn(&Fill) -> &AtomicI64;
        let families: [(_, _, Of); 2] = [
            ("table_entries", "Number of entries in a table.", |fill| &fill.entries),
            ("table_capacity_entries", "Capacity of a table in entries.", |fill| &fill.capacity),
        ];
        for (name, help, of) in families {
            let mut family = encoder.encode_descriptor(name, help, None, MetricType::Gauge)?;
            for (table, fill) in SIZED.iter().zip(self.0.iter()) {
                let value = of(fill).load(Ordering::Relaxed);
                if value >= 0 {
                    ConstGauge::new(value).encode(family.encode_family(&OfTable { table: table.name() })?)?;
                }
            }
        }
        Ok(())
    }
}

/// Encodes usage and counters at a scrape.
#[derive(Debug)]
pub(super) struct Kernel {
    pub(super) reader: Box<dyn KernelReader>,
    pub(super) fills: Fills,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct OfTable {
    table: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct WithReason {
    reason: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct OfEvent {
    event: &'static str,
}

impl Collector for Kernel {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> Result<(), fmt::Error> {
        match self.reader.counters() {
            Ok(counters) => encode_counters(&counters, &mut encoder)?,
            Err(error) => warn!("cannot read the datapath's counters for a scrape: {}", chain(&error)),
        }
        match self.reader.pods() {
            Ok(counts) => {
                self.fills.set_entries(ENDPOINTS, counts.addresses);
                let pods = ConstGauge::new(counts.pods as u64);
                let help = "Pods of this node in the datapath.";
                pods.encode(encoder.encode_descriptor("pods", help, None, MetricType::Gauge)?)?;
            }
            Err(error) => warn!("cannot count the node's pods for a scrape: {}", chain(&error)),
        }
        self.fills.encode(&mut encoder)
    }
}

fn encode_counters(counters: &[u64], encoder: &mut DescriptorEncoder<'_>) -> Result<(), fmt::Error> {
    let count = |index: u32| ConstCounter::new(counters.get(index as usize).copied().unwrap_or_default());
    let help = "Packets dropped or rejected since the datapath was set up, by reason.";
    let mut family = encoder.encode_descriptor("dropped_packets", help, None, MetricType::Counter)?;
    for reason in Reason::ALL {
        let labels = WithReason { reason: reason.name() };
        count(COUNTERS_BASE + *reason as u32).encode(family.encode_family(&labels)?)?;
    }
    let help = "Other datapath events since the datapath was set up, and answers to rejected packets.";
    let mut family = encoder.encode_descriptor("datapath_events", help, None, MetricType::Counter)?;
    for counter in Counter::ALL {
        let labels = OfEvent { event: counter.name() };
        count(*counter as u32).encode(family.encode_family(&labels)?)?;
    }
    Ok(())
}
