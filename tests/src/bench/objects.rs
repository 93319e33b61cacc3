//! The control plane in this process: from parsed objects to the kernel's tables, without the rest of the daemon.
//!
//! Objects are read and validated before the time starts. A load goes from all objects to the last entry in the tables
//! of a new datapath; a change goes from an EndpointSlice with one changed endpoint to the tables. A load is measured
//! in wall-clock time, a change in CPU time.

use std::{
    fs,
    net::{IpAddr, Ipv4Addr},
    path::Path,
    time::Instant,
};

use anyhow::{Result, ensure};
use podnet::{
    config::Config,
    control::Control,
    datapath::{Datapath, Sizes},
    source::manifest::ManifestSource,
};
use podnet_cni::datapath::PinDir;

use super::{
    Options,
    control::{ENDPOINTS, SERVICES, endpoints, service_manifest, slice_manifest},
    results::{Results, Series},
    rig::{cpu_time, secluded},
    rounds,
};

const LOAD: &str = "control/tables_10000_services_s";
const LOAD_SMALL: &str = "control/tables_50000_services_s";
const CHANGE: &str = "control/endpoint_change_cpu_ms";

/// Number of services and of the endpoints of each.
#[derive(Clone, Copy)]
struct Shape {
    services: usize,
    endpoints: u8,
}

const LARGE: Shape = Shape { services: SERVICES, endpoints: ENDPOINTS };
const SMALL: Shape = Shape { services: 50_000, endpoints: 1 };

/// Measures all requested rows. Changes are of the services of the last large load.
pub fn run(options: &Options, results: &mut Results) -> Result<()> {
    load_small(options, results)?;
    if ![LOAD, CHANGE].into_iter().any(|row| options.wants(row)) {
        return Ok(());
    }
    let (loads, changes) = if options.quick { (2, 20) } else { (7, 60) };
    let (mut load, mut change) = (Vec::new(), Vec::new());
    secluded(|bpffs| {
        let bar = rounds::progress("control/tables", loads);
        for i in 0..loads {
            let mut site = Site::new(&bpffs.join(format!("load-{i}")), LARGE)?;
            load.push(site.load()?);
            bar.inc(1);
            if i + 1 == loads {
                // Spread over the services; the first is a warm-up.
                let took = (0..=changes).map(|n| site.change(n * 997 % SERVICES)).collect::<Result<Vec<_>>>()?;
                change.extend(took.into_iter().skip(1));
            }
        }
        bar.finish_and_clear();
        Ok(())
    })?;
    for (name, unit, values) in [(LOAD, "s", load), (CHANGE, "ms", change)] {
        results.push(Series { name: name.into(), unit, values, baselines: Vec::new() });
    }
    Ok(())
}

fn load_small(options: &Options, results: &mut Results) -> Result<()> {
    if !options.wants(LOAD_SMALL) {
        return Ok(());
    }
    let loads = if options.quick { 1 } else { 5 };
    let mut values = Vec::new();
    secluded(|bpffs| {
        let bar = rounds::progress("control/tables of 50,000 services", loads);
        for i in 0..loads {
            values.push(Site::new(&bpffs.join(format!("small-{i}")), SMALL)?.load()?);
            bar.inc(1);
        }
        bar.finish_and_clear();
        Ok(())
    })?;
    results.push(Series { name: LOAD_SMALL.into(), unit: "s", values, baselines: Vec::new() });
    Ok(())
}

/// A node without a network: all objects, and empty tables.
struct Site {
    shape: Shape,
    directory: tempfile::TempDir,
    source: ManifestSource,
    control: Control,
    datapath: Datapath,
}

impl Site {
    /// `bpffs` is a new directory in a BPF file system.
    fn new(bpffs: &Path, shape: Shape) -> Result<Self> {
        fs::create_dir(bpffs)?;
        let directory = tempfile::tempdir()?;
        let root = directory.path().display();
        let config =
            Config::parse(&format!("{{node: node1, manifests: {root}, runDir: {root}/.run, stateDir: {root}/.run}}"))
                .map_err(|error| anyhow::anyhow!("{error}"))?;
        for service in 0..shape.services {
            let endpoints = endpoints(service, 0).take(shape.endpoints.into());
            let text = service_manifest(service) + "---\n" + &slice_manifest(service, endpoints);
            write(directory.path(), service, &text)?;
        }
        // Each service has an entry for its port and one for its address.
        let frontends = (2 * shape.services).next_power_of_two() as u32;
        let sizes = Sizes { frontends: frontends.max(Sizes::default().frontends), ..Sizes::default() };
        let mut datapath = Datapath::start(PinDir::new(bpffs), sizes)?;
        let control = Control::adopt(&config, datapath.tables())?;
        Ok(Self { shape, source: ManifestSource::open(directory.path())?, control, datapath, directory })
    }

    /// Duration of applying all objects, in seconds.
    fn load(&mut self) -> Result<f64> {
        let objects = self.source.poll(Instant::now());
        let Shape { services, .. } = self.shape;
        ensure!(objects.changes.len() == 2 * services, "{} objects were read", objects.changes.len());
        let start = Instant::now();
        self.control.apply(objects);
        let outcome = self.control.reconcile(self.datapath.tables(), start);
        let took = start.elapsed();
        ensure!(outcome.pending == 0 && outcome.changed >= services, "not all is in the tables: {outcome:?}");
        Ok(took.as_secs_f64())
    }

    /// CPU time for one changed endpoint of a service, in milliseconds.
    fn change(&mut self, service: usize) -> Result<f64> {
        let [high, low] = (service as u16).to_be_bytes();
        let other: IpAddr = Ipv4Addr::new(30, 0, high, low).into();
        let changed = endpoints(service, 0).take(usize::from(ENDPOINTS) - 1).chain([other]);
        let text = service_manifest(service) + "---\n" + &slice_manifest(service, changed);
        write(self.directory.path(), service, &text)?;
        let objects = self.source.poll(Instant::now());
        ensure!(objects.changes.len() == 1, "{} objects have changed", objects.changes.len());
        let start = cpu_time()?;
        self.control.apply(objects);
        let outcome = self.control.reconcile(self.datapath.tables(), Instant::now());
        let took = cpu_time()? - start;
        ensure!(outcome.pending == 0 && outcome.changed == 1, "a change is not in the tables: {outcome:?}");
        Ok(took.as_secs_f64() * 1e3)
    }
}

fn write(directory: &Path, service: usize, text: &str) -> Result<()> {
    Ok(fs::write(directory.join(format!("service-{service:05}.yaml")), text)?)
}
