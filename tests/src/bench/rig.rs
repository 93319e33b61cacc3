//! podnet's programs and tables without a cluster: loaded as in the daemon, and executed by test runs, in namespaces
//! and a BPF file system of one thread.

use std::{
    cell::Cell,
    collections::BTreeMap,
    fs,
    io::Write as _,
    net::IpAddr,
    os::fd::{AsFd as _, BorrowedFd},
    path::Path,
    process::{Command, Stdio},
    thread,
    time::Duration,
};

use anyhow::{Context, Result, anyhow, bail, ensure};
use aya::{
    Ebpf, TestRun, TestRunOptions,
    maps::{Array, HashMap, Map, MapData},
    programs::{ProgramError, SchedClassifier, TestRunResult, Xdp, XdpMode},
};
use bytemuck::Pod;
use nix::{
    mount::{MsFlags, mount},
    sched::{CloneFlags, unshare},
    time::{ClockId, clock_gettime},
};
use podnet::control::policies::{Attached, policy_pods};
use podnet::datapath::{
    self, LoadError, Sizes, batch,
    conntrack::{Pods, Sweep},
    loader,
    removal::Remover,
};
use podnet::policy::Desired;
use podnet_cni::datapath::{Endpoints, PinDir, Plain};
use podnet_common::{
    addr::IfIndex,
    layout::{Backend, Config, CtEntry, Endpoint, Frontend, FrontendKey, Hook, PolicyPod, Tuple},
    tables::{self, Table},
};

use super::chain::{Chain, MAC, REPEAT, Rewrite};
use crate::traffic::Family;

/// Packets per sample of first packets: so few that the table stays mostly empty.
const FIRST_PACKETS: u32 = 80 * REPEAT;
/// Attempts at a sample.
const TRIES: u32 = 10;
/// `TC_ACT_REDIRECT` of linux/pkt_cls.h.
const TC_ACT_REDIRECT: u32 = 7;
/// `XDP_TX` of linux/bpf.h.
pub const XDP_TX: u32 = 3;
/// Offset of `ifindex` in `struct __sk_buff`, and its size (linux/bpf.h).
const SK_BUFF_IFINDEX: usize = 40;
const SK_BUFF: usize = 192;
/// Number of entries per batch write.
const CHUNK: usize = 8192;

/// Runs a closure on a thread with its own network namespace and a private BPF file system, whose directory it
/// receives.
pub fn secluded<T: Send>(work: impl FnOnce(&Path) -> Result<T> + Send) -> Result<T> {
    // This thread, where nothing is mounted on it, removes the directory.
    let directory = tempfile::tempdir()?;
    let bpffs = directory.path();
    thread::scope(|scope| {
        let working = scope.spawn(|| {
            seclude(bpffs)?;
            work(bpffs)
        });
        working.join().map_err(|_| anyhow!("measuring panicked"))?
    })
}

fn seclude(bpffs: &Path) -> Result<()> {
    unshare(CloneFlags::CLONE_NEWNET | CloneFlags::CLONE_NEWNS).context("cannot make namespaces: run as root")?;
    let none: Option<&str> = None;
    mount(none, "/", none, MsFlags::MS_REC | MsFlags::MS_PRIVATE, none).context("cannot make / private")?;
    mount(Some("bpf"), bpffs, Some("bpf"), MsFlags::empty(), none).context("cannot mount a BPF file system")?;
    // Three interfaces as source and destination of packets. Packets received on the uplink must be addressed to its
    // MAC.
    let mac = MAC.0.map(|byte| format!("{byte:02x}")).join(":");
    let links =
        format!("link add pod type veth peer name other\nlink add uplink address {mac} type veth peer name fabric\n");
    let mut ip = Command::new("ip").args(["-batch", "-"]).stdin(Stdio::piped()).spawn().context("cannot run ip")?;
    ip.stdin.take().context("no pipe")?.write_all(links.as_bytes())?;
    ensure!(ip.wait()?.success(), "ip cannot make veth pairs");
    Ok(())
}

/// podnet's programs and tables.
pub struct Rig {
    ebpf: Ebpf,
    pins: PinDir,
    conntrack: MapData,
    /// `None`: the object is from a version without it.
    remover: Option<Remover>,
    /// Host end of a pod.
    pub pod: IfIndex,
    /// Host end of another pod.
    pub other: IfIndex,
    /// Interface that leads out of the node.
    pub uplink: IfIndex,
    /// Ingress interface of test runs at XDP.
    pub loopback: IfIndex,
}

impl Rig {
    /// Loads them, with a connection table of this capacity. `bpffs` is a new directory in a BPF file system.
    pub fn new(bpffs: &Path, conntrack_max: u32) -> Result<Self> {
        Self::with(loader::built_in()?, bpffs, conntrack_max)
    }

    /// Same, with another object than the built-in one.
    pub fn with(object: &[u8], bpffs: &Path, conntrack_max: u32) -> Result<Self> {
        fs::create_dir(bpffs)?;
        let pins = PinDir::new(bpffs);
        let mut ebpf = loader::load(object, &pins, Sizes { conntrack: conntrack_max, ..Sizes::default() })?.ebpf;
        let mut config: Array<MapData, Plain<Config>> =
            Map::Array(MapData::from_pin(pins.table(tables::CONFIG))?).try_into()?;
        config.set(0, Plain(Config { flags: Config::EXTERNAL_CLUSTER_IP, ..Config::default() }), 0)?;
        let conntrack = MapData::from_pin(pins.table(tables::CONNTRACK))?;
        let remover = match Remover::load(&mut ebpf) {
            Err(LoadError::Missing(_)) => None,
            remover => Some(remover?),
        };
        let index = |name: &str| nix::net::if_::if_nametoindex(name).map(IfIndex).with_context(|| format!("no {name}"));
        let [pod, other, uplink, loopback] = ["pod", "other", "uplink", "lo"].map(index);
        Ok(Self { ebpf, pins, conntrack, remover, pod: pod?, other: other?, uplink: uplink?, loopback: loopback? })
    }

    /// Makes test runs of XDP comparable; see [`keep_warm`]. One rig per interface.
    pub fn keep_xdp_warm(&mut self, ifname: &str) -> Result<()> {
        keep_warm(&mut self.ebpf, Hook::UplinkXdp.name(), ifname)
    }

    /// Adds the local pods among a chain's ends.
    fn add_endpoints(&self, chain: &Chain) -> Result<()> {
        if chain.rewrite == Rewrite::Both {
            return Ok(());
        }
        let mut endpoints = Endpoints::open(&self.pins)?;
        for (ip, ifindex) in self.pods(chain) {
            endpoints.insert(ip, &Endpoint { ifindex, mtu: 1500, mac: MAC, host_mac: MAC, ..Endpoint::default() })?;
        }
        Ok(())
    }

    /// The pods of a chain, with their interfaces.
    fn pods(&self, chain: &Chain) -> [(IpAddr, IfIndex); 3] {
        let [a, b] = chain.others();
        [(chain.pod(), self.pod), (a, self.other), (b, self.other)]
    }

    /// Fills the connection table with the flows of chains in random order, so that adjacent steps of a chain are not
    /// adjacent in memory.
    pub fn establish(&self, chains: &[Chain]) -> Result<()> {
        chains.iter().try_for_each(|chain| self.add_endpoints(chain))?;
        let now = datapath::now();
        let mut entries: Vec<_> =
            chains.iter().flat_map(|chain| (0..chain.steps).flat_map(move |step| chain.entries(step, now))).collect();
        shuffle(&mut entries);
        self.insert_flows(&entries)
    }

    /// Writes entries to the connection table.
    pub fn insert_flows(&self, entries: &[(Tuple, CtEntry)]) -> Result<()> {
        for chunk in entries.chunks(CHUNK) {
            let (keys, values): (Vec<Tuple>, Vec<CtEntry>) = chunk.iter().copied().unzip();
            batch::update(self.conntrack_fd(), &keys, &values).context("cannot fill the connection table")?;
        }
        Ok(())
    }

    fn conntrack_fd(&self) -> BorrowedFd<'_> {
        self.conntrack.fd().as_fd()
    }

    /// Puts network policies without blocks into effect, as the daemon does for the pods of a chain.
    pub fn enforce(&self, policies: &Desired, chain: &Chain) -> Result<()> {
        ensure!(policies.blocks.is_empty(), "blocks are not written");
        self.fill(tables::POLICY_RULES.into(), policies.rules.iter())?;
        self.fill_ports(policies, |class| class)?;
        self.fill(tables::POLICY_PEERS.into(), policies.peers.iter())?;
        self.fill(tables::SUBJECTS.into(), policies.subjects.iter())?;
        let pods = self.policy_pods(policies, chain);
        self.fill(tables::POLICY_PODS.into(), pods.iter())?;
        self.set_flags(Config::POLICY)
    }

    /// Ends what [`Self::enforce`] has begun with the same policies.
    pub fn lift(&self, policies: &Desired, chain: &Chain) -> Result<()> {
        self.set_flags(0)?;
        let (pods, none) = (self.policy_pods(policies, chain), PolicyPod::default());
        self.fill(tables::POLICY_PODS.into(), pods.keys().map(|slot| (slot, &none)))?;
        self.empty(tables::SUBJECTS.into(), policies.subjects.keys())?;
        self.empty(tables::POLICY_PEERS.into(), policies.peers.keys())?;
        self.fill_ports(policies, |_| 0)?;
        self.empty(tables::POLICY_RULES.into(), policies.rules.keys())
    }

    /// What the daemon writes to `policy_pods` for the pods of a chain.
    fn policy_pods(&self, policies: &Desired, chain: &Chain) -> BTreeMap<u32, PolicyPod> {
        let attached = [self.pod, self.other].map(|link| {
            let ips = self.pods(chain).into_iter().filter(|(_, of)| *of == link).map(|(ip, _)| ip).collect();
            Attached { ips, link, ..Attached::default() }
        });
        policy_pods(attached.iter(), &policies.subjects, &policies.peers)
    }

    fn fill_ports(&self, policies: &Desired, class: impl Fn(u32) -> u32) -> Result<()> {
        let ports: Vec<(u32, u32)> = policies.ports.iter().map(|(port, own)| (port.index(), class(*own))).collect();
        self.fill(tables::POLICY_PORTS.into(), ports.iter().map(|(index, class)| (index, class)))
    }

    /// Sets flags of the configuration besides those that the rig has.
    fn set_flags(&self, flags: u32) -> Result<()> {
        let config = Config { flags: Config::EXTERNAL_CLUSTER_IP | flags, ..Config::default() };
        self.fill(tables::CONFIG.into(), [(&0_u32, &config)].into_iter())
    }

    /// Removes entries of a hash table.
    fn empty<'a, K: Pod>(&self, table: Table, keys: impl Iterator<Item = &'a K>) -> Result<()> {
        let map = MapData::from_pin(self.pins.table(table))?;
        let keys: Vec<K> = keys.copied().collect();
        batch::delete(map.fd().as_fd(), &keys).with_context(|| format!("cannot empty {}", table.name()))?;
        Ok(())
    }

    fn fill<'a, K: Pod, V: Pod>(&self, table: Table, entries: impl Iterator<Item = (&'a K, &'a V)>) -> Result<()> {
        let map = MapData::from_pin(self.pins.table(table))?;
        let (keys, values): (Vec<K>, Vec<V>) = entries.map(|(key, value)| (*key, *value)).unzip();
        batch::update(map.fd().as_fd(), &keys, &values).with_context(|| format!("cannot fill {}", table.name()))
    }

    /// A sweep of the connection table, as in the daemon. `pods`: the existing pods.
    pub fn sweep(&self, pods: Pods) -> Result<Sweep> {
        let holders = MapData::from_pin(self.pins.table(tables::HOLDERS))?;
        let remover = self.remover.as_ref().context("this object has no program that removes flows")?;
        Ok(Sweep {
            remover: remover.try_clone()?,
            table: self.conntrack_fd().try_clone_to_owned()?,
            capacity: self.conntrack.info()?.max_entries(),
            holders: holders.fd().as_fd().try_clone_to_owned()?,
            now: Some(datapath::now()),
            stale: Default::default(),
            hurry: Default::default(),
            pods: Box::new(move || Ok(pods.clone())),
            node: Default::default(),
            evaluated: Default::default(),
        })
    }

    /// Writes the services of a chain; those of IPv6 follow those of IPv4.
    pub fn serve(&self, chain: &Chain) -> Result<()> {
        self.add_endpoints(chain)?;
        let pinned = |table: Table| MapData::from_pin(self.pins.table(table));
        let mut frontends: HashMap<MapData, Plain<FrontendKey>, Plain<Frontend>> =
            Map::HashMap(pinned(tables::FRONTENDS.into())?).try_into()?;
        let mut slots: Array<MapData, u32> = Map::Array(pinned(tables::SLOTS.into())?).try_into()?;
        let mut backends: Array<MapData, Plain<Backend>> = Map::Array(pinned(tables::BACKENDS.into())?).try_into()?;
        let base = if chain.family == Family::V4 { 0 } else { chain.steps };
        for step in 0..chain.steps {
            let (key, frontend, backend) = chain.service(step, base);
            backends.set(base + step, Plain(backend), 0)?;
            slots.set(base + step, base + step, 0)?;
            frontends.insert(Plain(key), Plain(frontend), 0)?;
        }
        Ok(())
    }

    /// Nanoseconds per packet of established flows. All flows have just been seen, as in steady traffic, where one
    /// packet per tick and flow takes the slow path; if the tick changes, the sample is repeated.
    pub fn sample_established(&self, hook: Hook, chain: &Chain, position: &Cell<u32>, packets: u32) -> Result<f64> {
        for _ in 0..TRIES {
            let tick = datapath::now();
            if chain.rewrite == Rewrite::Both {
                self.stamp(chain, tick)?;
            } else {
                self.go_along(hook, chain, position, chain.steps)?;
            }
            let ns = self.go_along(hook, chain, position, packets)?;
            if datapath::now() == tick {
                return Ok(ns);
            }
        }
        bail!("a pass over {} flows takes longer than a tick of the datapath's clock", chain.steps)
    }

    /// Marks a chain's flows as just seen. Sending packets for this would require other nodes and routes to them.
    fn stamp(&self, chain: &Chain, now: u32) -> Result<()> {
        let mut clock: Array<MapData, u32> =
            Map::Array(MapData::from_pin(self.pins.table(tables::CLOCK))?).try_into()?;
        clock.set(0, now, 0)?;
        let entries: Vec<_> = (0..chain.steps).flat_map(|step| chain.entries(step, now)).collect();
        self.insert_flows(&entries)
    }

    /// Advances at least this many steps along a chain of established flows.
    fn go_along(&self, hook: Hook, chain: &Chain, position: &Cell<u32>, steps: u32) -> Result<f64> {
        let calls = steps.div_ceil(REPEAT);
        let mut total = 0.0;
        for _ in 0..calls {
            total += self.call(hook, chain, position.get(), false)?;
            position.set((position.get() + REPEAT) % chain.steps);
        }
        Ok(total / f64::from(calls))
    }

    /// Nanoseconds per packet that begins a flow. The flows are removed afterwards.
    pub fn sample_first(&self, hook: Hook, chain: Chain) -> Result<f64> {
        let chains: Vec<Chain> =
            (0..FIRST_PACKETS / REPEAT).map(|i| Chain { pod_port: chain.pod_port + i as u16, ..chain }).collect();
        let times = chains.iter().map(|chain| self.call(hook, chain, 0, true)).collect::<Result<Vec<_>>>()?;
        let keys: Vec<Tuple> =
            chains.iter().flat_map(|chain| (0..chain.steps).flat_map(move |step| chain.keys(step))).collect();
        let removed = batch::delete(self.conntrack_fd(), &keys)?;
        ensure!(removed == keys.len(), "{removed} entries of {} were there: not every packet began a flow", keys.len());
        Ok(times.iter().sum::<f64>() / times.len() as f64)
    }

    /// A test run along a chain; nanoseconds per packet.
    fn call(&self, hook: Hook, chain: &Chain, step: u32, opens: bool) -> Result<f64> {
        let program = self.ebpf.program(hook.name()).with_context(|| format!("no program {}", hook.name()))?;
        let time = if hook == Hook::UplinkXdp {
            let program: &Xdp = program.try_into()?;
            test_run(chain, step, opens, XDP_TX, |data_in, data_out| {
                let (data_in, data_out) = (Some(data_in), Some(data_out));
                program.test_run(TestRunOptions { data_in, data_out, repeat: REPEAT, ..TestRunOptions::default() })
            })
        } else {
            let program: &SchedClassifier = program.try_into()?;
            let mut context = [0; SK_BUFF];
            context[SK_BUFF_IFINDEX..][..4].copy_from_slice(&chain.in_ifindex.0.to_ne_bytes());
            test_run(chain, step, opens, TC_ACT_REDIRECT, |data_in, data_out| {
                let (data_in, data_out, ctx_in) = (Some(data_in), Some(data_out), Some(&context[..]));
                let rest = TestRunOptions::default();
                program.test_run(TestRunOptions { data_in, data_out, ctx_in, repeat: REPEAT, ..rest })
            })
        };
        time.with_context(|| format!("in a test run of {}", hook.name()))
    }
}

/// Attaches an XDP program to an interface without traffic. Otherwise a test run waits for the kernel to patch the
/// program's calls, for some ten milliseconds, after which all caches are cold.
pub fn keep_warm(ebpf: &mut Ebpf, program: &str, ifname: &str) -> Result<()> {
    let attached: &mut Xdp = ebpf.program_mut(program).with_context(|| format!("no program {program}"))?.try_into()?;
    attached.attach(ifname, XdpMode::Skb).with_context(|| format!("cannot attach {program} to {ifname}"))?;
    Ok(())
}

/// Runs a program [`REPEAT`] times along a chain, and checks that it reached the end.
pub fn test_run(
    chain: &Chain,
    step: u32,
    opens: bool,
    wanted: u32,
    run: impl FnOnce(&[u8], &mut [u8]) -> Result<TestRunResult, ProgramError>,
) -> Result<f64> {
    let packet = chain.packet(step, opens)?;
    let mut out = vec![0; packet.len() + 64];
    let result = run(&packet, &mut out)?;
    ensure!(result.return_value == wanted, "the verdict is {}, not {wanted}", result.return_value);
    chain.check(&out[..result.data_size_out as usize], step + REPEAT)?;
    Ok(result.duration.as_nanos() as f64)
}

/// CPU time used by this thread.
pub fn cpu_time() -> Result<Duration> {
    Ok(clock_gettime(ClockId::CLOCK_THREAD_CPUTIME_ID)?.into())
}

/// Shuffles entries, in the same way in every run (Fisher and Yates).
pub fn shuffle<T>(items: &mut [T]) {
    let mut state = 0x9e37_79b9_7f4a_7c15u64;
    for i in (1..items.len()).rev() {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        items.swap(i, (state >> 33) as usize % (i + 1));
    }
}
