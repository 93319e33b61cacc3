//! The lab: a cluster of network namespaces on one machine.
//!
//! ```text
//!            fabric (a bridge, 172.30.0.254) ─── router ─── far 172.31.2.2
//!      ┌────────────┼─────────────┐      172.31.1.0/24  172.31.2.0/24
//!    eth0          eth0          eth0
//!  node1 .1      node2 .2      client .100        each a network namespace; nodes also have mounts (their own /sys,
//!   │ │ │         │ │           (outside)         bpffs, /run), a host name, a cgroup, a daemon and a directory
//!  pods made by podnet-cni
//! ```
//!
//! Client, router and far are there if wanted; then the fabric forwards as the nodes' default gateway.
//!
//! A namespace lives as long as the harness holds its descriptor or a process is in it, every process dies with the
//! harness, and what else there is on the machine is scrap that is removed in the end. Nothing is in the
//! machine's /run/netns, bpffs, routes or firewall. Needs root, iproute2 and a mounted cgroup v2 hierarchy.

mod agent;
mod binaries;
mod build;
mod cases;
mod cni;
mod control_plane;
pub mod cri;
mod endpoint;
mod kubelet;
pub mod manifest;
mod node;
mod pass;
mod place;
mod pod;
mod process;
mod scrap;
mod service;
mod supervisor;
mod tun;

use std::net::IpAddr;
use std::os::fd::OwnedFd;
use std::path::Path;
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use serde_json::Value;

pub use agent::serve as serve_agent;
pub use binaries::{BIN_DIR, Binaries};
pub use build::{Builder, Families, client_ip};
pub use cases::{Case, run_cases};
pub use cni::{CniError, Invocation};
pub use control_plane::ControlPlane;
pub use endpoint::{AsEndpoint, Endpoint};
pub use kubelet::Kubelet;
pub use node::Node;
pub use place::{NetNs, Offload, Place};
pub use pod::Pod;
pub use process::{Process, output, spawn};
pub use service::Service;
pub use supervisor::{init as serve_init, supervise};
pub use tun::Tun;

use crate::api::Api;
use scrap::Scrap;

/// A running cluster; dropping it ends it and removes all of it.
#[derive(Debug)]
pub struct Lab {
    // Dropped in this order: what runs, then what it ran in.
    nodes: Vec<Arc<Node>>,
    client: Option<Place>,
    far: Option<Far>,
    fabric: Place,
    /// Where the daemons' objects come from, if not from manifests.
    api: Option<Api>,
    /// What the links' other ends need for native XDP.
    _xdp: Vec<OwnedFd>,
    scrap: Scrap,
}

/// The machine that is some hops away.
#[derive(Debug)]
struct Far {
    machine: Place,
    router: Place,
}

impl Lab {
    /// A cluster of two dual-stack nodes unless the builder is told otherwise.
    pub fn builder() -> Builder {
        Builder::default()
    }

    /// A node, counted from 0.
    pub fn node(&self, index: usize) -> &Arc<Node> {
        &self.nodes[index]
    }

    /// All nodes.
    pub fn nodes(&self) -> &[Arc<Node>] {
        &self.nodes
    }

    /// The machine outside of the cluster, on the nodes' link.
    ///
    /// # Panics
    /// The lab was built without.
    pub fn client(&self) -> &Place {
        self.client.as_ref().expect("the lab was built with a client")
    }

    /// The machine outside of the cluster that is behind two routers: the fabric and [`Lab::router`].
    ///
    /// # Panics
    /// The lab was built without.
    pub fn far(&self) -> &Place {
        &self.far.as_ref().expect("the lab was built with a far machine").machine
    }

    /// The router before the far machine: `eth0` leads to the fabric (whose end is called `router`), `eth1` to the machine.
    ///
    /// # Panics
    /// The lab was built without.
    pub fn router(&self) -> &Place {
        &self.far.as_ref().expect("the lab was built with a far machine").router
    }

    /// One more machine outside, with no interface but `lo`: see [`Place::wire`].
    pub fn add_machine(&self, name: &str) -> Result<Place> {
        build::machine(&self.scrap, &self.binaries().lab, name)
    }

    /// The namespace of the bridge that connects the nodes; its ports are called like the nodes.
    pub fn fabric(&self) -> &Place {
        &self.fabric
    }

    /// The Kubernetes API server, at the fabric's address.
    ///
    /// # Panics
    /// The lab was built without.
    pub fn api(&self) -> &Api {
        self.api.as_ref().expect("the lab was built with an API server")
    }

    /// The lab's directory on the real file system.
    pub fn dir(&self) -> &Path {
        &self.scrap.dir
    }

    /// The directory of the lab's cgroups; each node's has its name.
    pub fn cgroup(&self) -> &Path {
        &self.scrap.cgroup
    }

    /// The programs under test.
    pub fn binaries(&self) -> &Binaries {
        &self.nodes[0].binaries
    }

    /// Has a machine send what is for [`vips`] to a node.
    pub fn route_vips(&self, machine: &Place, node: &Node) -> Result<()> {
        let routes =
            VIP_RANGES.iter().zip(&node.addrs).map(|(range, addr)| format!("route replace {range} via {addr}\n"));
        machine.ip(&routes.collect::<String>())
    }

    /// Writes the Node objects again, changed, for all nodes.
    pub fn apply_nodes(&self, change: impl Fn(&Node, &mut Value)) -> Result<()> {
        let objects: Vec<_> = self
            .nodes
            .iter()
            .map(|node| {
                let mut object = node.object();
                change(node, &mut object);
                object
            })
            .collect();
        self.apply("nodes", &manifest::yaml(&objects))
    }

    /// Puts a manifest (`name` without extension) into the watched directory of every node, or its objects into the API.
    pub fn apply(&self, name: &str, yaml: &str) -> Result<()> {
        if let Some(api) = &self.api {
            return api.apply_file(name, yaml);
        }
        self.nodes.iter().try_for_each(|node| node.apply(name, yaml))
    }

    /// Takes a manifest out of all watched directories.
    pub fn withdraw(&self, name: &str) -> Result<()> {
        if let Some(api) = &self.api {
            api.withdraw_file(name);
            return Ok(());
        }
        self.nodes.iter().try_for_each(|node| node.withdraw(name))
    }

    /// Takes all manifests but the Nodes' out of all watched directories.
    pub fn clear(&self) -> Result<()> {
        if let Some(api) = &self.api {
            api.files().iter().filter(|name| *name != "nodes").for_each(|name| api.withdraw_file(name));
            return Ok(());
        }
        self.nodes.iter().try_for_each(|node| node.clear())
    }
}

/// Where [`vips`] are from.
const VIP_RANGES: [&str; 2] = ["198.51.100.0/24", "2001:db8:51::/64"];

/// Addresses for load balancers and the like, IPv4 and IPv6, which are nobody's own.
pub fn vips(number: u8) -> [IpAddr; 2] {
    [[198, 51, 100, number].into(), [0x2001, 0xdb8, 0x51, 0, 0, 0, 0, u16::from(number)].into()]
}

/// How long anything that must happen may take: far longer than it does, even on a busy machine.
pub const PATIENCE: Duration = Duration::from_secs(90);

/// Calls `condition` every few milliseconds until it holds.
///
/// # Errors
/// It fails, or does not hold after [`PATIENCE`].
pub fn wait_until(what: &str, mut condition: impl FnMut() -> Result<bool>) -> Result<()> {
    let deadline = Instant::now() + PATIENCE;
    loop {
        if condition().with_context(|| format!("while waiting for: {what}"))? {
            return Ok(());
        }
        if Instant::now() >= deadline {
            bail!("not after {PATIENCE:?}: {what}");
        }
        thread::sleep(Duration::from_millis(5));
    }
}

/// Calls `attempt` every few milliseconds until it succeeds.
///
/// # Errors
/// The last attempt's, after [`PATIENCE`].
pub fn eventually<T>(what: &str, mut attempt: impl FnMut() -> Result<T>) -> Result<T> {
    let deadline = Instant::now() + PATIENCE;
    loop {
        match attempt() {
            Err(error) if Instant::now() >= deadline => {
                return Err(error.context(format!("not after {PATIENCE:?}: {what}")));
            }
            Err(_) => thread::sleep(Duration::from_millis(5)),
            success => return success,
        }
    }
}
