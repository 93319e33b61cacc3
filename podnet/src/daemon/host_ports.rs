//! Host ports in the plugin's records (capability `portMappings`), as frontends.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use podnet_cni::record::{PortMapping, Record};

use crate::{
    frontend::{Backends, Frontend, FrontendAddr, FrontendKind, IfNone, ServicePortName, SourceMode},
    model::{ObjectName, Protocol},
};

use super::records::Records;

/// The host ports of all pods, oldest pod first.
#[derive(Debug, Default)]
pub(super) struct HostPorts(Vec<Frontend>);

impl HostPorts {
    /// Re-evaluates the records. Returns whether host ports were added or removed.
    pub(super) fn refresh(&mut self, records: &Records) -> bool {
        let now: Vec<Frontend> = records.iter().flat_map(frontends).collect();
        let changed = now != self.0;
        self.0 = now;
        changed
    }

    /// All host ports.
    pub(super) fn frontends(&self) -> &[Frontend] {
        &self.0
    }
}

/// A pod's host ports, one frontend for each of its address families; none for pods without a datapath.
fn frontends(record: &Record) -> Vec<Frontend> {
    let service = ServicePortName::of_host_ports(pod(record));
    let mappings = record.port_mappings.iter().filter(|_| record.bpffs.is_some());
    let frontend = |mapping: &PortMapping, pod: IpAddr| {
        let any = if pod.is_ipv4() { Ipv4Addr::UNSPECIFIED.into() } else { Ipv6Addr::UNSPECIFIED.into() };
        let host = mapping.host_ip.unwrap_or(any);
        (host.is_ipv4() == pod.is_ipv4()).then_some(Frontend {
            key: FrontendAddr {
                socket: SocketAddr::new(host, mapping.host_port),
                protocol: protocol(&mapping.protocol)?,
            },
            kind: FrontendKind::HostPort,
            service: service.clone(),
            source: SourceMode::Auto,
            affinity: 0,
            source_ranges: None,
            backends: Backends { list: vec![SocketAddr::new(pod, mapping.container_port)], if_none: IfNone::Reject },
            outside: None,
            here: None,
            spread: true,
        })
    };
    mappings.flat_map(|mapping| record.ips.iter().filter_map(move |pod| frontend(mapping, *pod))).collect()
}

/// The pod; without a name, that of its container.
fn pod(record: &Record) -> ObjectName {
    let (namespace, name) = match &record.pod {
        Some(pod) => (pod.namespace.clone(), pod.name.as_str()),
        None => (String::new(), record.id.container.as_str()),
    };
    ObjectName { namespace, name: name.to_owned() }
}

fn protocol(name: &str) -> Option<Protocol> {
    match name {
        "tcp" => Some(Protocol::Tcp),
        "udp" => Some(Protocol::Udp),
        "sctp" => Some(Protocol::Sctp),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use podnet_cni::{
        alloc::Pool,
        id::AttachmentId,
        record::{PodRef, State},
        store::Store,
    };

    fn id(container: &str) -> AttachmentId {
        AttachmentId {
            container: container.to_owned().try_into().unwrap(),
            ifname: "eth0".to_owned().try_into().unwrap(),
        }
    }

    fn mapping(host_ip: Option<&str>, host_port: u16, container_port: u16, protocol: &str) -> PortMapping {
        let host_ip = host_ip.map(|ip| ip.parse().unwrap());
        PortMapping { host_port, container_port, protocol: protocol.into(), host_ip }
    }

    fn record(store: &Store, container: &str, ips: &[&str], port_mappings: Vec<PortMapping>) -> Record {
        Record {
            id: id(container),
            state: State::Allocating,
            network: "podnet".into(),
            netns: "/run/netns/x".into(),
            netns_cookie: None,
            ips: ips.iter().map(|ip| ip.parse().unwrap()).collect(),
            mac: Default::default(),
            host_ifname: id(container).host_ifname(),
            host_ifindex: 0,
            host_mac: Default::default(),
            host_netns: 1,
            mtu: 1500,
            gateways: Vec::new(),
            bpffs: Some("/sys/fs/bpf".into()),
            boot_id: store.boot_id().into(),
            pod: Some(PodRef { namespace: "shop".into(), name: "web".into(), uid: String::new() }),
            port_mappings,
            bandwidth: Default::default(),
        }
    }

    fn shown<'a>(frontends: impl IntoIterator<Item = &'a Frontend>) -> Vec<String> {
        let show = |f: &Frontend| format!("{} {} -> {:?}", f.service, f.key, f.backends.list);
        frontends.into_iter().map(show).collect()
    }

    #[test]
    fn host_port_has_a_frontend_for_each_family_of_the_pod() {
        let store = Store::with_boot_id(std::path::Path::new("/none"), "0123abcd-0");
        let both = ["10.244.1.5", "fd00:244:1::5"];
        for (ips, mapping, expected) in [
            (
                &both[..],
                mapping(None, 8080, 80, "tcp"),
                &[
                    "shop/web hostPort 0.0.0.0:8080/TCP -> [10.244.1.5:80]",
                    "shop/web hostPort [::]:8080/TCP -> [[fd00:244:1::5]:80]",
                ][..],
            ),
            (&both[..1], mapping(None, 53, 53, "udp"), &["shop/web hostPort 0.0.0.0:53/UDP -> [10.244.1.5:53]"]),
            (
                &both,
                mapping(Some("172.30.0.1"), 9, 9, "sctp"),
                &["shop/web hostPort 172.30.0.1:9/SCTP -> [10.244.1.5:9]"],
            ),
            (&both, mapping(Some("::"), 9, 9, "tcp"), &["shop/web hostPort [::]:9/TCP -> [[fd00:244:1::5]:9]"]),
            (&both[..1], mapping(Some("fd00:30::1"), 9, 9, "tcp"), &[]),
            (&both, mapping(None, 9, 9, "igmp"), &[]),
        ] {
            let mut record = record(&store, "c1", ips, vec![mapping]);
            assert_eq!(shown(&frontends(&record)), expected);
            record.bpffs = None;
            assert!(frontends(&record).is_empty(), "no program would translate the replies");
        }
        let mut nameless = record(&store, "c1", &both[..1], vec![mapping(None, 1, 2, "tcp")]);
        nameless.pod = None;
        assert_eq!(shown(&frontends(&nameless)), ["c1 hostPort 0.0.0.0:1/TCP -> [10.244.1.5:2]"]);
        let frontend = &frontends(&nameless)[0];
        assert_eq!((frontend.kind, frontend.source), (FrontendKind::HostPort, SourceMode::Auto));
    }

    #[test]
    fn host_ports_are_added_and_removed_with_their_pod() {
        let directory = tempfile::tempdir().unwrap();
        let store = Store::with_boot_id(directory.path(), "0123abcd-0000-0000-0000-000000000000");
        let (mut ports, mut records) = (HostPorts::default(), Records::default());
        let mut refresh = |ports: &mut HostPorts| {
            records.refresh(&store).unwrap();
            ports.refresh(&records)
        };
        assert!(!refresh(&mut ports), "there is nothing yet");

        let add = |container: &str, mappings: Vec<PortMapping>| {
            let pools = Pool::from_cidrs(&["10.244.1.0/24".parse().unwrap()]).unwrap();
            let draft = |ips: Vec<IpAddr>| {
                let ips: Vec<_> = ips.iter().map(ToString::to_string).collect();
                record(&store, container, &ips.iter().map(String::as_str).collect::<Vec<_>>(), mappings.clone())
            };
            let locked = store.lock().unwrap();
            let mut reservation = locked.reserve(&id(container), &pools, &[], &mappings, draft).unwrap();
            let ready = Record { state: State::Ready, ..reservation.record.clone() };
            (locked.finish(&mut reservation, &ready), ready.name()).1
        };
        add("c1", vec![]);
        assert!(!refresh(&mut ports), "a pod without host ports");
        let with_port = add("c2", vec![mapping(None, 8080, 80, "tcp")]);
        assert!(refresh(&mut ports));
        assert_eq!(ports.frontends().len(), 1);
        assert!(!refresh(&mut ports));
        store.lock().unwrap().remove(&with_port).unwrap();
        assert!(refresh(&mut ports));
        assert_eq!(ports.frontends().len(), 0);
    }
}
