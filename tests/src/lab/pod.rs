//! A pod: a network namespace connected by the plugin, and the servers in it.

use std::fs::{self, File};
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::Ordering;

use anyhow::{Context, Result, anyhow};
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use serde_json::Value;

use super::{NetNs, Node, Place};
use crate::place::fd_path;
use crate::traffic::{Family, Server};

/// A pod created through the plugin. Dropping it stops its servers and leaves the rest to the lab; [`Pod::delete`] does
/// what a runtime does.
#[derive(Debug)]
pub struct Pod {
    /// The pod's network namespace.
    pub place: Place,
    /// Its addresses as reported by the plugin.
    pub ips: Vec<IpAddr>,
    /// The plugin's complete result.
    pub result: Value,
    /// `CNI_CONTAINERID`.
    pub container_id: String,
    node: Arc<Node>,
    config: Value,
    servers: Vec<Server>,
}

impl Node {
    /// Creates a pod through the plugin, as a container runtime does.
    pub fn add_pod(self: &Arc<Self>, name: &str) -> Result<Pod> {
        self.add_pod_with(name, Value::Null)
    }

    /// Same, with a `runtimeConfig` for this pod, such as `portMappings`.
    pub fn add_pod_with(self: &Arc<Self>, name: &str, runtime_config: Value) -> Result<Pod> {
        let mut config = self.plugin_config.clone();
        if !runtime_config.is_null() {
            config["runtimeConfig"] = runtime_config;
        }
        Pod::sandbox(self, name, config)?.add()
    }

    /// Same as [`Node::add_pod`], with something done in the pod's namespace before the plugin is called.
    pub fn add_pod_prepared<T>(
        self: &Arc<Self>,
        name: &str,
        prepare: impl FnOnce(&Place) -> Result<T>,
    ) -> Result<(Pod, T)> {
        let pod = Pod::sandbox(self, name, self.plugin_config.clone())?;
        let prepared = prepare(&pod.place)?;
        Ok((pod.add()?, prepared))
    }

    /// Creates a pod with a server on this port of its addresses.
    pub fn add_server(self: &Arc<Self>, name: &str, port: u16) -> Result<Pod> {
        let mut pod = self.add_pod(name)?;
        pod.serve(port)?;
        Ok(pod)
    }
}

impl Pod {
    /// The pod's namespace, without an interface.
    fn sandbox(node: &Arc<Node>, name: &str, config: Value) -> Result<Self> {
        let number = node.containers.fetch_add(1, Ordering::Relaxed);
        let container_id = format!("{name}-{number:08x}");
        let netns = Arc::new(NetNs::new()?);
        let path = Node::netns_path(&container_id);
        File::create(node.dir.join("run/netns").join(&container_id))?;
        // As in runtimes, the namespace has a path; it is visible on this node only, and disappears with it.
        let source = fd_path(&*netns);
        let none: Option<&str> = None;
        let bind = || mount(Some(source.as_str()), path.as_str(), none, MsFlags::MS_BIND, none);
        node.place.agent().in_mounts(bind)?.with_context(|| format!("cannot bind {path}"))?;
        let place = Place::new(name, netns, node.place.agent().of_pods()?);
        let (ips, servers, result) = (Vec::new(), Vec::new(), Value::Null);
        Ok(Self { place, ips, result, container_id, node: node.clone(), config, servers })
    }

    fn add(mut self) -> Result<Self> {
        match self.invoke("ADD") {
            Ok(result) => {
                self.ips = addresses(&result)?;
                self.result = result;
                Ok(self)
            }
            Err(error) => {
                self.remove_netns()?;
                Err(error)
            }
        }
    }

    /// Calls the plugin for this pod: ADD, CHECK or DEL.
    pub fn invoke(&self, command: &str) -> Result<Value> {
        let args = format!(
            "IgnoreUnknown=1;K8S_POD_NAMESPACE=default;K8S_POD_NAME={};K8S_POD_INFRA_CONTAINER_ID={};K8S_POD_UID={}",
            self.name(),
            self.container_id,
            self.uid()
        );
        let netns = self.netns_path();
        let mut config = self.config.clone();
        if command != "ADD" {
            config["prevResult"] = self.result.clone();
        }
        let invocation = super::cni::Invocation {
            container_id: &self.container_id,
            netns: &netns,
            args: &args,
            config: &config,
            ..self.node.invocation(command)
        };
        invocation.run(&self.node.place)
    }

    /// The pod's uid.
    pub fn uid(&self) -> String {
        format!("uid-{}", self.container_id)
    }

    /// The pod's name.
    pub fn name(&self) -> &str {
        self.place.name()
    }

    /// Path of its network namespace on the node: `CNI_NETNS`.
    pub fn netns_path(&self) -> String {
        Node::netns_path(&self.container_id)
    }

    /// The node that it runs on.
    pub fn node(&self) -> &Arc<Node> {
        &self.node
    }

    /// Its address of a family.
    ///
    /// # Panics
    /// The plugin assigned none.
    pub fn ip(&self, family: Family) -> IpAddr {
        let addr = self.ips.iter().find(|addr| Family::of(**addr) == family);
        *addr.unwrap_or_else(|| panic!("{} has no {} address", self.name(), family.name()))
    }

    /// Its address of a family, with a port.
    pub fn addr(&self, family: Family, port: u16) -> SocketAddr {
        (self.ip(family), port).into()
    }

    /// Starts a TCP and UDP server on a port of all its addresses.
    pub fn serve(&mut self, port: u16) -> Result<()> {
        for ip in &self.ips {
            self.servers.push(Server::start(&self.place, self.name(), (*ip, port).into())?);
        }
        Ok(())
    }

    /// Stops its servers and closes their connections.
    pub fn stop_servers(&mut self) {
        self.servers.clear();
    }

    /// Name of its host end, as reported by the plugin.
    pub fn host_ifname(&self) -> Result<String> {
        let interfaces = self.result["interfaces"].as_array().context("the result has no interfaces")?;
        let outside = interfaces.iter().find(|interface| interface["sandbox"].as_str().unwrap_or_default().is_empty());
        let name = outside.and_then(|interface| interface["name"].as_str());
        name.map(str::to_owned).ok_or_else(|| anyhow!("the result has no host interface: {}", self.result))
    }

    /// Stops the servers, calls DEL, and removes the namespace.
    pub fn delete(mut self) -> Result<()> {
        self.stop_servers();
        self.invoke("DEL")?;
        self.remove_netns()
    }

    fn remove_netns(&self) -> Result<()> {
        let path = self.netns_path();
        self.node.place.agent().in_mounts(|| {
            umount2(path.as_str(), MntFlags::MNT_DETACH)?;
            fs::remove_file(&path)
        })??;
        Ok(())
    }
}

/// Addresses in a result of CNI 0.3 or later.
fn addresses(result: &Value) -> Result<Vec<IpAddr>> {
    let ips = result["ips"].as_array().with_context(|| format!("the result has no ips: {result}"))?;
    let parse = |ip: &Value| {
        let text = ip["address"].as_str().context("no address")?;
        Ok(text.split('/').next().unwrap_or_default().parse()?)
    };
    ips.iter().map(parse).collect::<Result<_>>().with_context(|| format!("an address cannot be read: {result}"))
}
