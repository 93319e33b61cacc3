//! A real container runtime on a node of the lab: containerd and runc, driven through the Container Runtime Interface
//! as a kubelet does.
//!
//! All its files are in the node's own directories: socket, state and log in `/run`, and so are the directories of CNI
//! plugins and network lists, where the [daemon installs the plugin](install); content and snapshots in `/var/lib`, a
//! tmpfs that is empty at its start, so that snapshots can be overlays whatever file system the lab's directory is on.
//! The runtime has its own PID namespace, in which it can be restarted while its containers keep running, and which
//! ends with the harness.
//!
//! Pods use a single image, which contains the lab's own [program](super::Program). Resources are not limited
//! (`disable_cgroup`), because the hierarchy with the lab's cgroups may lack the controllers.

mod client;
mod image;
mod messages;
mod sandbox;
mod supervised;

use std::fs::{self, File};
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use anyhow::{Context, Result, ensure};
use nix::mount::{MsFlags, mount};
use nix::sys::signal::Signal;
use podnet::config::Install;

use super::{Binaries, Node, eventually};
use client::Client;
use image::Image;
use messages::{StatusRequest, StatusResponse};
use supervised::Supervised;

pub use image::NAME as IMAGE;
pub use sandbox::{Container, PodSpec, Sandbox};

/// Directory on the node with containerd's socket, state and log.
const HOME: &str = "/run/containerd";
/// Directory on the node with containerd's persistent data and libcni's cached results.
const STORE: &str = "/var/lib";
/// The plugin with which containerd brings up `lo`, from the package containernetworking-plugins.
const LOOPBACK: &str = "/usr/lib/cni/loopback";

/// Directories in which a node's runtime looks for plugins and network lists, for the daemon's configuration.
pub fn install() -> Install {
    Install { bin_dir: "/run/cni/bin".into(), conf_dir: "/run/cni/net.d".into() }
}

/// A node's container runtime; dropping it ends it and all of its containers.
#[derive(Debug)]
pub struct Runtime {
    node: Arc<Node>,
    client: Client,
    containerd: Mutex<Supervised>,
    pods: AtomicU32,
}

/// Network status reported by the runtime.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NetworkCondition {
    /// Whether pods can be created: the condition `NetworkReady`.
    pub ready: bool,
    /// The reason if not.
    pub message: String,
}

impl Runtime {
    /// Starts containerd on a node and imports the image.
    pub fn start(node: &Arc<Node>) -> Result<Self> {
        let home = node.dir.join("run/containerd");
        fs::create_dir_all(&home)?;
        let bin_dir = node.dir.join("run/cni/bin");
        fs::create_dir_all(&bin_dir)?;
        ensure!(Path::new(LOOPBACK).exists(), "there is no {LOOPBACK}: `cargo xtask setup` installs its package");
        symlink(LOOPBACK, bin_dir.join("loopback"))?;
        fs::write(home.join("config.toml"), configuration())?;
        let none: Option<&str> = None;
        let mount_store = || mount(Some("tmpfs"), STORE, Some("tmpfs"), MsFlags::empty(), none);
        node.place.agent().in_mounts(mount_store)?.with_context(|| format!("cannot mount a tmpfs on {STORE}"))?;
        let mut supervisor = node.place.command(&node.binaries.lab)?;
        supervisor.args(["supervise", "containerd", "--config"]).arg(format!("{HOME}/config.toml"));
        supervisor.stderr(File::create(home.join("containerd.log"))?);
        let containerd = Mutex::new(Supervised::start(supervisor)?);
        let client = Client::new(&home.join("containerd.sock"))?;
        let runtime = Self { node: node.clone(), client, containerd, pods: AtomicU32::new(0) };
        runtime.resume()?;
        runtime.import(&Image {
            name: image::NAME,
            programs: &[(image::PROGRAM, &node.binaries.contained)],
            entrypoint: &[image::PROGRAM, "pod"],
            // A sandbox runs this command; containers have their own.
            cmd: &["wait"],
        })?;
        Ok(runtime)
    }

    /// Imports the image of daemon and plugin built by `cargo xtask image`.
    pub fn import_podnet(&self) -> Result<()> {
        let Binaries { podnet, plugin, .. } = &*self.node.binaries;
        self.import(&Image {
            name: concat!("localhost/podnet:", env!("CARGO_PKG_VERSION")),
            programs: &[("/usr/bin/podnet", podnet), ("/usr/bin/podnet-cni", plugin)],
            entrypoint: &["/usr/bin/podnet"],
            cmd: &[],
        })
    }

    fn import(&self, image: &Image<'_>) -> Result<()> {
        image::write(&self.node.dir.join("run/containerd/image.tar"), image)?;
        self.ctr(&["images", "import", &format!("{HOME}/image.tar")])?;
        Ok(())
    }

    /// Runs ctr, for operations missing in the Container Runtime Interface.
    pub fn ctr(&self, args: &[&str]) -> Result<String> {
        let socket = format!("{HOME}/containerd.sock");
        let common = ["--address", &socket, "--namespace", "k8s.io"];
        self.node.place.run("ctr", &[&common[..], args].concat())
    }

    /// The node that it runs on.
    pub fn node(&self) -> &Arc<Node> {
        &self.node
    }

    /// Ends containerd but not its containers.
    pub fn pause(&self, signal: Signal) -> Result<()> {
        self.containerd().end_program(signal)
    }

    /// Starts containerd, again if necessary, and waits until it responds.
    pub fn resume(&self) -> Result<()> {
        self.containerd().start_program()?;
        eventually("an answer of containerd", || self.network()).with_context(|| self.last_messages())?;
        Ok(())
    }

    /// Whether the runtime has found a network for its pods.
    pub fn network(&self) -> Result<NetworkCondition> {
        let answer: StatusResponse = self.client.call("Status", StatusRequest {})?;
        let conditions = answer.status.context("no status")?.conditions;
        let network = conditions.into_iter().find(|condition| condition.kind == "NetworkReady");
        let network = network.context("containerd says nothing of its network")?;
        Ok(NetworkCondition { ready: network.status, message: network.message })
    }

    /// The end of its log.
    fn last_messages(&self) -> String {
        let log = fs::read_to_string(self.log_file()).unwrap_or_default();
        let lines: Vec<_> = log.lines().collect();
        format!("containerd's last messages:\n{}", lines[lines.len().saturating_sub(8)..].join("\n"))
    }

    fn log_file(&self) -> PathBuf {
        self.node.dir.join("run/containerd/containerd.log")
    }

    fn containerd(&self) -> MutexGuard<'_, Supervised> {
        self.containerd.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn next_number(&self) -> u32 {
        self.pods.fetch_add(1, Ordering::Relaxed)
    }
}

/// containerd's configuration. Defaults that would affect the machine outside the node are moved or disabled.
fn configuration() -> String {
    let Install { bin_dir, conf_dir } = install();
    format!(
        r#"version = 2
root = "{STORE}/containerd"
state = "{HOME}/state"
[grpc]
  address = "{HOME}/containerd.sock"
[plugins."io.containerd.internal.v1.opt"]
  path = "{HOME}/opt"
[plugins."io.containerd.grpc.v1.cri"]
  sandbox_image = "{image}"
  disable_apparmor = true
  disable_cgroup = true
  restrict_oom_score_adj = true
  [plugins."io.containerd.grpc.v1.cri".containerd]
    snapshotter = "overlayfs"
  [plugins."io.containerd.grpc.v1.cri".cni]
    bin_dir = "{bin}"
    conf_dir = "{conf}"
"#,
        image = image::NAME,
        bin = bin_dir.display(),
        conf = conf_dir.display(),
    )
}
