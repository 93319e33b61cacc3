//! `cargo xtask test --kernel`: the shipping programs on other kernels, in virtual machines.
//!
//! For each kernel, its packages are downloaded once; an initramfs is built from the static programs, the eBPF object,
//! some of the test programs and the kernel's modules; QEMU boots it; the guest runs the [phases](PHASES) in sequence
//! and powers off. Its output per phase is parsed into a [`Run`], which is written to `target/kernels/*.json`.

mod boot;
mod cpio;
mod initramfs;
mod modules;
mod packages;
mod run;

use std::fs::{self, File};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};

use crate::build::Built;
use crate::tally::Tally;
use crate::workspace::Workspace;
use boot::Guest;
use packages::Kernel;
use run::Run;

/// Kernels that `cargo xtask test` boots by default.
pub(crate) const IN_EVERY_RUN: &[&str] = &["6.1"];

/// Test programs that guests run, by their names in `tests/Cargo.toml`.
pub(crate) const TEST_PROGRAMS: [&str; 3] = ["packet", "cni", "tour"];

/// Tests that cannot run in a guest, and the reasons.
const LEFT_OUT: &[(&str, &str)] = &[
    (
        "crash::",
        "(killing the plugin at each of thousands of system calls would take an hour, and tests only what the plugin \
         leaves in its own files)",
    ),
    ("wiring::a_namespace_of_another_user_namespace", "(guests lack a program to create user namespaces)"),
];

/// Timeout of a guest, on this machine's clock. It only gets what time other tests leave.
const LIMIT: Duration = Duration::from_secs(3600);
/// Timeout of a phase, on the guest's clock.
const SECONDS_PER_PHASE: u32 = 600;

/// Phases of a guest: name, command, and whether it is a test program.
const PHASES: [(&str, &str, bool); 4] = [
    ("programs", "/podnet/podnet-lab programs --json", false),
    ("packet", "/tests/packet", true),
    ("cni", "/tests/cni", true),
    // Its output shows the progress of its cases, and how podnet uses the kernel.
    ("tour", "/tests/tour --nocapture", true),
];

/// Runs the tests on these kernels in sequence. Prints a line per phase and the summaries of the test programs at the
/// end. `tests`: the built [`TEST_PROGRAMS`].
pub(crate) fn run(
    workspace: &Workspace,
    built: &Built,
    tests: &[(String, PathBuf)],
    names: &[String],
    filter: Option<&str>,
) -> Result<Tally> {
    ensure!(cfg!(target_arch = "x86_64"), "--kernel needs an x86-64 machine");
    let kernels = packages::named(names)?;
    let directory = packages::directory(workspace);
    fs::create_dir_all(&directory).with_context(|| format!("cannot create {}", directory.display()))?;
    for (test, why) in LEFT_OUT {
        println!("SKIPPED in guests: {test} {why}");
    }
    let base = base(&directory, built, tests, filter)?;
    let mut runs = Vec::new();
    for kernel in kernels {
        println!("\n==> kernel {}", kernel.name);
        let run = match packages::fetch(workspace, kernel) {
            Ok(files) => on(kernel, &files, &base, &directory.join(kernel.name))
                .unwrap_or_else(|error| Run::failed(kernel.name, &files.release, &format!("{error:#}"))),
            Err(error) => {
                println!("SKIPPED: kernel {}: {error:#}", kernel.name);
                Run::left_out(kernel.name, &format!("{error:#}"))
            }
        };
        let path = directory.join(format!("{}.json", kernel.name));
        fs::write(&path, run.json()?).with_context(|| format!("cannot write {}", path.display()))?;
        runs.push(run);
    }
    println!();
    let mut total = Tally::default();
    for run in runs {
        run.summaries().for_each(|line| println!("{line}"));
        total += run.tally();
    }
    Ok(total)
}

/// The part of the initramfs that is common to all kernels.
fn base(directory: &Path, built: &Built, tests: &[(String, PathBuf)], filter: Option<&str>) -> Result<Vec<u8>> {
    let programs = ["podnet", "podnet-cni", "podnet-lab"].map(|name| (name, built.programs.join(name)));
    let mut files: Vec<_> =
        programs.iter().map(|(name, file)| initramfs::File { path: format!("/podnet/{name}"), file }).collect();
    files.push(initramfs::File { path: "/podnet/podnet-ebpf".into(), file: &built.object });
    files.extend(tests.iter().map(|(name, file)| initramfs::File { path: format!("/tests/{name}"), file }));
    initramfs::base(&files, &phases(filter), directory)
}

/// The calls made by the guest's init.
fn phases(filter: Option<&str>) -> String {
    let skipped: String = LEFT_OUT.iter().map(|(test, _)| format!(" --skip {}", quoted(test))).collect();
    let filter = filter.map(|name| format!(" {}", quoted(name))).unwrap_or_default();
    let call = |(name, command, is_test): (&str, &str, bool)| {
        // The guest has one processor.
        let options = if is_test { format!(" --test-threads=1{skipped}{filter}") } else { String::new() };
        format!("phase {name} {SECONDS_PER_PHASE} {command}{options}\n")
    };
    PHASES.map(call).concat()
}

/// Quotes a word for the shell.
fn quoted(word: &str) -> String {
    format!("'{}'", word.replace('\'', r"'\''"))
}

/// Boots a kernel and follows its output.
fn on(kernel: &Kernel, files: &packages::Files, base: &[u8], directory: &Path) -> Result<Run> {
    fs::create_dir_all(directory).with_context(|| format!("cannot create {}", directory.display()))?;
    let start = Instant::now();
    let initramfs = directory.join("initramfs.cpio");
    let modules = initramfs::of_kernel(&modules::load_order(&files.modules)?);
    fs::write(&initramfs, [base, &modules].concat())
        .with_context(|| format!("cannot write {}", initramfs.display()))?;
    let console = directory.join("console.log");
    let mut run = Run::new(kernel.name, &files.release);
    let guest = Guest { image: &files.image, initramfs: &initramfs, console, limit: LIMIT };
    let mut output = File::create(directory.join("output.log"))?;
    let end = guest.run(|line| {
        run.line(line);
        Ok(writeln!(output, "{line}")?)
    })?;
    // It is large, and rebuilt each time.
    fs::remove_file(&initramfs).with_context(|| format!("cannot remove {}", initramfs.display()))?;
    let expected = PHASES.map(|(name, _, is_test)| (name, is_test));
    run.end(&end, &expected, start.elapsed());
    Ok(run)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_phase_is_called_by_init() {
        let calls = phases(Some("it's"));
        let lines: Vec<_> = calls.lines().collect();
        assert_eq!(lines.len(), PHASES.len());
        assert_eq!(lines[0], "phase programs 600 /podnet/podnet-lab programs --json");
        assert!(lines[1].starts_with("phase packet 600 /tests/packet --test-threads=1"), "{calls}");
        assert!(lines[3].ends_with(r" 'it'\''s'"), "{calls}");
    }

    #[test]
    fn test_phases_are_the_test_programs() {
        let names: Vec<_> = PHASES.iter().filter(|phase| phase.2).map(|phase| phase.0).collect();
        assert_eq!(names, TEST_PROGRAMS);
        packages::named(IN_EVERY_RUN).unwrap();
    }
}
