//! The programs demo and shell: what they leave behind when they end in any way. And the output of `programs`.

use std::fs;
use std::io::{BufRead, BufReader, Lines};
use std::path::{Path, PathBuf};
use std::process::{ChildStdout, Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use podnet_tests::lab::{Process, output, wait_until};
use podnet_tests::verifier::Figures;

fn program(args: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_podnet-lab"));
    command.args(args).stdin(Stdio::null());
    command
}

/// Files and cgroups left on the machine by the labs of a process.
fn left_by(pid: u32) -> Result<Vec<PathBuf>> {
    let prefix = format!("podnet-lab-{pid}-");
    let mounts = fs::read_to_string("/proc/mounts")?;
    let cgroups = mounts.lines().filter(|line| line.split(' ').nth(2) == Some("cgroup2"));
    let cgroups = cgroups.filter_map(|line| line.split(' ').nth(1)).map(PathBuf::from);
    let mut left = Vec::new();
    for dir in cgroups.chain([std::env::temp_dir()]) {
        for entry in fs::read_dir(dir)? {
            let path = entry?.path();
            if path.file_name().is_some_and(|name| name.to_string_lossy().starts_with(&prefix)) {
                left.push(path);
            }
        }
    }
    Ok(left)
}

/// Processes of the labs' agents whose parent is this process.
fn children_of(pid: u32) -> Result<Vec<i32>> {
    let tasks = fs::read_dir(format!("/proc/{pid}/task"))?;
    let lists = tasks.filter_map(Result::ok).filter_map(|task| fs::read_to_string(task.path().join("children")).ok());
    Ok(lists.flat_map(|list| list.split_whitespace().filter_map(|id| id.parse().ok()).collect::<Vec<_>>()).collect())
}

/// A running demonstration, the reader of its output (which must outlive it), and its children.
type Demo = (Process, Lines<BufReader<ChildStdout>>, Vec<i32>);

/// Starts the demonstration and waits until its pods have been created.
fn running_demo() -> Result<Demo> {
    let mut command = program(&["demo"]);
    command.stdout(Stdio::piped());
    let mut demo = Process::start(command)?;
    let mut lines = BufReader::new(demo.child().stdout.take().context("is piped")?).lines();
    while let Some(line) = lines.next() {
        if line?.starts_with("✓ pods start") {
            let children = children_of(demo.id())?;
            ensure!(children.len() >= 6, "two daemons and four agents: {children:?}");
            ensure!(left_by(demo.id())?.len() == 2, "a directory and a cgroup: {:?}", left_by(demo.id())?);
            return Ok((demo, lines, children));
        }
    }
    anyhow::bail!("the demonstration ended early: {:?}", demo.wait(Duration::from_secs(1))?)
}

fn all_gone(children: &[i32]) -> Result<()> {
    wait_until("all processes are gone", || {
        Ok(children.iter().all(|pid| !Path::new(&format!("/proc/{pid}/exe")).exists()))
    })
}

#[test]
fn interrupted_demo_leaves_nothing_behind() -> Result<()> {
    for signal in [Signal::SIGINT, Signal::SIGTERM] {
        let (mut demo, _output, children) = running_demo()?;
        demo.signal(signal)?;
        let status = demo.wait(Duration::from_secs(10))?.context("it goes on after the signal")?;
        ensure!(!status.success(), "an interrupted demonstration is no success");
        all_gone(&children)?;
        ensure!(left_by(demo.id())?.is_empty(), "{signal}: {:?}", left_by(demo.id())?);
    }
    Ok(())
}

#[test]
fn killed_demo_leaves_no_process_and_the_next_lab_cleans_up() -> Result<()> {
    let (mut demo, _output, children) = running_demo()?;
    demo.signal(Signal::SIGKILL)?;
    demo.wait(Duration::from_secs(10))?.context("it goes on after SIGKILL")?;
    all_gone(&children)?;
    let pid = demo.id();
    // Reaped, so that its process id is free.
    drop(demo);
    drop(podnet_tests::lab::Lab::builder().nodes(1).daemons(false).build()?);
    ensure!(left_by(pid)?.is_empty(), "{:?}", left_by(pid)?);
    Ok(())
}

/// Commands that a shell suggests at its start.
fn suggestions(shell: &str) -> Result<Vec<String>> {
    let greeting = fs::read_to_string(Path::new(shell).with_file_name("rc"))?;
    let lines = greeting.lines().skip_while(|line| !line.ends_with("Try:")).skip(1);
    let lines = lines.take_while(|line| line.starts_with("  "));
    let commands = lines.flat_map(|line| line.split("  ")).map(str::trim);
    let commands: Vec<_> =
        commands.filter(|text| !text.is_empty() && !text.starts_with('(')).map(str::to_owned).collect();
    ensure!(commands.len() >= 9, "{greeting}");
    Ok(commands)
}

#[test]
fn demo_passes_and_a_kept_cluster_can_be_entered_and_stopped() -> Result<()> {
    let json = std::env::temp_dir().join(format!("podnet-demo-test-{}.json", std::process::id()));
    let run =
        output(program(&["demo", "--keep", "--json", &json.display().to_string()]), b"", Duration::from_secs(120))?;
    let text = String::from_utf8_lossy(&run.stdout).into_owned();
    let report: serde_json::Value = serde_json::from_str(&fs::read_to_string(&json)?)?;
    fs::remove_file(&json)?;
    let last = |what: &str| text.lines().find_map(|line| line.split_once(what)).map(|(_, rest)| rest.trim().to_owned());
    let shell = last("Open a shell in it: ").with_context(|| text.clone())?;
    let pid: i32 = last("Stop it: kill ").with_context(|| text.clone())?.parse()?;
    let entered = (|| {
        ensure!(run.status.success(), "{text}{}", String::from_utf8_lossy(&run.stderr));
        let mut inside = Command::new(&shell);
        inside.args([
            "-c",
            "hostname; podnet status >/dev/null && echo fine; pod client-2 hostname; node client ip -br addr show eth0",
        ]);
        let inside = output(inside, b"", Duration::from_secs(20))?;
        let seen = String::from_utf8_lossy(&inside.stdout).into_owned();
        let lines: Vec<_> = seen.lines().collect();
        ensure!(lines[..3] == ["node1", "fine", "node2"], "{seen}{}", String::from_utf8_lossy(&inside.stderr));
        ensure!(lines[3].contains("172.30.0.100/24"), "{seen}");
        for suggestion in suggestions(&shell)? {
            let mut command = Command::new(&shell);
            command.args(["-c", &suggestion]);
            let tried = output(command, b"", Duration::from_secs(20)).with_context(|| suggestion.clone())?;
            ensure!(tried.status.success(), "{suggestion}: {}", String::from_utf8_lossy(&tried.stderr));
        }
        // The scripts also run outside the shell.
        let mut alone = Command::new(Path::new(&shell).with_file_name("node"));
        alone.args(["node2", "podnet", "endpoint", "list"]).env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin");
        let alone = output(alone, b"", Duration::from_secs(20))?;
        ensure!(alone.status.success(), "{}", String::from_utf8_lossy(&alone.stderr));
        Ok(())
    })();
    kill(Pid::from_raw(pid), Signal::SIGTERM)?;
    wait_until("the kept cluster is gone", || {
        Ok(!Path::new(&format!("/proc/{pid}/exe")).exists() && left_by(pid as u32)?.is_empty())
    })?;
    entered?;

    let rows = |key: &str| report[key].as_array().cloned().unwrap_or_default();
    ensure!(rows("checks").iter().all(|check| check["pass"] == true) && rows("checks").len() >= 20, "{report}");
    ensure!(rows("pods").len() == 6 && rows("throughput").len() == 4, "{report}");
    // Two modes, two families, two protocols, five kinds of client; and the tutorial in two families: two clients in
    // the cluster, two nodes in two modes and with the policy, a load balancer that sends to both nodes, or with the
    // policy to one.
    ensure!(rows("source_ip").len() == 40 + 2 * (2 + 4 + 2 + 2 + 1), "{report}");
    ensure!(rows("source_ip").iter().all(|row| row["pass"] == true), "{report}");
    Ok(())
}

#[test]
fn shell_runs_commands_from_its_input() -> Result<()> {
    let mut command = program(&["shell"]);
    command.stdin(Stdio::piped());
    let script = b"hostname\npodnet service list | grep -c web\npod web-0 ls /sys/class/net\nexit 7\n";
    let run = output(command, script, Duration::from_secs(60))?;
    let text = String::from_utf8_lossy(&run.stdout).into_owned();
    ensure!(run.status.code() == Some(7), "{}: {text}{}", run.status, String::from_utf8_lossy(&run.stderr));
    ensure!(text.contains("node1\n"), "{text}");
    Ok(())
}

#[test]
fn every_program_is_listed_with_verifier_figures() -> Result<()> {
    let run = output(program(&["programs", "--json"]), b"", Duration::from_secs(120))?;
    let text = String::from_utf8_lossy(&run.stdout).into_owned();
    ensure!(run.status.success(), "{}: {text}{}", run.status, String::from_utf8_lossy(&run.stderr));
    let all = text.lines().map(serde_json::from_str).collect::<Result<Vec<Figures>, _>>()?;
    for name in ["from_pod", "from_uplink_enter", "uplink_xdp_enter", "connect4", "recvmsg6"] {
        ensure!(all.iter().filter(|program| program.name == name).count() == 1, "{name}: {text}");
    }
    for program in all {
        ensure!(program.processed > 0 && program.states > 0 && !program.stack.is_empty(), "{program:?}");
        ensure!(program.seconds > 0.0 && program.refused.is_none(), "{program:?}");
    }
    Ok(())
}
