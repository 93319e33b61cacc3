//! Pods created by the runtime: a sandbox and its containers.

use std::collections::HashMap;
use std::fs::{self, File};
use std::io;
use std::net::{IpAddr, Ipv6Addr, SocketAddr};
use std::sync::Arc;

use anyhow::{Context, Result, ensure};
use nix::mount::{MntFlags, umount2};
use serde_json::Value;

use super::messages::{
    ContainerConfig, ContainerId, ContainerMetadata, ContainerState, ContainerStatus, ContainerStatusResponse,
    CreateContainerRequest, ExecSyncRequest, ExecSyncResponse, ImageSpec, LinuxContainerConfig,
    LinuxContainerSecurityContext, LinuxPodSandboxConfig, LinuxSandboxSecurityContext, NamespaceMode, NamespaceOption,
    Nothing, PodSandboxConfig, PodSandboxMetadata, PodSandboxStatus, PodSandboxStatusRequest, PodSandboxStatusResponse,
    PortMapping, Protocol, RunPodSandboxRequest, SandboxId, SandboxState, StopContainerRequest,
};
use super::{Runtime, image};
use crate::lab::{NetNs, PATIENCE, Place, eventually, wait_until};
use crate::traffic::{Ask, Family, Transport};

/// Specification of a pod.
#[derive(Clone, Debug)]
pub struct PodSpec {
    name: String,
    host_network: bool,
    ports: Vec<PortMapping>,
    sysctls: HashMap<String, String>,
}

impl PodSpec {
    /// A pod with its own network.
    pub fn new(name: &str) -> Self {
        Self { name: name.to_owned(), host_network: false, ports: Vec::new(), sysctls: HashMap::new() }
    }

    /// Uses the node's network.
    pub fn host_network(self) -> Self {
        Self { host_network: true, ..self }
    }

    /// Sets a sysctl in the pod.
    pub fn sysctl(mut self, name: &str, value: &str) -> Self {
        self.sysctls.insert(name.to_owned(), value.to_owned());
        self
    }

    /// Maps one of its ports to the node's addresses.
    pub fn host_port(mut self, transport: Transport, host: u16, container: u16) -> Self {
        let protocol = match transport {
            Transport::Tcp => Protocol::Tcp,
            Transport::Udp => Protocol::Udp,
        };
        let (host_port, container_port) = (host.into(), container.into());
        self.ports.push(PortMapping { protocol: protocol.into(), container_port, host_port });
        self
    }

    fn config(&self, number: u32) -> PodSandboxConfig {
        let Self { name, ports, .. } = self;
        let metadata = PodSandboxMetadata {
            name: name.clone(),
            uid: format!("00000000-0000-0000-0000-{number:012}"),
            namespace: "default".to_owned(),
            attempt: 0,
        };
        let namespace_options = Some(self.namespaces());
        PodSandboxConfig {
            metadata: Some(metadata),
            hostname: if self.host_network { String::new() } else { name.clone() },
            port_mappings: ports.clone(),
            linux: Some(LinuxPodSandboxConfig {
                security_context: Some(LinuxSandboxSecurityContext { namespace_options }),
                sysctls: self.sysctls.clone(),
            }),
        }
    }

    fn namespaces(&self) -> NamespaceOption {
        let network = if self.host_network { NamespaceMode::Node } else { NamespaceMode::Pod };
        NamespaceOption { network: network.into() }
    }
}

/// A running pod. Dropping it leaves it to the runtime; [`Sandbox::stop`] and [`Sandbox::remove`] do what a kubelet
/// does.
#[derive(Debug)]
pub struct Sandbox<'a> {
    /// The pod's network namespace.
    pub place: Place,
    /// Its addresses as reported by the runtime; none with the node's network.
    pub ips: Vec<IpAddr>,
    /// The runtime's id, and the plugin's `CNI_CONTAINERID`.
    pub id: String,
    /// Path of its network namespace on the node; empty with the node's network.
    pub netns_path: String,
    runtime: &'a Runtime,
    spec: PodSpec,
    config: PodSandboxConfig,
}

impl Runtime {
    /// Starts a pod with only the sandbox container, which keeps its namespaces.
    pub fn run(&self, spec: &PodSpec) -> Result<Sandbox<'_>> {
        let config = spec.config(self.next_number());
        let request = RunPodSandboxRequest { config: Some(config.clone()) };
        let SandboxId { id } = self
            .client
            .call("RunPodSandbox", request)
            .with_context(|| format!("cannot start the pod {}", spec.name))?;
        let (status, info) = self.status(&id)?;
        let network = status.network.unwrap_or_default();
        let ips = [network.ip].into_iter().chain(network.additional_ips.into_iter().map(|more| more.ip));
        let ips = ips.filter(|ip| !ip.is_empty()).map(|ip| Ok(ip.parse()?)).collect::<Result<_>>()?;
        let node = &self.node;
        let namespaces = info["runtimeSpec"]["linux"]["namespaces"].as_array().context("no namespaces are told")?;
        let netns = namespaces.iter().find(|namespace| namespace["type"] == "network");
        let netns_path = netns.and_then(|namespace| namespace["path"].as_str()).unwrap_or_default().to_owned();
        let netns = if spec.host_network {
            node.place.shared_netns()
        } else {
            let file = node.place.agent().in_mounts(|| File::open(&netns_path))?;
            Arc::new(NetNs::from(file.with_context(|| format!("cannot open the namespace {netns_path:?}"))?))
        };
        let place = Place::new(&spec.name, netns, node.place.agent().of_pods()?);
        Ok(Sandbox { place, ips, id, netns_path, runtime: self, spec: spec.clone(), config })
    }

    fn status(&self, id: &str) -> Result<(PodSandboxStatus, Value)> {
        let request = PodSandboxStatusRequest { id: id.to_owned(), verbose: true };
        let answer: PodSandboxStatusResponse = self.client.call("PodSandboxStatus", request)?;
        let info = answer.info.get("info").context("containerd tells no details")?;
        Ok((answer.status.context("no status")?, serde_json::from_str(info)?))
    }
}

impl<'a> Sandbox<'a> {
    /// Its address of a family.
    ///
    /// # Panics
    /// It has no such address.
    pub fn ip(&self, family: Family) -> IpAddr {
        let addr = self.ips.iter().find(|addr| Family::of(**addr) == family);
        *addr.unwrap_or_else(|| panic!("{} has no {} address", self.spec.name, family.name()))
    }

    /// Its address of a family, with a port.
    pub fn addr(&self, family: Family, port: u16) -> SocketAddr {
        (self.ip(family), port).into()
    }

    /// Whether it runs and has a network.
    pub fn is_ready(&self) -> Result<bool> {
        Ok(self.runtime.status(&self.id)?.0.state == SandboxState::Ready as i32)
    }

    /// Starts a container; `args` are the arguments after `podnet-lab pod`.
    pub fn start(&self, name: &str, args: &[&str]) -> Result<Container<'_>> {
        let linux = LinuxContainerSecurityContext { namespace_options: Some(self.spec.namespaces()) };
        let attempt = self.runtime.next_number();
        let config = ContainerConfig {
            metadata: Some(ContainerMetadata { name: name.to_owned(), attempt }),
            image: Some(ImageSpec { image: image::NAME.to_owned() }),
            args: args.iter().map(|&arg| arg.to_owned()).collect(),
            linux: Some(LinuxContainerConfig { security_context: Some(linux) }),
        };
        let client = &self.runtime.client;
        let (sandbox_id, sandbox_config) = (self.id.clone(), Some(self.config.clone()));
        let request = CreateContainerRequest { sandbox_id, config: Some(config), sandbox_config };
        let ContainerId { id } = client.call("CreateContainer", request)?;
        let _: Nothing = client.call("StartContainer", ContainerId { id: id.clone() })?;
        Ok(Container { id, runtime: self.runtime })
    }

    /// Starts a container with a server that has the pod's name, and waits until it listens.
    pub fn serve(&self, port: u16) -> Result<Container<'_>> {
        let server = self.start("server", &["serve", &self.spec.name, &port.to_string()])?;
        // The last socket that it opens.
        let ask = Ask::new(Transport::Udp, (Ipv6Addr::LOCALHOST, port).into()).connected();
        eventually("an answer of the container", || Ok(ask.from(&self.place)?))?;
        Ok(server)
    }

    /// Removes the path of its network namespace.
    pub fn lose_netns(&self) -> Result<()> {
        let path = &self.netns_path;
        let lose = || -> io::Result<()> {
            umount2(path.as_str(), MntFlags::MNT_DETACH)?;
            fs::remove_file(path)
        };
        self.runtime.node.place.agent().in_mounts(lose)?.with_context(|| format!("cannot remove {path}"))
    }

    /// Stops its containers and tears down its network.
    pub fn stop(&self) -> Result<()> {
        let _: Nothing = self.runtime.client.call("StopPodSandbox", SandboxId { id: self.id.clone() })?;
        Ok(())
    }

    /// Removes it from the runtime, after it has been stopped.
    pub fn remove(self) -> Result<()> {
        let _: Nothing = self.runtime.client.call("RemovePodSandbox", SandboxId { id: self.id })?;
        Ok(())
    }
}

/// A container of a pod, besides the sandbox container.
#[derive(Debug)]
pub struct Container<'a> {
    id: String,
    runtime: &'a Runtime,
}

impl Container<'_> {
    /// Runs `podnet-lab pod` with these arguments in the container and returns its standard output.
    ///
    /// # Errors
    /// The program's standard error, unless its exit status is 0.
    pub fn exec(&self, args: &[&str]) -> Result<String> {
        let command = [image::PROGRAM, "pod"].iter().chain(args).map(|&word| word.to_owned()).collect();
        let request = ExecSyncRequest { id: self.id.clone(), command, timeout: PATIENCE.as_secs() as i64 };
        let answer: ExecSyncResponse = self.runtime.client.call("ExecSync", request)?;
        let text = |bytes| String::from_utf8_lossy(bytes).trim().to_owned();
        ensure!(answer.exit_code == 0, "{args:?} failed with {}: {}", answer.exit_code, text(&answer.stderr));
        Ok(text(&answer.stdout))
    }

    /// Waits until it exits and returns its exit status.
    pub fn wait(&self) -> Result<i32> {
        let mut exit_code = 0;
        wait_until("the container's end", || {
            let status = self.status()?;
            exit_code = status.exit_code;
            Ok(status.state == ContainerState::Exited as i32)
        })?;
        Ok(exit_code)
    }

    /// Whether it runs.
    pub fn is_running(&self) -> Result<bool> {
        Ok(self.status()?.state == ContainerState::Running as i32)
    }

    /// Kills it.
    pub fn stop(&self) -> Result<()> {
        let request = StopContainerRequest { id: self.id.clone(), timeout: 0 };
        let _: Nothing = self.runtime.client.call("StopContainer", request)?;
        Ok(())
    }

    fn status(&self) -> Result<ContainerStatus> {
        let answer: ContainerStatusResponse =
            self.runtime.client.call("ContainerStatus", ContainerId { id: self.id.clone() })?;
        answer.status.context("no status")
    }
}
