//! Random sequences of changes.

use std::collections::BTreeSet;

use podnet_common::layout::Subject;
use proptest::prelude::*;

use super::random::{any_cluster_policy, cluster, namespace_of, node, pod, policy, questions};
use super::*;
use crate::policy::Desired;

#[derive(Clone, Debug)]
enum Step {
    Policy(ObjectName, Option<NetworkPolicy>),
    ClusterPolicy(String, Option<ClusterNetworkPolicy>),
    Node(String, Option<Node>),
    Namespace(String, Option<Namespace>),
    Pod(ObjectName, Option<Pod>),
}

impl Step {
    fn apply(self, cluster: &mut Cluster, policies: &mut Policies) {
        match self {
            Self::Policy(name, policy) => {
                policies.set_policy(&name, policy.clone().map(Into::into));
                put(&mut cluster.policies, name, policy);
            }
            Self::ClusterPolicy(own, policy) => {
                policies.set_policy(&name("", &own), policy.clone().map(Into::into));
                put(&mut cluster.cluster_policies, own, policy);
            }
            Self::Node(name, node) => {
                policies.set_node(&name, node.as_ref());
                put(&mut cluster.nodes, name, node);
            }
            Self::Namespace(name, namespace) => {
                policies.set_namespace(&name, namespace.as_ref());
                put(&mut cluster.namespaces, name, namespace);
            }
            Self::Pod(name, pod) => {
                policies.set_pod(&name, pod.as_ref());
                put(&mut cluster.pods, name, pod);
            }
        }
    }
}

fn put<K: Ord, V>(map: &mut BTreeMap<K, V>, key: K, value: Option<V>) {
    match value {
        Some(value) => map.insert(key, value),
        None => map.remove(&key),
    };
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        2 => policy().prop_map(|(name, policy)| Step::Policy(name, policy)),
        2 => any_cluster_policy().prop_map(|(name, policy)| Step::ClusterPolicy(name, policy)),
        1 => node().prop_map(|(name, node)| Step::Node(name, node)),
        1 => namespace_of().prop_map(|(name, namespace)| Step::Namespace(name, namespace)),
        3 => pod().prop_map(|(name, pod)| Step::Pod(name, pod)),
    ]
}

/// The tables between two states, in the order in which they are written.
fn between(old: &Desired, new: &Desired) -> Vec<Desired> {
    let mut states = vec![old.clone()];
    let mut next = |change: &dyn Fn(&mut Desired)| {
        let mut state = states.last().unwrap().clone();
        change(&mut state);
        states.push(state);
    };
    next(&|state| state.rules.extend(&new.rules));
    next(&|state| state.ports.extend(&new.ports));
    next(&|state| state.ports.clone_from(&new.ports));
    next(&|state| state.peers.clone_from(&new.peers));
    next(&|state| state.blocks.extend(&new.blocks));
    next(&|state| state.blocks.clone_from(&new.blocks));
    next(&|state| state.subjects.clone_from(&new.subjects));
    states
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 48, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn changes_lead_to_the_same_verdicts(cluster in cluster(), steps in prop::collection::vec((step(), 0..3_u8), 1..10)) {
        let (mut cluster, mut policies) = (cluster.clone(), cluster.compile());
        let questions = questions();
        for (step, then) in steps {
            step.apply(&mut cluster, &mut policies);
            // Some changes come together, and some tables are written at leisure.
            if then == 0 {
                continue;
            }
            policies.update();
            let mut pipeline = Pipeline::new(policies.desired());
            for question in &questions {
                prop_assert_eq!(pipeline.allows(question), cluster.allows(question), "{:?}", question);
            }
            if then == 2 {
                policies.written(&BTreeSet::new());
            }
        }
        policies.update();
        (0..4).for_each(|_| _ = policies.written(&BTreeSet::new()));
        prop_assert!(!policies.written(&BTreeSet::new()), "nothing is left to be taken out");
        let fresh = cluster.compile();
        for mut pipeline in [&policies, &fresh].map(|policies| Pipeline::new(policies.desired())) {
            for question in &questions {
                prop_assert_eq!(pipeline.allows(question), cluster.allows(question), "{:?}", question);
            }
        }
        let size = |of: &Policies| {
            let Desired { subjects, peers, blocks, .. } = of.desired();
            let sets = subjects.values().flat_map(|of| [of.ingress, of.egress]).filter(|set| *set != Subject::CLOSED);
            (subjects.len(), peers.len(), blocks.len(), sets.collect::<std::collections::BTreeSet<_>>().len())
        };
        prop_assert_eq!(size(&policies), size(&fresh));
        // A daemon that starts now keeps the tables, if nothing in them is superfluous by now.
        for (held, is_kept) in [(fresh.desired(), true), (policies.desired(), false)] {
            let mut next = Policies::new(NODE);
            next.start_after(held);
            cluster.fill(&mut next);
            next.adopt_ids(held);
            prop_assert!(!is_kept || next.desired() == held);
            let mut pipeline = Pipeline::new(next.desired());
            for question in &questions {
                prop_assert_eq!(pipeline.allows(question), cluster.allows(question), "{:?}", question);
            }
        }
    }

    /// While tables are written, every packet gets the verdict of before or that of after.
    #[test]
    fn no_state_in_between_is_worse(cluster in cluster(), steps in prop::collection::vec(step(), 1..4)) {
        let (mut cluster, mut policies) = (cluster.clone(), cluster.compile());
        let old = policies.desired().clone();
        let before = cluster.clone();
        for step in steps {
            step.apply(&mut cluster, &mut policies);
        }
        policies.update();
        let mut new = policies.desired().clone();
        let questions: Vec<_> = questions().into_iter().step_by(3).collect();
        // A pod or namespace that changes concerns its address in one table and all subjects in another.
        let unchanged = before.pods == cluster.pods
            && before.namespaces == cluster.namespaces
            && before.nodes == cluster.nodes;
        for state in between(&old, &new) {
            let mut pipeline = Pipeline::new(&state);
            for question in questions.iter().filter(|_| unchanged) {
                let verdict = pipeline.allows(question);
                let right = [before.allows(question), cluster.allows(question)];
                prop_assert!(right.contains(&verdict), "{:?}", question);
            }
        }
        while policies.written(&BTreeSet::new()) {
            for state in between(&new, policies.desired()) {
                let mut pipeline = Pipeline::new(&state);
                for question in &questions {
                    prop_assert_eq!(pipeline.allows(question), cluster.allows(question), "{:?}", question);
                }
            }
            new = policies.desired().clone();
        }
    }
}
