//! What network policy needs to know of a pod of this node is known by its interface, and not looked up by address.

use std::net::IpAddr;

use anyhow::Result;
use podnet_common::{
    addr::IfIndex,
    layout::{OfLink, PolicyPod, PolicyRule, Subject},
    simulator::{FinalVerdict, HostTables},
    verdict::Reason,
};

use crate::{
    cluster::{Addresses, Both, HERE, NODE_PORT, addresses},
    expect::both_families_with,
    policy::{FRIENDS, SET, denied, firsts, isolate, leaves, passes},
};

/// Interface of the backend.
const BACKEND: IfIndex = IfIndex(71);

/// Interface with the same slot as another.
const fn beside(link: IfIndex) -> IfIndex {
    IfIndex(link.0 + PolicyPod::SLOTS)
}

/// An entry of a pod without policies.
fn open(link: IfIndex) -> (u32, PolicyPod) {
    let set = OfLink::new(link, Subject::OPEN);
    (PolicyPod::slot(link), PolicyPod { ingress: set, egress: set, ..PolicyPod::default() })
}

/// Runs a test with policies that allow nothing to the node's pods, and open pods with these interfaces. Such tables
/// are contradictory; they show which of them is used.
fn with(open_pods: &'static [IfIndex], test: impl Fn(&mut Both, &Addresses) -> Result<()> + Copy + Send + 'static) {
    let change = move |t: &mut HostTables| {
        for a in [false, true].map(addresses) {
            isolate(t, a.client, 0, true, &[]);
            isolate(t, a.backend, 0, false, &[]);
        }
        t.policy_pods = open_pods.iter().copied().map(open).collect();
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
    with(const { &[beside(HERE), beside(BACKEND)] }, check_all(false, false));
}

/// Entries of the client and the backend, in tables that contain nothing else about them. The backend allows a class of
/// peers, to which the client may belong, and the client sends to them only.
fn entries(class: OfLink, both_families: bool) -> [(u32, PolicyPod); 2] {
    let set = |link, set| OfLink::new(link, set | Subject::CLASS_ALL);
    let class_v6 = if both_families { class } else { OfLink::default() };
    let client = PolicyPod { ingress: OfLink::new(HERE, 0), egress: set(HERE, SET + 1), class_v4: class, class_v6 };
    let friends = OfLink::new(BACKEND, FRIENDS);
    let (ingress, egress) = (set(BACKEND, SET), OfLink::new(BACKEND, 0));
    let backend = PolicyPod { ingress, egress, class_v4: friends, class_v6: friends };
    [(PolicyPod::slot(HERE), client), (PolicyPod::slot(BACKEND), backend)]
}

#[test]
fn interfaces_tell_rule_sets_and_classes() {
    let cases = [
        (OfLink::new(HERE, FRIENDS), true),
        (OfLink::new(HERE, FRIENDS), false),
        (OfLink::new(HERE, FRIENDS + 1), true),
        (OfLink::new(beside(HERE), FRIENDS), true),
        (OfLink::default(), true),
    ];
    for (class, both_families) in cases {
        let change = move |t: &mut HostTables| {
            for egress in [false, true] {
                isolate(t, addresses(false).client, 0, egress, &[(FRIENDS, PolicyRule::ALL)]);
            }
            t.subjects.clear();
            t.policy_pods = entries(class, both_families).into();
        };
        both_families_with(change, move |both, a, _| {
            let friend = class == OfLink::new(HERE, FRIENDS) && (both_families || a.client.is_ipv4());
            let inside = (!friend).then_some(Reason::PolicyIngress);
            check(both, a, a.client, &[(a.backend, 8080), (a.local, 80)], inside)?;
            check(both, a, a.client, &[(a.remote, 8080), (a.outside, 8080)], Some(Reason::PolicyEgress))?;
            check(both, a, a.remote, &[(a.backend, 8080)], Some(Reason::PolicyIngress))
        });
    }
}

#[test]
fn a_subject_without_an_interface_receives_nothing_from_the_stack() {
    let change = |t: &mut HostTables| {
        for a in [false, true].map(addresses) {
            isolate(t, a.backend, 0, false, &[]);
            t.endpoints.remove(&a.backend.into());
        }
        t.policy_pods = [open(HERE)].into();
    };
    both_families_with(change, |both, a, _| {
        for frame in firsts((a.client, 40_000), (a.backend, 8080)) {
            passes(both, a, frame.clone())?;
            leaves(both, &frame, FinalVerdict::Drop(Reason::PolicyIngress))?;
        }
        Ok(())
    });
}
