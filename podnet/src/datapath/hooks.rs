//! The hooks of an uplink: which there are, and how they stand.

use podnet_cni::datapath::Direction;
use podnet_common::{addr::IfIndex, layout::Hook};

use crate::config::Xdp;

/// An interface that leads out of the node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct UplinkHook {
    /// Its name.
    pub name: String,
    /// Its index.
    pub ifindex: IfIndex,
    /// Whether its frames begin with the IP header.
    pub raw: bool,
    /// Whether it is to carry an XDP program; `None`: that is out of the question.
    pub xdp: Option<Xdp>,
}

/// A hook, and where on a link it is.
pub(super) type Side = (Hook, Direction);

/// The TC hooks of an uplink.
pub(super) const UPLINK_HOOKS: [Side; 2] =
    [(Hook::FromUplink, Direction::Ingress), (Hook::ToUplink, Direction::Egress)];
/// Those of one whose frames begin with the IP header.
pub(super) const RAW_HOOKS: [Side; 2] = [(Hook::FromRaw, Direction::Ingress), (Hook::ToRaw, Direction::Egress)];

impl UplinkHook {
    pub(super) fn sides(&self) -> &'static [Side] {
        if self.raw { &RAW_HOOKS } else { &UPLINK_HOOKS }
    }
}

/// How the hooks of an uplink stand.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct UplinkState {
    /// The uplink's name.
    pub name: String,
    /// Its hooks.
    pub hooks: Vec<HookState>,
}

/// How a hook stands.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HookState {
    /// The hook.
    pub hook: Hook,
    /// How it is attached (or why it need not be), or why it could not be.
    pub how: Result<String, String>,
}
