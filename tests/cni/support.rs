//! Namespaces, a node, pods, and calls of the plugin.

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::io::Write as _;
use std::net::IpAddr;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::mpsc;
use std::thread;
use std::time::Duration;

use nix::sched::{CloneFlags, setns, unshare};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::{Value, json};

/// How long a call may take.
const PATIENCE: Duration = Duration::from_secs(30);

/// All versions of the specification.
pub const VERSIONS: [&str; 7] = ["0.1.0", "0.2.0", "0.3.0", "0.3.1", "0.4.0", "1.0.0", "1.1.0"];

/// The plugin under test: in PODNET_BIN_DIR, else the static release build, else the debug build.
pub fn binary() -> PathBuf {
    let target = Path::new(env!("CARGO_MANIFEST_DIR")).join("../target");
    let places = match std::env::var_os("PODNET_BIN_DIR") {
        Some(dir) => vec![PathBuf::from(dir)],
        None => vec![target.join("x86_64-unknown-linux-gnu/release"), target.join("debug")],
    };
    let found = places.iter().map(|dir| dir.join("podnet-cni")).find(|path| path.exists());
    found.unwrap_or_else(|| {
        panic!("no podnet-cni in {places:?}: run `cargo xtask build --release`, or set PODNET_BIN_DIR")
    })
}

/// A network namespace, which lives as long as this or a process in it.
pub struct Netns {
    file: File,
}

impl Netns {
    /// A new one with `lo` up.
    pub fn new() -> Self {
        assert!(nix::unistd::geteuid().is_root(), "these tests make network namespaces: run them as root");
        let file = std::thread::spawn(|| {
            unshare(CloneFlags::CLONE_NEWNET).expect("a new network namespace");
            File::open("/proc/thread-self/ns/net").expect("the new namespace's file")
        });
        let netns = Self { file: file.join().expect("a namespace") };
        netns.ip("link set lo up");
        netns
    }

    /// That of a process.
    pub fn of_process(id: u32) -> Self {
        Self { file: File::open(format!("/proc/{id}/ns/net")).expect("the process's namespace") }
    }

    /// A new one as a container begins: `lo` down.
    pub fn container() -> Self {
        let netns = Self::new();
        netns.ip("link set lo down");
        netns
    }

    /// A path by which another process opens it.
    pub fn path(&self) -> String {
        use std::os::fd::AsRawFd as _;
        format!("/proc/{}/fd/{}", std::process::id(), self.file.as_raw_fd())
    }

    /// Runs a function in it, on a thread of its own.
    pub fn run<T: Send>(&self, f: impl FnOnce() -> T + Send) -> T {
        std::thread::scope(|scope| {
            let thread = scope.spawn(|| {
                setns(&self.file, CloneFlags::CLONE_NEWNET).expect("enter the namespace");
                f()
            });
            match thread.join() {
                Ok(value) => value,
                Err(panic) => std::panic::resume_unwind(panic),
            }
        })
    }

    /// Its cookie.
    pub fn cookie(&self) -> u64 {
        self.run(|| podnet_cni::datapath::netns_cookie().expect("a cookie"))
    }

    /// Makes a command run in it.
    pub fn enter(&self, command: &mut Command) {
        let file = self.file.try_clone().expect("another descriptor");
        // SAFETY: setns is a plain system call, safe between fork and exec.
        unsafe {
            command.pre_exec(move || setns(&file, CloneFlags::CLONE_NEWNET).map_err(Into::into));
        }
    }

    /// Runs iproute2 in it and returns its output.
    pub fn ip(&self, arguments: &str) -> String {
        let mut command = Command::new("ip");
        command.args(arguments.split_whitespace());
        self.enter(&mut command);
        let output = command.output().expect("ip, of the package iproute2");
        assert!(output.status.success(), "ip {arguments}: {}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).expect("UTF-8")
    }

    /// The same for a command whose output is JSON.
    pub fn ip_json(&self, arguments: &str) -> Value {
        serde_json::from_str(&self.ip(&format!("-j {arguments}"))).expect("JSON of ip")
    }

    /// The names of its links but `lo`.
    pub fn links(&self) -> BTreeSet<String> {
        let links = self.ip_json("link show");
        let names = links.as_array().into_iter().flatten().filter_map(|l| l["ifname"].as_str());
        names.filter(|n| *n != "lo").map(str::to_owned).collect()
    }

    /// A setting below /proc/sys/net.
    pub fn sysctl(&self, key: &str) -> String {
        let path = Path::new("/proc/sys/net").join(key);
        self.run(|| fs::read_to_string(path).expect("a setting").trim().to_owned())
    }
}

/// A container: an id and a namespace.
pub struct Pod {
    /// CNI_CONTAINERID.
    pub id: String,
    /// Its namespace.
    pub netns: Netns,
}

impl Pod {
    /// A new one with an id that no other test uses.
    pub fn new() -> Self {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        Self { id: format!("pod-{}", NEXT.fetch_add(1, Ordering::Relaxed)), netns: Netns::container() }
    }
}

/// What a call of the plugin did.
#[derive(Debug)]
pub struct Outcome {
    /// Whether it exited with 0.
    pub success: bool,
    /// Standard output.
    pub stdout: String,
    /// Standard error.
    pub stderr: String,
}

impl Outcome {
    /// The output as JSON of a call that must have succeeded.
    pub fn result(&self) -> Value {
        assert!(self.success, "{self:?}");
        serde_json::from_str(&self.stdout).unwrap_or_else(|e| panic!("{e}: {self:?}"))
    }

    /// The code of a call that must have failed as the specification says.
    pub fn code(&self) -> u64 {
        self.error()["code"].as_u64().expect("a numeric code")
    }

    /// The error object of a call that must have failed.
    pub fn error(&self) -> Value {
        assert!(!self.success, "{self:?}");
        let error: Value = serde_json::from_str(&self.stdout).unwrap_or_else(|e| panic!("{e}: {self:?}"));
        assert!(error["msg"].as_str().is_some_and(|m| !m.is_empty()), "{error}");
        assert!(VERSIONS.contains(&error["cniVersion"].as_str().unwrap_or_default()), "{error}");
        error
    }

    /// A call that must have succeeded and printed nothing.
    pub fn silent(&self) {
        assert!(self.success && self.stdout.is_empty(), "{self:?}");
    }
}

impl From<Output> for Outcome {
    fn from(output: Output) -> Self {
        Self {
            success: output.status.success(),
            stdout: String::from_utf8(output.stdout).expect("UTF-8"),
            stderr: String::from_utf8(output.stderr).expect("UTF-8"),
        }
    }
}

/// The addresses of a result, any version but 0.1 and 0.2.
pub fn ips(result: &Value) -> Vec<IpAddr> {
    let ips = result["ips"].as_array().into_iter().flatten();
    ips.map(|ip| {
        ip["address"].as_str().and_then(|a| a.split('/').next()).expect("an address").parse().expect("an address")
    })
    .collect()
}

/// A node: a namespace, directories and a network configuration.
pub struct Node {
    /// Its namespace.
    pub netns: Netns,
    /// Its configuration.
    pub config: Value,
    dir: tempfile::TempDir,
}

impl Node {
    /// A dual-stack node without eBPF datapath.
    pub fn new() -> Self {
        Self::with_cidrs(&["10.244.1.0/24", "fd00:244:1::/64"])
    }

    /// The same with other pod CIDRs.
    pub fn with_cidrs(cidrs: &[&str]) -> Self {
        let dir = tempfile::Builder::new().prefix("podnet-cni-test.").tempdir().expect("a directory");
        let config = json!({
            "cniVersion": "1.1.0",
            "name": "podnet",
            "type": "podnet-cni",
            "datapath": "none",
            "podCIDRs": cidrs,
            "stateDir": dir.path().join("state"),
            "runDir": dir.path().join("run"),
        });
        Self { netns: Netns::new(), config, dir }
    }

    /// A directory for this node's files.
    pub fn dir(&self) -> &Path {
        self.dir.path()
    }

    /// The configuration with some keys changed.
    pub fn config_with(&self, changes: Value) -> Value {
        let mut config = self.config.clone();
        config.as_object_mut().expect("an object").extend(changes.as_object().expect("an object").clone());
        config
    }

    /// The plugin's command line for a pod, in the node's namespace; the caller adds input and output.
    pub fn command(&self, command: &str, pod: Option<&Pod>) -> Command {
        let mut plugin = Command::new(binary());
        plugin.env_clear().env("CNI_COMMAND", command).env("CNI_PATH", "/opt/cni/bin");
        if let Some(pod) = pod {
            plugin.env("CNI_CONTAINERID", &pod.id).env("CNI_IFNAME", "eth0").env("CNI_NETNS", pod.netns.path());
        }
        self.netns.enter(&mut plugin);
        plugin
    }

    /// Runs a command with a configuration.
    pub fn run(&self, command: Command, config: &Value) -> Outcome {
        run_with_input(command, config.to_string().as_bytes())
    }

    /// Calls the plugin with a configuration.
    pub fn call_with(&self, command: &str, pod: &Pod, config: &Value) -> Outcome {
        self.run(self.command(command, Some(pod)), config)
    }

    /// Calls the plugin with the node's configuration.
    pub fn call(&self, command: &str, pod: &Pod) -> Outcome {
        self.call_with(command, pod, &self.config)
    }

    /// ADD that must succeed; the result.
    pub fn add(&self, pod: &Pod) -> Value {
        self.call("ADD", pod).result()
    }

    /// CHECK with a result of ADD.
    pub fn check(&self, pod: &Pod, result: &Value) -> Outcome {
        self.call_with("CHECK", pod, &self.config_with(json!({"prevResult": result})))
    }

    /// DEL that must succeed.
    pub fn del(&self, pod: &Pod) {
        self.call("DEL", pod).silent();
    }

    /// STATUS.
    pub fn status(&self) -> Outcome {
        self.run(self.command("STATUS", None), &self.config)
    }

    /// GC that keeps these pods.
    pub fn gc(&self, keep: &[&Pod]) -> Outcome {
        let list: Vec<Value> = keep.iter().map(|p| json!({"containerID": p.id, "ifname": "eth0"})).collect();
        self.run(self.command("GC", None), &self.config_with(json!({"cni.dev/valid-attachments": list})))
    }

    /// The directory of the records.
    pub fn attachments(&self) -> PathBuf {
        self.dir().join("state/attachments")
    }

    /// The files in it, whatever they are.
    pub fn files(&self) -> BTreeSet<String> {
        let Ok(entries) = fs::read_dir(self.attachments()) else { return BTreeSet::new() };
        entries.map(|e| e.expect("an entry").file_name().into_string().expect("UTF-8")).collect()
    }

    /// The record of a pod, as path.
    pub fn record(&self, pod: &Pod) -> PathBuf {
        let prefix = format!("{}:eth0:", pod.id);
        let file = self.files().into_iter().find(|f| f.starts_with(&prefix));
        self.attachments().join(file.expect("a record"))
    }

    /// Nothing is left of any attachment but of these pods.
    pub fn assert_only(&self, pods: &[&Pod]) {
        let prefixes: BTreeSet<String> = pods.iter().map(|p| p.id.clone()).collect();
        let holders: BTreeSet<String> =
            self.files().iter().map(|f| f.split(':').next().unwrap_or_default().to_owned()).collect();
        assert_eq!(holders, prefixes, "records: {:?}", self.files());
        assert!(self.files().iter().all(|f| f.ends_with(".json")), "unfinished: {:?}", self.files());
        assert_eq!(self.netns.links().len(), pods.len(), "links: {:?}", self.netns.links());
        let routes = |family: &str| {
            let routes = self.netns.ip_json(&format!("{family} route show proto static"));
            routes.as_array().map_or(0, Vec::len)
        };
        let cidrs = self.config["podCIDRs"].to_string();
        let expected = |v6: bool| if cidrs.contains("::") == v6 || cidrs.contains('.') != v6 { pods.len() } else { 0 };
        assert_eq!(routes("-4"), expected(false), "IPv4 routes");
        assert_eq!(routes("-6"), expected(true), "IPv6 routes");
    }
}

/// Runs a command with bytes on its standard input.
pub fn run_with_input(mut command: Command, input: &[u8]) -> Outcome {
    let mut child =
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("the plugin starts");
    let mut stdin = child.stdin.take().expect("a pipe");
    // A plugin that refuses its environment does not read.
    let _ = stdin.write_all(input);
    drop(stdin);
    // One that hangs would keep the tests from ending.
    let (id, (ended, wait)) = (child.id(), mpsc::channel::<()>());
    let guard = thread::spawn(move || {
        if wait.recv_timeout(PATIENCE) == Err(mpsc::RecvTimeoutError::Timeout) {
            let _ = kill(Pid::from_raw(id as i32), Signal::SIGKILL);
        }
    });
    let output = child.wait_with_output().expect("the plugin ends");
    drop(ended);
    guard.join().expect("the guard doesn't panic");
    output.into()
}
