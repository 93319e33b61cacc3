//! Pods that network policy doesn't isolate are known by their interfaces, and not looked up as subjects.

use std::net::IpAddr;

use anyhow::Result;
use podnet_common::{
    addr::IfIndex,
    layout::Subject,
    simulator::{FinalVerdict, HostTables},
    verdict::Reason,
};

use crate::{
    cluster::{Addresses, Both, HERE, NODE_PORT, addresses},
    expect::both_families_with,
    policy::{denied, firsts, isolate, leaves, passes},
};

/// Interface of the backend.
const BACKEND: IfIndex = IfIndex(71);

/// Runs a test with policies that allow nothing to the node's pods, and these interfaces in `open_pods`. Such tables
/// are contradictory; they show which of them is used.
fn with(open: &'static [IfIndex], test: impl Fn(&mut Both, &Addresses) -> Result<()> + Copy + Send + 'static) {
    let change = move |t: &mut HostTables| {
        for a in [false, true].map(addresses) {
            isolate(t, a.client, 0, true, &[]);
            isolate(t, a.backend, 0, false, &[]);
        }
        t.open_pods = open.iter().map(|link| (Subject::open_slot(*link), *link)).collect();
    };
    both_families_with(change, move |both, a, _| test(both, a));
}

/// Checks the first packets of flows from one address to others: whether they pass, or why they are denied.
fn check(both: &Both, a: &Addresses, client: IpAddr, servers: &[(IpAddr, u16)], denies: Option<Reason>) -> Result<()> {
    for frame in servers.iter().flat_map(|server| firsts((client, 40_000), *server)) {
        match denies {
            Some(reason) => denied(both, a, frame, reason)?,
            None => passes(both, a, frame)?,
        }
    }
    Ok(())
}

#[test]
fn interfaces_tell_which_end_is_open() {
    let check_all = |egress: bool, ingress: bool| {
        move |both: &mut Both, a: &Addresses| {
            let of_pod = [(a.backend, 8080), (a.local, 80)];
            let (out, inside) =
                ((!egress).then_some(Reason::PolicyEgress), (!ingress).then_some(Reason::PolicyIngress));
            check(both, a, a.client, &[(a.remote, 8080), (a.far, 80), (a.outside, 8080)], out)?;
            check(both, a, a.client, &of_pod, out.or(inside))?;
            check(both, a, a.remote, &[(a.backend, 8080)], inside)?;
            check(both, a, a.outside, &[(a.node, NODE_PORT)], inside)
        }
    };
    with(&[], check_all(false, false));
    with(&[HERE], check_all(true, false));
    with(&[BACKEND], check_all(false, true));
    with(&[HERE, BACKEND], check_all(true, true));
    // Others with the same slots.
    with(&[IfIndex(HERE.0 + Subject::OPEN_SLOTS), IfIndex(BACKEND.0 + Subject::OPEN_SLOTS)], check_all(false, false));
}

#[test]
fn a_subject_without_an_interface_receives_nothing_from_the_stack() {
    let change = |t: &mut HostTables| {
        for a in [false, true].map(addresses) {
            isolate(t, a.backend, 0, false, &[]);
            t.endpoints.remove(&a.backend.into());
        }
        t.open_pods = [(Subject::open_slot(HERE), HERE)].into();
    };
    both_families_with(change, |both, a, _| {
        for frame in firsts((a.client, 40_000), (a.backend, 8080)) {
            passes(both, a, frame.clone())?;
            leaves(both, &frame, FinalVerdict::Drop(Reason::PolicyIngress))?;
        }
        Ok(())
    });
}
