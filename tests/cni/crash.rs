//! The plugin killed at every one of its system calls: GC or DEL leaves nothing behind, and no address is given twice.
//!
//! The plugin runs under ptrace; before its n-th system call is carried out, it is killed, or held while something else
//! happens. n goes from the first call to the last, so every state between two calls is met, with nothing built into
//! the plugin for it. The pools are small, so that an address that is wrongly free comes up at once.

use std::collections::BTreeSet;
use std::fs::{self, File, TryLockError};
use std::net::IpAddr;
use std::os::unix::process::CommandExt as _;
use std::process::{Command, Stdio};
use std::sync::mpsc::{self, RecvTimeoutError};
use std::time::Duration;

use nix::sys::ptrace;
use nix::sys::signal::{Signal, kill};
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::Pid;
use serde_json::{Value, json};

use crate::bpf::{Pins, with_private_mounts};
use crate::ebpf::with_daemon;
use crate::support::{Node, Pod, ips};

/// What becomes of the plugin at its n-th call.
enum Then {
    Kill,
    Continue,
}

/// How a traced run ended.
struct End {
    /// Whether it came to the n-th call.
    reached: bool,
    /// Whether it exited with 0.
    success: bool,
    /// Its standard output.
    stdout: String,
}

/// Runs the plugin; at its n-th system call asks what to do.
fn traced(node: &Node, mut command: Command, config: &Value, n: usize, at: impl FnOnce() -> Then) -> End {
    let (input, output) = (node.dir().join("stdin"), node.dir().join("stdout"));
    fs::write(&input, config.to_string()).unwrap();
    command.stdin(File::open(&input).unwrap()).stdout(File::create(&output).unwrap()).stderr(Stdio::null());
    // SAFETY: PTRACE_TRACEME is a plain system call, safe between fork and exec.
    unsafe { command.pre_exec(|| ptrace::traceme().map_err(Into::into)) };
    #[expect(clippy::zombie_processes, reason = "trace() reaps it: the tracer sees every state of its children")]
    let child = command.spawn().expect("the plugin starts");
    let main = Pid::from_raw(child.id() as i32);
    let started = waitpid(main, None).expect("stopped at exec");
    assert!(matches!(started, WaitStatus::Stopped(_, Signal::SIGTRAP)), "{started:?}");
    let options = ptrace::Options::PTRACE_O_TRACESYSGOOD
        | ptrace::Options::PTRACE_O_TRACECLONE
        | ptrace::Options::PTRACE_O_EXITKILL;
    ptrace::setoptions(main, options).unwrap();
    ptrace::syscall(main, None).unwrap();
    let (ended, watched) = mpsc::channel::<()>();
    let (reached, success) = std::thread::scope(|scope| {
        scope.spawn(move || {
            // A plugin that hangs must not hang the tests.
            if watched.recv_timeout(Duration::from_secs(30)) == Err(RecvTimeoutError::Timeout) {
                let _ = kill(main, Signal::SIGKILL);
            }
        });
        let result = trace(main, n, at);
        drop(ended);
        result
    });
    End { reached, success, stdout: fs::read_to_string(&output).unwrap() }
}

/// Lets all threads of a traced process go from stop to stop.
fn trace(main: Pid, n: usize, at: impl FnOnce() -> Then) -> (bool, bool) {
    // Every thread stops on entry and on exit of a call: those inside one are in here.
    let mut inside: BTreeSet<Pid> = BTreeSet::new();
    let mut calls = 0;
    let mut at = Some(at);
    loop {
        // Only what this thread has started: tests run side by side.
        let status = waitpid(None, Some(WaitPidFlag::__WALL | WaitPidFlag::__WNOTHREAD)).expect("a traced process");
        match status {
            WaitStatus::Exited(pid, status) if pid == main => return (at.is_none(), status == 0),
            WaitStatus::Signaled(pid, ..) if pid == main => return (at.is_none(), false),
            WaitStatus::Exited(..) | WaitStatus::Signaled(..) => {}
            WaitStatus::PtraceSyscall(pid) => {
                if !inside.remove(&pid) {
                    inside.insert(pid);
                    calls += 1;
                    if calls == n
                        && let Some(Then::Kill) = at.take().map(|at| at())
                    {
                        kill(main, Signal::SIGKILL).expect("the plugin is there to be killed");
                        continue;
                    }
                }
                proceed(pid, None);
            }
            WaitStatus::PtraceEvent(pid, ..) => proceed(pid, None),
            // A new thread begins with SIGSTOP, which is not meant for it.
            WaitStatus::Stopped(pid, Signal::SIGSTOP) => proceed(pid, None),
            WaitStatus::Stopped(pid, signal) => proceed(pid, Some(signal)),
            other => panic!("unexpected: {other:?}"),
        }
    }
}

/// Runs the plugin until its n-th system call and kills it there. Returns false when it ended before.
fn killed_at(node: &Node, command: Command, config: &Value, n: usize) -> bool {
    traced(node, command, config, n, || Then::Kill).reached
}

/// A node whose pools are used up soon.
fn small_node() -> Node {
    Node::with_cidrs(&["10.244.1.0/28", "fd00:244:1::/124"])
}

/// A thread may have been killed meanwhile.
fn proceed(pid: Pid, signal: Option<Signal>) {
    match ptrace::syscall(pid, signal) {
        Ok(()) | Err(nix::errno::Errno::ESRCH) => {}
        Err(e) => panic!("can't continue {pid}: {e}"),
    }
}

/// The addresses that records hold, by their names.
fn held(node: &Node) -> BTreeSet<IpAddr> {
    let files = node.files();
    let stem = |f: &'_ String| f.rsplit_once('.').expect("a state").0.to_owned();
    let addresses = |stem: String| stem.splitn(4, ':').nth(3).expect("addresses").to_owned();
    let records = files.iter().map(stem).map(addresses);
    records.flat_map(|ips| ips.split(',').map(|ip| ip.parse().unwrap()).collect::<Vec<_>>()).collect()
}

/// A pod that lives through everything; its state must never change.
struct Survivor {
    pod: Pod,
    result: Value,
}

impl Survivor {
    fn new(node: &Node) -> Self {
        let pod = Pod::new();
        let result = node.add(&pod);
        Self { pod, result }
    }

    /// Nothing but the survivor is there, and it is whole.
    fn is_all(&self, node: &Node, pins: Option<&Pins>, n: usize) {
        node.assert_only(&[&self.pod]);
        if let Some(pins) = pins {
            assert_eq!(pins.len(), 2, "endpoints after a kill at call {n}");
            assert!(pins.sandboxes().into_keys().eq([self.pod.netns.cookie()]), "sandboxes after a kill at call {n}");
        }
        if n.is_multiple_of(16) {
            node.check(&self.pod, &self.result).silent();
        }
    }
}

/// Kills ADD at each call. Another ADD must not be given what the killed one holds; `recover` must clean up.
/// Where the killed one has no record yet, it holds nothing.
fn kill_add(node: &Node, pins: Option<&Pins>, recover: impl Fn(&Survivor, &Pod)) {
    let survivor = Survivor::new(node);
    let mut holding = 0;
    for n in 1.. {
        let victim = Pod::new();
        if !killed_at(node, node.command("ADD", Some(&victim)), &node.config, n) {
            node.del(&victim);
            assert!(n > 100 && holding > 50, "{n} calls, {holding} with a record: was all of ADD traced?");
            return;
        }
        let taken = held(node);
        if taken.len() > 2 {
            let next = Pod::new();
            let given = ips(&node.add(&next));
            assert!(given.iter().all(|ip| !taken.contains(ip)), "call {n}: {given:?} given twice, held were {taken:?}");
            node.del(&next);
            holding += 1;
        }
        recover(&survivor, &victim);
        survivor.is_all(node, pins, n);
        assert!(victim.netns.links().is_empty(), "call {n}: {:?}", victim.netns.links());
    }
}

#[test]
fn add_killed_anywhere_then_gc() {
    with_private_mounts(|| {
        let (node, pins) = with_daemon(small_node(), 64);
        kill_add(&node, Some(&pins), |survivor, _| node.gc(&[&survivor.pod]).silent());
    });
}

#[test]
fn add_killed_anywhere_then_del() {
    let node = small_node();
    kill_add(&node, None, |_, victim| node.del(victim));
}

#[test]
fn add_killed_anywhere_then_add_again() {
    with_private_mounts(|| {
        let (node, pins) = with_daemon(small_node(), 64);
        let survivor = Survivor::new(&node);
        for n in (1..).step_by(3) {
            let pod = Pod::new();
            if !killed_at(&node, node.command("ADD", Some(&pod)), &node.config, n) {
                return;
            }
            let again = node.call("ADD", &pod);
            // Killed after the record was declared ready: to the plugin that ADD has succeeded.
            if !again.success {
                assert_eq!(again.code(), 100, "call {n}");
            }
            node.del(&pod);
            survivor.is_all(&node, Some(&pins), n);
        }
    });
}

#[test]
fn del_killed_anywhere_then_del_or_gc() {
    with_private_mounts(|| {
        let (node, pins) = with_daemon(small_node(), 64);
        let survivor = Survivor::new(&node);
        for n in 1.. {
            let pod = Pod::new();
            node.add(&pod);
            if !killed_at(&node, node.command("DEL", Some(&pod)), &node.config, n) {
                assert!(n > 40, "DEL has more system calls than {n}: was it traced?");
                return survivor.is_all(&node, Some(&pins), n);
            }
            match n % 2 {
                0 => node.del(&pod),
                _ => node.gc(&[&survivor.pod]).silent(),
            }
            survivor.is_all(&node, Some(&pins), n);
            assert!(pod.netns.links().is_empty(), "call {n}");
        }
    });
}

#[test]
fn gc_killed_anywhere_then_gc() {
    with_private_mounts(|| {
        let (node, pins) = with_daemon(small_node(), 64);
        let survivor = Survivor::new(&node);
        let list = json!([{"containerID": survivor.pod.id, "ifname": "eth0"}]);
        let config = node.config_with(json!({"cni.dev/valid-attachments": list}));
        for n in 1.. {
            let pod = Pod::new();
            node.add(&pod);
            if !killed_at(&node, node.command("GC", None), &config, n) {
                return survivor.is_all(&node, Some(&pins), n);
            }
            node.gc(&[&survivor.pod]).silent();
            survivor.is_all(&node, Some(&pins), n);
        }
    });
}

/// GC, and what the daemon does, must tell an ADD at work from one that was killed, and never wait for it while it
/// waits for them.
#[test]
fn gc_leaves_an_add_at_work_alone() {
    let node = small_node();
    let (mut beside, mut locked) = (0, 0);
    for n in 1.. {
        let pod = Pod::new();
        let (node, pod) = (&node, &pod);
        let end = std::thread::scope(|scope| {
            traced(node, node.command("ADD", Some(pod)), &node.config, n, || {
                let lock = File::open(node.dir().join("state/lock"));
                match lock.map(|lock| lock.try_lock()) {
                    Ok(Err(TryLockError::WouldBlock)) => {
                        // This GC waits for the lock. It may come to the record when ADD has ended, so it lists it.
                        let gc = scope.spawn(move || node.gc(&[pod]).silent());
                        std::thread::sleep(Duration::from_millis(20));
                        assert!(!gc.is_finished(), "call {n}: GC did not wait for the lock");
                        locked += 1;
                    }
                    _ => {
                        node.gc(&[]).silent();
                        beside += 1;
                    }
                }
                Then::Continue
            })
        });
        assert!(end.success, "call {n}: {}", end.stdout);
        node.check(pod, &serde_json::from_str(&end.stdout).unwrap()).silent();
        node.del(pod);
        if !end.reached {
            assert!(beside > 50 && locked > 10, "GC ran at {beside} points beside ADD, at {locked} it waited");
            return;
        }
    }
}
