//! Hooks as types.

use crate::{addr::IfIndex, layout::Hook};

/// A hook as a type, so that each program contains only the code of its own hook.
pub trait HookPoint {
    /// The hook.
    const HOOK: Hook;
    /// Packets leave the host's stack, which has routed them.
    const EGRESS: bool = matches!(Self::HOOK, Hook::ToPod | Hook::ToUplink | Hook::ToRaw);
    /// Packets leave the host's stack for a pod on this node.
    const TO_POD: bool = matches!(Self::HOOK, Hook::ToPod);
    /// Packets come from a pod on this node.
    const FROM_POD: bool = matches!(Self::HOOK, Hook::FromPod);
    /// Packets come from processes of the host.
    const FROM_HOST: bool = matches!(Self::HOOK, Hook::FromHost);
    /// Packets arrive from outside the node, before the host's stack.
    const FROM_UPLINK: bool = matches!(Self::HOOK, Hook::FromUplink);

    /// Value of [`CtEntry::in_ifindex`](crate::layout::CtEntry::in_ifindex) for an interface at this hook: packets that
    /// the stack sends out of an interface must not match those received on it, whose source is checked.
    #[inline(always)]
    fn side(ifindex: IfIndex) -> IfIndex {
        if Self::EGRESS { IfIndex(!ifindex.0) } else { ifindex }
    }
}

macro_rules! hook_points {
    ($($name:ident)*) => { $(
        #[doc = concat!("[`Hook::", stringify!($name), "`] as a type.")]
        pub struct $name;
        impl HookPoint for $name {
            const HOOK: Hook = Hook::$name;
        }
    )* };
}

hook_points! { FromPod ToPod FromUplink ToUplink FromHost UplinkXdp FromLoopback ToRaw }
