//! The agent: one small process per node, which holds the node's namespaces and creates sockets inside them. A node
//! with pods has a second one for the pods' sockets, in a cgroup below the node's, where a container runtime would have
//! their processes.
//!
//! `podnet-lab agent` is started inside the node's cgroup, creates the mount, UTS and cgroup namespaces, and then
//! serves one kind of request on its standard input (a `SOCK_SEQPACKET` socket): create a socket of this domain, type
//! and protocol in the network namespace whose descriptor is attached. It exits when the harness closes the other end.

use std::fs::{self, File, OpenOptions};
use std::io::{self, IoSlice, IoSliceMut};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::{Arc, Mutex, PoisonError};

use anyhow::{Context, Result, bail};
use nix::errno::Errno;
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sched::{CloneFlags, setns, unshare};
use nix::sys::socket::{
    AddressFamily, ControlMessage, ControlMessageOwned, MsgFlags, SockFlag, SockType, recvmsg, sendmsg, socketpair,
};
use nix::unistd::sethostname;
use socket2::{Domain, Protocol, Socket, Type};

use super::process::Process;

/// The harness's end of an agent.
#[derive(Debug)]
pub(crate) struct Agent {
    // Declared before the process: the agent exits when this is closed.
    channel: Mutex<OwnedFd>,
    process: Process,
    namespaces: Vec<OwnedFd>,
    site: Site,
    of_pods: Mutex<Option<Arc<Agent>>>,
}

/// Arguments with which an agent was started.
#[derive(Debug)]
struct Site {
    program: PathBuf,
    name: String,
    /// File for its standard error.
    log: PathBuf,
    netns: OwnedFd,
    cgroup: Option<PathBuf>,
}

/// What an agent sets up before it serves requests.
#[derive(Debug)]
pub(crate) struct Setup<'a> {
    /// The program that contains [`serve`]: `podnet-lab`.
    pub(crate) program: &'a Path,
    /// Host name in its UTS namespace.
    pub(crate) name: &'a str,
    /// Its initial network namespace.
    pub(crate) netns: BorrowedFd<'a>,
    /// The cgroup that it joins, which becomes the root of its cgroup namespace.
    pub(crate) cgroup: Option<&'a Path>,
    /// Directory mounted at `/run`.
    pub(crate) run: &'a Path,
}

impl Agent {
    /// Starts an agent and waits until its namespaces are ready.
    pub(crate) fn start(setup: &Setup<'_>) -> Result<Self> {
        let site = Site {
            program: setup.program.to_owned(),
            name: setup.name.to_owned(),
            log: setup.run.join("agent.log"),
            netns: setup.netns.try_clone_to_owned()?,
            cgroup: setup.cgroup.map(Path::to_owned),
        };
        let netns = site.netns.try_clone()?;
        let procs = setup.cgroup.map(open_procs).transpose()?;
        let enter = move || {
            if let Some(procs) = &procs {
                nix::unistd::write(procs, b"0")?;
            }
            setns(&netns, CloneFlags::CLONE_NEWNET)?;
            unshare(CloneFlags::CLONE_NEWNS | CloneFlags::CLONE_NEWUTS | CloneFlags::CLONE_NEWCGROUP)?;
            Ok(())
        };
        Self::launch(site, Some(setup.run), enter)
    }

    /// The agent for the node's pods.
    pub(crate) fn of_pods(&self) -> Result<Arc<Self>> {
        let mut of_pods = self.of_pods.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(agent) = &*of_pods {
            return Ok(agent.clone());
        }
        let Site { program, name, log, netns, cgroup } = &self.site;
        let cgroup = cgroup.as_ref().with_context(|| format!("{name} has no cgroup for pods"))?.join("pods");
        fs::create_dir(&cgroup).with_context(|| format!("cannot make the cgroup {}", cgroup.display()))?;
        let enter = self.entrance_by(Some(open_procs(&cgroup)?), netns.as_fd())?;
        let site = Site {
            program: program.clone(),
            name: name.clone(),
            log: log.with_file_name("pods-agent.log"),
            netns: netns.try_clone()?,
            cgroup: Some(cgroup),
        };
        Ok(of_pods.insert(Arc::new(Self::launch(site, None, enter)?)).clone())
    }

    /// Starts the process, which calls `enter` before exec.
    fn launch(
        site: Site,
        run: Option<&Path>,
        enter: impl Fn() -> io::Result<()> + Send + Sync + 'static,
    ) -> Result<Self> {
        let (ours, theirs) =
            socketpair(AddressFamily::Unix, SockType::SeqPacket, None, SockFlag::SOCK_CLOEXEC).context("socketpair")?;
        let mut command = Command::new(&site.program);
        command.arg("agent").arg(&site.name).args(run).stdin(Stdio::from(theirs));
        // Not the harness's output: a reader of that has to see its end.
        command.stdout(Stdio::null()).stderr(File::create(&site.log)?);
        // SAFETY: `enter` runs between fork and exec and only makes system calls; it neither allocates nor locks.
        unsafe { command.pre_exec(enter) };
        let process = Process::start(command)
            .with_context(|| format!("cannot start {}: `cargo xtask build` makes it", site.program.display()))?;
        // The command held the other end; now only the agent has it.
        if !matches!(receive(&ours), Ok(([0, ..], _))) {
            let log = fs::read_to_string(&site.log).unwrap_or_default();
            bail!("cannot set up the namespaces of {}: {log}", site.name);
        }
        let namespaces = ["cgroup", "uts", "mnt"]
            .map(|kind| File::open(format!("/proc/{}/ns/{kind}", process.id())).map(OwnedFd::from))
            .into_iter()
            .collect::<io::Result<_>>()?;
        Ok(Self { channel: Mutex::new(ours), process, namespaces, site, of_pods: Mutex::default() })
    }

    /// Process id; its namespaces are the node's.
    pub(crate) fn id(&self) -> u32 {
        self.process.id()
    }

    /// Requests a socket from the agent.
    pub(crate) fn socket(
        &self,
        netns: BorrowedFd<'_>,
        domain: Domain,
        kind: Type,
        protocol: Option<Protocol>,
    ) -> io::Result<Socket> {
        let channel = self.channel.lock().unwrap_or_else(PoisonError::into_inner);
        let request = [domain.into(), kind.into(), protocol.map_or(0, Into::into)];
        send(&channel, request, Some(netns.as_raw_fd()))?;
        match receive(&channel)? {
            (_, Some(fd)) => Ok(fd.into()),
            ([0, ..], None) => Err(io::ErrorKind::UnexpectedEof.into()),
            ([errno, ..], None) => Err(io::Error::from_raw_os_error(errno)),
        }
    }

    /// Returns a function that a child calls between fork and exec to enter the given network namespace and the node's
    /// other namespaces and cgroup.
    pub(crate) fn entrance(
        &self,
        netns: BorrowedFd<'_>,
    ) -> io::Result<impl Fn() -> io::Result<()> + Send + Sync + use<>> {
        self.entrance_by(self.site.cgroup.as_deref().map(open_procs).transpose()?, netns)
    }

    /// Same, with an open `cgroup.procs` to join, or in the harness's cgroup.
    pub(crate) fn entrance_by(
        &self,
        procs: Option<File>,
        netns: BorrowedFd<'_>,
    ) -> io::Result<impl Fn() -> io::Result<()> + Send + Sync + use<>> {
        let netns = netns.try_clone_to_owned()?;
        let namespaces = self.namespaces.iter().map(OwnedFd::try_clone).collect::<io::Result<Vec<_>>>()?;
        Ok(move || {
            if let Some(procs) = &procs {
                nix::unistd::write(procs, b"0")?;
            }
            setns(&netns, CloneFlags::CLONE_NEWNET)?;
            namespaces.iter().try_for_each(|fd| setns(fd, CloneFlags::empty()))?;
            Ok(())
        })
    }

    /// Runs the closure on a thread inside the node's mount namespace.
    pub(crate) fn in_mounts<T: Send>(&self, work: impl FnOnce() -> T + Send) -> io::Result<T> {
        let mounts = self.namespaces.last().expect("the mount namespace is the last");
        std::thread::scope(|scope| {
            let inside = scope.spawn(|| {
                // A thread shares its root and working directory with the others until it unshares them.
                unshare(CloneFlags::CLONE_FS)?;
                setns(mounts, CloneFlags::CLONE_NEWNS)?;
                Ok(work())
            });
            inside.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
        })
    }
}

/// Main function of the agent: mounts `run` at `/run`, then serves requests until the harness closes the channel.
/// Without `run`, the namespaces are those of another agent and already set up.
pub fn serve(name: &str, run: Option<&Path>) -> Result<()> {
    let channel = io::stdin().as_fd().try_clone_to_owned()?;
    if let Some(Err(error)) = run.map(|run| set_up(name, run)) {
        send(&channel, [1, 0, 0], None)?;
        return Err(error);
    }
    send(&channel, [0; 3], None)?;
    let home = File::open("/proc/self/ns/net")?;
    loop {
        let ([domain, kind, protocol], netns) = match receive(&channel) {
            Ok((request, Some(netns))) => (request, netns),
            Ok((_, None)) => continue,
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => return Ok(()),
            Err(error) => return Err(error.into()),
        };
        let made = setns(&netns, CloneFlags::CLONE_NEWNET)
            .map_err(io::Error::from)
            .and_then(|()| Socket::new(domain.into(), kind.into(), (protocol != 0).then(|| protocol.into())));
        setns(&home, CloneFlags::CLONE_NEWNET)?;
        match made {
            Ok(socket) => send(&channel, [0; 3], Some(socket.as_raw_fd()))?,
            Err(error) => send(&channel, [error.raw_os_error().unwrap_or(Errno::EIO as i32), 0, 0], None)?,
        }
    }
}

/// Sets up this process's mount namespace as that of a node.
fn set_up(name: &str, run: &Path) -> Result<()> {
    let none: Option<&str> = None;
    sethostname(name).context("cannot set the host name")?;
    mount(none, "/", none, MsFlags::MS_REC | MsFlags::MS_PRIVATE, none).context("cannot make / private")?;
    // The list of mounts also contains those hidden by ours, and container runtimes would find them first.
    ["/sys", "/run"].into_iter().try_for_each(unmount_below)?;
    // A new sysfs shows the interfaces of the mounting process's network namespace.
    mount(Some("sysfs"), "/sys", Some("sysfs"), MsFlags::empty(), none).context("cannot mount /sys")?;
    // In its own cgroup namespace, this shows the node's cgroup as root.
    mount(Some("cgroup2"), "/sys/fs/cgroup", Some("cgroup2"), MsFlags::empty(), none)
        .context("cannot mount /sys/fs/cgroup")?;
    mount(Some("bpf"), "/sys/fs/bpf", Some("bpf"), MsFlags::empty(), none).context("cannot mount /sys/fs/bpf")?;
    mount(Some(run), "/run", none, MsFlags::MS_BIND, none).context("cannot bind /run")?;
    // Mounts made here by a container runtime in its own namespace, such as pods' network namespaces, are visible
    // everywhere.
    mount(none, "/run", none, MsFlags::MS_SHARED, none).context("cannot share /run")?;
    fs::create_dir_all("/run/netns").context("cannot create /run/netns")?;
    Ok(())
}

/// Unmounts everything at this directory and below, in this namespace.
fn unmount_below(directory: &str) -> Result<()> {
    let mounts = fs::read_to_string("/proc/self/mounts").context("cannot read /proc/self/mounts")?;
    let points = mounts.lines().filter_map(|line| line.split(' ').nth(1));
    let below: Vec<_> = points.filter(|point| Path::new(point).starts_with(directory)).collect();
    for point in below.into_iter().rev() {
        // Mount points with a blank are escaped in that list; they are left in place.
        let _ = umount2(point, MntFlags::MNT_DETACH);
    }
    Ok(())
}

/// Opens the `cgroup.procs` of a cgroup.
fn open_procs(cgroup: &Path) -> io::Result<File> {
    OpenOptions::new().write(true).open(cgroup.join("cgroup.procs"))
}

fn send(channel: &OwnedFd, words: [i32; 3], fd: Option<RawFd>) -> io::Result<()> {
    let bytes: Vec<u8> = words.iter().flat_map(|word| word.to_ne_bytes()).collect();
    let fds: Vec<RawFd> = fd.into_iter().collect();
    let control = [ControlMessage::ScmRights(&fds)];
    let control = if fds.is_empty() { &[][..] } else { &control[..] };
    sendmsg::<()>(channel.as_raw_fd(), &[IoSlice::new(&bytes)], control, MsgFlags::MSG_NOSIGNAL, None)?;
    Ok(())
}

fn receive(channel: &OwnedFd) -> io::Result<([i32; 3], Option<OwnedFd>)> {
    let mut bytes = [0; 12];
    let mut control = nix::cmsg_space!(RawFd);
    let mut buffers = [IoSliceMut::new(&mut bytes)];
    let message = recvmsg::<()>(channel.as_raw_fd(), &mut buffers, Some(&mut control), MsgFlags::MSG_CMSG_CLOEXEC)?;
    let length = message.bytes;
    let mut fd = None;
    for part in message.cmsgs()? {
        if let ControlMessageOwned::ScmRights(fds) = part {
            // SAFETY: the kernel has just created these descriptors for this process, and nothing else uses them.
            fd = fds.first().map(|fd| unsafe { OwnedFd::from_raw_fd(*fd) });
        }
    }
    if length != bytes.len() {
        return Err(io::ErrorKind::UnexpectedEof.into());
    }
    let word = |index: usize| i32::from_ne_bytes(bytes[4 * index..][..4].try_into().expect("four bytes"));
    Ok(([word(0), word(1), word(2)], fd))
}
