//! The tables of network policy, as the room writes them.

use podnet_common::addr::Addr;
use podnet_common::layout::{PolicyDenial, PolicyPod, PolicyRule, PolicyVerdict, Prefix, ProtoPort, Subject};

use crate::mirror::{Counts, Entries};

/// The tables of network policy.
pub trait PolicyTables:
    Entries<Addr, Subject>
    + Entries<u32, PolicyPod>
    + Entries<Addr, u32>
    + Entries<Prefix, u32>
    + Entries<ProtoPort, u32>
    + Entries<PolicyRule, PolicyVerdict>
    + Entries<PolicyDenial, ()>
    + Counts<PolicyDenial>
{
}

impl<T> PolicyTables for T where
    T: Entries<Addr, Subject>
        + Entries<u32, PolicyPod>
        + Entries<Addr, u32>
        + Entries<Prefix, u32>
        + Entries<ProtoPort, u32>
        + Entries<PolicyRule, PolicyVerdict>
        + Entries<PolicyDenial, ()>
        + Counts<PolicyDenial>
{
}
