//! The datapath's tables as commands read them.
//!
//! Commands read what is pinned, so they work while the daemon is down, and they only read. The implementation over
//! the pins is [`super::view`]'s; tests of the commands use `fake::FakeView`.

use std::path::PathBuf;

use podnet_cni::text::chain;
use podnet_common::addr::{Addr, IfIndex};
use podnet_common::layout::{
    Affinity, AffinityKey, Backend, Config, CtEntry, Endpoint, Frontend, FrontendKey, Hook, Interface, Network, Prefix,
    SourceRange, Tuple, tables::Table,
};
use thiserror::Error;

/// Why a table could not be read.
#[derive(Debug, Error)]
pub enum ViewError {
    /// There are no pins.
    #[error(
        "podnet's tables are not pinned under {}: start the daemon with `podnet daemon --config FILE`, or pass \
         --bpffs if its BPF file system is mounted elsewhere", directory.display()
    )]
    NotPinned {
        /// Where they were looked for.
        directory: PathBuf,
    },
    /// Opening or reading failed.
    #[error("cannot read the table {table}: {}; run this as root", chain(.source.as_ref()))]
    Table {
        /// Its name.
        table: &'static str,
        /// The cause.
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// The routing table could not be asked.
    #[error("cannot look up routes: {0}; run this as root")]
    Routes(#[source] std::io::Error),
    /// The kernel could not be asked what is attached.
    #[error("cannot find out where {hook} is attached: {}; run this as root", chain(.source.as_ref()))]
    Hook {
        /// The hook's name.
        hook: &'static str,
        /// The cause.
        source: Box<dyn std::error::Error + Send + Sync>,
    },
}

/// Read access to the tables.
pub trait View {
    /// All entries of `frontends`, in any order.
    fn frontends(&self) -> Result<Vec<(FrontendKey, Frontend)>, ViewError>;

    /// `count` slots from `base` on: ids of backends.
    fn slots(&self, base: u32, count: u32) -> Result<Vec<u32>, ViewError>;

    /// A backend.
    fn backend(&self, id: u32) -> Result<Backend, ViewError>;

    /// All entries of `endpoints`, in any order.
    fn endpoints(&self) -> Result<Vec<(Addr, Endpoint)>, ViewError>;

    /// Calls `visit` with every entry of `conntrack`. Those that come and go meanwhile may be missed or seen.
    fn conntrack(&self, visit: &mut dyn FnMut(&Tuple, &CtEntry)) -> Result<(), ViewError>;

    /// All entries of `nodes`, in any order.
    fn networks(&self) -> Result<Vec<(Prefix, Network)>, ViewError>;

    /// All entries of `interfaces`, in any order.
    fn interfaces(&self) -> Result<Vec<(IfIndex, Interface)>, ViewError>;

    /// All entries of `source_ranges`, in any order.
    fn source_ranges(&self) -> Result<Vec<SourceRange>, ViewError>;

    /// All entries of `affinity`, in any order.
    fn affinity(&self) -> Result<Vec<(AffinityKey, Affinity)>, ViewError>;

    /// The source ports that source NAT may use.
    fn snat_ports(&self) -> Result<Vec<u16>, ViewError>;

    /// `counters` by number, each summed over the CPUs.
    fn counters(&self) -> Result<Vec<u64>, ViewError>;

    /// What the programs know of the node.
    fn config(&self) -> Result<Config, ViewError>;

    /// Number of the generation of programs that runs.
    fn generation(&self) -> Result<u32, ViewError>;

    /// How many entries a table has room for.
    fn capacity(&self, table: Table) -> Result<u32, ViewError>;

    /// Whether a hook's program is attached to an interface of this namespace.
    fn attached(&self, hook: Hook, ifindex: IfIndex) -> Result<bool, ViewError>;

    /// Whether the socket hooks are attached.
    fn sockets_attached(&self) -> bool;
}

#[cfg(test)]
pub(crate) mod fake {
    //! Tables in memory.

    use std::net::{IpAddr, SocketAddr};

    use podnet_common::addr::{Mac, Port, Proto};
    use podnet_common::layout::{NetworkKind, Out, tables};

    use super::*;
    use crate::compile::ServiceNames;

    /// Names of the services 1 and 2, and of a pod's host ports, 4.
    pub(crate) fn names() -> ServiceNames {
        let dir = tempfile::tempdir().unwrap();
        let text = r#"{"schema":1,"next":5,"services":{
            "1":{"namespace":"default","name":"web","port":"http"},
            "2":{"namespace":"default","name":"dns","port":""},
            "4":{"namespace":"default","name":"dns hostPort","port":""}}}"#;
        std::fs::write(ServiceNames::path(dir.path()), text).unwrap();
        ServiceNames::read(dir.path()).unwrap()
    }

    /// Tables that a test fills.
    #[derive(Clone, Debug, Default)]
    pub(crate) struct FakeView {
        pub frontends: Vec<(FrontendKey, Frontend)>,
        pub slots: Vec<u32>,
        pub backends: Vec<Backend>,
        pub endpoints: Vec<(Addr, Endpoint)>,
        pub conntrack: Vec<(Tuple, CtEntry)>,
        pub counters: Vec<u64>,
        pub conntrack_capacity: u32,
        pub config: Config,
        pub networks: Vec<(Prefix, Network)>,
        pub interfaces: Vec<(IfIndex, Interface)>,
        pub source_ranges: Vec<SourceRange>,
        pub affinity: Vec<(AffinityKey, Affinity)>,
        pub snat_ports: Vec<u16>,
        /// Hooks that are missing at an interface; all others are there.
        pub missing: Vec<(Hook, IfIndex)>,
        pub sockets_missing: bool,
    }

    impl View for FakeView {
        fn frontends(&self) -> Result<Vec<(FrontendKey, Frontend)>, ViewError> {
            Ok(self.frontends.clone())
        }

        fn slots(&self, base: u32, count: u32) -> Result<Vec<u32>, ViewError> {
            Ok(self.slots[base as usize..][..count as usize].to_vec())
        }

        fn backend(&self, id: u32) -> Result<Backend, ViewError> {
            Ok(self.backends[id as usize])
        }

        fn endpoints(&self) -> Result<Vec<(Addr, Endpoint)>, ViewError> {
            Ok(self.endpoints.clone())
        }

        fn conntrack(&self, visit: &mut dyn FnMut(&Tuple, &CtEntry)) -> Result<(), ViewError> {
            self.conntrack.iter().for_each(|(tuple, entry)| visit(tuple, entry));
            Ok(())
        }

        fn networks(&self) -> Result<Vec<(Prefix, Network)>, ViewError> {
            Ok(self.networks.clone())
        }

        fn interfaces(&self) -> Result<Vec<(IfIndex, Interface)>, ViewError> {
            Ok(self.interfaces.clone())
        }

        fn source_ranges(&self) -> Result<Vec<SourceRange>, ViewError> {
            Ok(self.source_ranges.clone())
        }

        fn affinity(&self) -> Result<Vec<(AffinityKey, Affinity)>, ViewError> {
            Ok(self.affinity.clone())
        }

        fn snat_ports(&self) -> Result<Vec<u16>, ViewError> {
            Ok(self.snat_ports.clone())
        }

        fn counters(&self) -> Result<Vec<u64>, ViewError> {
            Ok(self.counters.clone())
        }

        fn config(&self) -> Result<Config, ViewError> {
            Ok(self.config)
        }

        fn generation(&self) -> Result<u32, ViewError> {
            Ok(1)
        }

        fn capacity(&self, table: Table) -> Result<u32, ViewError> {
            Ok(if table == tables::CONNTRACK.table() { self.conntrack_capacity } else { 1000 })
        }

        fn attached(&self, hook: Hook, ifindex: IfIndex) -> Result<bool, ViewError> {
            Ok(!self.missing.contains(&(hook, ifindex)))
        }

        fn sockets_attached(&self) -> bool {
            !self.sockets_missing
        }
    }

    impl FakeView {
        /// Adds a service port with its backends.
        pub(crate) fn service(&mut self, id: u32, at: &str, proto: Proto, flags: u16, backends: &[&str]) {
            let key = self.frontend(id, at, proto, FrontendKey::ANY, flags, backends);
            let address = FrontendKey::address(key.addr);
            if !self.frontends.iter().any(|(key, _)| *key == address) {
                self.frontends.push((address, Frontend::default()));
            }
        }

        /// Adds an entry of a frontend for one kind of client. A backend that is named twice gets two slots.
        pub(crate) fn frontend(
            &mut self,
            id: u32,
            at: &str,
            proto: Proto,
            scope: u8,
            flags: u16,
            backends: &[&str],
        ) -> FrontendKey {
            let at: SocketAddr = at.parse().unwrap();
            let slot_base = self.slots.len() as u32;
            for backend in backends {
                let to: SocketAddr = backend.parse().unwrap();
                let backend = Backend { addr: to.ip().into(), port: Port::new(to.port()), proto, _pad: 0 };
                let known = self.backends.iter().position(|b| *b == backend);
                let id = known.unwrap_or_else(|| {
                    self.backends.push(backend);
                    self.backends.len() - 1
                });
                self.slots.push(id as u32);
            }
            let key = FrontendKey { addr: at.ip().into(), port: Port::new(at.port()), proto, scope };
            let slot_count = backends.len() as u32;
            self.frontends.push((key, Frontend { service: id, slot_base, slot_count, flags, ..Frontend::default() }));
            key
        }

        /// Adds what a CIDR is.
        pub(crate) fn network(&mut self, cidr: &str, kind: NetworkKind, node: &str, flags: u16) {
            let cidr: ipnetwork::IpNetwork = cidr.parse().unwrap();
            let node = node.parse::<IpAddr>().unwrap().into();
            let network = Network { kind: kind as u32, node, flags, ..Network::default() };
            self.networks.push((Prefix::new(cidr.ip(), cidr.prefix()), network));
        }

        /// Adds both halves of a flow.
        pub(crate) fn flow(&mut self, service: u32, proto: Proto, flow: [&str; 4], flags: u8, last_seen: u32) {
            let (forward, there, reply, back) = flow_entries(service, proto, flow, flags, last_seen);
            self.conntrack.extend([(forward, there), (reply, back)]);
        }

        /// Adds the one entry of a flow that is sent on to another node: client, frontend, client, node.
        pub(crate) fn one_way(&mut self, service: u32, proto: Proto, flow: [&str; 4], last_seen: u32) {
            let (tuple, mut entry, ..) = flow_entries(service, proto, flow, CtEntry::ONE_WAY, last_seen);
            entry.out = Out::Via as u8;
            self.conntrack.push((tuple, entry));
        }

        /// Adds a local pod's address.
        pub(crate) fn endpoint(&mut self, ip: &str, ifindex: u32) {
            let ip: IpAddr = ip.parse().unwrap();
            let (mac, host_mac) = (Mac([2, 0, 0, 0, 0, 1]), Mac([2, 0, 0, 0, 0, 2]));
            let endpoint = Endpoint { ifindex: IfIndex(ifindex), mtu: 1500, mac, host_mac, ..Endpoint::default() };
            self.endpoints.push((ip.into(), endpoint));
        }
    }

    /// The two entries of a flow given as client, frontend, source after translation, backend.
    fn flow_entries(
        service: u32,
        proto: Proto,
        flow: [&str; 4],
        flags: u8,
        last_seen: u32,
    ) -> (Tuple, CtEntry, Tuple, CtEntry) {
        let [client, frontend, source, backend] = flow.map(|text| {
            let at: SocketAddr = text.parse().unwrap();
            (Addr::from(at.ip()), Port::new(at.port()))
        });
        let forward = Tuple { src: client.0, sport: client.1, dst: frontend.0, dport: frontend.1, proto, _pad: [0; 3] };
        let there = CtEntry {
            src: source.0,
            sport: source.1,
            dst: backend.0,
            dport: backend.1,
            service,
            flags,
            last_seen,
            ..CtEntry::default()
        };
        let reply = there.reply_key(proto);
        let back = there.reverse(&forward);
        (forward, there, reply, back)
    }
}
