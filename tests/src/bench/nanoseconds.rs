//! The cost of a packet in podnet's programs, from test runs of the shipping programs, loaded by the daemon's loader,
//! in comparison with a hand-written [yardstick](../../../../podnet-ebpf/src/yardstick.rs).
//!
//! | row | packet |
//! |---|---|
//! | `yardstick` | of an established IPv4 flow, in the hand-written XDP function |
//! | `from_pod/established/…` | from a pod to a service with a local backend, established flow |
//! | `from_pod/first/…` | first packet of a flow: service lookup, backend selection, two new entries |
//! | `from_uplink/established/…` | reply from another node to a pod |
//! | `from_uplink/first/…` | first packet from outside to a ClusterIP, which the configuration allows here |
//! | `uplink_xdp/established/…` | from outside to a NodePort with a backend on another node, source NAT |
//! | `from_uplink/nodeport/established/…` | the same without XDP |
//! | `flows/A_of_B` | like `from_pod/established/v4`, with A active flows in turn and B flows in the table |
//! | `flows/A_of_B@collecting` | the same while another processor sweeps the table |
//!
//! All packets pass the hook's dispatcher, as in production. With `--before OBJECT`, all rows of packets exist a second
//! time, as `before/…`, for the programs of another build.

use std::{
    cell::Cell,
    env, io,
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
        mpsc,
    },
    thread,
};

use anyhow::{Context, Result};
use aya::{Ebpf, TestRun, TestRunOptions, maps::HashMap, programs::Xdp};
use podnet::datapath::conntrack::Sweep;
use podnet_cni::datapath::Plain;
use podnet_common::{
    addr::IfIndex,
    layout::{CtEntry, Hook, Tuple},
    tables,
};

use super::{
    Options,
    chain::{Chain, REPEAT, Rewrite},
    results::Results,
    rig::{Rig, XDP_TX, keep_warm, secluded, test_run},
    rounds::{self, Variant},
    worker,
};
use crate::traffic::Family;

/// Path of the yardstick's object; by default it is beside podnet's, which [`OBJECT`] names.
const YARDSTICK: &str = "PODNET_YARDSTICK_OBJECT";
const OBJECT: &str = "PODNET_EBPF_OBJECT";

const ROUNDS: usize = 60;
const QUICK_ROUNDS: usize = 8;
/// Packets per sample of established flows: enough for some ten milliseconds.
const PACKETS: u32 = 400 * REPEAT;
/// Client ports: first of established flows, one per chain, and of flows begun by samples.
const ESTABLISHED_PORT: u16 = 40_000;
const FIRST_PORT: u16 = 50_000;
/// Numbers of flows in a small, a large and a very large table.
const FEW: u32 = 100;
const MANY: u32 = 100_000;
const MOST: u32 = 500_000;
/// Capacity of the very large table.
pub const MOST_ENTRIES: u32 = 1_250_000;

/// A kind of packet at a hook.
struct Work {
    name: &'static str,
    hook: Hook,
    rewrite: Rewrite,
    first: bool,
}

/// Everything that is measured; rows that are compared are adjacent.
const WORK: [Work; 6] = [
    Work { name: "from_pod/established", hook: Hook::FromPod, rewrite: Rewrite::Destination, first: false },
    Work { name: "from_uplink/established", hook: Hook::FromUplink, rewrite: Rewrite::Source, first: false },
    Work { name: "uplink_xdp/established", hook: Hook::UplinkXdp, rewrite: Rewrite::Both, first: false },
    Work { name: "from_uplink/nodeport/established", hook: Hook::FromUplink, rewrite: Rewrite::Both, first: false },
    Work { name: "from_pod/first", hook: Hook::FromPod, rewrite: Rewrite::Destination, first: true },
    Work { name: "from_uplink/first", hook: Hook::FromUplink, rewrite: Rewrite::Destination, first: true },
];

const FAMILIES: [(Family, &str); 2] = [(Family::V4, "v4"), (Family::V6, "v6")];

impl Work {
    fn row(&self, family: &str) -> String {
        row(&format!("{}/{family}", self.name))
    }

    /// Same, for the programs of another build.
    fn row_before(&self, family: &str) -> String {
        row(&format!("before/{}/{family}", self.name))
    }

    /// Baselines of the row.
    fn baselines(&self, family: &str) -> Vec<String> {
        let mut baselines = vec![row("yardstick")];
        if self.first {
            baselines.push(row(&format!("{}/established/{family}", self.hook.name())));
        } else if self.name == "from_uplink/nodeport/established" {
            baselines.insert(0, row(&format!("uplink_xdp/established/{family}")));
        }
        if !self.first && family == "v6" {
            baselines.push(self.row("v4"));
        }
        baselines
    }
}

const YARDSTICK_ROW: &str = "yardstick";
const FLOWS: [&str; 5] = [
    "flows/100_of_100",
    "flows/100_of_100000",
    "flows/100000_of_100000",
    "flows/100_of_500000",
    "flows/100_of_500000@collecting",
];

fn row(name: &str) -> String {
    format!("ns_per_packet/{name}")
}

/// Measures all requested rows.
pub fn run(options: &Options, results: &mut Results) -> Result<()> {
    let count = if options.quick { QUICK_ROUNDS } else { ROUNDS };
    let of_work = WORK.iter().flat_map(|work| FAMILIES.map(|(_, family)| work.row(family)));
    if of_work.chain([row(YARDSTICK_ROW)]).any(|name| options.wants(&name)) {
        secluded(|bpffs| {
            worker::settle()?;
            let yardstick = Yardstick::new()?;
            let mut rig = Rig::new(&bpffs.join("rig"), tables::CONNTRACK.capacity() as u32)?;
            rig.keep_xdp_warm("uplink")?;
            let before = options.before.as_deref().map(|object| rig_before(object, bpffs)).transpose()?;
            let mut variants = packet_variants(&yardstick, &rig)?;
            if let Some(before) = &before {
                add_before(&mut variants, before)?;
            }
            rounds::select(options, &mut variants);
            rounds::interleave("ns_per_packet", "ns", count, variants, results)
        })?;
    }
    if FLOWS.iter().any(|name| options.wants(&row(name))) {
        secluded(|bpffs| {
            // Started before `settle`, so that it is not bound to this thread's processor.
            let sweeper = Sweeper::start();
            worker::settle()?;
            let tables = FlowTables::new(bpffs)?;
            let mut variants = tables.variants(&sweeper)?;
            rounds::select(options, &mut variants);
            rounds::interleave("ns_per_packet/flows", "ns", count, variants, results)
        })?;
    }
    Ok(())
}

/// The programs of another build.
fn rig_before(object: &Path, bpffs: &Path) -> Result<Rig> {
    let bytes = std::fs::read(object).with_context(|| format!("cannot read {}", object.display()))?;
    let mut rig = Rig::with(&bytes, &bpffs.join("before"), tables::CONNTRACK.capacity() as u32)?;
    rig.keep_xdp_warm("other")?;
    Ok(rig)
}

/// Adds the rows of another build, each after the row that is compared with it.
fn add_before<'a>(variants: &mut Vec<Variant<'a>>, before: &'a Rig) -> Result<()> {
    let names = WORK.iter().flat_map(|work| FAMILIES.map(|(_, family)| (work.row(family), work.row_before(family))));
    let names: Vec<_> = names.collect();
    for mut variant in work_variants(before)? {
        let Some((now, then)) = names.iter().find(|(now, _)| *now == variant.name) else { continue };
        let Some(place) = variants.iter().position(|v| v.name == *now) else { continue };
        variants[place].baselines.push(then.clone());
        (variant.name, variant.baselines) = (then.clone(), Vec::new());
        variants.insert(place + 1, variant);
    }
    Ok(())
}

/// The yardstick, and every hook, stage and family, adjacent to their baselines.
fn packet_variants<'a>(yardstick: &'a Yardstick, rig: &'a Rig) -> Result<Vec<Variant<'a>>> {
    let mut variants = vec![Variant::new(row(YARDSTICK_ROW), &[], || yardstick.sample())];
    variants.extend(work_variants(rig)?);
    Ok(variants)
}

/// Every hook, stage and family.
fn work_variants(rig: &Rig) -> Result<Vec<Variant<'_>>> {
    let mut variants = Vec::new();
    for work in &WORK {
        let in_ifindex = match work.hook {
            Hook::FromPod => rig.pod,
            Hook::UplinkXdp => rig.loopback,
            _ => rig.uplink,
        };
        let out_ifindex = if work.rewrite == Rewrite::Both { in_ifindex } else { rig.other };
        for (family, name) in FAMILIES {
            let rewrite = work.rewrite;
            let chain = Chain { family, rewrite, steps: 2, in_ifindex, out_ifindex, pod_port: FIRST_PORT };
            let (name, baselines, hook) = (work.row(name), work.baselines(name), work.hook);
            variants.push(if work.first {
                let chain = Chain { steps: REPEAT, ..chain };
                rig.serve(&chain)?;
                Variant::new(name, &baselines, move || rig.sample_first(hook, chain))
            } else {
                let chain = Chain { pod_port: ESTABLISHED_PORT + variants.len() as u16, ..chain };
                rig.establish(&[chain])?;
                let position = Cell::new(0);
                Variant::new(name, &baselines, move || rig.sample_established(hook, &chain, &position, PACKETS))
            });
        }
    }
    Ok(variants)
}

/// Connection tables with few and with many flows.
struct FlowTables {
    few: Rig,
    many: Rig,
    most: Rig,
}

impl FlowTables {
    fn new(bpffs: &Path) -> Result<Self> {
        let room = tables::CONNTRACK.capacity() as u32;
        let [few, many, most] = [("few", room), ("many", room), ("most", MOST_ENTRIES)]
            .map(|(name, room)| Rig::new(&bpffs.join(name), room));
        Ok(Self { few: few?, many: many?, most: most? })
    }

    /// Few active flows among few, among many and among very many, and all of the many.
    fn variants<'a>(&'a self, sweeper: &'a Sweeper) -> Result<Vec<Variant<'a>>> {
        let chain = |rig: &Rig, steps: u32, pod_port: u16| Chain {
            family: Family::V4,
            rewrite: Rewrite::Destination,
            steps,
            in_ifindex: rig.pod,
            out_ifindex: rig.other,
            pod_port,
        };
        let active = |rig| chain(rig, FEW, ESTABLISHED_PORT);
        let all = chain(&self.many, MANY, ESTABLISHED_PORT + 1);
        let silent = (1..).take((MOST / MANY) as usize).map(|i| chain(&self.most, MANY, ESTABLISHED_PORT + i));
        self.few.establish(&[active(&self.few)])?;
        self.many.establish(&[active(&self.many), all])?;
        self.most.establish(&silent.chain([active(&self.most)]).collect::<Vec<_>>())?;
        let sampler = |rig: &'a Rig, chain: Chain| {
            let position = Cell::new(0);
            move || rig.sample_established(Hook::FromPod, &chain, &position, PACKETS)
        };
        let [alone, among_many, all_of_many, among_most, collecting] = FLOWS;
        let mut variants = vec![Variant::new(row(alone), &[], sampler(&self.few, active(&self.few)))];
        for (name, rig, chain) in [
            (among_many, &self.many, active(&self.many)),
            (all_of_many, &self.many, all),
            (among_most, &self.most, active(&self.most)),
        ] {
            variants.push(Variant::new(row(name), &[row(alone)], sampler(rig, chain)));
        }
        let sample = sampler(&self.most, active(&self.most));
        let pod = active(&self.most).others()[0].into();
        variants.push(Variant::new(row(collecting), &[row(among_most)], move || {
            let pods = [(pod, self.most.other)].into_iter().collect();
            sweeper.beside(self.most.sweep(pods)?, &sample)
        }));
        Ok(variants)
    }
}

/// A thread that sweeps a table repeatedly during a measurement.
struct Sweeper {
    sweeps: mpsc::Sender<Sweep>,
    ended: mpsc::Receiver<io::Result<()>>,
    go_on: Arc<AtomicBool>,
}

impl Sweeper {
    fn start() -> Self {
        let ((sweeps, requests), (answers, ended)) = (mpsc::channel::<Sweep>(), mpsc::channel());
        let go_on = Arc::new(AtomicBool::new(false));
        let flag = go_on.clone();
        thread::spawn(move || {
            for sweep in requests {
                let mut result = sweep.run();
                while result.is_ok() && flag.load(Ordering::Relaxed) {
                    result = sweep.run();
                }
                if answers.send(result.map(drop)).is_err() {
                    return;
                }
            }
        });
        Self { sweeps, ended, go_on }
    }

    fn beside<T>(&self, sweep: Sweep, work: impl FnOnce() -> Result<T>) -> Result<T> {
        self.go_on.store(true, Ordering::Relaxed);
        self.sweeps.send(sweep).ok().context("the sweeping thread is gone")?;
        let result = work();
        self.go_on.store(false, Ordering::Relaxed);
        self.ended.recv().context("the sweeping thread is gone")?.context("cannot sweep the connection table")?;
        result
    }
}

/// The hand-written function and its table.
struct Yardstick {
    ebpf: Ebpf,
    chain: Chain,
}

impl Yardstick {
    fn new() -> Result<Self> {
        let path = env::var_os(YARDSTICK)
            .map(PathBuf::from)
            .or_else(|| env::var_os(OBJECT).map(|object| PathBuf::from(object).with_file_name("yardstick")));
        let path = path.with_context(|| format!("{YARDSTICK} is not set: use `cargo xtask bench`, which builds it"))?;
        let mut ebpf = Ebpf::load_file(&path).with_context(|| format!("cannot load {}", path.display()))?;
        let program: &mut Xdp = ebpf.program_mut("yardstick").context("the object has no yardstick")?.try_into()?;
        program.load()?;
        keep_warm(&mut ebpf, "yardstick", "fabric")?;
        let (steps, pod_port, none) = (2, ESTABLISHED_PORT, IfIndex(0));
        let chain = Chain {
            family: Family::V4,
            rewrite: Rewrite::Destination,
            steps,
            in_ifindex: none,
            out_ifindex: none,
            pod_port,
        };
        let flows = ebpf.map_mut("FLOWS").context("the yardstick has no table")?;
        let mut flows: HashMap<_, Plain<Tuple>, Plain<CtEntry>> = HashMap::try_from(flows)?;
        for step in 0..chain.steps {
            let [(key, entry), _] = chain.entries(step, 0);
            flows.insert(Plain(key), Plain(entry), 0)?;
        }
        Ok(Self { ebpf, chain })
    }

    fn sample(&self) -> Result<f64> {
        let program: &Xdp = self.ebpf.program("yardstick").context("no yardstick")?.try_into()?;
        let calls = PACKETS / REPEAT;
        let mut total = 0.0;
        for _ in 0..calls {
            total += test_run(&self.chain, 0, false, XDP_TX, |data_in, data_out| {
                let (data_in, data_out) = (Some(data_in), Some(data_out));
                program.test_run(TestRunOptions { data_in, data_out, repeat: REPEAT, ..TestRunOptions::default() })
            })
            .context("in a test run of the yardstick")?;
        }
        Ok(total / f64::from(calls))
    }
}
