//! A real kubelet on a node of the lab, with a real [runtime](super::cri); it runs the pods in the API of the [control
//! plane](ControlPlane).
//!
//! It sees the directories of a separate machine. `/etc`, `/opt` and `/var` are overlays in memory, so that files
//! written there are local to the node, and there is no BPF file system, as on a freshly booted machine. Pods have
//! neither limits nor cgroups of the kubelet (`cgroupsPerQOS`), since the runtime has none.

use std::fs::{self, File};
use std::io;
use std::net::IpAddr;
use std::path::Path;
use std::sync::Arc;

use anyhow::{Context, Result};
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use podnet::config::Install;
use podnet_cni::store::{Content, Store};
use serde_json::json;

use super::cri::{Runtime, install};
use super::{ControlPlane, NetNs, Node, Place, Process};

/// Default directories of plugins and network lists on a node.
const PLUGINS: [&str; 2] = ["/opt/cni/bin", "/etc/cni/net.d"];

/// Settings of the whole machine that the kubelet checks: it is shown values that satisfy it.
const TUNABLES: [(&str, &str); 6] = [
    ("vm/overcommit_memory", "1"),
    ("vm/panic_on_oom", "0"),
    ("kernel/panic", "10"),
    ("kernel/panic_on_oops", "1"),
    ("kernel/keys/root_maxkeys", "1000000"),
    ("kernel/keys/root_maxbytes", "25000000"),
];

/// A node of the cluster. Dropping it ends kubelet, runtime and containers.
#[derive(Debug)]
pub struct Kubelet {
    // Order of fields = order of dropping, so that nothing is restarted.
    _process: Process,
    runtime: Runtime,
}

impl Kubelet {
    /// Starts a runtime and a kubelet on a node without a daemon.
    pub fn start(control: &ControlPlane, node: &Arc<Node>) -> Result<Self> {
        let home = node.dir.join("run/kubelet");
        let Install { bin_dir, conf_dir } = install();
        fs::create_dir_all(&home)?;
        for dir in [&bin_dir, &conf_dir] {
            fs::create_dir_all(node.dir.join(dir.strip_prefix("/")?))?;
        }
        let plugins = [bin_dir.as_path(), conf_dir.as_path()];
        node.place.agent().in_mounts(|| furnish(plugins, &control.kubeconfig()))??;
        let runtime = Runtime::start(node)?;
        runtime.import_podnet()?;
        fs::write(home.join("config.yaml"), configuration())?;
        let addrs: Vec<_> = node.addrs.iter().map(ToString::to_string).collect();
        let mut command = node.place.command(control.program("kubelet")?)?;
        command.args(["--config=/run/kubelet/config.yaml", "--kubeconfig=/etc/kubernetes/kubelet.conf"]);
        command.args([format!("--hostname-override={}", node.name()), format!("--node-ip={}", addrs.join(","))]);
        let log = File::create(home.join("kubelet.log"))?;
        command.stdout(log.try_clone()?).stderr(log);
        Ok(Self { _process: Process::start(command).context("cannot start the kubelet")?, runtime })
    }

    /// The node's runtime.
    pub fn runtime(&self) -> &Runtime {
        &self.runtime
    }

    /// The network namespace of the pod that has this address.
    pub fn pod_place(&self, name: &str, ip: IpAddr) -> Result<Place> {
        let node = self.runtime.node();
        let find = || -> Result<Option<File>> {
            let store = Store::open(Path::new("/var/lib/podnet"))?;
            let name = store.list()?.into_iter().find(|record| record.ips.contains(&ip));
            let content = name.map(|name| store.read(&name)).transpose()?.flatten();
            let Some(Content::Valid(record)) = content else { return Ok(None) };
            Ok(Some(File::open(record.netns)?))
        };
        let netns = node.place.agent().in_mounts(find)??;
        let netns = netns.with_context(|| format!("the plugin on {} has no record of {name}", node.name()))?;
        Ok(Place::new(name, Arc::new(NetNs::from(netns)), node.place.agent().of_pods()?))
    }

    /// Names in a directory of the node; empty if the directory is missing.
    pub fn list(&self, directory: &str) -> Result<Vec<String>> {
        let read = || match fs::read_dir(directory) {
            Ok(entries) => entries.map(|entry| Ok(entry?.file_name().to_string_lossy().into_owned())).collect(),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Vec::new()),
            Err(error) => Err(error),
        };
        let names: io::Result<Vec<_>> = self.runtime.node().place.agent().in_mounts(read)?;
        names.with_context(|| format!("cannot read {directory}"))
    }
}

/// Creates the directories of a fresh machine, in the node's mount namespace.
fn furnish(plugins: [&Path; 2], kubeconfig: &str) -> Result<()> {
    let none: Option<&str> = None;
    let memory = Path::new("/run/kubelet/memory");
    fs::create_dir(memory)?;
    mount(Some("tmpfs"), memory, Some("tmpfs"), MsFlags::empty(), none).context("cannot mount a tmpfs")?;
    for name in ["etc", "opt", "var"] {
        let [upper, work] = ["upper", "work"].map(|part| memory.join(name).join(part));
        fs::create_dir_all(&upper)?;
        fs::create_dir(&work)?;
        let options = format!("lowerdir=/{name},upperdir={},workdir={}", upper.display(), work.display());
        let target = format!("/{name}");
        mount(Some("overlay"), &*target, Some("overlay"), MsFlags::empty(), Some(&*options))
            .with_context(|| format!("cannot mount an overlay on {target}"))?;
    }
    for (usual, own) in PLUGINS.into_iter().zip(plugins) {
        fs::create_dir_all(usual)?;
        mount(Some(own), usual, none, MsFlags::MS_BIND, none).with_context(|| format!("cannot bind {usual}"))?;
    }
    fs::create_dir_all("/etc/kubernetes")?;
    fs::write("/etc/kubernetes/kubelet.conf", kubeconfig)?;
    for (name, value) in TUNABLES {
        let (own, there) = (memory.join(name.replace('/', ".")), Path::new("/proc/sys").join(name));
        fs::write(&own, format!("{value}\n"))?;
        mount(Some(&own), &there, none, MsFlags::MS_BIND, none).with_context(|| format!("cannot hide {name}"))?;
    }
    umount2("/sys/fs/bpf", MntFlags::MNT_DETACH).context("cannot unmount /sys/fs/bpf")?;
    // Mounts made there by kubelet and containers are visible to the runtime and to other containers.
    for shared in ["/sys", "/var"] {
        mount(none, shared, none, MsFlags::MS_SHARED, none).with_context(|| format!("cannot share {shared}"))?;
    }
    Ok(())
}

/// The kubelet's configuration. All requests are authorised; only the API server can reach it.
fn configuration() -> String {
    json!({
        "apiVersion": "kubelet.config.k8s.io/v1beta1",
        "kind": "KubeletConfiguration",
        "authentication": {"anonymous": {"enabled": true}, "webhook": {"enabled": false}},
        "authorization": {"mode": "AlwaysAllow"},
        "containerRuntimeEndpoint": "unix:///run/containerd/containerd.sock",
        "cgroupDriver": "cgroupfs",
        "cgroupsPerQOS": false,
        "enforceNodeAllocatable": [],
        "failSwapOn": false,
        "protectKernelDefaults": true,
        // Pods get no resolver, since there is no DNS.
        "resolvConf": "",
        "volumePluginDir": "/var/lib/kubelet/volumeplugins",
        // Never evict, however full the machine is.
        "evictionHard": {"memory.available": "0%", "nodefs.available": "0%", "imagefs.available": "0%"},
        "imageGCHighThresholdPercent": 100,
    })
    .to_string()
}
