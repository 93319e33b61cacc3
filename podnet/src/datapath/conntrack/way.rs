//! Paths of UDP flows to services, by which stale flows are recognised when a backend is gone.

use std::{collections::HashMap, net::IpAddr};

use podnet_common::{
    addr::{Addr, Port, Proto},
    layout::{Backend, CtEntry, FrontendKey, Tuple},
};

/// Path of UDP flows from a frontend to a backend. Flows may outlive it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Way {
    frontend: (Addr, Port),
    /// Address and port of the backend. With direct server return only the backend's node is known, and there is no
    /// port.
    end: (Addr, Option<Port>),
}

/// End of a path.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    /// A backend.
    Backend(Backend),
    /// Another node, which selects the backend.
    Node(IpAddr),
}

impl Way {
    /// The path of an entry, if it belongs to a UDP flow of a service.
    pub(super) fn of(tuple: &Tuple, entry: &CtEntry) -> Option<Self> {
        // Without a service: a flow of a pod to a destination outside the cluster, which depends on no backend.
        if tuple.proto != Proto::UDP || entry.service == 0 {
            return None;
        }
        // The client's half has the frontend in its key; the reply's half has it as the source after translation.
        let (frontend, backend) = if entry.flags & CtEntry::REPLY == 0 {
            ((tuple.dst, tuple.dport), (entry.dst, entry.dport))
        } else {
            ((entry.src, entry.sport), (tuple.src, tuple.sport))
        };
        let one_way = entry.flags & CtEntry::ONE_WAY != 0;
        Some(Self { frontend, end: (backend.0, (!one_way).then_some(backend.1)) })
    }

    /// The frontend, with the scope for any client.
    pub fn frontend(&self) -> FrontendKey {
        let (addr, port) = self.frontend;
        FrontendKey { addr, port, proto: Proto::UDP, scope: FrontendKey::ANY }
    }

    /// The end of the path.
    pub fn end(&self) -> End {
        match self.end {
            (addr, Some(port)) => End::Backend(Backend { addr, port, proto: Proto::UDP, _pad: 0 }),
            (addr, None) => End::Node(addr.into()),
        }
    }
}

/// Stale paths, and whether the time for last replies is over.
pub type Stale = HashMap<Way, bool>;
