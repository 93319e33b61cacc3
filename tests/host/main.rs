//! Privileged tests of `podnet::host`, each in its own network namespaces, without datapath or lab.

mod batch;
mod firewall;
mod next_hops;
mod podnet0;
mod routes;
mod settings;
mod tables;
mod watch;

use std::future::Future;
use std::net::IpAddr;
use std::os::fd::{AsFd as _, AsRawFd as _};
use std::process::Command;
use std::time::Duration;

use podnet::host::podnet0::Wanted;
use podnet::host::{Host, HostError, Podnet0};
use podnet_tests::lab::NetNs;
use socket2::{Domain, Protocol, SockAddr, Socket, Type};

/// Runs a test on a thread in a new network namespace, with a tokio runtime.
fn in_namespace<F: Future<Output = ()>>(test: impl FnOnce() -> F + Send) {
    in_netns(&new_netns(), test);
}

/// Creates a network namespace; panics on failure.
fn new_netns() -> NetNs {
    NetNs::new().expect("these tests make network namespaces: run them as root (sudo)")
}

/// Path of a namespace, as `ip` expects it.
fn path_of(netns: &NetNs) -> String {
    format!("/proc/{}/fd/{}", std::process::id(), netns.as_fd().as_raw_fd())
}

/// Runs an async closure on a thread in the namespace.
fn in_netns<F: Future<Output = ()>>(netns: &NetNs, work: impl FnOnce() -> F + Send) {
    netns
        .run(|| {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            runtime.block_on(work());
        })
        .unwrap();
}

/// Runs `ip` in the thread's namespace.
fn ip(arguments: &str) -> String {
    run("ip", arguments)
}

/// Runs a program in the thread's namespace and returns its standard output.
fn run(program: &str, arguments: &str) -> String {
    let output = Command::new(program).args(arguments.split_whitespace()).output().unwrap();
    let complaint = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{program} {arguments}: {complaint}");
    String::from_utf8(output.stdout).unwrap()
}

/// Creates eth0 with the addresses of one of the lab's nodes; its peer, eth0-far, is in the same namespace.
fn uplink(node: u8) {
    ip("link set lo up");
    ip("link add eth0 type veth peer name eth0-far");
    ip("link set eth0 up");
    ip("link set eth0-far up");
    ip(&format!("address add 172.30.0.{node}/24 dev eth0"));
    ip(&format!("address add fd00:30::{node}/64 dev eth0 nodad"));
}

/// Desired state of podnet0 on node 1.
fn wanted() -> Wanted {
    Wanted {
        mtu: 1400,
        destinations: ["10.96.0.0/16", "fd00:96::/112", "10.244.1.1/32", "fd00:244:1::1/128"]
            .map(|cidr| cidr.parse().unwrap())
            .to_vec(),
        external: Vec::new(),
        node_addresses: addresses(&["172.30.0.1", "fd00:30::1"]),
    }
}

fn addresses(texts: &[&str]) -> Vec<IpAddr> {
    texts.iter().map(|text| text.parse().unwrap()).collect()
}

/// Creates or corrects podnet0.
async fn ensure_podnet0(host: &Host, wanted: &Wanted) -> Result<Podnet0, HostError> {
    host.ensure_podnet0(&mut host.snapshot().await?, wanted).await
}

fn open() -> Host {
    Host::open().unwrap()
}

/// A packet socket on an interface.
fn packet_socket(ifname: &str) -> Socket {
    let all = (libc::ETH_P_ALL as u16).to_be();
    let socket = Socket::new(Domain::PACKET, Type::RAW, Some(Protocol::from(i32::from(all)))).unwrap();
    let addr = libc::sockaddr_ll {
        sll_family: libc::AF_PACKET as u16,
        sll_protocol: all,
        sll_ifindex: nix::net::if_::if_nametoindex(ifname).unwrap() as i32,
        sll_hatype: 0,
        sll_pkttype: 0,
        sll_halen: 0,
        sll_addr: [0; 8],
    };
    // SAFETY: the storage is larger than the address, which is written completely, and the length is that of the
    // address.
    let (_, addr) = unsafe {
        SockAddr::try_init(|storage, length| {
            storage.cast::<libc::sockaddr_ll>().write(addr);
            *length = size_of::<libc::sockaddr_ll>() as libc::socklen_t;
            Ok(())
        })
    }
    .unwrap();
    socket.bind(&addr).unwrap();
    socket.set_read_timeout(Some(Duration::from_secs(2))).unwrap();
    socket
}
