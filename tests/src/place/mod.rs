//! A place in the lab that sends and receives traffic: a network namespace, and the cgroup of its sockets.
//!
//! The [agent] of the node creates the sockets, because a socket stays associated with the namespace *and
//! the cgroup* of the process that created it, and podnet's socket hooks check both. The harness's threads then use the
//! sockets, so no test needs a program inside the namespace.

pub(crate) mod agent;
pub(crate) mod process;

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

use agent::Agent;

/// Timeout of a configuration command.
const COMMAND_TIMEOUT: Duration = Duration::from_secs(20);

/// An unnamed network namespace; it exists as long as this descriptor, or a process or socket in it.
#[derive(Debug)]
pub struct NetNs {
    fd: OwnedFd,
}

impl NetNs {
    /// Creates an empty namespace.
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
    /// The namespace of an open file.
    fn from(file: File) -> Self {
        Self { fd: file.into() }
    }
}

impl AsFd for NetNs {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

/// An offload feature of an interface, by the number of ethtool's command that sets it.
#[repr(u32)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Offload {
    /// Packets leave with partial checksums, and TCP's larger than the MTU, for the device to complete.
    TxChecksum = 0x17,
}

/// A network namespace together with its node, or an external machine.
#[derive(Clone, Debug)]
pub struct Place {
    name: String,
    netns: Arc<NetNs>,
    agent: Arc<Agent>,
}

impl Place {
    pub(crate) fn new(name: impl Into<String>, netns: Arc<NetNs>, agent: Arc<Agent>) -> Self {
        Self { name: name.into(), netns, agent }
    }

    /// Name in messages, and of servers that run there.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Its network namespace.
    pub fn netns(&self) -> &NetNs {
        &self.netns
    }

    /// Same, shared.
    #[cfg(feature = "cri")]
    pub(crate) fn shared_netns(&self) -> Arc<NetNs> {
        self.netns.clone()
    }

    /// Id of a process with the node's mount, UTS and network namespaces.
    pub fn agent_id(&self) -> u32 {
        self.agent.id()
    }

    /// The node's agent.
    pub(crate) fn agent(&self) -> &Arc<Agent> {
        &self.agent
    }

    /// Creates a socket in this network namespace, and in the cgroup of the node or of its pods.
    pub fn socket(&self, domain: Domain, kind: Type, protocol: Option<Protocol>) -> io::Result<Socket> {
        self.agent.socket(self.netns.as_fd(), domain, kind, protocol)
    }

    /// A socket for the address's family; IPv6 sockets are IPv6-only.
    pub fn socket_for(&self, addr: SocketAddr, kind: Type, protocol: Protocol) -> io::Result<Socket> {
        let socket = self.socket(Domain::for_address(addr), kind, Some(protocol))?;
        // A raw socket is bound to its protocol from the start, after which this cannot be set.
        if addr.is_ipv6() && kind != Type::RAW {
            socket.set_only_v6(true)?;
        }
        Ok(socket)
    }

    /// A command in this network namespace, and in the node's mount, UTS and cgroup namespaces.
    pub fn command(&self, program: impl AsRef<OsStr>) -> io::Result<Command> {
        Ok(Self::entering(program, self.agent.entrance(self.netns.as_fd())?))
    }

    /// Same, except for the cgroup: it stays in the harness's, as helpers of a container runtime stay in the runtime's.
    /// Moving a process to another cgroup takes the kernel some ten milliseconds.
    pub(crate) fn helper(&self, program: impl AsRef<OsStr>) -> io::Result<Command> {
        Ok(Self::entering(program, self.agent.entrance_by(None, self.netns.as_fd())?))
    }

    fn entering(program: impl AsRef<OsStr>, enter: impl FnMut() -> io::Result<()> + Send + Sync + 'static) -> Command {
        let mut command = Command::new(program);
        // SAFETY: `enter` runs between fork and exec and only makes system calls; it neither allocates nor locks.
        unsafe { command.pre_exec(enter) };
        // setns to a mount namespace changes the working directory to its root anyway.
        command.current_dir("/");
        command
    }

    /// Runs a program here with this standard input, whatever its exit status.
    pub fn output(&self, program: impl AsRef<OsStr>, args: &[&str], input: &str) -> Result<Output> {
        let mut command = self.command(&program)?;
        command.args(args);
        process::output(command, input.as_bytes(), COMMAND_TIMEOUT)
            .with_context(|| format!("{}: {} {}", self.name, program.as_ref().display(), args.join(" ")))
    }

    /// Runs a program here and returns its standard output.
    ///
    /// # Errors
    /// It cannot be started, takes too long, or has an exit status other than 0.
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

    /// Runs several commands of iproute2 in one process: one per line, without the leading `ip`. IPv6 addresses can be
    /// used at once (`nodad`): otherwise the kernel's worker for duplicate address detection enables them some time
    /// later, even on links without probes.
    pub fn ip(&self, lines: &str) -> Result<()> {
        let adds_v6 = |line: &str| {
            let address = line.strip_prefix("addr add ").and_then(|rest| rest.split_whitespace().next());
            address.is_some_and(|address| address.contains(':')) && !line.contains("nodad")
        };
        let line = |line: &str| format!("{line}{}\n", if adds_v6(line) { " nodad" } else { "" });
        let lines: String = lines.lines().map(line).collect();
        self.run_with("ip", &["-batch", "-"], &lines).with_context(|| format!("in the batch\n{lines}")).map(drop)
    }

    /// Sets a sysctl of the namespace, for example `net.ipv4.ip_forward`.
    pub fn set_sysctl(&self, name: &str, value: &str) -> Result<()> {
        let path = sysctl_path(name);
        let write = || fs::write(&path, value);
        self.netns.run(write)?.with_context(|| format!("{}: cannot set {name} to {value}", self.name))
    }

    /// Reads a sysctl of the namespace.
    pub fn sysctl(&self, name: &str) -> Result<String> {
        let path = sysctl_path(name);
        let text = self.netns.run(|| fs::read_to_string(&path))?;
        Ok(text.with_context(|| format!("{}: cannot read {name}", self.name))?.trim().to_owned())
    }

    /// Connects a new interface here with a new one elsewhere, both up and without addresses.
    pub fn wire(&self, ifname: &str, other: &Self, other_ifname: &str, mtu: u32) -> Result<()> {
        let netns = fd_path(other.netns());
        self.ip(&format!(
            "link add {ifname} mtu {mtu} type veth peer name {other_ifname} mtu {mtu} netns {netns}\nlink set {ifname} up\n"
        ))?;
        other.ip(&format!("link set {other_ifname} up\n"))
    }

    /// Sets an offload feature of an interface, as `ethtool --offload` does.
    pub fn set_offload(&self, ifname: &str, feature: Offload, on: bool) -> Result<()> {
        // `struct ethtool_value`.
        let mut value = [feature as u32, u32::from(on)];
        // SAFETY: the structure consists of integers and pointers, for which zero is valid.
        let mut request: libc::ifreq = unsafe { mem::zeroed() };
        ensure!(ifname.len() < request.ifr_name.len(), "{ifname} cannot be the name of an interface");
        for (to, from) in request.ifr_name.iter_mut().zip(ifname.bytes()) {
            *to = from as libc::c_char;
        }
        request.ifr_ifru.ifru_data = value.as_mut_ptr().cast();
        let socket = self.socket(Domain::IPV4, Type::DGRAM, None)?;
        // SAFETY: the request and its value outlive the call, which writes to nothing else.
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

/// Path of a descriptor of this process, for programs that expect a namespace's path.
pub(crate) fn fd_path(fd: impl AsFd) -> String {
    format!("/proc/{}/fd/{}", std::process::id(), fd.as_fd().as_raw_fd())
}
