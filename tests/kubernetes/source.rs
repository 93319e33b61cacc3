//! The source against a scripted server: after any sequence of faults it converges to the contents of a new list.

use std::collections::BTreeMap;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use podnet::model::{Batch, Kind, Object, ObjectKey, raw};
use podnet::source::kubernetes::KubernetesSource;
use podnet_tests::api::{Abilities, Api, Mood, Streaming};
use podnet_tests::lab::{NetNs, PATIENCE, wait_until};
use proptest::prelude::*;
use proptest::test_runner::{Config, TestRunner};
use serde_json::{Value, json};
use tokio::runtime::Runtime;
use tokio::time::timeout;

use super::asked;

mod missing;

/// A server in its own network namespace, and a source that watches it.
struct Site {
    api: Api,
    source: KubernetesSource,
    runtime: Runtime,
    seen: BTreeMap<ObjectKey, Object>,
    synced: bool,
    _directory: tempfile::TempDir,
}

impl Site {
    fn new(abilities: Abilities, objects: &[Value]) -> Result<Self> {
        let (api, source, directory) = asked(abilities, objects)?;
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        Ok(Self { api, source, runtime, seen: BTreeMap::new(), synced: false, _directory: directory })
    }

    /// Applies batches of the source until a condition holds.
    fn until(&mut self, what: &str, mut condition: impl FnMut(&Self) -> bool) -> Result<()> {
        while !condition(self) {
            let next = async { timeout(PATIENCE, self.source.next()).await };
            let batch = self.runtime.block_on(next);
            let batch = batch.with_context(|| {
                let (asked, status) = (self.api.requests(), self.source.status());
                format!("nothing comes while waiting: {what}; asked was {asked:?}; {status:?}")
            })??;
            self.take_in(batch)?;
        }
        Ok(())
    }

    fn take_in(&mut self, batch: Batch) -> Result<()> {
        ensure!(batch.synced || batch.changes.is_empty(), "half of a cluster was given");
        ensure!(batch.synced || !self.synced, "once synced, always synced");
        self.synced = batch.synced;
        for change in batch.changes {
            match change.object {
                Some(object) => drop(self.seen.insert(change.key, object)),
                None => drop(self.seen.remove(&change.key)),
            }
        }
        Ok(())
    }

    /// Contents of a new list.
    fn expected(&self) -> BTreeMap<ObjectKey, Object> {
        let object = |value: Value| {
            let raw: raw::Manifest = serde_json::from_value(value).unwrap();
            let kind = Kind::of(&raw.api_version, &raw.kind).unwrap().unwrap();
            Object::new(kind, raw).unwrap()
        };
        let mut all = self.api.objects();
        all.retain(|object| object["kind"] != "CustomResourceDefinition");
        let mut all: BTreeMap<_, _> = all.into_iter().map(object).collect();
        // Pods are of no use without policies.
        if !all.keys().any(|key| matches!(key.kind, Kind::NetworkPolicy | Kind::ClusterNetworkPolicy)) {
            all.retain(|key, _| key.kind != Kind::Pod);
        }
        all
    }

    fn converges(&mut self) -> Result<()> {
        let expected = self.expected();
        let result = self.until("what a fresh list has", |site| site.synced && site.seen == expected);
        result.with_context(|| format!("it has {:#?}\nand should have {expected:#?}", self.seen))
    }
}

/// Runs a test in a network namespace with loopback only.
fn alone<T: Send>(test: impl FnOnce() -> Result<T> + Send) -> Result<T> {
    let netns = NetNs::new()?;
    netns.run(|| {
        let up = std::process::Command::new("ip").args(["link", "set", "lo", "up"]).status()?;
        ensure!(up.success(), "ip link set lo up");
        test()
    })?
}

fn node(name: &str, number: u8) -> Value {
    json!({"apiVersion": "v1", "kind": "Node", "metadata": {"name": name},
        "spec": {"podCIDRs": [format!("10.244.{number}.0/24")]},
        "status": {"addresses": [{"type": "InternalIP", "address": format!("172.30.0.{number}")}]}})
}

fn service(name: &str, number: u8) -> Value {
    json!({"apiVersion": "v1", "kind": "Service", "metadata": {"name": name, "namespace": "x"},
        "spec": {"clusterIP": format!("10.96.0.{number}"), "ports": [{"port": 80}]}})
}

fn slice(name: &str, number: u8) -> Value {
    json!({"apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice", "addressType": "IPv4",
        "metadata": {"name": name, "namespace": "x", "labels": {"kubernetes.io/service-name": "a"}},
        "ports": [{"port": 8080}], "endpoints": [{"addresses": [format!("10.244.1.{number}")]}]})
}

fn range(name: &str, number: u8) -> Value {
    json!({"apiVersion": "networking.k8s.io/v1", "kind": "ServiceCIDR", "metadata": {"name": name},
        "spec": {"cidrs": [format!("10.{number}.0.0/16")]}})
}

fn policy(name: &str, number: u8) -> Value {
    json!({"apiVersion": "networking.k8s.io/v1", "kind": "NetworkPolicy", "metadata": {"name": name, "namespace": "x"},
        "spec": {"podSelector": {}, "ingress": [{"ports": [{"port": number}]}]}})
}

fn cluster_policy(name: &str, number: u8) -> Value {
    json!({"apiVersion": "policy.networking.k8s.io/v1alpha2", "kind": "ClusterNetworkPolicy",
        "metadata": {"name": name},
        "spec": {"tier": "Admin", "priority": number, "subject": {"namespaces": {}},
            "ingress": [{"action": "Deny", "from": [{"namespaces": {}}]}]}})
}

fn namespace(name: &str, number: u8) -> Value {
    json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name, "labels": {"number": number.to_string()}}})
}

fn pod(name: &str, number: u8) -> Value {
    json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name, "namespace": "x", "uid": name},
        "spec": {"nodeName": "n2"}, "status": {"podIP": format!("10.244.2.{number}")}})
}

fn one_of_each() -> Vec<Value> {
    vec![node("n1", 1), service("a", 1), slice("a-1", 2), range("kubernetes", 96)]
}

/// Events in a cluster and its API server.
#[derive(Clone, Debug)]
enum Step {
    Apply(Kind, u8, u8),
    Delete(Kind, u8),
    Bookmark,
    Disconnect,
    /// The watch history is lost, and watches restart.
    Forget,
    /// Requests are refused for a moment.
    Refuse(u16),
    Wait,
}

fn step() -> impl Strategy<Value = Step> {
    let kind = prop::sample::select(Kind::ALL.to_vec());
    prop_oneof![
        8 => (kind.clone(), 0..5_u8, 1..200_u8).prop_map(|(kind, name, number)| Step::Apply(kind, name, number)),
        4 => (kind, 0..5_u8).prop_map(|(kind, name)| Step::Delete(kind, name)),
        1 => Just(Step::Bookmark),
        1 => Just(Step::Disconnect),
        1 => Just(Step::Forget),
        1 => prop::sample::select(vec![429_u16, 500, 503]).prop_map(Step::Refuse),
        2 => Just(Step::Wait),
    ]
}

fn object(kind: Kind, name: u8, number: u8) -> Value {
    let name = format!("o{name}");
    match kind {
        Kind::Service => service(&name, number),
        Kind::EndpointSlice => slice(&name, number),
        Kind::Node => node(&name, number),
        Kind::ServiceCidr => range(&name, number),
        Kind::NetworkPolicy => policy(&name, number),
        Kind::ClusterNetworkPolicy => cluster_policy(&name, number),
        Kind::Namespace => namespace(&name, number),
        Kind::Pod => pod(&name, number),
    }
}

fn play(site: &mut Site, steps: &[Step]) -> Result<()> {
    for step in steps {
        match *step {
            Step::Apply(kind, name, number) => site.api.apply(object(kind, name, number)),
            Step::Delete(kind, name) => site.api.delete(&object(kind, name, 1)),
            Step::Bookmark => site.api.bookmark(),
            Step::Disconnect => site.api.disconnect(),
            Step::Forget => {
                site.api.forget();
                site.api.disconnect();
            }
            Step::Refuse(code) => {
                site.api.requests();
                site.api.set_mood(Mood::Refusing(code));
                // At least one request is refused.
                wait_until("a request", || Ok(!site.api.requests().is_empty()))?;
                site.api.set_mood(Mood::Well);
            }
            Step::Wait => {
                let next = async { timeout(Duration::from_millis(20), site.source.next()).await };
                if let Ok(batch) = site.runtime.block_on(next) {
                    site.take_in(batch?)?;
                }
            }
        }
    }
    site.converges()
}

#[test]
fn any_sequence_of_faults_converges_to_a_new_list() -> Result<()> {
    let abilities = (
        prop::sample::select(vec![Streaming::Served, Streaming::Refused, Streaming::Broken]),
        any::<bool>(),
        any::<bool>(),
        any::<bool>(),
    )
        .prop_map(|(streaming_lists, service_cidrs, cluster_policies, stutter)| Abilities {
            streaming_lists,
            service_cidrs,
            cluster_policies,
            stutter,
            ..Abilities::default()
        });
    let cases = (abilities, prop::collection::vec(step(), 0..20), prop::collection::vec(step(), 1..40));
    alone(|| {
        let mut runner = TestRunner::new(Config { cases: 12, max_shrink_iters: 20, ..Config::default() });
        let result = runner.run(&cases, |(abilities, before, after)| {
            // A server that does not have a kind has no objects of it.
            let served = |steps: Vec<Step>| -> Vec<Step> {
                let is_served = |step: &Step| match step {
                    Step::Apply(Kind::ServiceCidr, ..) | Step::Delete(Kind::ServiceCidr, _) => abilities.service_cidrs,
                    Step::Apply(Kind::ClusterNetworkPolicy, ..) | Step::Delete(Kind::ClusterNetworkPolicy, _) => {
                        abilities.cluster_policies
                    }
                    _ => true,
                };
                steps.into_iter().filter(is_served).collect()
            };
            let play = || -> Result<()> {
                let mut site = Site::new(abilities, &[])?;
                play(&mut site, &served(before))?;
                play(&mut site, &served(after))
            };
            play().map_err(|error| TestCaseError::fail(format!("{error:#}")))
        });
        result.map_err(|error| anyhow::anyhow!("{error}"))
    })
}

#[test]
fn no_objects_before_all_kinds_are_listed() -> Result<()> {
    alone(|| {
        let mut site = Site::new(Abilities::default(), &one_of_each())?;
        site.until("synced", |site| site.synced)?;
        ensure!(site.seen.len() == 4, "{:?}", site.seen);
        let mut requests = site.api.requests();
        // The node's own pods are watched separately.
        requests.retain(|request| !request.contains("/pods?"));
        ensure!(requests.len() == 7 && requests.iter().all(|r| r.contains("sendInitialEvents=true")), "{requests:?}");
        Ok(())
    })
}

#[test]
fn pods_are_watched_while_there_are_policies() -> Result<()> {
    alone(|| {
        let objects = [one_of_each(), vec![namespace("x", 1), pod("p", 1)]].concat();
        let mut site = Site::new(Abilities::default(), &objects)?;
        site.converges()?;
        let has_pod = |site: &Site| site.seen.keys().any(|key| key.kind == Kind::Pod);
        let all_pods = |request: &String| request.contains("/pods?") && !request.contains("fieldSelector");
        ensure!(!has_pod(&site) && !site.api.requests().iter().any(all_pods), "pods were listed without a policy");
        for round in 1..3 {
            site.api.apply(policy("np", round));
            site.until("pods", has_pod)?;
            site.api.apply(pod("q", round));
            site.converges()?;
            site.api.delete(&policy("np", round));
            site.until("no pods", |site| !has_pod(site))?;
            site.converges()?;
            ensure!(site.source.status().error.is_none(), "{:?}", site.source.status());
        }
        // From the first batch on, policies come with pods.
        let mut site = Site::new(Abilities::default(), &[objects, vec![policy("np", 1)]].concat())?;
        site.until("synced", |site| site.synced)?;
        ensure!(has_pod(&site), "{:?}", site.seen);
        Ok(())
    })
}

#[test]
fn pagination_replaces_missing_streaming_lists() -> Result<()> {
    alone(|| {
        for streaming_lists in [Streaming::Refused, Streaming::Broken] {
            let nodes: Vec<_> = (1..20).map(|number| node(&format!("n{number}"), number)).collect();
            let mut site = Site::new(Abilities { streaming_lists, ..Abilities::default() }, &nodes)?;
            site.converges()?;
            let requests = site.api.requests();
            ensure!(requests.iter().any(|r| r.contains("/nodes?") && r.contains("continue=")), "{requests:?}");
            site.api.apply(node("n1", 77));
            site.converges()?;
        }
        Ok(())
    })
}

#[test]
fn failing_server_is_reported_and_objects_are_kept() -> Result<()> {
    alone(|| {
        let mut site = Site::new(Abilities::default(), &one_of_each())?;
        site.converges()?;
        ensure!(site.source.status().error.is_none(), "{:?}", site.source.status());
        for (mood, told) in [
            (Mood::Refusing(403), "ClusterRole of deploy/podnet.yaml"),
            (Mood::HangingUp, "cannot watch"),
            (Mood::Refusing(500), "told to refuse"),
            (Mood::Refusing(503), "told to refuse"),
        ] {
            site.api.set_mood(mood);
            let before = site.seen.clone();
            site.until(told, |site| site.source.status().error.is_some_and(|error| error.contains(told)))?;
            ensure!(site.seen == before && site.source.status().synced, "{mood:?}");
            site.api.set_mood(Mood::Well);
            site.api.apply(service("b", 9));
            site.api.delete(&service("b", 9));
            site.api.apply(slice("a-1", if mood == Mood::HangingUp { 3 } else { 2 }));
            site.until("no error", |site| site.source.status().error.is_none())?;
            site.converges()?;
        }
        Ok(())
    })
}

/// With the ClusterRole of a version without network policy.
#[test]
fn services_do_not_wait_for_policies_that_cannot_be_read() -> Result<()> {
    alone(|| {
        let objects = [one_of_each(), vec![policy("deny", 1), namespace("x", 1), pod("a", 1)]].concat();
        let mut site = Site::new(Abilities { policies: false, ..Abilities::default() }, &objects)?;
        site.until("the services", |site| site.synced && site.seen.len() == 4)?;
        let status = site.source.status();
        let told =
            |error: &String| error.contains("NetworkPolicy") && error.contains("ClusterRole of deploy/podnet.yaml");
        ensure!(!status.synced && status.error.as_ref().is_some_and(told), "{status:?}");
        // Namespaces can be read, but say nothing by themselves.
        site.api.apply(service("b", 2));
        site.api.apply(namespace("y", 2));
        site.until("a change", |site| site.seen.len() == 5)?;
        ensure!(!site.seen.keys().any(|key| key.kind.is_of_policies()), "{:#?}", site.seen);
        site.api.grant_policies();
        site.converges()?;
        ensure!(site.source.status().synced, "{:?}", site.source.status());
        Ok(())
    })
}

#[test]
fn server_may_become_reachable_later() -> Result<()> {
    alone(|| {
        let mut site = Site::new(Abilities::default(), &one_of_each())?;
        site.api.set_mood(Mood::HangingUp);
        site.until("an error", |site| site.source.status().error.is_some())?;
        ensure!(!site.synced && !site.source.status().remarks.is_empty(), "{:?}", site.source.status());
        site.api.set_mood(Mood::Well);
        site.converges()
    })
}

#[test]
fn invalid_object_is_reported_and_affects_no_others() -> Result<()> {
    alone(|| {
        let mut site = Site::new(Abilities::default(), &one_of_each())?;
        site.converges()?;
        let before = site.seen.clone();
        let mut strange = service("a", 1);
        strange["spec"]["ports"] = json!([{"port": 800_000}]);
        site.api.apply(strange.clone());
        let mistakes = |site: &Site| site.source.status().mistakes;
        site.until("a mistake", |site| !mistakes(site).is_empty())?;
        ensure!(
            mistakes(&site)[0].place.to_string() == "Service x/a" && mistakes(&site)[0].reason.contains("800000"),
            "{:?}",
            mistakes(&site)
        );
        ensure!(site.seen == before, "what it said before holds");
        strange["spec"]["ports"] = json!(7);
        site.api.apply(strange);
        site.until("another", |site| mistakes(site).first().is_some_and(|m| m.reason.contains("invalid type")))?;
        site.api.apply(service("a", 2));
        site.converges()?;
        ensure!(mistakes(&site).is_empty(), "{:?}", mistakes(&site));
        Ok(())
    })
}

#[test]
fn node_condition_is_written_on_each_announcement() -> Result<()> {
    alone(|| {
        let mut site = Site::new(Abilities::default(), &one_of_each())?;
        site.converges()?;
        ensure!(site.api.writes().is_empty());
        let mut writes = Vec::new();
        for times in 1..=2 {
            site.source.announce();
            wait_until("a condition", || {
                writes.extend(site.api.writes());
                Ok(writes.len() == times)
            })?;
        }
        let (method, path, body) = &writes[0];
        ensure!((method.as_str(), path.as_str()) == ("PATCH", "/api/v1/nodes/n1/status"), "{method} {path}");
        let condition = &body["status"]["conditions"][0];
        ensure!(condition["type"] == "NetworkUnavailable" && condition["status"] == "False", "{body}");
        Ok(())
    })
}

#[test]
fn undecodable_event_triggers_a_relist() -> Result<()> {
    alone(|| {
        let mut site = Site::new(Abilities::default(), &one_of_each())?;
        site.converges()?;
        site.api.garble();
        site.api.apply(service("a", 7));
        site.converges()?;
        site.until("no error", |site| site.source.status().error.is_none())
    })
}

#[test]
fn pagination_replaces_lost_streaming_lists() -> Result<()> {
    alone(|| {
        let mut site = Site::new(Abilities::default(), &one_of_each())?;
        site.converges()?;
        site.api.set_abilities(Abilities { streaming_lists: Streaming::Refused, ..Abilities::default() });
        site.api.apply(service("a", 8));
        site.api.forget();
        site.api.disconnect();
        site.converges()?;
        site.until("no error", |site| site.source.status().error.is_none())
    })
}
