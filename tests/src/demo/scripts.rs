//! Scripts in the lab's directory for moving about in the cluster: `node NAME CMD…`, `pod NAME CMD…` and `lab-shell`,
//! beside links to `podnet` and `podnet-cni`.

use std::fmt::Write as _;
use std::fs;
use std::net::SocketAddr;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

use super::cluster::Cluster;
use crate::traffic::Family;

/// Writes the scripts; returns the path of `lab-shell`.
pub(super) fn write(cluster: &Cluster) -> Result<PathBuf> {
    let dir = cluster.lab.dir().join("bin");
    fs::create_dir_all(&dir).context("cannot make the directory of scripts")?;
    for (name, target) in
        [("podnet", cluster.lab.binaries().podnet.clone()), ("podnet-cni", cluster.lab.binaries().plugin.clone())]
    {
        symlink(target, dir.join(name)).with_context(|| format!("cannot link {name}"))?;
    }
    let write = |name: &str, text: String| -> Result<PathBuf> {
        let path = dir.join(name);
        fs::write(&path, text).with_context(|| format!("cannot write {}", path.display()))?;
        fs::set_permissions(&path, fs::Permissions::from_mode(0o755))?;
        Ok(path)
    };
    write("node", node_script(cluster, &dir))?;
    write("pod", pod_script(cluster, &dir))?;
    write("rc", rc(cluster))?;
    let at = dir.display();
    write(
        "lab-shell",
        format!("#!/bin/sh\nPATH={at}:$PATH\nexport PATH\nexec {at}/node node1 bash --rcfile {at}/rc \"$@\"\n"),
    )
}

fn node_script(cluster: &Cluster, dir: &Path) -> String {
    let mut text =
        "#!/bin/sh\n# node NAME CMD…: runs a command on a node (or on the client outside), as a process of its host.\n\
                    case $1 in\n"
            .to_owned();
    let mut names = Vec::new();
    for place in cluster.lab.nodes().iter().map(|node| &node.place).chain([cluster.lab.client()]) {
        writeln!(text, "{}) agent={} ;;", place.name(), place.agent_id()).expect("a string takes it");
        names.push(place.name());
    }
    write!(
        text,
        "*) echo \"usage: node NAME CMD…, where NAME is one of: {}\" >&2; exit 2 ;;\nesac\nshift\n\
         # What is run finds the lab's own programs, from wherever this is called.\n\
         PATH={}:$PATH\nexport PATH\n\
         # The socket hooks know a host's processes by their cgroup.\n\
         case $(sed -n 's/^0:://p' /proc/$agent/cgroup) in */podnet-lab-*) echo $$ >/proc/$agent/root/sys/fs/cgroup/cgroup.procs ;; esac\n\
         exec nsenter --target $agent --mount --uts --net -- \"$@\"\n",
        names.join(", "),
        dir.display()
    )
    .expect("a string takes it");
    text
}

fn pod_script(cluster: &Cluster, dir: &Path) -> String {
    let mut text = "#!/bin/sh\n# pod NAME CMD…: runs a command in a pod's network namespace.\ncase $1 in\n".to_owned();
    let mut names = Vec::new();
    for pod in cluster.pods.values() {
        writeln!(text, "{}) node={} netns={} ;;", pod.name(), pod.node().name(), pod.netns_path())
            .expect("a string takes it");
        names.push(pod.name());
    }
    write!(
        text,
        "*) echo \"usage: pod NAME CMD…, where NAME is one of: {}\" >&2; exit 2 ;;\nesac\nshift\n\
         exec {}/node $node nsenter --net=$netns -- \"$@\"\n",
        names.join(", "),
        dir.display()
    )
    .expect("a string takes it");
    text
}

fn rc(cluster: &Cluster) -> String {
    let mut text = "PS1='lab:\\h:\\w\\$ '\ncat <<'END'\n".to_owned();
    for row in cluster.rows() {
        let ips: Vec<_> = row.ips.iter().map(ToString::to_string).collect();
        writeln!(text, "  {:<10} {:<7} {}", row.name, row.node, ips.join("  ")).expect("a string takes it");
    }
    let services = &cluster.services;
    let (web, web6) = (services.web.addr(Family::V4), services.web.addr(Family::V6));
    // On the pod's node: the demonstration leaves the Service with externalTrafficPolicy Local.
    let node_port = SocketAddr::new(cluster.lab.node(0).ip(Family::V4), services.tutorial[1].at_nodes());
    write!(
        text,
        "\nThis is node1 of two; the client outside is called client. Try:\n\
         \x20 podnet status                        podnet service list\n\
         \x20 curl http://{web}/              curl http://[{}]/\n\
         \x20 pod client-2 curl -s http://{web}/   node node2 podnet endpoint list\n\
         \x20 node client curl -s http://{node_port}/   (a NodePort, from outside)\n\
         \x20 pod client-1 ping -c 1 {}    ping -c 1 {}\n\
         \x20 podnet conntrack list                podnet drops\n\
         Manifests: {} (changes take effect at once; node2 has its own copy)\n\
         Services: web {web}, dns {}/UDP. The cluster ends with this shell.\n\
         END\ncd /\n",
        web6.ip(),
        web.ip(),
        web6.ip(),
        cluster.lab.node(0).manifest_dir().display(),
        services.dns.addr(Family::V4),
    )
    .expect("a string takes it");
    text
}
