//! Socket calls through the host's hooks and the shipping programs, with equal results: real sockets of this process,
//! in a cgroup of its own with the programs attached, and calls in memory with the context that the kernel would
//! supply.

use std::{
    collections::BTreeMap,
    fs, io,
    net::{IpAddr, SocketAddr},
    path::{Path, PathBuf},
    process::Command,
    sync::{Mutex, MutexGuard, PoisonError},
    thread::sleep,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail, ensure};
use podnet::datapath::{netns_cookie, socket_errno};
use podnet_common::{
    addr::{Addr, Port, Proto},
    layout::{Backend, Config, Frontend, FrontendKey, Network, Sandbox, SockKey, SockPeer},
    pipeline::{self, Call},
    simulator::{HostSocket, HostTables, prefix},
};
use socket2::{Domain, Protocol, Socket, Type};

use crate::{
    cluster::{Addresses, Both, NODE_PORT, addresses, in_namespace},
    kernel::SocketHooks,
};

/// A hostPort, also reachable at loopback addresses.
const HOST_PORT: u16 = 31_000;
/// Port on which every backend listens.
const TARGET: u16 = 8080;
/// Service port with three backends.
const MANY: u16 = 84;
/// Timeout of a datagram or connection.
const TIMEOUT: Duration = Duration::from_secs(5);

/// Cgroup that contains this process until dropped. Only one test at a time holds it.
struct Cgroup {
    _turn: MutexGuard<'static, ()>,
    directory: PathBuf,
    before: PathBuf,
}

impl Cgroup {
    fn enter() -> Result<Self> {
        static TURN: Mutex<()> = Mutex::new(());
        let turn = TURN.lock().unwrap_or_else(PoisonError::into_inner);
        let mounts = fs::read_to_string("/proc/self/mounts")?;
        let mount = mounts.lines().find_map(|line| {
            let mut fields = line.split(' ').skip(1);
            let (path, kind) = (fields.next()?, fields.next()?);
            (kind == "cgroup2").then(|| PathBuf::from(path))
        });
        let root = mount.context("no cgroup v2 hierarchy is mounted: mount -t cgroup2 cgroup2 /sys/fs/cgroup")?;
        let own = fs::read_to_string("/proc/self/cgroup")?;
        let own = own.lines().find_map(|line| line.strip_prefix("0::/")).context("this process is in no cgroup v2")?;
        let cgroup = Self {
            _turn: turn,
            directory: root.join(format!("podnet-packet-{}", std::process::id())),
            before: root.join(own),
        };
        fs::create_dir(&cgroup.directory)?;
        move_to(&cgroup.directory)?;
        Ok(cgroup)
    }
}

impl Drop for Cgroup {
    fn drop(&mut self) {
        let left = move_to(&self.before).and_then(|()| remove(&self.directory));
        if let Err(error) = left {
            eprintln!("cannot leave {}: {error}", self.directory.display());
        }
    }
}

/// Removes a cgroup once it is empty; processes that threads of other tests have started in it exit on their own.
fn remove(cgroup: &Path) -> io::Result<()> {
    let begun = Instant::now();
    while !fs::read_to_string(cgroup.join("cgroup.procs"))?.is_empty() && begun.elapsed() < TIMEOUT {
        sleep(Duration::from_millis(10));
    }
    fs::remove_dir(cgroup)
}

fn move_to(cgroup: &Path) -> io::Result<()> {
    fs::write(cgroup.join("cgroup.procs"), std::process::id().to_string())
}

/// Owner of this process's sockets as the tables see it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Owner {
    Host,
    /// The pod with the address `client`, with `socketLB: all`.
    Pod,
    /// Same, with `socketLB: host`.
    PodUnserved,
    Stranger,
}

impl Owner {
    const ALL: [Self; 4] = [Self::Host, Self::Pod, Self::PodUnserved, Self::Stranger];

    fn apply(self, tables: &mut HostTables, cookie: u64) {
        let (four, six) = (addresses(false), addresses(true));
        tables.config.netns_cookie = if self == Self::Host { cookie } else { !cookie };
        if self != Self::PodUnserved {
            tables.config.flags |= Config::SOCKET_PODS;
        }
        if matches!(self, Self::Pod | Self::PodUnserved) {
            tables.sandboxes.insert(cookie, Sandbox { v4: four.client.into(), v6: six.client.into() });
        }
    }
}

/// Form of a socket's peer address.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Form {
    Four,
    Six,
    /// IPv4 address on an IPv6 socket.
    Mapped,
}

impl Form {
    const ALL: [Self; 3] = [Self::Four, Self::Six, Self::Mapped];

    fn domain(self) -> Domain {
        if self == Self::Four { Domain::IPV4 } else { Domain::IPV6 }
    }

    fn addresses(self) -> Addresses {
        addresses(self == Self::Six)
    }

    fn peer(self, addr: IpAddr, port: u16) -> SocketAddr {
        match (self, addr) {
            (Self::Mapped, IpAddr::V4(addr)) => SocketAddr::new(addr.to_ipv6_mapped().into(), port),
            _ => SocketAddr::new(addr, port),
        }
    }

    fn any(self) -> SocketAddr {
        let any = if self == Self::Four { "0.0.0.0" } else { "::" };
        SocketAddr::new(any.parse().expect("an address"), 0)
    }
}

/// Both sides, and the listeners at the backends' addresses.
struct Sides {
    both: Both,
    _hooks: SocketHooks,
    listeners: Vec<Socket>,
}

impl Sides {
    fn new(uplink: podnet_common::addr::IfIndex, owner: Owner, cgroup: &Cgroup) -> Result<Self> {
        let cookie = netns_cookie()?;
        let mut both = Both::new(uplink, |tables| {
            owner.apply(tables, cookie);
            extend(tables);
        })?;
        let hooks = both.kernel.attach_sockets(&cgroup.directory)?;
        let mut listeners = Vec::new();
        for v6 in [false, true] {
            let a = addresses(v6);
            for addr in [a.client, a.backend, a.remote, a.remote3, a.node] {
                let address = SocketAddr::new(addr, TARGET);
                for (kind, protocol) in [(Type::STREAM, Protocol::TCP), (Type::DGRAM, Protocol::UDP)] {
                    let socket = Socket::new(Domain::for_address(address), kind, Some(protocol))?;
                    socket.set_reuse_address(true)?;
                    socket.bind(&address.into())?;
                    socket.set_read_timeout(Some(TIMEOUT))?;
                    if kind == Type::STREAM {
                        socket.listen(64)?;
                    }
                    listeners.push(socket);
                }
            }
        }
        Ok(Self { both, _hooks: hooks, listeners })
    }

    /// Context of a call for the host's hooks.
    fn context(&self, socket: &Socket, peer: SocketAddr, proto: Proto, bound: bool) -> Result<HostSocket> {
        let connected = proto != Proto::TCP && unhooked_peer(socket)?;
        Ok(HostSocket {
            addr: mapped(peer.ip()),
            port: Port::new(peer.port()),
            proto,
            bound,
            connected,
            cookie: socket.cookie()?,
            netns_cookie: netns_cookie()?,
            random: 0,
            chooses_errno: socket_errno(),
        })
    }

    /// Makes a call on both sides; returns the host's result.
    fn call(&self, call: Kind, socket: &Socket, peer: SocketAddr, proto: Proto, bound: bool) -> Result<HostSocket> {
        let mut context = self.context(socket, peer, proto, bound)?;
        let before = self.both.kernel.counters()?;
        let result = match call {
            Kind::Connect => socket.connect(&peer.into()),
            Kind::Send => socket.send_to(b"?", &peer.into()).map(drop),
        };
        let answer = result.as_ref().err().and_then(io::Error::raw_os_error);
        // The kernel's random number is known only by the backend it selected.
        context.random = self.drawn(&context, proto)?;
        let decided = match call {
            Kind::Connect => pipeline::connect(&mut context, &self.both.host),
            Kind::Send => pipeline::sendmsg(&mut context, &self.both.host),
        };
        let refused = answer == Some(libc::ECONNREFUSED);
        ensure!(
            refused == matches!(decided, Call::Refuse { .. }),
            "{call:?} to {peer}: the host says {decided:?}, the kernel {result:?}"
        );
        self.same(before).with_context(|| format!("{call:?} to {peer}"))?;
        Ok(context)
    }

    /// A random number that selects the backend recorded by the kernel.
    fn drawn(&self, socket: &HostSocket, proto: Proto) -> Result<u32> {
        let meant = SockPeer { addr: socket.addr, port: socket.port, _pad: [0; 6] };
        let key = FrontendKey { addr: meant.addr, port: meant.port, proto, scope: FrontendKey::ANY };
        let Some(frontend) = self.both.host.frontends.get(&key) else { return Ok(0) };
        let noted = self.both.kernel.sock_reverse()?;
        let picked = (0..frontend.slot_count).find(|index| {
            let id = self.both.host.slots[&(frontend.slot_base + index)];
            let Backend { addr, port, .. } = self.both.host.backends[&id];
            let key = SockKey { cookie: socket.cookie, addr, port, proto, _pad: [0; 5] };
            noted.get(&key) == Some(&meant)
        });
        let index = u64::from(picked.unwrap_or_default());
        Ok((index << 32).div_ceil(u64::from(frontend.slot_count.max(1))) as u32)
    }

    /// Requires equal records and counters on both sides.
    fn same(&self, before: Vec<u64>) -> Result<()> {
        let host: BTreeMap<_, _> = self.both.host.sock_reverse.borrow().clone();
        let kernel = self.both.kernel.sock_reverse()?;
        ensure!(host == kernel, "the host has noted {host:?}\n  the kernel {kernel:?}");
        self.both.same_counts(&before)
    }

    /// Requires that both sides show the socket this peer address.
    fn shown(&self, socket: &Socket, context: &HostSocket, real: SocketAddr, seen: SocketAddr) -> Result<()> {
        let mut context = HostSocket { addr: mapped(real.ip()), port: Port::new(real.port()), ..*context };
        pipeline::peer(&mut context, &self.both.host);
        ensure!(
            (context.addr, context.port) == (mapped(seen.ip()), Port::new(seen.port())),
            "socket {}: the host shows {:?}, the kernel {seen}, of {real}",
            socket.cookie()?,
            (IpAddr::from(context.addr), context.port.get())
        );
        Ok(())
    }

    /// The listener at an address.
    fn listener(&self, kind: Type, addr: IpAddr) -> Result<&Socket> {
        let wanted = SocketAddr::new(addr, TARGET);
        for listener in &self.listeners {
            if listener.r#type()? == kind && listener.local_addr()?.as_socket() == Some(wanted) {
                return Ok(listener);
            }
        }
        bail!("nothing listens at {wanted}")
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Connect,
    Send,
}

/// Whether a datagram socket is connected.
fn unhooked_peer(socket: &Socket) -> Result<bool> {
    match socket.peer_addr() {
        Ok(_) => Ok(true),
        Err(error) if error.raw_os_error() == Some(libc::ENOTCONN) => Ok(false),
        Err(error) => Err(error.into()),
    }
}

/// An address as stored in tables, whatever its form on the socket.
fn mapped(addr: IpAddr) -> Addr {
    addr.to_canonical().into()
}

fn address(addr: Addr, port: Port) -> SocketAddr {
    SocketAddr::new(addr.into(), port.get())
}

/// Adds a service with several backends and a hostPort.
fn extend(tables: &mut HostTables) {
    let mut id = 10_000;
    for v6 in [false, true] {
        let a = addresses(v6);
        let node = if v6 { FrontendKey::NODE_V6 } else { FrontendKey::NODE_V4 };
        for proto in [Proto::TCP, Proto::UDP] {
            for (addr, port, flags, backends) in [
                (a.local.into(), MANY, 0, vec![a.backend, a.remote, a.remote3]),
                (node, HOST_PORT, Frontend::EXTERNAL, vec![a.backend]),
                (a.empty.into(), 81, Frontend::DROP, vec![]),
            ] {
                let key = FrontendKey { addr, port: Port::new(port), proto, scope: FrontendKey::ANY };
                let slot_count = backends.len() as u32;
                let frontend = Frontend { service: id, slot_base: id, slot_count, flags, ..Frontend::default() };
                tables.frontends.insert(key, frontend);
                for backend in backends {
                    tables.slots.insert(id, id);
                    let backend = Backend { addr: backend.into(), port: Port::new(TARGET), proto, _pad: 0 };
                    tables.backends.insert(id, backend);
                    id += 1;
                }
                id += 1;
            }
        }
        // One of the node's addresses has no NodePorts.
        let len = if v6 { 128 } else { 32 };
        let own = tables.networks[&prefix(a.node, len)];
        tables.networks.insert(prefix(a.hairpin, len), Network { flags: 0, ..own });
    }
}

/// Destinations of sockets: services of every kind, ports of the node, loopback addresses, unused addresses.
fn destinations(form: Form) -> Vec<(IpAddr, u16)> {
    let a = form.addresses();
    let loopback: IpAddr = if form == Form::Six { "::1" } else { "127.0.0.1" }.parse().expect("an address");
    let mut all: Vec<_> =
        [a.local, a.far, a.snat, a.itself, a.host, a.empty, a.twin, a.nobody].map(|addr| (addr, 80)).into();
    all.extend([(a.local, MANY), (a.empty, 81), (a.local, 99), (a.backend, TARGET)]);
    all.extend([80, 81, 82, 83].map(|port| (a.balancer, port)));
    all.extend([a.node, a.hairpin, a.node2].map(|addr| (addr, NODE_PORT)));
    all.extend([a.node, a.hairpin, loopback].map(|addr| (addr, HOST_PORT)));
    all
}

/// Whether only a service answers at an address; this host would refuse the connection otherwise.
fn closed(addr: IpAddr, port: u16) -> bool {
    let here = addr.is_loopback()
        || [false, true].into_iter().any(|v6| {
            let a = addresses(v6);
            [a.client, a.backend, a.remote, a.remote3, a.node, a.hairpin].contains(&addr)
        });
    here && port != TARGET
}

fn tests(test: fn(&Sides, Owner, Form) -> Result<()>) {
    in_namespace(move |uplink| {
        let mut script = String::new();
        for v6 in [false, true] {
            let a = addresses(v6);
            for addr in [a.client, a.backend, a.remote, a.remote3, a.hairpin] {
                script += &format!("ip addr add {addr} dev lo\n");
            }
        }
        ensure!(Command::new("sh").args(["-ec", &script]).status()?.success(), "cannot add the backends' addresses");
        let cgroup = Cgroup::enter()?;
        for owner in Owner::ALL {
            let sides = Sides::new(uplink, owner, &cgroup)?;
            for form in Form::ALL {
                test(&sides, owner, form).with_context(|| format!("{owner:?}, {form:?}"))?;
            }
        }
        Ok(())
    });
}

#[test]
fn connect_gets_equal_results_on_host_and_in_kernel() {
    tests(|sides, owner, form| {
        let mut translated = 0;
        for (addr, port) in destinations(form) {
            for bound in [false, true] {
                let socket = Socket::new(form.domain(), Type::STREAM, Some(Protocol::TCP))?;
                if bound {
                    socket.bind(&form.any().into())?;
                }
                let decided = {
                    // Untranslated packets go to a closed port.
                    let mut foreseen = sides.context(&socket, form.peer(addr, port), Proto::TCP, bound)?;
                    let copy = sides.both.host.clone();
                    pipeline::connect(&mut foreseen, &copy);
                    foreseen
                };
                let unchanged = (decided.addr, decided.port) == (addr.into(), Port::new(port));
                if unchanged && closed(addr, port) {
                    continue;
                }
                socket.set_nonblocking(unchanged)?;
                let result = sides.call(Kind::Connect, &socket, form.peer(addr, port), Proto::TCP, bound)?;
                if unchanged {
                    continue;
                }
                translated += 1;
                let real = address(result.addr, result.port);
                let (accepted, _) = sides.listener(Type::STREAM, real.ip())?.accept()?;
                ensure!(accepted.local_addr()?.as_socket() == Some(real), "it is connected to another backend");
                let seen = socket.peer_addr()?.as_socket().context("an address")?;
                ensure!(seen == form.peer(addr, port), "{addr}:{port}: it sees {seen} as its peer");
                sides.shown(&socket, &result, real, seen)?;
            }
        }
        // Pod sockets are not translated where source NAT is needed: for a service backed by the pod itself, and at
        // loopback addresses. Bound sockets are not translated at loopback addresses.
        let expected = match owner {
            Owner::Host => 14,
            Owner::Pod => 10,
            Owner::PodUnserved | Owner::Stranger => 0,
        };
        ensure!(translated == expected, "{translated} connections were translated, not {expected}");
        Ok(())
    });
}

#[test]
fn sendmsg_and_recvmsg_get_equal_results_on_host_and_in_kernel() {
    tests(|sides, owner, form| {
        let mut translated = 0;
        for (addr, port) in destinations(form) {
            let peer = form.peer(addr, port);
            let socket = Socket::new(form.domain(), Type::DGRAM, Some(Protocol::UDP))?;
            socket.bind(&form.any().into())?;
            socket.set_read_timeout(Some(TIMEOUT))?;
            let result = sides.call(Kind::Send, &socket, peer, Proto::UDP, true)?;
            let real = address(result.addr, result.port);
            let mut buffer = [std::mem::MaybeUninit::uninit(); 16];
            if real == SocketAddr::new(addr, port) {
                if port == TARGET {
                    sides.listener(Type::DGRAM, addr)?.recv_from(&mut buffer)?;
                }
                continue;
            }
            translated += 1;
            // The backend receives it and replies; the reply shows the frontend's address.
            let listener = sides.listener(Type::DGRAM, real.ip())?;
            let (_, from) =
                listener.recv_from(&mut buffer).with_context(|| format!("{real} has got nothing for {peer}"))?;
            listener.send_to(b"!", &from)?;
            let (_, seen) = socket.recv_from(&mut buffer).with_context(|| format!("no answer by {peer}"))?;
            let seen = seen.as_socket().context("an address")?;
            ensure!(seen == peer, "{peer}: the answer comes from {seen}");
            sides.shown(&socket, &result, real, seen)?;
            // The same socket to a second service with this backend: from now on both are translated per packet.
            if addr == form.addresses().local && port == 80 {
                let twin = form.peer(form.addresses().twin, 80);
                for peer in [twin, peer] {
                    let result = sides.call(Kind::Send, &socket, peer, Proto::UDP, true)?;
                    ensure!(mapped(peer.ip()) == result.addr, "{peer}: it can't be told from the other");
                }
            }
        }
        let expected = match owner {
            Owner::Host => 13,
            Owner::Pod => 10,
            Owner::PodUnserved | Owner::Stranger => 0,
        };
        ensure!(translated == expected, "datagrams to {translated} frontends were translated, not {expected}");
        Ok(())
    });
}

#[test]
fn connected_udp_sockets_get_equal_results_on_host_and_in_kernel() {
    tests(|sides, owner, form| {
        for (addr, port) in destinations(form) {
            let peer = form.peer(addr, port);
            let socket = Socket::new(form.domain(), Type::DGRAM, Some(Protocol::UDP))?;
            let result = sides.call(Kind::Connect, &socket, peer, Proto::UDP, false)?;
            let at_loopback = addr.is_loopback() && owner == Owner::Host;
            let real = address(result.addr, result.port);
            ensure!((real != SocketAddr::new(addr, port)) == at_loopback, "{peer}: it is connected to {real}");
            let seen = socket.peer_addr()?.as_socket().context("an address")?;
            ensure!(seen == peer, "{peer}: it sees {seen} as its peer");
            sides.shown(&socket, &result, real, seen)?;
            // A datagram that names its destination nevertheless.
            sides.call(Kind::Send, &socket, peer, Proto::UDP, false)?;
        }
        Ok(())
    });
}
