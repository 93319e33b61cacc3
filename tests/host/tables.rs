//! Service tables in the kernel: reconciliation has the same effect on them as on the tables in memory that the golden
//! tests show.

use std::fs;
use std::net::Ipv4Addr;
use std::os::fd::AsFd as _;
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use aya::maps::{Array, HashMap, Map, MapData, ProgramArray};
use podnet::config::Config;
use podnet::control::Control;
use podnet::datapath::btf::shapes;
use podnet::datapath::conntrack::{Pods, Stale, Sweep};
use podnet::datapath::{Datapath, Hurry, PolicyTables, Sizes, now, object};
use podnet::mirror::Entries;
use podnet::reconcile::dump::dump;
use podnet::source::manifest::ManifestSource;
use podnet_cni::datapath::{PinDir, Plain};
use podnet_common::addr::{IfIndex, Port, Proto};
use podnet_common::{
    layout::{Affinity, AffinityKey, CtEntry, GENERATION_SLOTS, OfLink, Out, PolicyPod, Subject, Tuple, holders},
    tables::{self, ALL},
};
use podnet_tests::bench::rig::secluded;

/// Directory of a golden test case.
fn case(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../podnet/tests/golden").join(name)
}

/// A control plane on the kernel's tables, with its manifest directory.
struct Site<'a> {
    datapath: &'a mut Datapath,
    directory: tempfile::TempDir,
    control: Control,
    source: ManifestSource,
    now: Instant,
}

impl<'a> Site<'a> {
    fn new(datapath: &'a mut Datapath) -> Result<Self> {
        let directory = tempfile::tempdir()?;
        let (control, source) = adopt(directory.path(), datapath)?;
        Ok(Self { datapath, directory, control, source, now: Instant::now() })
    }

    /// Starts the next daemon.
    fn restart(&mut self) -> Result<()> {
        (self.control, self.source) = adopt(self.directory.path(), self.datapath)?;
        Ok(())
    }

    /// Applies a manifest, and returns the number of changed frontends.
    fn apply(&mut self, manifest: &str) -> Result<usize> {
        // Written under another name and renamed: a process that another test is just starting may still hold the
        // written file open.
        let finished = self.directory.path().join(".finished");
        fs::write(&finished, manifest)?;
        fs::rename(finished, self.directory.path().join("manifest.yaml"))?;
        // Longer than any quarantine.
        self.now += Duration::from_secs(10);
        self.control.apply(self.source.poll(self.now));
        let outcome = self.control.reconcile(self.datapath.tables(), self.now);
        ensure!(outcome.pending == 0, "{:?}", self.control.status().pending);
        Ok(outcome.changed)
    }

    fn dump(&mut self) -> Result<String> {
        Ok(dump(self.datapath.tables(), self.control.names())?)
    }
}

fn adopt(directory: &Path, datapath: &mut Datapath) -> Result<(Control, ManifestSource)> {
    let path = directory.display();
    let config =
        format!("{{node: node1, manifests: {path}, runDir: {path}/run, stateDir: {path}/state, maglevTableSize: 251}}");
    let config = Config::parse(&config).map_err(|error| anyhow::anyhow!("{error}"))?;
    Ok((Control::adopt(&config, datapath.tables())?, ManifestSource::open(directory)?))
}

const SIZES: Sizes = Sizes { conntrack: 1024, frontends: 65_536 };

/// Runs a test with its own tables.
fn with_tables(test: impl FnOnce(&mut Datapath, &PinDir) -> Result<()> + Send) {
    let outcome = secluded(|bpffs| {
        let pins = PinDir::new(bpffs);
        test(&mut Datapath::start(pins.clone(), SIZES)?, &pins)
    });
    outcome.unwrap();
}

#[test]
fn kernel_tables_match_tables_in_memory() {
    with_tables(|datapath, _| {
        let mut cases: Vec<_> = fs::read_dir(case(""))?.map(|entry| Ok(entry?.path())).collect::<Result<_>>()?;
        cases.sort();
        ensure!(cases.len() >= 9, "the cases of the golden tests are missing");
        for case in cases {
            let mut site = Site::new(datapath)?;
            let (mut text, mut last) = (String::new(), String::new());
            for step in 1.. {
                let Ok(manifest) = fs::read_to_string(case.join(format!("{step}.yaml"))) else { break };
                site.apply(&manifest)?;
                text += &format!("# after {step}.yaml\n{}", site.dump()?);
                last = manifest;
            }
            assert_eq!(text, fs::read_to_string(case.join("tables.txt"))?, "{}", case.display());
            site.restart()?;
            assert_eq!(site.apply(&last)?, 0, "{}: the next daemon has nothing to do", case.display());
            assert!(text.ends_with(&site.dump()?), "{}: and sees the same", case.display());
            site.apply("# nothing\n")?;
            assert_eq!(site.dump()?, "", "{}: all is gone", case.display());
        }
        Ok(())
    });
}

/// Ids of a generation's programs.
fn programs(pins: &PinDir, generation: u32) -> Result<Vec<u32>> {
    let mut ids = Vec::new();
    for table in [tables::PROGRAMS_TC, tables::PROGRAMS_XDP] {
        let table: Array<MapData, u32> = Map::Array(MapData::from_pin(pins.table(table))?).try_into()?;
        let slots = generation * GENERATION_SLOTS..(generation + 1) * GENERATION_SLOTS;
        ids.extend(slots.filter_map(|slot| table.get(&slot, 0).ok()));
    }
    Ok(ids)
}

#[test]
fn programs_are_reloaded_only_for_another_object_or_table() {
    with_tables(|datapath, pins| {
        let start = || Datapath::start(pins.clone(), SIZES);
        let first = programs(pins, 0)?;
        ensure!(datapath.generation() == 0 && first.len() > 30, "{first:?}");
        // Its pages are read again from the file.
        object::release();
        let again = start()?;
        ensure!(again.generation() == 0 && again.adopted() && programs(pins, 0)? == first, "they are loaded again");

        // As if another version had loaded the programs, or had died while doing so.
        let mut origins: Array<MapData, u64> =
            Map::Array(MapData::from_pin(pins.table(tables::ORIGINS))?).try_into()?;
        origins.set(0, origins.get(&0, 0)? ^ 1, 0)?;
        ensure!(start()?.generation() == 1 && programs(pins, 0)? == first, "the old ones end too early");
        let second = programs(pins, 1)?;
        ensure!(second.len() == first.len() && second.iter().all(|id| !first.contains(id)), "{second:?}");
        ensure!(start()?.generation() == 1 && programs(pins, 1)? == second);

        fs::remove_file(pins.table(tables::PEERS))?;
        ensure!(start()?.generation() == 0, "they would read a table that nobody writes");
        let third = programs(pins, 0)?;
        ensure!(third.len() == first.len() && third.iter().all(|id| !first.contains(id)), "{third:?}");

        // As if a version that does not know the table had replaced a program.
        let mut slots: ProgramArray<MapData> =
            Map::ProgramArray(MapData::from_pin(pins.table(tables::PROGRAMS_TC))?).try_into()?;
        slots.clear_index(&0)?;
        ensure!(start()?.generation() == 1, "there is a program too few");
        Ok(())
    });
}

/// A daemon of a version without the table may have written those that it repeats.
#[test]
fn the_interfaces_of_pods_are_empty_before_programs_are_loaded() {
    with_tables(|datapath, pins| {
        let link = IfIndex(PolicyPod::SLOTS + 7);
        let open = OfLink::new(link, Subject::OPEN);
        let pod = PolicyPod { ingress: open, egress: open, ..PolicyPod::default() };
        let held = |tables: &PolicyTables| Entries::<u32, PolicyPod>::list(tables);
        datapath.policy_tables().put(&PolicyPod::slot(link), &pod)?;
        assert_eq!(held(datapath.policy_tables())?, [(7, pod)]);
        let (tables, _) = Datapath::open(pins.clone(), SIZES)?;
        assert_eq!(held(&tables.policies)?, []);
        Ok(())
    });
}

#[test]
fn resized_tables_keep_their_entries() {
    with_tables(|datapath, pins| {
        let manifest = fs::read_to_string(case("kinds").join("1.yaml"))?;
        let mut site = Site::new(datapath)?;
        site.apply(&manifest)?;
        let before = site.dump()?;
        drop(site);
        for frontends in [131_072, 2048, 65_536] {
            let mut datapath = Datapath::start(pins.clone(), Sizes { frontends, ..SIZES })?;
            let capacity = datapath.capacity();
            ensure!((capacity.frontends, capacity.backends) == (frontends, 4 * frontends), "{capacity:?}");
            ensure!((capacity.slots, capacity.source_ranges) == (32 * frontends, frontends), "{capacity:?}");
            let mut site = Site::new(&mut datapath)?;
            ensure!(site.apply(&manifest)? == 0, "{frontends}: what was there isn't found");
            assert_eq!(site.dump()?, before, "{frontends}");
        }
        // A table is not shrunk if entries would be lost.
        let kept = Datapath::start(pins.clone(), Sizes { frontends: 1, ..SIZES })?.capacity();
        ensure!(kept.frontends == 65_536 && kept.slots == 32 * 65_536, "{kept:?}");
        Ok(())
    });
}

#[test]
fn flow_reopened_during_a_sweep_is_kept() {
    with_tables(|datapath, pins| {
        let open = || -> Result<HashMap<MapData, Plain<Tuple>, Plain<CtEntry>>> {
            Ok(Map::HashMap(MapData::from_pin(pins.table(tables::CONNTRACK))?).try_into()?)
        };
        let mut table = open()?;
        let key = |port| Plain(Tuple { sport: Port::new(port), proto: Proto::UDP, ..Tuple::default() });
        let seen = |ago: u32| CtEntry { last_seen: now().wrapping_sub(ago), ..CtEntry::default() };
        for (port, ago) in [(1, 100_000), (2, 100_000), (3, 0)] {
            table.insert(key(port), Plain(seen(ago)), 0)?;
        }
        // A live flow to an unknown pod: the pods are read again before anything is removed.
        let homeless = CtEntry { out: Out::Pod as u8, out_ifindex: IfIndex(99), ..seen(0) };
        table.insert(key(4), Plain(homeless), 0)?;
        let (again, asked) = (Mutex::new(open()?), AtomicU32::new(0));
        let anew = seen(0);
        let pods = move || {
            if asked.fetch_add(1, Ordering::Relaxed) == 1 {
                let mut table = again.lock().expect("nobody panics");
                table.insert(key(2), Plain(anew), 0).map_err(std::io::Error::other)?;
            }
            Ok(Pods::default())
        };
        let sweep =
            Sweep { pods: Box::new(pods), ..datapath.sweep(Stale::new(), Hurry::default(), std::iter::empty())? };
        let swept = sweep.run()?;
        let mut left: Vec<_> = table.keys().map(|key| key.map(|key| key.0.sport.get())).collect::<Result<_, _>>()?;
        left.sort_unstable();
        ensure!((&left[..], swept.removed, swept.entries) == (&[2, 3], 2, 2), "{left:?}, {swept:?}");
        ensure!(table.get(&key(2), 0)?.0.last_seen == anew.last_seen, "it is the old one");
        // The sweep counts only the flow that it kept; the other one was counted when it began.
        let counted: Array<MapData, u32> = Map::Array(MapData::from_pin(pins.table(tables::HOLDERS))?).try_into()?;
        let [all, room] = [holders::ALL, holders::CAPACITY].map(|place| counted.get(&place, 0));
        ensure!((all?, room?) == (1, 1024), "what is held was counted wrongly");
        Ok(())
    });
}

#[test]
fn counts_are_corrected_once_they_matter() {
    with_tables(|datapath, pins| {
        let flows = Map::HashMap(MapData::from_pin(pins.table(tables::CONNTRACK))?);
        let mut flows: HashMap<MapData, Plain<Tuple>, Plain<CtEntry>> = flows.try_into()?;
        let mut counts: Array<MapData, u32> = Map::Array(MapData::from_pin(pins.table(tables::HOLDERS))?).try_into()?;
        let pod = holders::of_interface(IfIndex(7));
        let mut swept = |counted: u32| -> Result<[u32; 3]> {
            [pod, holders::ALL].into_iter().try_for_each(|place| counts.set(place, counted, 0))?;
            datapath.sweep(Stale::new(), Hurry::default(), std::iter::empty())?.run()?;
            let read = |place| counts.get(&place, 0);
            Ok([read(pod)?, read(holders::ALL)?, read(holders::CAPACITY)?])
        };
        assert_eq!(swept(5)?, [0, 0, 1024], "the capacity was unknown");
        assert_eq!(swept(64)?, [64, 64, 1024], "a sixteenth of the table");
        assert_eq!(swept(65)?, [0, 0, 1024]);
        // An earlier daemon's table of flows with new counts.
        for port in 1..=65 {
            let entry = CtEntry { last_seen: now(), ..CtEntry::default() };
            flows.insert(
                Plain(Tuple { sport: Port::new(port), proto: Proto::UDP, ..Tuple::default() }),
                Plain(entry),
                0,
            )?;
        }
        assert_eq!(swept(0)?, [0, 65, 1024]);
        Ok(())
    });
}

#[test]
fn affinity_entries_are_removed_with_their_backends() {
    with_tables(|datapath, pins| {
        let table = Map::LruHashMap(MapData::from_pin(pins.table(tables::AFFINITY))?);
        let mut table: HashMap<MapData, Plain<AffinityKey>, Plain<Affinity>> = table.try_into()?;
        let mut site = Site::new(datapath)?;
        let manifest = fs::read_to_string(case("affinity").join("1.yaml"))?;
        site.apply(&manifest)?;
        let there = Ipv4Addr::new(10, 244, 1, 5);
        let mut stick = |client: u32, service: u32, to: Ipv4Addr| {
            let key = AffinityKey { client: Ipv4Addr::from(client).into(), service };
            let value = Affinity { addr: to.into(), port: Port::new(8080), ..Affinity::default() };
            table.insert(Plain(key), Plain(value), 0)
        };
        // Enough entries for several batches.
        for client in 0..20_000 {
            stick(client, 1, there)?;
        }
        // One entry has no backend, one belongs to another service.
        stick(1 << 24, 1, Ipv4Addr::new(10, 244, 1, 6))?;
        stick(1 << 25, 7, there)?;
        let clients = |table: &HashMap<MapData, Plain<AffinityKey>, Plain<Affinity>>| table.keys().count();
        site.restart()?;
        site.apply(&manifest)?;
        assert_eq!(clients(&table), 20_000);
        let changed = site.apply(&manifest.replace("10.244.1.5", "10.244.1.7"))?;
        assert!(changed > 0 && clients(&table) == 0);
        Ok(())
    });
}

#[test]
fn kernel_btf_matches_the_declared_layouts() {
    with_tables(|_, pins| {
        for table in ALL {
            let Some(migration) = table.migration() else { continue };
            let map = MapData::from_pin(pins.table(*table))?;
            let (key, value) = shapes(map.fd().as_fd())?.with_context(|| format!("{} has no BTF", table.name()))?;
            for (shape, declared) in [(key, migration.key), (value, migration.value)] {
                let mut declared = declared.to_vec();
                declared.sort_by_key(|field| field.offset);
                assert_eq!(shape.fields(), declared, "{}", table.name());
            }
        }
        Ok(())
    });
}

type Flows = HashMap<MapData, Plain<Tuple>, Plain<CtEntry>>;

fn flows(pin: &Path) -> Result<Flows> {
    Ok(Map::HashMap(MapData::from_pin(pin)?).try_into()?)
}

/// The tables of a version known only through the kernel's BTF: the tables of this version, renamed.
#[test]
fn entries_are_migrated_from_tables_of_another_version() {
    with_tables(|datapath, pins| {
        let manifest = fs::read_to_string(case("kinds").join("1.yaml"))?;
        let mut site = Site::new(datapath)?;
        site.apply(&manifest)?;
        let before = site.dump()?;
        drop(site);
        let key = |port| Plain(Tuple { sport: Port::new(port), proto: Proto::UDP, ..Tuple::default() });
        let seen = |tick| Plain(CtEntry { last_seen: tick, ..CtEntry::default() });
        let kept = pins.table(tables::CONNTRACK);
        let mut table = flows(&kept)?;
        (1..=3).try_for_each(|port| table.insert(key(port), seen(1), 0))?;

        let [_, later] = pins.tables();
        let movable = || ALL.iter().copied().filter(|table| table.migration().is_some());
        let rename = |version: u32| -> Result<()> {
            for table in movable() {
                fs::rename(pins.table(table), later.join(format!("{}_v{version}", table.name())))?;
            }
            Ok(())
        };
        let versions = |table| pins.versions(table).into_iter().map(|(version, _)| version).collect::<Vec<_>>();
        rename(7)?;
        let start = || Datapath::start(pins.clone(), SIZES);
        let mut next = start()?;
        ensure!(next.generation() == 1 && next.kept_tables() && versions(tables::CONNTRACK.table()) == [1, 7]);
        let mut site = Site::new(&mut next)?;
        assert_eq!((site.apply(&manifest)?, site.dump()?), (0, before.clone()), "services");
        drop(site);

        // Flows last seen by the old programs, and one also seen by the new ones.
        let mut own = flows(&kept)?;
        table.insert(key(1), seen(2), 0)?;
        table.insert(key(2), seen(2), 0)?;
        own.insert(key(2), seen(3), 0)?;
        table.insert(key(4), seen(2), 0)?;
        next.set_socket_hooks(None)?;
        for (port, tick) in [(1, 2), (2, 3), (3, 1), (4, 2)] {
            ensure!(own.get(&key(port), 0)?.0.last_seen == tick, "{port}");
        }
        ensure!(movable().all(|table| versions(table) == [table.version()]), "others are still there");

        // If a daemon dies before this step, both sets of tables stay, and the next daemon continues.
        rename(7)?;
        drop(start()?);
        let mut table = flows(&later.join("conntrack_v7"))?;
        table.insert(key(5), seen(5), 0)?;
        let mut next = start()?;
        ensure!(next.generation() == 0 && versions(tables::CONNTRACK.table()) == [1, 7], "it isn't the same again");
        next.set_socket_hooks(None)?;
        let mut own = flows(&kept)?;
        ensure!(own.keys().count() == 5 && own.get(&key(5), 0)?.0.last_seen == 5);
        ensure!(movable().all(|table| versions(table) == [table.version()]), "others are still there");

        // Tables left by this version are out of date once programs of another version have run.
        own.insert(key(6), seen(6), 0)?;
        rename(7)?;
        drop(start()?);
        own.remove(&key(6))?;
        let used = flows(&kept)?;
        let mut stale = flows(&later.join("conntrack_v7"))?;
        stale.insert(key(7), seen(7), 0)?;
        for table in movable() {
            let [own, old] = [pins.table(table), later.join(format!("{}_v7", table.name()))];
            fs::rename(&own, later.join(format!("{}_v9", table.name())))?;
            fs::rename(&old, &own)?;
        }
        let mut next = start()?;
        next.set_socket_hooks(None)?;
        let own = flows(&kept)?;
        ensure!(
            own.keys().count() == used.keys().count() && own.get(&key(6), 0).is_ok() && own.get(&key(7), 0).is_err()
        );
        let mut site = Site::new(&mut next)?;
        assert_eq!((site.apply(&manifest)?, site.dump()?), (0, before), "services");
        Ok(())
    });
}
