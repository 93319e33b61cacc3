//! Socket hooks: contexts of system calls for `podnet_common::pipeline`, whose module `socket` makes the decisions.

use core::marker::PhantomData;

use aya_ebpf::{
    EbpfContext as _, bindings::bpf_sock_addr, helpers::generated as helpers, macros::cgroup_sock_addr,
    programs::SockAddrContext,
};
use aya_log_ebpf::debug;
use podnet_common::{
    addr::{Addr, Port, Proto},
    pipeline::{self, Call, SocketCtx},
};

use crate::tables::Maps;

/// Whether socket programs can choose the errno of a refused call (`bpf_set_retval`). Set by the loader; if it is zero,
/// the verifier prunes the helper call.
#[unsafe(no_mangle)]
static SOCKET_ERRNO: u8 = 1;

/// The system call continues.
const ALLOW: i32 = 1;
/// The system call fails.
const DENY: i32 = 0;
const ECONNREFUSED: i32 = 111;

/// Access to the address in a hook's context, for one family.
trait Family {
    /// Returns the address in the call.
    unsafe fn addr(ctx: *mut bpf_sock_addr) -> Addr;
    /// Replaces the address in the call.
    unsafe fn set_addr(ctx: *mut bpf_sock_addr, addr: &Addr);
}

struct Inet4;
struct Inet6;

impl Family for Inet4 {
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

// IPv6 sockets have IPv4 addresses mapped, as the tables do.
impl Family for Inet6 {
    #[inline(always)]
    unsafe fn addr(ctx: *mut bpf_sock_addr) -> Addr {
        // SAFETY: the caller's context is valid. Volatile, because the verifier allows access to single words only.
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

/// A call on a socket of one family.
struct Socket<'c, F> {
    ctx: &'c SockAddrContext,
    family: PhantomData<F>,
}

impl<'c, F> Socket<'c, F> {
    #[inline(always)]
    fn new(ctx: &'c SockAddrContext) -> Self {
        Self { ctx, family: PhantomData }
    }

    #[inline(always)]
    fn maps(&self) -> Maps<false> {
        Maps { ctx: self.ctx.as_ptr() }
    }
}

// SAFETY, for all below: the context is valid while the program runs, and so is its socket, if it has one.
impl<F: Family> SocketCtx for Socket<'_, F> {
    #[inline(always)]
    fn addr(&self) -> Addr {
        // SAFETY: see above.
        unsafe { F::addr(self.ctx.sock_addr) }
    }

    #[inline(always)]
    fn port(&self) -> Port {
        // SAFETY: see above.
        Port::from_wire(unsafe { (*self.ctx.sock_addr).user_port } as u16)
    }

    #[inline(always)]
    fn set_peer(&mut self, addr: &Addr, port: Port) {
        // SAFETY: see above.
        unsafe {
            F::set_addr(self.ctx.sock_addr, addr);
            (*self.ctx.sock_addr).user_port = u32::from(port.wire());
        }
    }

    #[inline(always)]
    fn proto(&self) -> Proto {
        // SAFETY: see above.
        Proto(unsafe { (*self.ctx.sock_addr).protocol } as u8)
    }

    #[inline(always)]
    fn bound(&self) -> bool {
        // SAFETY: see above.
        unsafe {
            let socket = (*self.ctx.sock_addr).__bindgen_anon_1.sk;
            !socket.is_null() && (*socket).src_port != 0
        }
    }

    #[inline(always)]
    fn connected(&self) -> bool {
        /// `TCP_ESTABLISHED`, the state of connected sockets of all protocols.
        const ESTABLISHED: u32 = 1;
        // SAFETY: see above.
        unsafe {
            let socket = (*self.ctx.sock_addr).__bindgen_anon_1.sk;
            !socket.is_null() && (*socket).state == ESTABLISHED
        }
    }

    #[inline(always)]
    fn cookie(&self) -> u64 {
        // SAFETY: see above.
        unsafe { helpers::bpf_get_socket_cookie(self.ctx.as_ptr()) }
    }

    #[inline(always)]
    fn netns_cookie(&self) -> u64 {
        // SAFETY: see above.
        unsafe { helpers::bpf_get_netns_cookie(self.ctx.as_ptr()) }
    }

    #[inline(always)]
    fn random(&self) -> u32 {
        // SAFETY: no arguments.
        unsafe { helpers::bpf_get_prandom_u32() }
    }

    #[inline(always)]
    fn chooses_errno(&self) -> bool {
        // SAFETY: a static. Volatile, because the loader changes the value that the compiler sees.
        unsafe { (&raw const SOCKET_ERRNO).read_volatile() != 0 }
    }
}

/// Carries out the verdict on a call.
#[inline(always)]
fn act(ctx: &SockAddrContext, call: Call) -> i32 {
    match call {
        Call::Allow => ALLOW,
        Call::Refuse { service } => {
            debug!(ctx, "service {} has no endpoints", service);
            // SAFETY: no pointers.
            unsafe { helpers::bpf_set_retval(-ECONNREFUSED) };
            DENY
        }
    }
}

#[inline(always)]
fn connect<F: Family>(ctx: &SockAddrContext) -> i32 {
    let mut socket = Socket::<F>::new(ctx);
    let maps = socket.maps();
    act(ctx, pipeline::connect(&mut socket, &maps))
}

#[inline(always)]
fn sendmsg<F: Family>(ctx: &SockAddrContext) -> i32 {
    let mut socket = Socket::<F>::new(ctx);
    let maps = socket.maps();
    act(ctx, pipeline::sendmsg(&mut socket, &maps))
}

#[inline(always)]
fn peer<F: Family>(ctx: &SockAddrContext) -> i32 {
    let mut socket = Socket::<F>::new(ctx);
    let maps = socket.maps();
    pipeline::peer(&mut socket, &maps);
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
    peer::<Inet4>(&ctx)
}

#[cgroup_sock_addr(recvmsg6)]
pub(crate) fn recvmsg6(ctx: SockAddrContext) -> i32 {
    peer::<Inet6>(&ctx)
}

#[cgroup_sock_addr(getpeername4)]
pub(crate) fn getpeername4(ctx: SockAddrContext) -> i32 {
    peer::<Inet4>(&ctx)
}

#[cgroup_sock_addr(getpeername6)]
pub(crate) fn getpeername6(ctx: SockAddrContext) -> i32 {
    peer::<Inet6>(&ctx)
}
