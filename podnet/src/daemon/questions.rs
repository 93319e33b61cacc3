//! Answers to questions from the socket: snapshots, so that the event loop never waits for a command.

use podnet_common::layout::PolicyDenial;

use crate::{
    control::{Control, denials::Denials},
    model::ObjectName,
    policy::{DeniedBy, Direction, Policies},
    socket::{
        AddressPage, DeniedPackets, DenyingRule, Explainable, ExternalAddresses, Pending, PodFacts, PolicyFacts,
        PolicyPage, PolicySummary, Question, Unsynced,
    },
    source::Source,
};

use super::report::{self, Reporter};

/// Number of services examined for one page of external addresses.
const PAGE: usize = 4096;
/// Number of policies in one page: each is compared with the pods of the cluster.
const POLICY_PAGE: usize = 16;

/// Answers a question. The client may have disconnected meanwhile.
pub(super) fn answer(question: Question, report: &Reporter, control: &Control, source: &Source) {
    match question {
        Question::Status(reply) => drop(reply.send(report.last().clone())),
        Question::Pending(reply) => drop(reply.send(Pending {
            synced: control.synced(),
            frontends: control.pending().iter().map(report::pending).collect(),
        })),
        Question::Explain(name, reply) => {
            let invalid = source.status().mistakes.into_iter().map(|mistake| mistake.place.to_string()).collect();
            drop(reply.send(Explainable { service: control.inputs(&name), invalid }));
        }
        Question::Addresses(after, reply) => drop(reply.send(addresses(control, after.as_ref()))),
        Question::Policies(after, reply) => {
            drop(reply.send(known(control).map(|known| policies(known, control.policies().denials(), after.as_ref()))));
        }
        Question::Policy(name, reply) => drop(reply.send(known(control).map(|known| PolicyFacts::of(known, &name)))),
        Question::Denials(reply) => {
            let named = |(key, by): (&PolicyDenial, &DeniedBy)| DenyingRule {
                set: key.set,
                rule: key.rule,
                policies: by.policies.iter().map(ObjectName::to_string).collect(),
            };
            drop(reply.send(control.policies().policies().denials().iter().map(named).collect()));
        }
        Question::Denying(denial, reply) => {
            drop(reply.send(control.denying(&denial)));
        }
        Question::PodPolicies(pod, reply) => drop(reply.send(known(control).map(|known| PodFacts::of(known, &pod)))),
    }
}

/// The policies, once all are known.
fn known(control: &Control) -> Result<&Policies, Unsynced> {
    if control.policies_synced() { Ok(control.policies().policies()) } else { Err(Unsynced) }
}

fn policies(known: &Policies, denials: &Denials, after: Option<&ObjectName>) -> PolicyPage {
    let (mut page, mut last) = (PolicyPage::default(), None);
    let mut policies = known.after(after);
    for (name, policy) in policies.by_ref().take(POLICY_PAGE) {
        last = Some(name);
        let [ingress, egress] = [Direction::Ingress, Direction::Egress].map(|to| denials.of(name, to));
        page.policies.push(PolicySummary::of(known, name, policy, DeniedPackets { ingress, egress }));
    }
    page.last = last.filter(|_| policies.next().is_some()).cloned();
    page
}

fn addresses(control: &Control, after: Option<&ObjectName>) -> AddressPage {
    let (mut page, mut last) = (AddressPage::default(), None);
    let mut services = control.services_after(after);
    for (name, service) in services.by_ref().take(PAGE) {
        last = Some(name);
        page.services.extend(service.and_then(|service| ExternalAddresses::of(name, service)));
    }
    page.last = last.filter(|_| services.next().is_some()).cloned();
    page
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::{
        config::Config,
        datapath::memory::MemoryTables,
        model::{Batch, Change, Kind, NetworkPolicy, Object, ObjectKey, Service},
    };

    /// Without objects.
    fn empty() -> Control {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().display();
        let config =
            Config::parse(&format!("{{node: n1, manifests: {path}/m, runDir: {path}/run, stateDir: {path}/state}}"));
        Control::adopt(&config.unwrap(), &MemoryTables::new(100, 100, 100)).unwrap()
    }

    /// Services `s0000` and so on; every second one has an external IP.
    fn control(services: usize) -> Control {
        let mut control = empty();
        let change = |number: usize| {
            let external_ips = if number.is_multiple_of(2) { vec!["203.0.113.1".parse().unwrap()] } else { Vec::new() };
            let service = Object::Service(Arc::new(Service { external_ips, ..Service::default() }));
            Change::new(ObjectKey::new(Kind::Service, "x", &format!("s{number:04}")), Some(service))
        };
        control.apply(Batch { changes: (0..services).map(change).collect(), synced: true, policies_synced: true });
        control
    }

    fn pages(control: &Control) -> Vec<Vec<ExternalAddresses>> {
        let (mut pages, mut after) = (Vec::new(), None);
        loop {
            let AddressPage { services, last } = addresses(control, after.as_ref());
            pages.push(services);
            match last {
                Some(last) => after = Some(last),
                None => return pages,
            }
        }
    }

    #[test]
    fn external_addresses_come_in_pages() {
        for (services, expected) in [(0, &[0][..]), (3, &[2]), (PAGE, &[PAGE / 2]), (PAGE + 1, &[PAGE / 2, 1])] {
            let pages = pages(&control(services));
            assert_eq!(pages.iter().map(Vec::len).collect::<Vec<_>>(), expected, "{services}");
            let names = pages.iter().flatten().map(|service| service.name.clone());
            assert!(names.eq((0..services).step_by(2).map(|number| format!("s{number:04}"))), "each once, in order");
        }
    }

    #[test]
    fn policy_pages_come_once_all_objects_are_read() {
        for (count, expected) in
            [(0, &[0][..]), (1, &[1]), (POLICY_PAGE, &[POLICY_PAGE]), (POLICY_PAGE + 1, &[POLICY_PAGE, 1])]
        {
            let mut control = empty();
            assert_eq!(known(&control).err(), Some(Unsynced));
            let change = |number: usize| {
                let policy = Object::NetworkPolicy(Arc::new(NetworkPolicy::default()));
                Change::new(ObjectKey::new(Kind::NetworkPolicy, "x", &format!("p{number:04}")), Some(policy))
            };
            control.apply(Batch { changes: (0..count).map(change).collect(), synced: true, policies_synced: true });
            let (mut sizes, mut names, mut after) = (Vec::new(), Vec::new(), None);
            loop {
                let page = policies(known(&control).unwrap(), control.policies().denials(), after.as_ref());
                sizes.push(page.policies.len());
                names.extend(page.policies.into_iter().map(|policy| policy.name));
                after = page.last;
                if after.is_none() {
                    break;
                }
            }
            assert_eq!(sizes, expected, "{count}");
            assert!(names.into_iter().eq((0..count).map(|number| format!("p{number:04}"))), "each once, in order");
        }
    }

    #[test]
    fn a_service_is_explained_from_a_snapshot() {
        let mut control = control(2);
        let name = |name: &str| ObjectName { namespace: "x".into(), name: name.into() };
        let inputs = control.inputs(&name("s0000")).unwrap();
        assert!(control.inputs(&name("none")).is_none());
        let gone = Change::new(ObjectKey::new(Kind::Service, "x", "s0000"), None);
        control.apply(Batch { changes: vec![gone], synced: true, policies_synced: true });
        assert!(control.inputs(&name("s0000")).is_none());
        assert_eq!(inputs.explain().name, "s0000");
    }
}
