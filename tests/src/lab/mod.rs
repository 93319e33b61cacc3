//! The lab: a cluster of network namespaces on one machine.
//!
//! ```text
//!            fabric (a bridge, 172.30.0.254) ─── router ─── far 172.31.2.2
//!      ┌────────────┼─────────────┐      172.31.1.0/24  172.31.2.0/24
//!    eth0          eth0          eth0
//!  node1 .1      node2 .2      client .100        each a network namespace; nodes also have mounts (their own /sys,
//!   │ │ │         │ │           (outside)         bpffs, /run), a host name, a cgroup, a daemon and a directory
//!  pods created by podnet-cni
//! ```
//!
//! Client, router and far are optional; with them, the fabric forwards packets as the nodes' default gateway.
//!
//! A namespace exists as long as the harness holds its descriptor or it contains a process, all processes die with the
//! harness, and everything else on the machine is removed at the end (see `scrap`). The machine's /run/netns, bpffs,
//! routes and firewall are not used. Requires root, iproute2 and a mounted cgroup v2 hierarchy.

mod as_endpoint;
mod binaries;
mod build;
mod cases;
mod cni;
mod control_plane;
#[cfg(feature = "cri")]
pub mod cri;
mod endpoint;
mod followed;
#[cfg(feature = "cri")]
mod kubelet;
pub mod manifest;
mod node;
mod pass;
mod pod;
pub mod policed;
mod program;
mod scrap;
mod service;
mod supervisor;
mod tun;

use std::net::IpAddr;
use std::os::fd::OwnedFd;
use std::path::Path;
use std::sync::Arc;

use anyhow::Result;
use serde_json::Value;

pub use as_endpoint::AsEndpoint;
pub use binaries::{BIN_DIR, Binaries};
pub use build::{Builder, Families, client_ip, far_ip};
pub use cases::{Case, run_cases};
pub use cni::{CniError, Invocation};
pub use control_plane::ControlPlane;
pub use endpoint::Endpoint;
#[cfg(feature = "cri")]
pub use kubelet::Kubelet;
pub use node::Node;
pub use pod::Pod;
pub use program::Program;
pub use service::Service;
pub use supervisor::{init as serve_init, supervise};
pub use tun::Tun;

use crate::api::Api;
pub use crate::place::agent::serve as serve_agent;
pub use crate::place::process::{Process, output, spawn};
pub use crate::place::{NetNs, Offload, Place};
pub use crate::wait::{PATIENCE, eventually, wait_for_cached_routes_to_expire, wait_until};
use scrap::Scrap;

/// A running cluster; dropping it removes everything.
#[derive(Debug)]
pub struct Lab {
    // Order of fields = order of dropping: processes before the namespaces they run in.
    nodes: Vec<Arc<Node>>,
    client: Option<Place>,
    far: Option<Far>,
    fabric: Place,
    /// Source of the daemons' objects, unless manifests are used.
    api: Option<Api>,
    /// Native XDP needs programs on the links' other ends.
    _xdp: Vec<OwnedFd>,
    scrap: Scrap,
}

/// The external machine several hops away.
#[derive(Debug)]
struct Far {
    machine: Place,
    router: Place,
}

impl Lab {
    /// A node, counted from 0.
    pub fn node(&self, index: usize) -> &Arc<Node> {
        &self.nodes[index]
    }

    /// All nodes.
    pub fn nodes(&self) -> &[Arc<Node>] {
        &self.nodes
    }

    /// The external machine on the nodes' link.
    ///
    /// # Panics
    /// The lab was built without it.
    pub fn client(&self) -> &Place {
        self.client.as_ref().expect("the lab was built with a client")
    }

    /// The external machine behind two routers: the fabric and [`Lab::router`].
    ///
    /// # Panics
    /// The lab was built without it.
    pub fn far(&self) -> &Place {
        &self.far.as_ref().expect("the lab was built with a far machine").machine
    }

    /// The router in front of the far machine: `eth0` is connected to the fabric (whose end is called `router`), `eth1`
    /// to the machine.
    ///
    /// # Panics
    /// The lab was built without it.
    pub fn router(&self) -> &Place {
        &self.far.as_ref().expect("the lab was built with a far machine").router
    }

    /// The namespace of the bridge between the nodes; its ports have the nodes' names.
    pub fn fabric(&self) -> &Place {
        &self.fabric
    }

    /// The Kubernetes API server, at the fabric's address.
    ///
    /// # Panics
    /// The lab was built without it.
    pub fn api(&self) -> &Api {
        self.api.as_ref().expect("the lab was built with an API server")
    }

    /// The lab's directory on the real file system.
    pub fn dir(&self) -> &Path {
        &self.scrap.dir
    }

    /// Parent directory of the lab's cgroups; each node's cgroup has its name.
    pub fn cgroup(&self) -> &Path {
        &self.scrap.cgroup
    }

    /// The programs under test.
    pub fn binaries(&self) -> &Binaries {
        &self.nodes[0].binaries
    }

    /// Adds routes on a machine that send packets for [`vips`] to a node.
    pub fn route_vips(&self, machine: &Place, node: &Node) -> Result<()> {
        let routes =
            VIP_RANGES.iter().zip(&node.addrs).map(|(range, addr)| format!("route replace {range} via {addr}\n"));
        machine.ip(&routes.collect::<String>())
    }

    /// Rewrites the Node objects of all nodes with a change.
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

    /// Writes a manifest (`name` without extension) to the manifest directory of every node, or applies its objects to
    /// the API.
    pub fn apply(&self, name: &str, yaml: &str) -> Result<()> {
        if let Some(api) = &self.api {
            return api.apply_file(name, yaml);
        }
        self.nodes.iter().try_for_each(|node| node.apply(name, yaml))
    }

    /// Removes a manifest from all manifest directories.
    pub fn withdraw(&self, name: &str) -> Result<()> {
        if let Some(api) = &self.api {
            api.withdraw_file(name);
            return Ok(());
        }
        self.nodes.iter().try_for_each(|node| node.withdraw(name))
    }

    /// Removes all manifests but the Nodes' from all manifest directories.
    pub fn clear(&self) -> Result<()> {
        if let Some(api) = &self.api {
            api.files().iter().filter(|name| *name != "nodes").for_each(|name| api.withdraw_file(name));
            return Ok(());
        }
        self.nodes.iter().try_for_each(|node| node.clear())
    }
}

/// Ranges of [`vips`].
const VIP_RANGES: [&str; 2] = ["198.51.100.0/24", "2001:db8:51::/64"];

/// Unused addresses for load balancers and external IPs, IPv4 and IPv6.
pub fn vips(number: u8) -> [IpAddr; 2] {
    [[198, 51, 100, number].into(), [0x2001, 0xdb8, 0x51, 0, 0, 0, 0, u16::from(number)].into()]
}
