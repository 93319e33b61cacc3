//! The shipping programs in the kernel, and their tables.
//!
//! The first test of a process loads the object, since verification takes seconds. Programs and tables belong to no
//! network namespace, and test runs use that of the calling thread, so tests take turns: each starts with the tables it
//! wants, without flows or counters of earlier tests.

use std::{
    collections::BTreeMap,
    env, fs,
    os::fd::{AsFd as _, AsRawFd as _, BorrowedFd},
    path::Path,
    sync::{Mutex, MutexGuard, OnceLock, PoisonError},
};

use anyhow::{Context as _, Result, anyhow, bail};
use aya::{
    Ebpf, Pod, TestRun as _, TestRunOptions,
    maps::{Array, HashMap, LpmTrie, Map, MapData, PerCpuArray, PerCpuValues, lpm_trie::Key},
    programs::{CgroupAttachMode, CgroupSockAddr, Program, cgroup_sock_addr::CgroupSockAddrLink},
    util::nr_cpus,
};
use nix::{
    mount::{MsFlags, mount, umount},
    sched::{CloneFlags, unshare},
};
use podnet::datapath::{
    Sizes, batch,
    live::{Live, Source},
    loader,
    removal::Remover,
};
use podnet_cni::datapath::{PinDir, Plain, bpf};
use podnet_common::{
    addr::Addr,
    layout::{
        Affinity, AffinityKey, CtEntry, FragmentKey, FragmentPorts, Frontend, FrontendKey, Hook, Peer, PolicyDenial,
        SockKey, SockPeer, Tuple, holders,
    },
    pipeline::{CachedRoute, DirectPath},
    removal::Removal,
    simulator::{FinalVerdict, HostTables},
    verdict::{COUNTERS, COUNTERS_BASE, Counter, Reason},
};

/// Size of the connection table.
const SIZES: Sizes = Sizes { conntrack: 16_384, frontends: 65_536 };

/// Verdict of a packet as far as a test run shows it; the kernel does not report the target of a redirect.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Seen {
    Pass,
    Drop,
    Redirect,
}

impl From<FinalVerdict> for Seen {
    fn from(end: FinalVerdict) -> Self {
        match end {
            FinalVerdict::Pass => Self::Pass,
            FinalVerdict::Drop(_) => Self::Drop,
            FinalVerdict::Forward(..) | FinalVerdict::Reject(..) | FinalVerdict::Answer(_) => Self::Redirect,
        }
    }
}

/// The loaded object.
struct Object {
    ebpf: Ebpf,
    /// The same tables, for tracing.
    source: Source,
    /// Beginning of `SNAT_PORTS`. The table is so large that it is written only when it changes.
    ports: Vec<u16>,
    /// Elements in use of the arrays that [`Kernel::replace`] has written, by name.
    in_use: BTreeMap<&'static str, Vec<u32>>,
    /// Number of possible processors, each with its own counters.
    processors: usize,
}

/// The object of this process, or the error of loading it.
fn object() -> Result<MutexGuard<'static, Object>> {
    static OBJECT: OnceLock<Result<Mutex<Object>, String>> = OnceLock::new();
    let object = OBJECT.get_or_init(|| load().map(Mutex::new).map_err(|error| format!("{error:#}")));
    match object {
        // A failed test leaves nothing that the next one does not reset.
        Ok(object) => Ok(object.lock().unwrap_or_else(PoisonError::into_inner)),
        Err(error) => bail!("{error}"),
    }
}

/// Loads the object on a thread whose mount namespace has a BPF file system for its pins. Programs and tables survive
/// the thread, since this process holds their file descriptors.
fn load() -> Result<Object> {
    let thread = std::thread::spawn(|| {
        let path = env::var("PODNET_EBPF_OBJECT")
            .context("PODNET_EBPF_OBJECT names no object: run `cargo xtask test`, which builds it")?;
        let object = fs::read(&path).with_context(|| format!("cannot read {path}"))?;
        unshare(CloneFlags::CLONE_NEWNS)?;
        mount(None::<&str>, "/", None::<&str>, MsFlags::MS_REC | MsFlags::MS_PRIVATE, None::<&str>)?;
        let directory = tempfile::tempdir()?;
        mount(Some("bpf"), directory.path(), Some("bpf"), MsFlags::empty(), None::<&str>)?;
        let loaded = loader::load(&object, &PinDir::new(directory.path()), SIZES);
        let source = Source::open(directory.path());
        umount(directory.path())?;
        let processors = nr_cpus().map_err(|(path, error)| anyhow!("{path}: {error}"))?;
        Ok(Object { ebpf: loaded?.ebpf, source: source?, ports: Vec::new(), in_use: BTreeMap::new(), processors })
    });
    thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
}

/// The shipping programs with the tables of a [`HostTables`], for one test at a time.
pub struct Kernel {
    object: MutexGuard<'static, Object>,
}

impl Kernel {
    /// Fills the tables, and clears those written by programs.
    pub fn with(tables: &HostTables) -> Result<Self> {
        let mut kernel = Self { object: object()? };
        kernel.hash("FRONTENDS", tables.frontends.iter().map(|(key, value)| (Plain(*key), Plain(*value))))?;
        kernel.hash("ENDPOINTS", tables.endpoints.iter().map(|(key, value)| (Plain(*key), Plain(*value))))?;
        kernel.hash("SANDBOXES", tables.sandboxes.iter().map(|(key, value)| (*key, Plain(*value))))?;
        let interfaces = tables.interfaces.iter().map(|(key, value)| (Plain(*key), Plain(*value)));
        kernel.hash("INTERFACES", interfaces)?;
        kernel.hash("PEERS", tables.peers.iter().map(|mac| (Plain(Peer { mac: *mac, _pad: [0; 2] }), 1u32)))?;
        let networks = tables.networks.iter().map(|(key, value)| (Key::new(key.len, Plain(key.addr)), Plain(*value)));
        kernel.trie("NODES", networks)?;
        let ranges = tables.source_ranges.iter().map(|range| (Key::new(range.len, Plain(range.data)), 1u32));
        kernel.trie("SOURCE_RANGES", ranges)?;
        kernel.hash("SUBJECTS", tables.subjects.iter().map(|(key, value)| (Plain(*key), Plain(*value))))?;
        kernel.hash("POLICY_PEERS", tables.policy_peers.iter().map(|(key, class)| (Plain(*key), *class)))?;
        let blocks = tables.policy_blocks.iter().map(|(key, class)| (Key::new(key.len, Plain(key.addr)), *class));
        kernel.trie("POLICY_BLOCKS", blocks)?;
        kernel.replace("POLICY_PORTS", tables.policy_ports.iter().map(|(port, class)| (port.index(), *class)))?;
        kernel.replace("POLICY_PODS", tables.policy_pods.iter().map(|(slot, pod)| (*slot, Plain(*pod))))?;
        kernel.hash("POLICY_RULES", tables.policy_rules.iter().map(|(key, verdict)| (Plain(*key), Plain(*verdict))))?;
        let denials = tables.policy_denials.borrow();
        kernel.hash("POLICY_DENIALS", denials.iter().map(|(key, packets)| (Plain(*key), *packets)))?;
        drop(denials);
        kernel.array("SLOTS", tables.slots.iter().map(|(slot, id)| (*slot, *id)))?;
        kernel.array("BACKENDS", tables.backends.iter().map(|(id, backend)| (*id, Plain(*backend))))?;
        kernel.ports(&tables.snat_ports)?;
        kernel.array("CONFIG", [(0, Plain(tables.config))])?;
        // Tables written by programs.
        kernel.hash::<Plain<AffinityKey>, Plain<Affinity>>("AFFINITY", [])?;
        kernel.hash::<Plain<FragmentKey>, Plain<FragmentPorts>>("FRAGMENTS", [])?;
        kernel.hash::<Plain<SockKey>, Plain<SockPeer>>("SOCK_REVERSE", [])?;
        kernel.forget_flows(tables.holders.borrow().get(&holders::CAPACITY).copied().unwrap_or_default())?;
        kernel.clear_route_caches()?;
        let zeros = vec![0; kernel.object.processors];
        let mut counters: PerCpuArray<_, u64> = kernel.object.ebpf.map_mut("COUNTERS").context("map")?.try_into()?;
        for counter in 0..COUNTERS as u32 {
            counters.set(counter, PerCpuValues::try_from(zeros.clone())?, 0)?;
        }
        Ok(kernel)
    }

    /// Clears the programs' caches of routes and direct paths.
    pub fn clear_route_caches(&self) -> Result<()> {
        self.clear::<CachedRoute>("NEXT_HOPS", CachedRoute::SLOTS)?;
        self.clear::<DirectPath>("DIRECT_PATHS", DirectPath::SLOTS)
    }

    /// Clears the first slots of a per-CPU table.
    fn clear<V: bytemuck::Pod>(&self, name: &str, slots: u32) -> Result<()> {
        let Some(Map::PerCpuArray(map)) = self.object.ebpf.map(name) else { bail!("no table {name}") };
        let map = Map::PerCpuArray(MapData::from_fd(map.fd().as_fd().try_clone_to_owned()?)?);
        let mut map: PerCpuArray<_, Plain<V>> = map.try_into()?;
        let none = || PerCpuValues::try_from(vec![Plain(V::zeroed()); self.object.processors]);
        (0..slots).try_for_each(|slot| Ok(map.set(slot, none()?, 0)?))
    }

    /// Sets the programs' clock, in ticks, as the daemon does every second. Programs also set it, but not for every
    /// packet.
    pub fn set_clock(&self, now: u32) -> Result<()> {
        let Some(Map::Array(map)) = self.object.ebpf.map("CLOCK") else { bail!("no table for the clock") };
        Ok(batch::update(map.fd().as_fd(), &[0u32], &[now])?)
    }

    /// Clears the connection table and sets its nominal capacity; 0 means unknown.
    pub fn forget_flows(&mut self, room: u32) -> Result<()> {
        self.hash::<Plain<Tuple>, Plain<CtEntry>>("CONNTRACK", [])?;
        let places: Vec<u32> = (0..holders::LEN as u32).collect();
        let counts: Vec<u32> = places.iter().map(|place| if *place == holders::CAPACITY { room } else { 0 }).collect();
        Ok(batch::update(self.holders()?, &places, &counts)?)
    }

    fn holders(&self) -> Result<BorrowedFd<'_>> {
        let Some(Map::Array(map)) = self.object.ebpf.map("HOLDERS") else { bail!("no table of holders") };
        Ok(map.fd().as_fd())
    }

    /// Non-zero counts in `holders`.
    pub fn held(&self) -> Result<BTreeMap<u32, u32>> {
        let counts: Vec<u32> = batch::range(self.holders()?, 0, holders::LEN as u32)?;
        Ok((0..).zip(counts).filter(|(_, count)| *count != 0).collect())
    }

    /// Replaces the entries of a hash map.
    fn hash<K: Pod, V: Pod>(&mut self, name: &str, entries: impl IntoIterator<Item = (K, V)>) -> Result<()> {
        let mut map: HashMap<_, K, V> = self.object.ebpf.map_mut(name).context("map")?.try_into()?;
        let old: Vec<_> = map.keys().collect::<Result<_, _>>()?;
        old.iter().try_for_each(|key| map.remove(key))?;
        Ok(entries.into_iter().try_for_each(|(key, value)| map.insert(key, value, 0))?)
    }

    /// Replaces the entries of a trie.
    fn trie<K: Pod, V: Pod>(&mut self, name: &str, entries: impl IntoIterator<Item = (Key<K>, V)>) -> Result<()> {
        let mut map: LpmTrie<_, K, V> = self.object.ebpf.map_mut(name).context("map")?.try_into()?;
        let old: Vec<_> = map.keys().collect::<Result<_, _>>()?;
        old.iter().try_for_each(|key| map.remove(key))?;
        Ok(entries.into_iter().try_for_each(|(key, value)| map.insert(&key, value, 0))?)
    }

    /// Writes entries of an array. The others are unreachable from other tables and stay.
    fn array<V: Pod>(&mut self, name: &str, entries: impl IntoIterator<Item = (u32, V)>) -> Result<()> {
        let mut map: Array<_, V> = self.object.ebpf.map_mut(name).context("map")?.try_into()?;
        Ok(entries.into_iter().try_for_each(|(index, value)| map.set(index, value, 0))?)
    }

    /// Writes elements of an array, and clears those of earlier calls.
    fn replace<V: Pod + Default>(&mut self, name: &'static str, entries: impl Iterator<Item = (u32, V)>) -> Result<()> {
        let entries: Vec<_> = entries.collect();
        let used = entries.iter().map(|(index, _)| *index).collect();
        let before = self.object.in_use.insert(name, used).unwrap_or_default();
        self.array(name, before.into_iter().map(|index| (index, V::default())))?;
        self.array(name, entries)
    }

    /// Switches the dispatchers to another generation of programs.
    pub fn switch_to(&mut self, generation: u32) -> Result<()> {
        self.array("GENERATION", [(0, generation)])
    }

    /// Sets the ports for source NAT.
    fn ports(&mut self, ports: &[u16]) -> Result<()> {
        if self.object.ports != ports {
            self.array("SNAT_PORTS", (0..).zip(ports.iter().map(|port| u32::from(*port))))?;
            self.object.ports = ports.to_vec();
        }
        Ok(())
    }

    /// Runs a packet through the first program of a hook; `None` if the kernel does not accept it as a packet.
    pub fn run(&self, hook: Hook, data: &[u8]) -> Result<Option<(Seen, Vec<u8>)>> {
        let name = format!("{}_enter", hook.name());
        let mut out = vec![0; data.len() + 256];
        let options = TestRunOptions { data_in: Some(data), data_out: Some(&mut out), ..TestRunOptions::new() };
        let result = match self.object.ebpf.program(&name).context("program")? {
            Program::SchedClassifier(p) => p.test_run(options),
            Program::Xdp(p) => p.test_run(options),
            _ => bail!("{name} is of no kind that runs packets"),
        };
        let Ok(result) = result else { return Ok(None) };
        out.truncate(result.data_size_out as usize);
        let end = match (hook, result.return_value) {
            (Hook::UplinkXdp, 2) | (_, u32::MAX) => Seen::Pass,
            (Hook::UplinkXdp, 1) | (_, 2) => Seen::Drop,
            (Hook::UplinkXdp, 3 | 4) | (_, 7) => Seen::Redirect,
            (_, other) => bail!("{name} returned {other}"),
        };
        Ok(Some((end, out)))
    }

    /// The connection table, without timestamps.
    pub fn conntrack(&self) -> Result<BTreeMap<Tuple, CtEntry>> {
        let map: HashMap<_, Plain<Tuple>, Plain<CtEntry>> =
            self.object.ebpf.map("CONNTRACK").context("map")?.try_into()?;
        map.iter().map(|entry| entry.map(|(k, v)| (k.0, CtEntry { last_seen: 0, ..v.0 })).map_err(Into::into)).collect()
    }

    /// The current tables, for tracing.
    pub fn look(&self) -> Result<Live<'_>> {
        Ok(self.object.source.look()?)
    }

    /// Attaches the socket hooks to a cgroup until the returned value is dropped.
    pub fn attach_sockets(&mut self, cgroup: &Path) -> Result<SocketHooks> {
        let cgroup = fs::File::open(cgroup).with_context(|| format!("cannot open {}", cgroup.display()))?;
        let mut links = Vec::new();
        for call in ["connect", "sendmsg", "recvmsg", "getpeername"] {
            for family in [4, 6] {
                let program = self.object.ebpf.program_mut(&format!("{call}{family}")).context("program")?;
                let program: &mut CgroupSockAddr = program.try_into()?;
                // It stays loaded for the next test.
                if program.fd().is_err() {
                    program.load()?;
                }
                let id = program.attach(&cgroup, CgroupAttachMode::Single)?;
                links.push(program.take_link(id)?);
            }
        }
        Ok(SocketHooks { _links: links })
    }

    /// Contents of `sock_reverse`.
    pub fn sock_reverse(&self) -> Result<BTreeMap<SockKey, SockPeer>> {
        let map: HashMap<_, Plain<SockKey>, Plain<SockPeer>> =
            self.object.ebpf.map("SOCK_REVERSE").context("map")?.try_into()?;
        map.iter().map(|entry| entry.map(|(k, v)| (k.0, v.0)).map_err(Into::into)).collect()
    }

    fn flows(&mut self) -> Result<HashMap<&mut MapData, Plain<Tuple>, Plain<CtEntry>>> {
        Ok(self.object.ebpf.map_mut("CONNTRACK").context("map")?.try_into()?)
    }

    /// Writes an entry of the connection table.
    pub fn set_flow(&mut self, key: &Tuple, entry: &CtEntry) -> Result<()> {
        Ok(self.flows()?.insert(Plain(*key), Plain(*entry), 0)?)
    }

    /// Sets the class of a peer in network policy.
    pub fn set_policy_peer(&mut self, peer: Addr, class: Option<u32>) -> Result<()> {
        let mut map: HashMap<_, Plain<Addr>, u32> =
            self.object.ebpf.map_mut("POLICY_PEERS").context("map")?.try_into()?;
        match class {
            Some(class) => map.insert(Plain(peer), class, 0)?,
            None => map.remove(&Plain(peer))?,
        }
        Ok(())
    }

    /// Writes a frontend.
    pub fn set_frontend(&mut self, key: &FrontendKey, frontend: &Frontend) -> Result<()> {
        let mut map: HashMap<_, Plain<FrontendKey>, Plain<Frontend>> =
            self.object.ebpf.map_mut("FRONTENDS").context("map")?.try_into()?;
        Ok(map.insert(Plain(*key), Plain(*frontend), 0)?)
    }

    /// Runs the daemon's program that removes entries of the connection table. Returns the number removed.
    pub fn remove_flows(&mut self, removals: &[Removal]) -> Result<u32> {
        Ok(Remover::load(&mut self.object.ebpf)?.remove(removals)?)
    }

    /// Runs the daemon's program that marks flows which network policy denies. Returns the number of entries marked.
    pub fn deny(&mut self, halves: &[Tuple]) -> Result<u32> {
        Ok(Remover::load(&mut self.object.ebpf)?.deny(halves)?)
    }

    /// Removes an entry from the connection table.
    pub fn remove_flow(&mut self, key: &Tuple) -> Result<()> {
        Ok(self.flows()?.remove(&Plain(*key))?)
    }

    /// Makes the last packet of every entry look `ticks` ticks older.
    pub fn age_flows(&mut self, ticks: u32) -> Result<()> {
        let mut flows = self.flows()?;
        let entries: Vec<_> = flows.iter().collect::<Result<_, _>>()?;
        for (key, Plain(entry)) in entries {
            let last_seen = entry.last_seen.wrapping_sub(ticks);
            flows.insert(key, Plain(CtEntry { last_seen, ..entry }), 0)?;
        }
        Ok(())
    }

    /// All counters, summed over processors. One call reads them, because thousands of packets are compared.
    pub fn counters(&self) -> Result<Vec<u64>> {
        let Some(Map::PerCpuArray(map)) = self.object.ebpf.map("COUNTERS") else { bail!("no table of counters") };
        let mut keys = [0u32; COUNTERS];
        let mut values = vec![0u64; COUNTERS * self.object.processors];
        let mut next = 0u32;
        let mut attributes = LookUpBatch {
            in_batch: 0,
            out_batch: (&raw mut next) as u64,
            keys: keys.as_mut_ptr() as u64,
            values: values.as_mut_ptr() as u64,
            count: COUNTERS as u32,
            map_fd: map.fd().as_fd().as_raw_fd() as u32,
            elem_flags: 0,
            flags: 0,
        };
        // SAFETY: the attributes have the layout of this command, and the buffer has room for one value per processor
        // and requested counter.
        let answer = unsafe { bpf(LOOK_UP_BATCH, &mut attributes) };
        // The kernel's sign for the end of the table.
        if let Err(error) = answer
            && error.raw_os_error() != Some(libc::ENOENT)
        {
            return Err(error).context("can't read the counters");
        }
        Ok(values.chunks(self.object.processors).map(|values| values.iter().sum()).collect())
    }

    /// All entries of `policy_denials`.
    pub fn denials(&self) -> Result<BTreeMap<PolicyDenial, u64>> {
        let Some(Map::HashMap(map)) = self.object.ebpf.map("POLICY_DENIALS") else { bail!("no table of denials") };
        let mut denials = BTreeMap::new();
        batch::for_each(map.fd().as_fd(), |key: &PolicyDenial, packets: &u64| _ = denials.insert(*key, *packets))?;
        Ok(denials)
    }

    /// Number of drops with a reason.
    pub fn drops(&self, reason: Reason) -> Result<u64> {
        Ok(self.counters()?[COUNTERS_BASE as usize + reason as usize])
    }

    /// Value of a counter.
    pub fn count(&self, counter: Counter) -> Result<u64> {
        Ok(self.counters()?[counter as usize])
    }
}

/// Socket hooks attached to a cgroup.
pub struct SocketHooks {
    _links: Vec<CgroupSockAddrLink>,
}

/// `BPF_MAP_LOOKUP_BATCH`; supports per-CPU arrays since Linux 5.13.
const LOOK_UP_BATCH: libc::c_int = 24;

/// Members of `union bpf_attr` for this command.
#[repr(C)]
struct LookUpBatch {
    in_batch: u64,
    out_batch: u64,
    keys: u64,
    values: u64,
    count: u32,
    map_fd: u32,
    elem_flags: u64,
    flags: u64,
}
