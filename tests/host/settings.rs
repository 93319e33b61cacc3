//! The table of host settings against a real kernel: every path exists, and settings stay effective.

use std::time::Duration;

use etherparse::PacketBuilder;
use podnet::host::Families;
use podnet::host::ports::{self, Supply};
use podnet::host::settings::{self, Setting};
use podnet::host::sysctl::Sysctl;
use podnet::host::uplinks;

use crate::{addresses, ensure_podnet0, in_namespace, ip, open, packet_socket, uplink, wanted};

async fn table() -> Vec<Setting> {
    let mut uplinks = uplinks::find(&open().snapshot().await.unwrap(), &addresses(&["172.30.0.1", "fd00:30::1"]), &[]);
    assert_eq!(uplinks.main().map(|u| u.name.as_str()).collect::<Vec<_>>(), ["eth0"]);
    uplinks.host_ends = vec!["pn0123456789a".into()];
    settings::wanted(Families { v4: true, v6: true }, &uplinks)
}

async fn node() -> Sysctl {
    uplink(1);
    ip("link add pn0123456789a type veth peer name pod");
    ensure_podnet0(&open(), &wanted()).await.unwrap();
    Sysctl::default()
}

#[test]
fn settings_are_applied_and_reverted_ones_are_detected() {
    in_namespace(|| async {
        let sysctl = node().await;
        let table = table().await;
        let fresh = settings::check(&sysctl, &table).unwrap();
        assert!(fresh.iter().any(|d| d.path == "net/ipv4/ip_forward"), "a new namespace does not forward: {fresh:?}");
        assert!(fresh.iter().all(|d| d.actual.is_some()), "every setting exists in this kernel: {fresh:?}");
        let applied = settings::apply(&sysctl, &table);
        assert!(applied.failed.is_empty(), "{applied:?}");
        assert_eq!(settings::check(&sysctl, &table).unwrap(), [], "setting one does not undo another");

        for (path, value) in [
            ("net/ipv4/ip_forward", "0"),
            ("net/ipv6/conf/all/forwarding", "0"),
            ("net/ipv4/conf/all/rp_filter", "1"),
            ("net/ipv4/conf/pn0123456789a/rp_filter", "1"),
        ] {
            sysctl.write(path, value).unwrap();
        }
        let undone: Vec<_> = settings::check(&sysctl, &table).unwrap().into_iter().map(|d| d.path).collect();
        for path in [
            "net/ipv4/ip_forward",
            "net/ipv6/conf/all/forwarding",
            "net/ipv4/conf/pn0123456789a/rp_filter",
            "net/ipv4/conf/eth0/rp_filter",
        ] {
            assert!(undone.iter().any(|p| p == path), "{path} not in {undone:?}");
        }
        settings::apply(&sysctl, &table);
        assert_eq!(settings::check(&sysctl, &table).unwrap(), []);
        let all = sysctl.read("net/ipv4/conf/all/rp_filter").unwrap();
        assert_eq!(all.as_deref(), Some("1"), "what another program wants for all interfaces is left alone");
    });
}

/// Enabling forwarding makes the kernel discard what it learnt from router advertisements unless accept_ra is 2.
#[test]
fn default_route_from_a_router_advertisement_survives() {
    in_namespace(|| async {
        let sysctl = node().await;
        let learnt = async || {
            advertise_router();
            for _ in 0..40 {
                if ip("-6 route show default").contains("fe80::99") {
                    return;
                }
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
            panic!("the kernel does not take the advertisement");
        };
        learnt().await;
        let table = table().await;
        settings::apply(&sysctl, &table);
        assert_eq!(sysctl.read("net/ipv6/conf/eth0/accept_ra").unwrap().as_deref(), Some("2"));
        assert!(ip("-6 route show default").contains("fe80::99"));

        // Without this setting the route would be lost.
        let without: Vec<_> = table.into_iter().filter(|s| !s.path.ends_with("eth0/accept_ra")).collect();
        sysctl.write("net/ipv6/conf/all/forwarding", "0").unwrap();
        sysctl.write("net/ipv6/conf/eth0/accept_ra", "1").unwrap();
        ip("-6 route delete default");
        learnt().await;
        settings::apply(&sysctl, &without);
        assert_eq!(ip("-6 route show default"), "");
    });
}

/// Sends a router advertisement from a router on eth0's link, fe80::99, with a lifetime of half an hour.
fn advertise_router() {
    let from = [0xfe, 0x80, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0x99];
    let all_nodes = [0xff, 2, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1];
    let (hop_limit, flags, [lifetime_high, lifetime_low]) = (64, 0, 1800u16.to_be_bytes());
    let mut frame = Vec::new();
    PacketBuilder::ethernet2([2, 0, 0, 0, 0, 0x99], [0x33, 0x33, 0, 0, 0, 1])
        .ipv6(from, all_nodes, 255)
        .icmpv6_raw(134, 0, [hop_limit, flags, lifetime_high, lifetime_low])
        .write(&mut frame, &[0; 8])
        .unwrap();
    packet_socket("eth0-far").send(&frame).unwrap();
}

#[test]
fn snat_ports_exclude_listening_ports_of_the_host() {
    in_namespace(|| async {
        ip("link set lo up");
        let listener = std::net::TcpListener::bind(("127.0.0.1", 20_000)).unwrap();
        let _connection = std::net::TcpStream::connect(("127.0.0.1", 20_000)).unwrap();
        let _accepted = listener.accept().unwrap();
        let _listeners = ["127.0.0.2", "::1"].map(|ip| std::net::TcpListener::bind((ip, 20_020)).unwrap());
        let _bound = std::net::UdpSocket::bind(("::", 20_010)).unwrap();
        Sysctl::default().write("net/ipv4/ip_local_port_range", "40000 65535").unwrap();
        let used = ports::read_port_use().unwrap();
        assert_eq!(used.taken.iter().copied().collect::<Vec<_>>(), [20_000, 20_010, 20_020]);
        let Supply::Free(free) = ports::supply(&used).unwrap() else { panic!("there are enough") };
        let expected: Vec<u16> =
            (1024..40_000).filter(|p| !used.taken.contains(p) && !(30_000..=32_767).contains(p)).collect();
        assert_eq!(free, expected);
    });
}
