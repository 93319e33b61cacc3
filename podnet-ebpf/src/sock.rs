//! Socket hooks: processes that connect or send to a frontend are given a backend at once, and see the frontend when they
//! ask for their peer. So their packets need no translation. Whose a process is, its network namespace tells: the host's,
//! or, where pods are served too, one that the plugin has put down in `sandboxes`; all others are left alone.
//!
//! What a socket's address can't decide stays addressed to the frontend and is translated packet by packet: connected UDP,
//! so that it never sticks to a backend that is gone (but at loopback addresses, whose packets can't be translated); what
//! needs another source, or a judgement of the client.

use aya_ebpf::{
    EbpfContext as _, bindings::bpf_sock_addr, btf_maps::lpm_trie::Key, helpers::generated as helpers,
    macros::cgroup_sock_addr, programs::SockAddrContext,
};
use aya_log_ebpf::debug;
use podnet_common::{
    addr::{Addr, Port, Proto},
    layout::{Backend, Config, Frontend, FrontendKey, Network, NetworkKind, Sandbox, SockKey, SockPeer},
    pipeline::mix,
    verdict::{Counter, Reason},
};

use crate::maps;

/// Whether the kernel lets these programs choose the error of a call that they refuse (`bpf_set_retval`). The loader says:
/// where it is zero the verifier never looks at the call.
#[unsafe(no_mangle)]
static SOCKET_ERRNO: u8 = 1;

#[inline(always)]
fn chooses_errno() -> bool {
    // SAFETY: a byte that is always there. Volatile, since the loader changes what the compiler has seen.
    unsafe { (&raw const SOCKET_ERRNO).read_volatile() != 0 }
}

/// Go on.
const ALLOW: i32 = 1;
/// The system call fails.
const DENY: i32 = 0;
const ECONNREFUSED: i32 = 111;

/// The address in a hook's context, of one family.
trait Socket {
    /// Reads the address.
    unsafe fn addr(ctx: *mut bpf_sock_addr) -> Addr;
    /// Replaces the address.
    unsafe fn set_addr(ctx: *mut bpf_sock_addr, addr: &Addr);
}

struct Inet4;
struct Inet6;

impl Socket for Inet4 {
    #[inline(always)]
    unsafe fn addr(ctx: *mut bpf_sock_addr) -> Addr {
        // SAFETY: the caller's context is valid.
        Addr::v4(unsafe { (*ctx).user_ip4 })
    }

    #[inline(always)]
    unsafe fn set_addr(ctx: *mut bpf_sock_addr, addr: &Addr) {
        // SAFETY: the caller's context is valid.
        unsafe { (*ctx).user_ip4 = addr.0[3] };
    }
}

// IPv6 sockets carry IPv4 addresses mapped, as the tables do.
impl Socket for Inet6 {
    #[inline(always)]
    unsafe fn addr(ctx: *mut bpf_sock_addr) -> Addr {
        // SAFETY: the caller's context is valid. Volatile, since the verifier allows single words only.
        unsafe {
            let ip = &raw const (*ctx).user_ip6;
            let word = |i: usize| ip.cast::<u32>().add(i).read_volatile();
            Addr([word(0), word(1), word(2), word(3)])
        }
    }

    #[inline(always)]
    unsafe fn set_addr(ctx: *mut bpf_sock_addr, addr: &Addr) {
        // SAFETY: as above.
        unsafe {
            let ip = &raw mut (*ctx).user_ip6;
            ip.cast::<u32>().add(0).write_volatile(addr.0[0]);
            ip.cast::<u32>().add(1).write_volatile(addr.0[1]);
            ip.cast::<u32>().add(2).write_volatile(addr.0[2]);
            ip.cast::<u32>().add(3).write_volatile(addr.0[3]);
        }
    }
}

/// Whose socket it is.
enum Owner<'a> {
    /// A process of the host.
    Host,
    /// A pod's process.
    Pod(&'a Sandbox),
}

impl Owner<'_> {
    #[inline(always)]
    fn is_pod(&self) -> bool {
        matches!(self, Self::Pod(_))
    }

    /// Whether it is a pod with this address.
    #[inline(always)]
    fn has(&self, addr: &Addr) -> bool {
        match self {
            Self::Host => false,
            Self::Pod(Sandbox { v4, v6 }) => v4.same(addr) | v6.same(addr),
        }
    }
}

/// Whose the socket is, if it is anybody's who is served here.
#[inline(always)]
fn owner<'a>(ctx: &SockAddrContext) -> Option<Owner<'a>> {
    // SAFETY: the context is valid while the program runs.
    let cookie = unsafe { helpers::bpf_get_netns_cookie(ctx.as_ptr()) };
    let config = maps::CONFIG.get(0)?;
    if config.netns_cookie == cookie {
        return Some(Owner::Host);
    }
    if config.flags & Config::SOCKET_PODS == 0 {
        return None;
    }
    // SAFETY: the entry stays readable until the program ends.
    unsafe { maps::SANDBOXES.get(&cookie) }.map(Owner::Pod)
}

/// The frontend with this address: an entry of its own, or one for all of the node's addresses. To a pod its loopback
/// addresses are its own; to the host they are those of the node that hostPorts have and NodePorts don't.
#[inline(always)]
fn frontend<'a>(owner: &Owner<'_>, addr: Addr, port: Port, proto: Proto) -> Option<&'a Frontend> {
    let any = if addr.is_v4() { FrontendKey::NODE_V4 } else { FrontendKey::NODE_V6 };
    let loopback = addr.is_loopback();
    // To a socket the unspecified address is the way to itself.
    if addr.same(&any) || (loopback && owner.is_pod()) {
        return None;
    }
    let key = FrontendKey { addr, port, proto, scope: FrontendKey::ANY };
    // SAFETY: the entry stays readable until the program ends, here and below.
    if let Some(frontend) = unsafe { maps::FRONTENDS.get(&key) } {
        return Some(frontend);
    }
    // SAFETY: as above.
    let frontend = unsafe { maps::FRONTENDS.get(&FrontendKey { addr: any, ..key }) }?;
    // Few ports lead so far.
    if loopback {
        return (frontend.flags & Frontend::NODE_PORT == 0).then_some(frontend);
    }
    let network = maps::NODES.get(&Key::new(128, addr))?;
    let serves = frontend.flags & Frontend::NODE_PORT == 0 || network.flags & Network::NODE_PORTS != 0;
    (network.kind == NetworkKind::LocalNode as u32 && serves).then_some(frontend)
}

/// Whether packets to the frontend must be judged, or get another source.
#[inline(always)]
fn needs_packets(frontend: &Frontend, owner: &Owner<'_>) -> bool {
    // What has no backend is refused in the same way to all, unless it is to be dropped.
    let flags = if frontend.slot_count == 0 {
        Frontend::SOURCE_RANGES | Frontend::DROP
    } else if owner.is_pod() {
        Frontend::SOURCE_RANGES | Frontend::SNAT
    } else {
        Frontend::SOURCE_RANGES
    };
    frontend.flags & flags != 0 || frontend.affinity != 0
}

/// One of a frontend's backends.
#[inline(always)]
fn choose<'a>(frontend: &Frontend, hash: u32) -> Option<&'a Backend> {
    let index = ((u64::from(hash) * u64::from(frontend.slot_count)) >> 32) as u32;
    let id = maps::SLOTS.get(frontend.slot_base.wrapping_add(index))?;
    maps::BACKENDS.get(*id)
}

/// Notes what the process means by a backend's address. False if that can't be noted, or if a socket for datagrams means
/// several services by it: only their packets' ports tell the answers apart, so from then on all are translated.
#[inline(always)]
fn remember(key: &SockKey, peer: &SockPeer) -> bool {
    // SAFETY: the entry stays readable until the program ends.
    let known = unsafe { maps::SOCK_REVERSE.get(key) };
    if let Some(known) = known
        && key.proto == Proto::UDP
    {
        let same = known.addr.same(&peer.addr) & (known.port == peer.port);
        if !same && !known.addr.is_none() {
            // If it can't be noted, the next datagram tries again.
            let _ = maps::SOCK_REVERSE.insert(key, &SockPeer::default(), 0);
        }
        return same;
    }
    maps::SOCK_REVERSE.insert(key, peer, 0).is_ok()
}

/// Replaces a frontend by one of its backends. `hash` picks it.
#[inline(always)]
fn to_backend<S: Socket>(
    ctx: &SockAddrContext,
    owner: &Owner<'_>,
    proto: Proto,
    cookie: u64,
    hash: u32,
    counter: Counter,
) -> i32 {
    let sock = ctx.sock_addr;
    // SAFETY: the context is valid while the program runs.
    let (addr, port) = unsafe { (S::addr(sock), Port::from_wire((*sock).user_port as u16)) };
    let Some(frontend) = frontend(owner, addr, port, proto) else { return ALLOW };
    if needs_packets(frontend, owner) {
        return ALLOW;
    }
    if frontend.slot_count == 0 {
        // Without an errno of our own the process would see EPERM: its packets are refused instead.
        if !chooses_errno() {
            return ALLOW;
        }
        maps::count_drop(Reason::NoEndpoint);
        debug!(ctx, "service {} has no endpoint for a process", frontend.service);
        // SAFETY: no pointers.
        unsafe { helpers::bpf_set_retval(-ECONNREFUSED) };
        return DENY;
    }
    let Some(backend) = choose(frontend, hash) else {
        maps::count_drop(Reason::StaleTable);
        return ALLOW;
    };
    // The pod would see its own address as its client's: its packets get the hairpin address. They are for any backend
    // again, so a pod meets itself less often than it meets others.
    if owner.has(&backend.addr) {
        return ALLOW;
    }
    let key = SockKey { cookie, addr: backend.addr, port: backend.port, proto, _pad: [0; 5] };
    if !remember(&key, &SockPeer { addr, port, _pad: [0; 6] }) {
        return ALLOW;
    }
    // SAFETY: the context is valid while the program runs.
    unsafe {
        S::set_addr(sock, &backend.addr);
        (*sock).user_port = u32::from(backend.port.wire());
    }
    maps::count(counter);
    ALLOW
}

#[inline(always)]
fn protocol(ctx: &SockAddrContext) -> Proto {
    // SAFETY: the context is valid while the program runs.
    Proto(unsafe { (*ctx.sock_addr).protocol } as u8)
}

/// Whether the process has chosen the socket's port.
#[inline(always)]
fn bound(ctx: &SockAddrContext) -> bool {
    // SAFETY: the context is valid while the program runs, and so is its socket, if it has one.
    unsafe {
        let socket = (*ctx.sock_addr).__bindgen_anon_1.sk;
        !socket.is_null() && (*socket).src_port != 0
    }
}

/// Whether the socket takes answers from one peer only.
#[inline(always)]
fn connected(ctx: &SockAddrContext) -> bool {
    /// `TCP_ESTABLISHED`, which connected sockets of all protocols are in.
    const ESTABLISHED: u32 = 1;
    // SAFETY: the context is valid while the program runs, and so is its socket, if it has one.
    unsafe {
        let socket = (*ctx.sock_addr).__bindgen_anon_1.sk;
        !socket.is_null() && (*socket).state == ESTABLISHED
    }
}

#[inline(always)]
fn cookie(ctx: &SockAddrContext) -> u64 {
    // SAFETY: the context is valid while the program runs.
    unsafe { helpers::bpf_get_socket_cookie(ctx.as_ptr()) }
}

#[inline(always)]
fn connect<S: Socket>(ctx: &SockAddrContext) -> i32 {
    // A socket bound to a port may have a connection from it to the same backend by another service: its packets are
    // translated, where the second gets another port. Packets to a loopback address can't be.
    let proto = protocol(ctx);
    // SAFETY: the context is valid while the program runs.
    let loopback = unsafe { S::addr(ctx.sock_addr) }.is_loopback();
    if !loopback && (proto != Proto::TCP || bound(ctx)) {
        return ALLOW;
    }
    let Some(owner) = owner(ctx) else { return ALLOW };
    // SAFETY: no arguments.
    let random = unsafe { helpers::bpf_get_prandom_u32() };
    to_backend::<S>(ctx, &owner, proto, cookie(ctx), random, Counter::SocketConnects)
}

#[inline(always)]
fn sendmsg<S: Socket>(ctx: &SockAddrContext) -> i32 {
    // A socket that is connected to the frontend takes no answer from a backend. Its owner, or for an IPv4-mapped peer the
    // kernel, names the address all the same. Packets to a loopback address can't be translated.
    // SAFETY: the context is valid while the program runs.
    if connected(ctx) && !unsafe { S::addr(ctx.sock_addr) }.is_loopback() {
        return ALLOW;
    }
    let Some(owner) = owner(ctx) else { return ALLOW };
    let cookie = cookie(ctx);
    // A socket's datagrams stay with one backend while the set of backends is the same.
    to_backend::<S>(ctx, &owner, Proto::UDP, cookie, mix(cookie as u32), Counter::SocketDatagrams)
}

/// Puts the frontend back where the process would see the backend.
#[inline(always)]
fn to_frontend<S: Socket>(ctx: &SockAddrContext) -> i32 {
    let sock = ctx.sock_addr;
    // SAFETY: the context is valid while the program runs.
    let (addr, port) = unsafe { (S::addr(sock), Port::from_wire((*sock).user_port as u16)) };
    let key = SockKey { cookie: cookie(ctx), addr, port, proto: protocol(ctx), _pad: [0; 5] };
    // SAFETY: the entry stays readable until the program ends; the context as above.
    unsafe {
        if let Some(peer) = maps::SOCK_REVERSE.get(&key)
            && !peer.addr.is_none()
        {
            S::set_addr(sock, &peer.addr);
            (*sock).user_port = u32::from(peer.port.wire());
        }
    }
    ALLOW
}

#[cgroup_sock_addr(connect4)]
pub(crate) fn connect4(ctx: SockAddrContext) -> i32 {
    connect::<Inet4>(&ctx)
}

#[cgroup_sock_addr(connect6)]
pub(crate) fn connect6(ctx: SockAddrContext) -> i32 {
    connect::<Inet6>(&ctx)
}

#[cgroup_sock_addr(sendmsg4)]
pub(crate) fn sendmsg4(ctx: SockAddrContext) -> i32 {
    sendmsg::<Inet4>(&ctx)
}

#[cgroup_sock_addr(sendmsg6)]
pub(crate) fn sendmsg6(ctx: SockAddrContext) -> i32 {
    sendmsg::<Inet6>(&ctx)
}

#[cgroup_sock_addr(recvmsg4)]
pub(crate) fn recvmsg4(ctx: SockAddrContext) -> i32 {
    to_frontend::<Inet4>(&ctx)
}

#[cgroup_sock_addr(recvmsg6)]
pub(crate) fn recvmsg6(ctx: SockAddrContext) -> i32 {
    to_frontend::<Inet6>(&ctx)
}

#[cgroup_sock_addr(getpeername4)]
pub(crate) fn getpeername4(ctx: SockAddrContext) -> i32 {
    to_frontend::<Inet4>(&ctx)
}

#[cgroup_sock_addr(getpeername6)]
pub(crate) fn getpeername6(ctx: SockAddrContext) -> i32 {
    to_frontend::<Inet6>(&ctx)
}
