//! The hooks of an uplink and their state.

use podnet_cni::datapath::Direction;
use podnet_common::{addr::IfIndex, layout::Hook};

use crate::config::Xdp;

/// An uplink.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct UplinkHook {
    /// Its name.
    pub name: String,
    /// Its index.
    pub ifindex: IfIndex,
    /// Whether its frames begin with the IP header instead of an Ethernet header.
    pub raw: bool,
    /// Configured mode of the XDP program; `None` if the interface can't carry one.
    pub xdp: Option<Xdp>,
}

/// A hook and its direction on the link.
pub(super) type Side = (Hook, Direction);

/// The TC hooks of an uplink.
pub(super) const UPLINK_HOOKS: [Side; 2] =
    [(Hook::FromUplink, Direction::Ingress), (Hook::ToUplink, Direction::Egress)];
/// The TC hooks of an uplink whose frames begin with the IP header.
pub(super) const RAW_HOOKS: [Side; 2] = [(Hook::FromRaw, Direction::Ingress), (Hook::ToRaw, Direction::Egress)];

impl UplinkHook {
    pub(super) fn sides(&self) -> &'static [Side] {
        if self.raw { &RAW_HOOKS } else { &UPLINK_HOOKS }
    }
}

/// State of an uplink's hooks.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct UplinkState {
    /// The uplink's name.
    pub name: String,
    /// Its hooks.
    pub hooks: Vec<HookState>,
}

/// State of a hook.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HookState {
    /// The hook.
    pub hook: Hook,
    /// How it is attached (or why it need not be), or why attaching failed.
    pub how: Result<String, String>,
}
