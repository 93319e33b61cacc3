//! `cargo xtask test`: the release build, the unit tests (which include the workspace's rules), and the privileged
//! tests; or, with `--kernel`, the tests of [guests](kernel).
//!
//! The tests, too, are compiled with the eBPF object, since some of them fill its tables. One call of cargo compiles
//! them all: with each further choice of packages, dependencies would have other features and be compiled again.
//! Everything is compiled without privileges; only the test programs of `tests/` run as root, several at once. Guests
//! run beside them. A failing part does not keep the others from running. The last line is the total: `N passed,
//! N failed, N skipped`.

use std::ffi::OsString;
use std::io::{self, BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus, Stdio};
use std::sync::{Mutex, OnceLock, PoisonError};
use std::thread::{self, ScopedJoinHandle};
use std::time::Instant;

use anyhow::{Context, Result, ensure};
use serde_json::Value;

use crate::build;
use crate::command::as_root;
use crate::kernel;
use crate::setup::{self, Purpose};
use crate::tally::Tally;
use crate::workspace::Workspace;

/// Environment variable with the directory of kube-apiserver and etcd, as in other projects' tests against a real API
/// server.
const ASSETS: &str = "KUBEBUILDER_ASSETS";
/// Further binaries needed by tests with whole nodes, and the common part of these tests' names.
const FOR_KUBELETS: [&str; 4] = ["kube-controller-manager", "kube-scheduler", "kubectl", "kubelet"];
const WITH_KUBELETS: &str = "kubelets::";

/// Time after which a test program is terminated, and the time that it then has for cleaning up.
const SECONDS_PER_PROGRAM: u32 = 600;
const SECONDS_FOR_CLEANING_UP: u32 = 30;

/// Privileged test programs at once, each of which runs its tests one after another. Many tests mostly wait, so two
/// processors could run more of them, but some send as much as they can, and with more beside them datagrams get lost.
const PRIVILEGED_PROGRAMS_AT_ONCE: usize = 2;

/// Runs all tests on this machine or, if kernels are given, the guests' tests on these.
pub(crate) fn run(workspace: &Workspace, filter: Option<&str>, kernels: &[String]) -> Result<()> {
    let here = kernels.is_empty();
    setup::ensure(workspace, if here { Purpose::Test } else { Purpose::Kernel })?;
    if here {
        heading("the daemon with later layouts");
        build::later(workspace)?;
    }
    heading("release build");
    let built = build::release(workspace)?;
    heading("the test programs");
    let programs = test_programs(workspace, &built)?;
    let mut total = Tally::default();
    if here {
        // With a filter, skip the guests to save time.
        let in_every_run = if filter.is_none() { kernel::IN_EVERY_RUN } else { &[] };
        let kernels: Vec<_> = in_every_run.iter().map(|&name| name.to_owned()).collect();
        total += thread::scope(|scope| {
            let guests = scope.spawn(|| on_kernels(workspace, &built, &programs, None, &kernels));
            let mut total = on_this_machine(&built, &programs, filter)?;
            total += joined(guests)?;
            anyhow::Ok(total)
        })?;
    } else {
        total += on_kernels(workspace, &built, &programs, filter, kernels)?;
    }
    heading("total");
    println!("{total}");
    ensure!(total.failed == 0, "tests failed");
    ensure!(
        total.passed > 0,
        "no test ran{}",
        filter.map(|name| format!(": none is named {name}")).unwrap_or_default()
    );
    Ok(())
}

fn on_kernels(
    workspace: &Workspace,
    built: &build::Built,
    programs: &[TestProgram],
    filter: Option<&str>,
    kernels: &[String],
) -> Result<Tally> {
    if kernels.is_empty() {
        return Ok(Tally::default());
    }
    let in_guests = programs
        .iter()
        .filter(|program| program.is_privileged() && kernel::TEST_PROGRAMS.contains(&program.name.as_str()))
        .map(|program| (program.name.clone(), program.path.clone()))
        .collect::<Vec<_>>();
    kernel::run(workspace, built, &in_guests, kernels, filter)
}

fn on_this_machine(built: &build::Built, programs: &[TestProgram], filter: Option<&str>) -> Result<Tally> {
    let mut total = Tally::default();
    heading("unit tests");
    for program in programs.iter().filter(|program| !program.is_privileged()) {
        println!("\n{}", program.path.display());
        let mut test = Command::new(&program.path);
        test.args(filter).envs(built.environment()).current_dir(&program.package);
        total += tally(&mut test, &program.path.display().to_string(), &mut io::stdout())?;
    }

    heading("privileged tests");
    let with_assets = with_assets(std::env::var_os(ASSETS).map(PathBuf::from).as_deref());
    let environment = environment(built)?;
    let run = |program: &TestProgram| {
        let mut test = as_root("timeout", environment.iter().map(|(name, value)| (*name, value.as_os_str())))?;
        // In the foreground, so that an interrupt from the terminal reaches the tests, which clean up.
        test.arg("--foreground")
            .arg(format!("--kill-after={SECONDS_FOR_CLEANING_UP}"))
            .arg(SECONDS_PER_PROGRAM.to_string())
            .arg(&program.path)
            .arg("--test-threads=1")
            .args(&with_assets)
            .args(filter)
            .current_dir(&program.package);
        let mut output = Vec::new();
        let tally = tally(&mut test, &program.path.display().to_string(), &mut output);
        let mut terminal = io::stdout().lock();
        writeln!(terminal, "\n{}", program.path.display())?;
        terminal.write_all(&output)?;
        tally
    };
    let privileged = Mutex::new(programs.iter().filter(|program| program.is_privileged()));
    let next = || privileged.lock().unwrap_or_else(PoisonError::into_inner).next();
    let run_all = || -> Result<Tally> {
        let mut total = Tally::default();
        while let Some(program) = next() {
            total += run(program)?;
        }
        Ok(total)
    };
    thread::scope(|scope| {
        let runners: Vec<_> = (0..PRIVILEGED_PROGRAMS_AT_ONCE).map(|_| scope.spawn(run_all)).collect();
        for runner in runners {
            total += joined(runner)?;
        }
        Ok(total)
    })
}

/// The result of a thread.
fn joined<T>(thread: ScopedJoinHandle<'_, T>) -> T {
    thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
}

/// Announces a part, with the time since the first one began.
fn heading(part: &str) {
    static FIRST: OnceLock<Instant> = OnceLock::new();
    let seconds = FIRST.get_or_init(Instant::now).elapsed().as_secs();
    println!("\n==> {part} ({} min {:02} s)", seconds / 60, seconds % 60);
}

/// Arguments that enable the ignored tests whose binaries are available.
fn with_assets(directory: Option<&Path>) -> Vec<&'static str> {
    let Some(directory) = directory else { return Vec::new() };
    let missing: Vec<_> = FOR_KUBELETS.into_iter().filter(|name| !directory.join(name).is_file()).collect();
    if missing.is_empty() {
        return vec!["--include-ignored"];
    }
    println!("SKIPPED: {WITH_KUBELETS}, since {ASSETS} lacks {}", missing.join(", "));
    vec!["--include-ignored", "--skip", WITH_KUBELETS]
}

/// Environment of the test programs: where to find the programs and the API server, and the detail of panic messages.
fn environment(built: &build::Built) -> Result<Vec<(&'static str, OsString)>> {
    let mut variables: Vec<_> = built.environment().into_iter().map(|(name, value)| (name, value.to_owned())).collect();
    for name in ["RUST_BACKTRACE", ASSETS] {
        variables.extend(std::env::var_os(name).map(|value| (name, value)));
    }
    Ok(variables)
}

/// A compiled test program.
#[derive(Debug, PartialEq, Eq)]
struct TestProgram {
    name: String,
    path: PathBuf,
    /// The directory of its package, in which it runs.
    package: PathBuf,
}

impl TestProgram {
    /// Whether it is one of the package podnet-tests.
    fn is_privileged(&self) -> bool {
        self.package.ends_with("tests")
    }
}

/// Builds the test programs of all packages.
fn test_programs(workspace: &Workspace, built: &build::Built) -> Result<Vec<TestProgram>> {
    let mut cargo = workspace.cargo();
    cargo
        .envs(built.environment())
        .args(["test", "--workspace", "--exclude=podnet-ebpf", "--no-run", "--message-format=json-render-diagnostics"])
        .stderr(Stdio::inherit());
    let built = cargo.output().context("cannot start cargo")?;
    ensure!(built.status.success(), "the tests cannot be compiled");
    reported(&String::from_utf8_lossy(&built.stdout))
}

/// The test programs among the artifacts that cargo reports, one JSON object a line.
fn reported(messages: &str) -> Result<Vec<TestProgram>> {
    let mut programs = Vec::new();
    for line in messages.lines() {
        let message: Value = serde_json::from_str(line).context("cargo printed output that is not JSON")?;
        if message["profile"]["test"] == true
            && let Some(path) = message["executable"].as_str()
        {
            let name = message["target"]["name"].as_str().context("cargo reported a program without a name")?;
            let manifest = message["manifest_path"].as_str().map(Path::new).and_then(Path::parent);
            let package = manifest.context("cargo reported a program without a package")?;
            programs.push(TestProgram { name: name.to_owned(), path: path.into(), package: package.to_owned() });
        }
    }
    ensure!(programs.iter().any(TestProgram::is_privileged), "the package podnet-tests has no tests");
    Ok(programs)
}

/// Runs tests, passes on their output, and adds up their summaries.
fn tally(tests: &mut Command, name: &str, terminal: &mut impl Write) -> Result<Tally> {
    let mut child =
        tests.stdin(Stdio::null()).stdout(Stdio::piped()).spawn().with_context(|| format!("cannot start {name}"))?;
    let mut total = Tally::default();
    for line in BufReader::new(child.stdout.take().context("the tests have no output")?).split(b'\n') {
        let mut line = line?;
        if let Some(summary) = str::from_utf8(&line).ok().and_then(Tally::from_summary) {
            total += summary;
        }
        line.push(b'\n');
        terminal.write_all(&line)?;
    }
    let status = child.wait()?;
    if let Some(problem) = unexplained(status, &total, name) {
        writeln!(terminal, "{problem}")?;
        total.failed += 1;
    }
    Ok(total)
}

/// Describes a program that failed without a failed test: a crash, a timeout or a compile error, which counts as one
/// failure.
fn unexplained(status: ExitStatus, total: &Tally, name: &str) -> Option<String> {
    const TIMED_OUT: i32 = 124;
    if status.success() || total.failed > 0 {
        return None;
    }
    Some(match status.code() {
        Some(TIMED_OUT) => format!("{name} did not end within {SECONDS_PER_PROGRAM} s"),
        _ => format!("{name} failed without a failed test ({status})"),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tally_of(script: &str) -> (Tally, String) {
        let mut shown = Vec::new();
        let total = tally(Command::new("sh").args(["-c", script]), "the script", &mut shown).unwrap();
        (total, String::from_utf8(shown).unwrap())
    }

    #[test]
    fn summaries_add_up_and_are_shown() {
        let (total, shown) = tally_of(
            "echo 'test a::b ... ok'
             echo 'test result: ok. 3 passed; 0 failed; 1 ignored; 0 measured; 7 filtered out; finished in 0.01s'
             echo 'test result: FAILED. 10 passed; 2 failed; 0 ignored; 0 measured; 0 filtered out'
             exit 101",
        );
        assert_eq!(total.to_string(), "13 passed, 2 failed, 1 skipped");
        assert!(shown.starts_with("test a::b ... ok\ntest result: ok. 3 passed"), "{shown}");
        assert_eq!(shown.lines().count(), 3);
    }

    #[test]
    fn a_crash_and_a_time_out_are_failures() {
        let (total, shown) = tally_of("echo 'test result: ok. 3 passed; 0 failed; 0 ignored'; kill -9 $$");
        assert_eq!(total, Tally { passed: 3, failed: 1, skipped: 0 });
        assert!(shown.contains("the script failed without a failed test (signal: 9"), "{shown}");
        let (total, shown) = tally_of("exit 124");
        assert_eq!(total.failed, 1);
        assert!(shown.contains("did not end within"), "{shown}");
        assert_eq!(tally_of("exit 0").0, Tally::default());
    }

    #[test]
    fn kubelet_tests_require_all_binaries_of_a_cluster() {
        assert!(with_assets(None).is_empty());
        let directory = std::env::temp_dir().join(format!("podnet-assets-{}", std::process::id()));
        std::fs::create_dir(&directory).unwrap();
        assert_eq!(with_assets(Some(&directory)), ["--include-ignored", "--skip", WITH_KUBELETS]);
        for name in FOR_KUBELETS {
            std::fs::write(directory.join(name), "").unwrap();
        }
        assert_eq!(with_assets(Some(&directory)), ["--include-ignored"]);
        std::fs::remove_dir_all(directory).unwrap();
    }

    #[test]
    fn only_test_programs_are_run() {
        let program = |name: &str, package: &str, is_test: bool| {
            format!(
                r#"{{"reason":"compiler-artifact","manifest_path":"/w/{package}/Cargo.toml","profile":{{"test":{is_test}}},"#
            ) + &format!(r#""target":{{"name":"{name}"}},"executable":"/t/{name}-1"}}"#)
        };
        let library = r#"{"reason":"compiler-artifact","profile":{"test":false},"executable":null}"#;
        let end = r#"{"reason":"build-finished","success":true}"#;
        let (netns, golden) = (program("netns", "tests", true), program("golden", "podnet", true));
        let messages = [&golden, &netns, &program("podnet-lab", "tests", false), library, end].join("\n");
        let found = reported(&messages).unwrap();
        assert_eq!(
            found[1],
            TestProgram { name: "netns".into(), path: "/t/netns-1".into(), package: "/w/tests".into() }
        );
        assert_eq!(found.iter().map(TestProgram::is_privileged).collect::<Vec<_>>(), [false, true]);
        assert!(reported(&[&golden, end].join("\n")).is_err());
    }
}
