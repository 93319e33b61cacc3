//! What a trace has to know: the node, the sender, the names; and where its packet is.

use std::net::IpAddr;

use podnet_common::addr::{Addr, IfIndex, Mac};
use podnet_common::layout::{Config, Hook};
use podnet_common::pipeline::{Route, Tables};

use super::facts::Names;
use super::report::Outcome;
use crate::datapath::inspect::{View, ViewError};
use crate::datapath::live::{Live, NoWay};
use crate::host::OutputRoute;

/// The node through which packets are traced: its tables, and the kernel's routes.
pub(super) trait Node: Tables {
    /// The route of a packet that arrives at `from`.
    fn forward(&self, from: IfIndex, src: &Addr, dst: &Addr) -> Result<Route, NoWay>;
    /// The cookie of the network namespace of the pod with this address, if its sockets are known.
    fn netns_cookie(&self, addr: &Addr) -> Result<Option<u64>, ViewError>;
}

impl Node for Live<'_> {
    fn forward(&self, from: IfIndex, src: &Addr, dst: &Addr) -> Result<Route, NoWay> {
        self.way(from, src, dst).copied()
    }

    fn netns_cookie(&self, addr: &Addr) -> Result<Option<u64>, ViewError> {
        Live::netns_cookie(self, addr)
    }
}

/// The sender of a packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Sender {
    /// A pod, by its host end.
    Pod(IfIndex),
    /// A process of the host.
    Host,
    /// Another machine, by the interface on which its packets arrive.
    Outside(IfIndex),
}

/// How a process sends.
#[derive(Clone, Copy, Debug)]
pub(super) struct Process {
    /// Whether its socket is bound to a port.
    pub(super) bound: bool,
    /// Whether its datagram socket is connected.
    pub(super) connected: bool,
}

/// Context of traces.
pub(super) struct Tracer<'a, N> {
    pub(super) node: &'a N,
    pub(super) view: &'a dyn View,
    pub(super) names: &'a Names,
    /// The route of the host's own packets, to a destination from a source.
    pub(super) output: &'a dyn Fn(IpAddr, Option<IpAddr>) -> anyhow::Result<Option<OutputRoute>>,
    /// The MAC of an interface; zeros if it has none.
    pub(super) own_mac: &'a dyn Fn(IfIndex) -> Mac,
    /// Whether the report includes the bytes of frames.
    pub(super) bytes: bool,
}

/// Position of a packet.
pub(super) enum Place {
    At(Hook, IfIndex),
    /// In the host's stack, having arrived on this interface.
    Stack(IfIndex),
    /// Leaving the stack on this interface.
    Out(IfIndex),
    End(Outcome),
}

impl<N: Node> Tracer<'_, N> {
    pub(super) fn config(&self) -> Config {
        self.node.config().copied().unwrap_or_default()
    }

    /// Whether an interface is an uplink or the tunnel.
    pub(super) fn has_hooks(&self, ifindex: IfIndex) -> bool {
        let config = self.config();
        config.is_uplink(ifindex)
            || self.node.interface(&ifindex).is_some()
            || (ifindex == config.tunnel && config.tunnel != IfIndex(0))
    }
}
