//! Loads the object, and replaces the running generation of programs by a new one.
//!
//! Maps are opened from their pins, or created and pinned. Dispatchers are loaded once and stay; the other programs go
//! into the slots of the generation that isn't running, and one write of `generation` switches every hook of the node
//! to them. The slots of the old generation stay filled until the next load needs them, so a packet that has begun in
//! it still finds its programs: each program calls others of its own generation only. A running generation from the
//! identical object is kept, since verifying a new one takes about 2 s of CPU time, spread over up to eight CPUs.

use std::{
    collections::BTreeSet,
    fs, iter,
    num::NonZero,
    sync::{Mutex, PoisonError},
    thread,
};

use aya::{
    Ebpf, EbpfLoader,
    maps::{Array, Map, MapData, MapError, ProgramArray},
    programs::{Program, ProgramError, ProgramFd, SchedClassifier, Xdp, loaded_programs},
};
use podnet_cni::{datapath::PinDir, text::chain};
use podnet_common::{
    layout::{GENERATION_SLOTS, GENERATIONS, Hook},
    pipeline::Stage,
    tables::{ALL, CONFIG, GENERATION, PROGRAMS_TC, PROGRAMS_XDP, Table, TableOf},
};

use super::{
    features, kernel,
    load_error::LoadError,
    moves::Moves,
    origins::{self, Origins},
    sizes::Sizes,
    sockets,
};

/// The object with its maps open and its programs not loaded yet.
pub struct Opened {
    /// Its maps; callers may take some out: see [`Opened::load`].
    pub ebpf: Ebpf,
    pins: PinDir,
    kept: bool,
    /// The running generation, if there is one, and the generation for these programs.
    running: Option<u32>,
    next: u32,
    fingerprint: u64,
    moves: Moves,
}

/// The loaded object; its programs are the running generation.
pub struct Loaded {
    /// Programs that are attached by links of their own (socket hooks), and handles of all maps.
    pub ebpf: Ebpf,
    /// The number of the running generation.
    pub generation: u32,
    /// Whether programs of an earlier daemon were found, and its frozen tables adopted.
    pub adopted: bool,
    /// Whether its other tables were adopted too.
    pub kept: bool,
    /// Origins of the running programs.
    pub origins: Origins,
    /// Tables whose contents move to new ones.
    pub(super) moves: Moves,
    /// Where everything is pinned.
    pub pins: PinDir,
}

/// The object built into this binary.
pub fn built_in() -> Result<&'static [u8], LoadError> {
    super::object::OBJECT.ok_or(LoadError::NoObject)
}

/// Loads an object and makes its programs the running generation.
pub fn load(object: &[u8], pins: &PinDir, sizes: Sizes) -> Result<Loaded, LoadError> {
    open(object, pins, sizes)?.load()
}

impl Opened {
    /// Loads the programs and makes them the running generation. Needs the frozen maps, and no others.
    pub fn load(self) -> Result<Loaded, LoadError> {
        let Self { mut ebpf, pins, kept, running, next, fingerprint, mut moves } = self;
        let mut origins = Origins::open(&mut ebpf, fingerprint)?;
        let same = match running.filter(|running| *running < GENERATIONS) {
            Some(running) => origins.is_ours(running, &programs(&pins, running)?)?,
            None => false,
        };
        if !same {
            load_programs(&mut ebpf, &pins)?;
        }
        for hook in hooks(&ebpf) {
            pin_dispatcher(&mut ebpf, &pins, hook)?;
        }
        let generation = if same { running.unwrap_or(next) } else { next };
        if !same {
            origins.note_after(next, || {
                fill(&mut ebpf, next)?;
                programs(&pins, next)
            })?;
            moves.follow(false)?;
            set_generation(&mut ebpf, next)?;
        }
        moves.follow(true)?;
        let adopted = running.is_some();
        Ok(Loaded { ebpf, generation, adopted, kept: adopted && kept, origins, moves, pins })
    }
}

/// Ids of the tables used by the running generation and by the socket hooks; empty if no other versions of tables are
/// pinned, since then the ids don't matter.
fn live(pins: &PinDir, generation: Option<u32>) -> Result<BTreeSet<u32>, LoadError> {
    let has_others = |table: &Table| pins.versions(*table).iter().any(|(version, _)| *version != table.version());
    if generation.is_none() || !ALL.iter().any(has_others) {
        return Ok(BTreeSet::new());
    }
    let mut running: BTreeSet<u32> = sockets::program_ids(pins).into_iter().collect();
    if let Some(generation) = generation.filter(|generation| *generation < GENERATIONS) {
        running.extend(programs(pins, generation)?);
    }
    // Programs that end meanwhile are skipped.
    let of_running = loaded_programs().filter_map(Result::ok).filter(|program| running.contains(&program.id()));
    Ok(of_running.filter_map(|program| program.map_ids().ok().flatten()).flatten().collect())
}

/// Ids of the programs of a generation.
fn programs(pins: &PinDir, generation: u32) -> Result<Vec<u32>, LoadError> {
    let mut ids = Vec::new();
    for table in [PROGRAMS_TC, PROGRAMS_XDP] {
        let failed = |source| LoadError::Map { name: table.name(), source };
        let table = MapData::from_pin(pins.table(table)).map_err(failed)?;
        // A program array reads as an array of ids.
        let table: Array<MapData, u32> = Map::Array(table).try_into().map_err(failed)?;
        for slot in generation * GENERATION_SLOTS..(generation + 1) * GENERATION_SLOTS {
            match table.get(&slot, 0) {
                Ok(id) => ids.push(id),
                Err(MapError::KeyNotFound) => {}
                Err(source) => return Err(failed(source)),
            }
        }
    }
    Ok(ids)
}

/// Hooks for which an object has programs. Objects of other versions may lack some.
fn hooks(ebpf: &Ebpf) -> Vec<Hook> {
    Hook::ALL.into_iter().filter(|hook| ebpf.program(hook.name()).is_some()).collect()
}

/// Puts the programs into the slots of a generation.
fn fill(ebpf: &mut Ebpf, generation: u32) -> Result<(), LoadError> {
    for hook in hooks(ebpf) {
        for (slot, name) in stages(hook) {
            if name != first(hook) && ebpf.program(&name).is_none() {
                continue;
            }
            let fd = load_program(ebpf, &name)?;
            let array = if hook == Hook::UplinkXdp { PROGRAMS_XDP } else { PROGRAMS_TC };
            set_program(ebpf, array, generation * GENERATION_SLOTS + slot, &fd)?;
        }
    }
    Ok(())
}

/// The programs for removals, attached nowhere: see [`podnet_common::removal`].
pub(super) const REMOVE_FLOWS: &str = "remove_flows";
/// See [`REMOVE_FLOWS`].
pub(super) const DENY_FLOWS: &str = "deny_flows";

/// Limit for programs loaded at once, since the kernel needs memory for each.
const AT_ONCE: usize = 8;

/// Loads all required programs in parallel on up to [`AT_ONCE`] CPUs, since their verification takes about 2 s of CPU
/// time.
fn load_programs(ebpf: &mut Ebpf, pins: &PinDir) -> Result<(), LoadError> {
    let dispatchers =
        Hook::ALL.into_iter().filter(|hook| !pins.hook(*hook).exists()).map(|hook| hook.name().to_owned());
    let of_hooks = Hook::ALL.into_iter().flat_map(stages).map(|(_, name)| name);
    let removals = [REMOVE_FLOWS, DENY_FLOWS].map(str::to_owned);
    let names: BTreeSet<_> = dispatchers.chain(of_hooks).chain(removals).collect();
    let queue: Vec<_> = ebpf.programs_mut().filter(|(name, _)| names.contains(*name)).collect();
    let (count, queue) = (queue.len(), Mutex::new(queue));
    let next = || queue.lock().unwrap_or_else(PoisonError::into_inner).pop();
    let work = || iter::from_fn(next).try_for_each(|(name, program)| load_one(name, program).map(drop));
    let threads = thread::available_parallelism().map_or(1, NonZero::get).min(AT_ONCE).min(count);
    thread::scope(|scope| {
        let threads: Vec<_> = (0..threads).map(|_| scope.spawn(work)).collect();
        threads
            .into_iter()
            .try_for_each(|thread| thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic)))
    })
}

/// Opens an object with its maps pinned, without loading programs.
pub fn open(object: &[u8], pins: &PinDir, sizes: Sizes) -> Result<Opened, LoadError> {
    let kept = !pins.versions(CONFIG).is_empty();
    for path in [pins.frozen(), pins.links()].into_iter().chain(pins.tables()) {
        fs::create_dir_all(&path).map_err(|source| LoadError::Directory { path, source })?;
    }
    let pinned = || ALL.iter().copied().filter(|table| table.is_pinned()).map(|table| (table, pins.table(table)));
    let running = running_generation(pins)?;
    let next = running.map_or(0, |running| 1 - running.min(1));
    let mut moves = Moves::find(pins, &live(pins, running)?, sizes)?;
    let mut loader = EbpfLoader::new();
    for (table, entries) in sizes.tables() {
        loader.map_max_entries(table.map(), entries);
    }
    for (table, path) in pinned() {
        match moves.entries(table) {
            Some(entries) => loader.map_max_entries(table.map(), entries),
            None => loader.map_pin_path(table.map(), path),
        };
    }
    let socket_errno = u8::from(features::socket_errno());
    // An object without this constant makes no such call, or calls programs of the running generation.
    loader.override_global("SOCKET_ERRNO", &socket_errno, false);
    loader.override_global("OWN_GENERATION", &next, false);
    let mut ebpf = loader.load(object).map_err(|error| LoadError::Object(chain(&error)))?;
    moves.fill(&mut ebpf, pins)?;
    // Objects of other versions may lack some tables.
    let there = pinned().filter(|(table, _)| ebpf.map(table.map()).is_some());
    let fingerprint = origins::fingerprint(object, there.map(|(_, path)| path))?;
    Ok(Opened { ebpf, pins: pins.clone(), kept, running, next, fingerprint, moves })
}

/// The slots of a hook and the names of their programs. Only the first program exists for every hook; the object
/// determines which stages can be reached from it.
fn stages(hook: Hook) -> impl Iterator<Item = (u32, String)> {
    // Frames that arrive by the raw hook continue in the stages of another hook.
    let rest = Stage::ALL.iter().filter(move |_| hook != Hook::FromRaw);
    let rest = rest.map(move |stage| (stage.slot(hook), format!("{}_{}", hook.name(), stage.name())));
    [(hook as u32, first(hook))].into_iter().chain(rest)
}

/// The name of a hook's first program.
fn first(hook: Hook) -> String {
    format!("{}_enter", hook.name())
}

/// Loads a hook's dispatcher and pins it, unless it is pinned already.
fn pin_dispatcher(ebpf: &mut Ebpf, pins: &PinDir, hook: Hook) -> Result<(), LoadError> {
    let path = pins.hook(hook);
    if path.exists() {
        return Ok(());
    }
    load_program(ebpf, hook.name())?;
    let program = ebpf.program_mut(hook.name()).ok_or_else(|| LoadError::Missing(hook.name().to_owned()))?;
    let pinned = match program {
        Program::SchedClassifier(p) => p.pin(&path),
        Program::Xdp(p) => p.pin(&path),
        _ => return Err(LoadError::Missing(hook.name().to_owned())),
    };
    pinned.map_err(|source| LoadError::Pin { path, source: Box::new(source) })
}

/// Loads a program, unless it is loaded already, and returns its descriptor.
pub(super) fn load_program(ebpf: &mut Ebpf, name: &str) -> Result<ProgramFd, LoadError> {
    load_one(name, ebpf.program_mut(name).ok_or_else(|| LoadError::Missing(name.to_owned()))?)
}

fn load_one(name: &str, program: &mut Program) -> Result<ProgramFd, LoadError> {
    let failed = |source| LoadError::Program { name: name.to_owned(), reason: kernel::refusal(&source) };
    match program {
        Program::SchedClassifier(p) => load_if_new::<SchedClassifier>(p).map_err(failed),
        Program::Xdp(p) => load_if_new::<Xdp>(p).map_err(failed),
        _ => Err(LoadError::Missing(name.to_owned())),
    }
}

/// A program type that loads without parameters.
trait Loadable {
    fn load(&mut self) -> Result<(), ProgramError>;
    fn descriptor(&self) -> Result<ProgramFd, ProgramError>;
}

impl Loadable for SchedClassifier {
    fn load(&mut self) -> Result<(), ProgramError> {
        self.load()
    }

    fn descriptor(&self) -> Result<ProgramFd, ProgramError> {
        self.fd()?.try_clone().map_err(ProgramError::IOError)
    }
}

impl Loadable for Xdp {
    fn load(&mut self) -> Result<(), ProgramError> {
        self.load()
    }

    fn descriptor(&self) -> Result<ProgramFd, ProgramError> {
        self.fd()?.try_clone().map_err(ProgramError::IOError)
    }
}

fn load_if_new<P: Loadable>(program: &mut P) -> Result<ProgramFd, ProgramError> {
    match program.load() {
        Ok(()) | Err(ProgramError::AlreadyLoaded) => program.descriptor(),
        Err(error) => Err(error),
    }
}

fn set_program(ebpf: &mut Ebpf, array: TableOf<u32, u32>, slot: u32, fd: &ProgramFd) -> Result<(), LoadError> {
    let failed = |source| LoadError::Map { name: array.name(), source };
    let map = ebpf.map_mut(array.map()).ok_or_else(|| LoadError::Missing(array.name().to_owned()))?;
    let mut programs: ProgramArray<&mut MapData> = map.try_into().map_err(failed)?;
    programs.set(slot, fd, 0).map_err(failed)
}

/// Number of the generation that the hooks run; `None` without hooks.
fn running_generation(pins: &PinDir) -> Result<Option<u32>, LoadError> {
    if !pins.hook(Hook::FromPod).exists() {
        return Ok(None);
    }
    let failed = |source| LoadError::Map { name: GENERATION.name(), source };
    let table = MapData::from_pin(pins.table(GENERATION)).map_err(failed)?;
    let table = Array::<MapData, u32>::try_from(Map::Array(table)).map_err(failed)?;
    table.get(&0, 0).map(Some).map_err(failed)
}

fn set_generation(ebpf: &mut Ebpf, generation: u32) -> Result<(), LoadError> {
    let failed = |source| LoadError::Map { name: GENERATION.name(), source };
    let map = ebpf.map_mut(GENERATION.map()).ok_or_else(|| LoadError::Missing(GENERATION.name().into()))?;
    let mut array: Array<&mut MapData, u32> = map.try_into().map_err(failed)?;
    array.set(0, generation, 0).map_err(failed)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_stage_has_a_slot_of_its_own_within_a_generation() {
        for xdp in [false, true] {
            let mut slots: Vec<_> = Hook::ALL
                .into_iter()
                .filter(|h| (*h == Hook::UplinkXdp) == xdp)
                .flat_map(stages)
                .map(|s| s.0)
                .collect();
            let all = slots.len();
            slots.sort_unstable();
            slots.dedup();
            assert_eq!(slots.len(), all);
            assert!(slots.iter().all(|slot| *slot < GENERATION_SLOTS));
        }
    }
}
