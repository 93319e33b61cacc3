//! Files and cgroups of a running lab, and their removal.
//!
//! Namespaces, links, routes, bpffs mounts and processes end with the harness, in whatever way it ends. Two things do
//! not: the working directory under the temporary directory, and the cgroups. They are removed when a [`Scrap`] is
//! dropped, by a handler of SIGINT, SIGTERM and SIGHUP, by a panic hook where panics abort, and, after a SIGKILL, by
//! the next lab: their names contain the process id of their owner.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Mutex, Once, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow};
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};
use signal_hook::iterator::Signals;

const PREFIX: &str = "podnet-lab-";

static LIVE: Mutex<Vec<(PathBuf, PathBuf)>> = Mutex::new(Vec::new());
static SEQUENCE: AtomicU32 = AtomicU32::new(0);

/// A working directory and a cgroup that are removed with the lab.
#[derive(Debug)]
pub(super) struct Scrap {
    pub(super) dir: PathBuf,
    pub(super) cgroup: PathBuf,
}

impl Scrap {
    /// Creates both, after removing those of labs whose process is gone.
    pub(super) fn new() -> Result<Self> {
        let root = cgroup2_mount()?;
        install_handlers();
        sweep(&root);
        sweep(&std::env::temp_dir());
        let name = format!("{PREFIX}{}-{}", std::process::id(), SEQUENCE.fetch_add(1, Ordering::Relaxed));
        let scrap = Self { dir: std::env::temp_dir().join(&name), cgroup: root.join(&name) };
        live().push((scrap.dir.clone(), scrap.cgroup.clone()));
        for path in [&scrap.dir, &scrap.cgroup] {
            fs::create_dir(path).with_context(|| {
                format!("cannot create {}: the lab needs root and a writable cgroup v2 hierarchy", path.display())
            })?;
        }
        Ok(scrap)
    }
}

impl Drop for Scrap {
    fn drop(&mut self) {
        remove(&self.dir, &self.cgroup);
        live().retain(|(dir, _)| *dir != self.dir);
    }
}

fn live() -> std::sync::MutexGuard<'static, Vec<(PathBuf, PathBuf)>> {
    LIVE.lock().unwrap_or_else(PoisonError::into_inner)
}

fn remove_all() {
    for (dir, cgroup) in live().drain(..) {
        remove(&dir, &cgroup);
    }
}

fn remove(dir: &Path, cgroup: &Path) {
    if let Err(error) = remove_cgroup(cgroup) {
        eprintln!("podnet-lab: cannot remove {}: {error}", cgroup.display());
    }
    // After a signal, other threads may still be writing.
    if let Err(error) = until_free(|| fs::remove_dir_all(dir)) {
        eprintln!("podnet-lab: cannot remove {}: {error}", dir.display());
    }
}

/// Repeats a removal for some seconds while others use or fill the directory. A missing one is no error.
fn until_free(remove: impl Fn() -> io::Result<()>) -> io::Result<()> {
    let deadline = Instant::now() + Duration::from_secs(3);
    loop {
        match remove() {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
            Err(error)
                if matches!(error.kind(), io::ErrorKind::ResourceBusy | io::ErrorKind::DirectoryNotEmpty)
                    && Instant::now() < deadline =>
            {
                thread::sleep(Duration::from_millis(5));
            }
            result => return result,
        }
    }
}

/// Kills all processes in the cgroup, then removes it and its children.
fn remove_cgroup(cgroup: &Path) -> io::Result<()> {
    if !cgroup.exists() {
        return Ok(());
    }
    // Since Linux 5.14; on older kernels their parents have already killed the processes.
    let _ = fs::write(cgroup.join("cgroup.kill"), "1");
    let children: Vec<_> = fs::read_dir(cgroup)?.filter_map(Result::ok).map(|entry| entry.path()).collect();
    for child in children.iter().filter(|path| path.is_dir()) {
        remove_cgroup(child)?;
    }
    // Killed processes may still be exiting.
    until_free(|| fs::remove_dir(cgroup))
}

/// Removes leftovers of dead labs in `parent`.
fn sweep(parent: &Path) {
    let Ok(entries) = fs::read_dir(parent) else { return };
    for path in entries.filter_map(Result::ok).map(|entry| entry.path()) {
        if owner(&path).is_some_and(|pid| !Path::new("/proc").join(pid.to_string()).exists()) {
            // Whatever cannot be removed is left to the next lab, and does no harm.
            let _ = if parent == std::env::temp_dir() { fs::remove_dir_all(&path) } else { remove_cgroup(&path) };
        }
    }
}

/// The process id in the name of a lab's directory.
fn owner(path: &Path) -> Option<u32> {
    path.file_name()?.to_str()?.strip_prefix(PREFIX)?.split_once('-')?.0.parse().ok()
}

/// Mount point of the unified cgroup hierarchy.
fn cgroup2_mount() -> Result<PathBuf> {
    let mounts = fs::read_to_string("/proc/mounts").context("cannot read /proc/mounts")?;
    find_cgroup2(&mounts)
        .ok_or_else(|| anyhow!("no cgroup v2 hierarchy is mounted: mount -t cgroup2 cgroup2 /sys/fs/cgroup"))
}

fn find_cgroup2(mounts: &str) -> Option<PathBuf> {
    mounts.lines().find_map(|line| {
        let mut fields = line.split(' ').skip(1);
        let (path, kind) = (fields.next()?, fields.next()?);
        (kind == "cgroup2").then(|| PathBuf::from(path))
    })
}

fn install_handlers() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        let mut signals = Signals::new([SIGINT, SIGTERM, SIGHUP]).expect("these signals can be handled");
        thread::Builder::new()
            .name("signals".into())
            .spawn(move || {
                if let Some(signal) = signals.forever().next() {
                    eprintln!("\npodnet-lab: interrupted, cleaning up");
                    remove_all();
                    let _ = signal_hook::low_level::emulate_default_handler(signal);
                }
            })
            .expect("a thread can be started");
        if cfg!(panic = "abort") {
            let report = std::panic::take_hook();
            std::panic::set_hook(Box::new(move |info| {
                report(info);
                remove_all();
            }));
        }
    });
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn owner_is_parsed_from_the_name() {
        assert_eq!(owner(Path::new("/sys/fs/cgroup/podnet-lab-4711-0")), Some(4711));
        assert_eq!(owner(Path::new("/tmp/podnet-lab-x-0")), None);
        assert_eq!(owner(Path::new("/tmp/podnet-4711-0")), None);
    }

    #[test]
    fn cgroup2_is_found_beside_version_1() {
        let hybrid = "tmpfs /sys/fs/cgroup tmpfs rw 0 0\ncgroup /sys/fs/cgroup/cpu cgroup rw,cpu 0 0\n\
                      cgroup2 /sys/fs/cgroup/unified cgroup2 rw 0 0\n";
        assert_eq!(find_cgroup2(hybrid), Some(PathBuf::from("/sys/fs/cgroup/unified")));
        assert_eq!(find_cgroup2("proc /proc proc rw 0 0\n"), None);
    }
}
