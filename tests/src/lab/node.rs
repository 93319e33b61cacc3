//! A node: its namespaces, directories and daemon.

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::fs::{self, File};
use std::io::{ErrorKind, Write as _};
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::process::{Output, Stdio};
use std::sync::atomic::AtomicU32;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use aya::maps::{Array, Map, MapData};
use ipnetwork::IpNetwork;
use nix::sys::signal::Signal;
use nix::time::ClockId;
use nix::unistd::Pid;
use podnet::config::Config;
use podnet::status::DaemonStatus;
use podnet_cni::datapath::{PinDir, Plain};
use podnet_common::{layout, tables};
use serde_json::Value;

use super::binaries::Binaries;
use super::cni::Invocation;
use super::manifest;
use super::{Place, Process, wait_until};
use crate::traffic::{Family, Server};

/// One machine of the cluster.
#[derive(Debug)]
pub struct Node {
    /// The host: traffic and commands of the node itself.
    pub place: Place,
    pub(super) addrs: Vec<IpAddr>,
    pub(super) pod_cidrs: Vec<String>,
    zone: Option<&'static str>,
    /// Working directory on the real file system.
    pub(super) dir: PathBuf,
    pub(super) binaries: Arc<Binaries>,
    pub(super) plugin_config: Value,
    daemon: Mutex<Option<Process>>,
    pub(super) containers: AtomicU32,
}

impl Node {
    pub(super) fn new(
        place: Place,
        addrs: Vec<IpAddr>,
        pod_cidrs: Vec<String>,
        zone: Option<&'static str>,
        dir: PathBuf,
        binaries: Arc<Binaries>,
        plugin_config: Value,
    ) -> Self {
        let (daemon, containers) = (Mutex::new(None), AtomicU32::new(0));
        Self { place, addrs, pod_cidrs, zone, dir, binaries, plugin_config, daemon, containers }
    }

    /// `node1`, `node2`, …
    pub fn name(&self) -> &str {
        self.place.name()
    }

    /// The node's address of a family.
    ///
    /// # Panics
    /// The lab was built without that family.
    pub fn ip(&self, family: Family) -> IpAddr {
        let addr = self.addrs.iter().find(|addr| Family::of(**addr) == family);
        *addr.unwrap_or_else(|| panic!("{} has no {} address", self.name(), family.name()))
    }

    /// Whether this is one of the node's addresses, including those on host ends of pods.
    pub fn owns(&self, ip: IpAddr) -> Result<bool> {
        let text = self.place.run("ip", &["-json", "addr", "show"])?;
        let links: Vec<Value> = serde_json::from_str(&text)?;
        let mut addrs = links.iter().flat_map(|link| link["addr_info"].as_array().into_iter().flatten());
        Ok(addrs.any(|addr| addr["local"].as_str().and_then(|text| text.parse().ok()) == Some(ip)))
    }

    /// Whether this is an address of the node or in its pod CIDRs.
    pub(super) fn holds(&self, ip: IpAddr) -> bool {
        let range = |cidr: &String| cidr.parse().is_ok_and(|range: IpNetwork| range.contains(ip));
        self.addrs.contains(&ip) || self.pod_cidrs.iter().any(range)
    }

    /// The Node object.
    pub(super) fn object(&self) -> Value {
        let mut object = manifest::node(self.name(), &self.pod_cidrs, &self.addrs);
        if let Some(zone) = self.zone {
            object["metadata"]["labels"]["topology.kubernetes.io/zone"] = zone.into();
        }
        object
    }

    /// The node's pod CIDRs.
    pub fn pod_cidrs(&self) -> &[String] {
        &self.pod_cidrs
    }

    /// The directory mounted at `/run/podnet` on the node.
    pub fn run_dir(&self) -> PathBuf {
        self.dir.join("run/podnet")
    }

    /// State directory of plugin and daemon.
    pub fn state_dir(&self) -> PathBuf {
        self.dir.join("state")
    }

    /// The daemon's manifest directory.
    pub fn manifest_dir(&self) -> PathBuf {
        self.dir.join("manifests")
    }

    /// The daemon's configuration file.
    pub fn config_file(&self) -> PathBuf {
        self.dir.join("config.yaml")
    }

    /// The daemon's log since the lab was built.
    pub fn log(&self) -> String {
        fs::read_to_string(self.log_file()).unwrap_or_default()
    }

    fn log_file(&self) -> PathBuf {
        self.dir.join("daemon.log")
    }

    /// Changes the daemon's configuration, with effect from the next start.
    pub fn configure(&self, change: impl FnOnce(&mut Config)) -> Result<()> {
        let mut config = serde_json::from_str(&fs::read_to_string(self.config_file())?)?;
        change(&mut config);
        self.write_config(&config)
    }

    pub(super) fn write_config(&self, config: &Config) -> Result<()> {
        // JSON is YAML.
        fs::write(self.config_file(), serde_json::to_string_pretty(config)?)?;
        Ok(())
    }

    /// Starts the daemon and waits until it reports that the datapath is ready and pods can start.
    pub fn start_daemon(&self) -> Result<()> {
        self.start_daemon_from(&self.binaries.podnet)
    }

    /// Same, with the daemon of another version.
    pub fn start_daemon_from(&self, program: &Path) -> Result<()> {
        let logged = self.log().len();
        self.spawn(program)?;
        let mut daemon = self.daemon();
        let process = daemon.as_mut().context("the daemon has been ended")?;
        let mut ended = None;
        let ready = wait_until(&format!("{}: daemon ready", self.name()), || {
            ended = process.try_wait()?;
            Ok(ended.is_some() || self.says_ready())
        });
        if ready.is_err() || ended.is_some() {
            *daemon = None;
            let log = self.log();
            let since_start = log.get(logged..).unwrap_or_default();
            let lines: Vec<_> = since_start.lines().collect();
            // The first message is often the cause of the others, the last one the reason for the exit.
            let (head, tail) = lines.split_at(lines.len().min(8));
            let shown = [head, &tail[tail.len().saturating_sub(4)..]].concat();
            let what = ended.map_or("did not become ready".to_owned(), |status| format!("ended with {status}"));
            bail!("the daemon of {} {what}; its first and last messages:\n{}", self.name(), shown.join("\n"));
        }
        Ok(())
    }

    /// Starts the daemon without waiting.
    pub fn spawn_daemon(&self) -> Result<()> {
        self.spawn(&self.binaries.podnet)
    }

    fn spawn(&self, program: &Path) -> Result<()> {
        let mut daemon = self.daemon();
        ensure!(daemon.is_none(), "the daemon of {} runs already", self.name());
        // Status of an earlier daemon.
        if let Err(error) = fs::remove_file(self.status_file()) {
            ensure!(error.kind() == ErrorKind::NotFound, "cannot remove {}: {error}", self.status_file().display());
        }
        let log = File::options().create(true).append(true).open(self.log_file())?;
        let mut command = self.place.command(program)?;
        command.args(["daemon", "--config"]).arg(self.config_file());
        // Its messages are shown if it fails to start: no backtraces of errors, no colours.
        command.env("RUST_LIB_BACKTRACE", "0").env("NO_COLOR", "1");
        command.stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log);
        *daemon = Some(Process::start(command)?);
        Ok(())
    }

    /// Kills the daemon with SIGKILL, which it cannot handle.
    pub fn kill_daemon(&self) -> Result<()> {
        self.end_daemon(Signal::SIGKILL)
    }

    /// Ends the daemon with SIGTERM and waits until it has exited.
    pub fn stop_daemon(&self) -> Result<()> {
        self.end_daemon(Signal::SIGTERM)
    }

    /// Makes the running programs look like those of another version, so that the next daemon replaces them.
    pub fn disown_programs(&self) -> Result<()> {
        let pin = PinDir::new(&self.bpffs()).table(tables::ORIGINS);
        let table = MapData::from_pin(&pin).with_context(|| format!("cannot open {}", pin.display()))?;
        let mut origins: Array<MapData, u64> = Map::Array(table).try_into()?;
        for programs in 0..origins.len() {
            origins.set(programs, 0, 0)?;
        }
        Ok(())
    }

    /// Whether the programs apply network policies ([`layout::Config::POLICY`]).
    pub fn applies_policies(&self) -> Result<bool> {
        let table = MapData::from_pin(PinDir::new(&self.bpffs()).table(tables::CONFIG))?;
        let config: Array<MapData, Plain<layout::Config>> = Map::Array(table).try_into()?;
        Ok(config.get(&0, 0)?.0.flags & layout::Config::POLICY != 0)
    }

    /// Path of the node's BPF file system outside its mount namespace.
    pub fn bpffs(&self) -> PathBuf {
        format!("/proc/{}/root/sys/fs/bpf", self.place.agent_id()).into()
    }

    fn end_daemon(&self, signal: Signal) -> Result<()> {
        let mut process = self.daemon().take().with_context(|| format!("no daemon runs on {}", self.name()))?;
        process.signal(signal)?;
        let ended = process.wait(Duration::from_secs(10))?;
        ensure!(ended.is_some(), "the daemon of {} has not ended 10 s after {signal}", self.name());
        Ok(())
    }

    /// Whether the daemon runs.
    pub fn daemon_runs(&self) -> Result<bool> {
        Ok(self.daemon().as_mut().map(Process::try_wait).transpose()?.is_some_and(|ended| ended.is_none()))
    }

    /// The daemon's process id.
    pub fn daemon_id(&self) -> Option<u32> {
        self.daemon().as_ref().map(Process::id)
    }

    /// CPU time used by the daemon since its start.
    pub fn daemon_cpu(&self) -> Result<Duration> {
        let id = self.daemon_id().context("the daemon does not run")?;
        Ok(ClockId::pid_cpu_clock_id(Pid::from_raw(id as i32))?.now()?.into())
    }

    fn daemon(&self) -> MutexGuard<'_, Option<Process>> {
        self.daemon.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn status_file(&self) -> PathBuf {
        self.run_dir().join("status.json")
    }

    fn says_ready(&self) -> bool {
        let text = fs::read_to_string(self.status_file()).unwrap_or_default();
        serde_json::from_str(&text).is_ok_and(|status: DaemonStatus| status.ready.is_some())
            && self.run_dir().join("node.json").exists()
    }

    /// Path of the command line tool.
    pub fn program(&self) -> &Path {
        &self.binaries.podnet
    }

    /// Runs the command line tool on the node, whatever its exit status.
    pub fn podnet_output(&self, args: &[&str]) -> Result<Output> {
        self.place.output(&self.binaries.podnet, args, "")
    }

    /// Runs the command line tool on the node and returns its standard output.
    pub fn podnet(&self, args: &[&str]) -> Result<String> {
        self.place.run(&self.binaries.podnet, args)
    }

    /// The same with `-o json`.
    pub fn podnet_json(&self, args: &[&str]) -> Result<Value> {
        let text = self.podnet(&[args, &["-o", "json"]].concat())?;
        serde_json::from_str(&text).with_context(|| format!("podnet {} -o json: not JSON: {text}", args.join(" ")))
    }

    /// Packets dropped by the node, by reason, from `podnet drops`.
    pub fn drops(&self) -> Result<BTreeMap<String, u64>> {
        let rows = self.podnet_json(&["drops"])?;
        let row = |row: &Value| Some((row["reason"].as_str()?.to_owned(), row["packets"].as_u64()?));
        let counts = rows.as_array().and_then(|rows| rows.iter().map(row).collect());
        counts.with_context(|| format!("podnet drops -o json has another form: {rows}"))
    }

    /// Writes a manifest to the manifest directory, atomically. A manifest without objects contains a comment, since an
    /// empty file is taken for an accident.
    pub fn apply(&self, name: &str, yaml: &str) -> Result<()> {
        let yaml = if yaml.is_empty() { "# no objects\n" } else { yaml };
        let dir = self.manifest_dir();
        let temporary = dir.join(format!(".{name}.tmp"));
        let mut file = File::create(&temporary)?;
        file.write_all(yaml.as_bytes())?;
        fs::rename(&temporary, dir.join(format!("{name}.yaml"))).with_context(|| format!("cannot apply {name}"))
    }

    /// Removes a manifest from the manifest directory.
    pub fn withdraw(&self, name: &str) -> Result<()> {
        fs::remove_file(self.manifest_dir().join(format!("{name}.yaml")))
            .with_context(|| format!("cannot remove {name}"))
    }

    /// Removes all manifests but the Nodes' from the manifest directory.
    pub(super) fn clear(&self) -> Result<()> {
        for entry in fs::read_dir(self.manifest_dir())? {
            let path = entry?.path();
            let name = path.file_stem().and_then(OsStr::to_str).unwrap_or_default();
            if path.extension() == Some(OsStr::new("yaml")) && name != "nodes" {
                self.withdraw(name)?;
            }
        }
        Ok(())
    }

    /// Starts servers with the node's name on the node's own addresses: a pod in the host network.
    pub fn serve(&self, port: u16) -> Result<Vec<Server>> {
        self.addrs.iter().map(|addr| Server::start(&self.place, self.name(), (*addr, port).into())).collect()
    }

    pub(super) fn invocation<'a>(&'a self, command: &'a str) -> Invocation<'a> {
        Invocation {
            plugin: &self.binaries.plugin,
            command,
            container_id: "",
            netns: "",
            ifname: "eth0",
            args: "",
            config: &self.plugin_config,
        }
    }

    /// The plugin's network configuration.
    pub fn plugin_config(&self) -> &Value {
        &self.plugin_config
    }

    /// Path of the plugin binary.
    pub fn plugin(&self) -> &Path {
        &self.binaries.plugin
    }

    pub(super) fn netns_path(container_id: &str) -> String {
        format!("/run/netns/{container_id}")
    }
}
