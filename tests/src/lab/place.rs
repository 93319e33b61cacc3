//! A place in the lab from where traffic comes: a network namespace, and the cgroup its sockets belong to.
//!
//! Sockets are made by the [agent](super::agent) of the node, because the kernel remembers with a socket the namespace
//! *and the cgroup* of the process that made it, and podnet's socket hooks look at both. After that the harness's own
//! threads use them, so no test needs a program inside the namespace.

use std::ffi::OsStr;
use std::fs::{self, File};
use std::io;
use std::mem;
use std::net::SocketAddr;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::process::CommandExt;
use std::process::{Command, Output};
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use nix::sched::{CloneFlags, setns, unshare};
use socket2::{Domain, Protocol, Socket, Type};

use super::agent::Agent;
use super::process;

/// How long a configuration command may take.
const COMMAND_TIMEOUT: Duration = Duration::from_secs(20);

/// A network namespace without a name: it lives as long as this descriptor, a process or a socket is in it.
#[derive(Debug)]
pub struct NetNs {
    fd: OwnedFd,
}

impl NetNs {
    /// Makes an empty namespace.
    pub fn new() -> io::Result<Self> {
        let make = || {
            unshare(CloneFlags::CLONE_NEWNET)?;
            File::open("/proc/thread-self/ns/net")
        };
        let file = thread::spawn(make).join().expect("making a namespace does not panic")?;
        Ok(file.into())
    }

    /// Runs the closure on a thread inside the namespace.
    pub fn run<T: Send>(&self, work: impl FnOnce() -> T + Send) -> io::Result<T> {
        thread::scope(|scope| {
            let inside = scope.spawn(|| {
                setns(&self.fd, CloneFlags::CLONE_NEWNET)?;
                Ok(work())
            });
            inside.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
        })
    }
}

impl From<File> for NetNs {
    /// The namespace that the file is.
    fn from(file: File) -> Self {
        Self { fd: file.into() }
    }
}

impl AsFd for NetNs {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

/// A feature of an interface; the numbers are ethtool's commands that switch them.
#[repr(u32)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Offload {
    /// Packets leave with half of their checksums made, and TCP's larger than the MTU, for the device to finish.
    TxChecksum = 0x17,
}

/// A network namespace together with the node (or the outside) that it belongs to.
#[derive(Clone, Debug)]
pub struct Place {
    name: String,
    netns: Arc<NetNs>,
    agent: Arc<Agent>,
}

impl Place {
    pub(super) fn new(name: impl Into<String>, netns: Arc<NetNs>, agent: Arc<Agent>) -> Self {
        Self { name: name.into(), netns, agent }
    }

    /// What it is called in messages, and in the answers of servers that run there.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Its network namespace.
    pub fn netns(&self) -> &NetNs {
        &self.netns
    }

    /// The same, to be held as long as it is needed.
    pub(super) fn shared_netns(&self) -> Arc<NetNs> {
        self.netns.clone()
    }

    /// Id of a process that has the node's mount, host name and network namespaces.
    pub fn agent_id(&self) -> u32 {
        self.agent.id()
    }

    /// The node's agent.
    pub(super) fn agent(&self) -> &Arc<Agent> {
        &self.agent
    }

    /// Makes a socket in this network namespace and in the cgroup of the node, or of its pods.
    pub fn socket(&self, domain: Domain, kind: Type, protocol: Option<Protocol>) -> io::Result<Socket> {
        self.agent.socket(self.netns.as_fd(), domain, kind, protocol)
    }

    /// A socket for the family of the given address. IPv6 ones carry IPv6 only.
    pub fn socket_for(&self, addr: SocketAddr, kind: Type, protocol: Protocol) -> io::Result<Socket> {
        let socket = self.socket(Domain::for_address(addr), kind, Some(protocol))?;
        // Raw sockets have a "port", the protocol, from the start, and then this can't be set.
        if addr.is_ipv6() && kind != Type::RAW {
            socket.set_only_v6(true)?;
        }
        Ok(socket)
    }

    /// A command that will run in this network namespace and in the node's mount, host name and cgroup namespaces.
    pub fn command(&self, program: impl AsRef<OsStr>) -> io::Result<Command> {
        Ok(Self::entering(program, self.agent.entrance(self.netns.as_fd())?))
    }

    /// The same but for the cgroup: a container runtime's helpers stay in the runtime's own. To move a process to another
    /// takes the kernel some ten milliseconds.
    pub(super) fn helper(&self, program: impl AsRef<OsStr>) -> io::Result<Command> {
        Ok(Self::entering(program, self.agent.entrance_by(None, self.netns.as_fd())?))
    }

    fn entering(program: impl AsRef<OsStr>, enter: impl FnMut() -> io::Result<()> + Send + Sync + 'static) -> Command {
        let mut command = Command::new(program);
        // SAFETY: `enter` runs between fork and exec and makes only system calls: it neither allocates nor locks.
        unsafe { command.pre_exec(enter) };
        // setns into a mount namespace puts the process at its root anyway.
        command.current_dir("/");
        command
    }

    /// Runs a program here with the given input, whatever its status.
    pub fn output(&self, program: impl AsRef<OsStr>, args: &[&str], input: &str) -> Result<Output> {
        let mut command = self.command(&program)?;
        command.args(args);
        process::output(command, input.as_bytes(), COMMAND_TIMEOUT)
            .with_context(|| format!("{}: {} {}", self.name, program.as_ref().display(), args.join(" ")))
    }

    /// Runs a program here and returns what it writes to standard output.
    ///
    /// # Errors
    /// It can't be started, takes too long, or ends with a status other than 0.
    pub fn run(&self, program: impl AsRef<OsStr>, args: &[&str]) -> Result<String> {
        self.run_with(program, args, "")
    }

    fn run_with(&self, program: impl AsRef<OsStr>, args: &[&str], input: &str) -> Result<String> {
        let output = self.output(&program, args, input)?;
        if !output.status.success() {
            bail!(
                "{}: {} {} failed ({}): {}{}",
                self.name,
                program.as_ref().display(),
                args.join(" "),
                output.status,
                String::from_utf8_lossy(&output.stderr),
                String::from_utf8_lossy(&output.stdout),
            );
        }
        String::from_utf8(output.stdout).context("the output is no UTF-8")
    }

    /// Runs several commands of iproute2 at once: one a line, without the leading `ip`.
    pub fn ip(&self, lines: &str) -> Result<()> {
        self.run_with("ip", &["-batch", "-"], lines).with_context(|| format!("in the batch\n{lines}")).map(drop)
    }

    /// Sets a setting of the namespace, for example `net.ipv4.ip_forward`.
    pub fn set_sysctl(&self, name: &str, value: &str) -> Result<()> {
        let path = sysctl_path(name);
        let write = || fs::write(&path, value);
        self.netns.run(write)?.with_context(|| format!("{}: cannot set {name} to {value}", self.name))
    }

    /// Reads a setting of the namespace.
    pub fn sysctl(&self, name: &str) -> Result<String> {
        let path = sysctl_path(name);
        let text = self.netns.run(|| fs::read_to_string(&path))?;
        Ok(text.with_context(|| format!("{}: cannot read {name}", self.name))?.trim().to_owned())
    }

    /// Connects an interface here with one elsewhere, both new, up and without addresses.
    pub fn wire(&self, ifname: &str, other: &Self, other_ifname: &str, mtu: u32) -> Result<()> {
        let netns = fd_path(other.netns());
        self.ip(&format!(
            "link add {ifname} mtu {mtu} type veth peer name {other_ifname} mtu {mtu} netns {netns}\nlink set {ifname} up\n"
        ))?;
        other.ip(&format!("link set {other_ifname} up\n"))
    }

    /// Switches a feature of an interface, as `ethtool --offload` does.
    pub fn set_offload(&self, ifname: &str, feature: Offload, on: bool) -> Result<()> {
        // The kernel's struct ethtool_value.
        let mut value = [feature as u32, u32::from(on)];
        // SAFETY: the structure is plain integers and pointers, for which zero is a value.
        let mut request: libc::ifreq = unsafe { mem::zeroed() };
        ensure!(ifname.len() < request.ifr_name.len(), "{ifname} cannot be the name of an interface");
        for (to, from) in request.ifr_name.iter_mut().zip(ifname.bytes()) {
            *to = from as libc::c_char;
        }
        request.ifr_ifru.ifru_data = value.as_mut_ptr().cast();
        let socket = self.socket(Domain::IPV4, Type::DGRAM, None)?;
        // SAFETY: the request and the value that it points to outlive the call, which writes to nothing else.
        let result = unsafe { libc::ioctl(socket.as_raw_fd(), libc::SIOCETHTOOL as libc::Ioctl, &raw mut request) };
        if result != 0 {
            let error = io::Error::last_os_error();
            bail!("{}: cannot switch {feature:?} of {ifname}: {error}", self.name);
        }
        Ok(())
    }

    /// Index of an interface.
    pub fn ifindex(&self, name: &str) -> Result<i32> {
        let index = self.netns.run(|| nix::net::if_::if_nametoindex(name))?;
        Ok(index.with_context(|| format!("{}: no interface {name}", self.name))? as i32)
    }

    /// MAC address of an interface.
    pub fn mac(&self, ifname: &str) -> Result<[u8; 6]> {
        let text = self.run("ip", &["-json", "link", "show", "dev", ifname])?;
        let links: serde_json::Value = serde_json::from_str(&text)?;
        let mac = links[0]["address"].as_str().with_context(|| format!("{ifname} has no MAC"))?;
        let mut bytes = [0; 6];
        for (byte, digits) in bytes.iter_mut().zip(mac.split(':')) {
            *byte = u8::from_str_radix(digits, 16)?;
        }
        Ok(bytes)
    }
}

/// `net.ipv4.conf.eth0.rp_filter` → `/proc/sys/net/ipv4/conf/eth0/rp_filter`.
fn sysctl_path(name: &str) -> String {
    format!("/proc/sys/{}", name.replace('.', "/"))
}

/// Path of a descriptor of this process, for programs that take a namespace by path.
pub(super) fn fd_path(fd: impl AsFd) -> String {
    format!("/proc/{}/fd/{}", std::process::id(), fd.as_fd().as_raw_fd())
}
