//! Kubernetes Events: their delivery to a server that works, refuses or is unreachable, and the Events of a daemon.

use std::net::TcpListener;

use anyhow::{Context as _, Result, ensure};
use podnet::model::{Kind, ObjectKey};
use podnet::source::kubernetes::{About, KubernetesSource, Note};
use podnet_tests::api::{Abilities, Api, Mood};
use podnet_tests::lab::{Lab, NetNs, PATIENCE, Service, wait_until};
use serde_json::{Value, json};
use tokio::runtime::Runtime;
use tokio::time::timeout;

use super::asked;

struct Site {
    api: Api,
    source: KubernetesSource,
    runtime: Runtime,
    _directory: tempfile::TempDir,
}

impl Site {
    fn new(abilities: Abilities, objects: &[Value]) -> Result<Self> {
        let (api, source, directory) = asked(abilities, objects)?;
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        Ok(Self { api, source, runtime, _directory: directory })
    }

    /// Applies batches of the source until a condition holds.
    fn until(&mut self, what: &str, mut condition: impl FnMut(&mut Self) -> bool) -> Result<()> {
        while !condition(self) {
            let next = async { timeout(PATIENCE, self.source.next()).await };
            self.runtime.block_on(next).with_context(|| format!("nothing comes while waiting: {what}"))??;
        }
        Ok(())
    }

    /// Applies everything pending, up to a marker service created with this name.
    fn all(&mut self, name: &str) -> Result<()> {
        self.api.apply(service(name, 80));
        let mut seen = false;
        while !seen {
            let next = async { timeout(PATIENCE, self.source.next()).await };
            let batch = self.runtime.block_on(next).with_context(|| format!("{name} doesn't come"))??;
            seen = batch.changes.iter().any(|change| change.key.name.name == name);
        }
        Ok(())
    }

    fn written(&self, count: usize) -> Result<Vec<Value>> {
        let mut events = Vec::new();
        wait_until(&format!("{count} Events"), || {
            events.extend(written(&self.api)?);
            Ok(events.len() >= count)
        })?;
        Ok(events)
    }
}

/// Events written by clients since the last call; the node's condition is the only other object that they write.
fn written(api: &Api) -> Result<Vec<Value>> {
    let mut events = Vec::new();
    for (method, path, body) in api.writes() {
        if method == "PATCH" && path.starts_with("/api/v1/nodes/") && path.ends_with("/status") {
            continue;
        }
        ensure!(method == "POST" && path.starts_with("/apis/events.k8s.io/v1/namespaces/"), "{method} {path}");
        let namespace = body["regarding"]["namespace"].as_str().unwrap_or("default");
        ensure!(path.ends_with(&format!("/{namespace}/events")), "{path} and {body}");
        events.push(body);
    }
    Ok(events)
}

/// Runs a test in a network namespace with loopback only.
fn alone<T: Send>(test: impl FnOnce() -> Result<T> + Send) -> Result<T> {
    NetNs::new()?.run(|| {
        let up = std::process::Command::new("ip").args(["link", "set", "lo", "up"]).status()?;
        ensure!(up.success(), "ip link set lo up");
        test()
    })?
}

fn service(name: &str, port: u32) -> Value {
    json!({"apiVersion": "v1", "kind": "Service", "metadata": {"name": name, "namespace": "x", "uid": format!("uid-{name}")},
        "spec": {"clusterIP": "10.96.0.1", "ports": [{"port": port}]}})
}

fn of_node(text: &str) -> Note {
    Note { about: About::Node, warning: true, reason: "NetworkDegraded", text: text.into() }
}

#[test]
fn notes_become_events_regarding_their_object() -> Result<()> {
    alone(|| {
        let site = Site::new(Abilities::default(), &[])?;
        site.source.tell(of_node("one"));
        site.source.tell(Note { warning: false, reason: "NetworkRecovered", ..of_node(&"é".repeat(4000)) });
        let key = ObjectKey::new(Kind::EndpointSlice, "x", "web-1");
        let about = About::Object(key, "uid-7".into());
        site.source.tell(Note { about, ..of_node("another") });
        let events = site.written(3)?;
        ensure!(events.len() == 3, "each once, and none in the place of another: {events:?}");
        let expected = json!({"apiVersion": "v1", "kind": "Node", "name": "n1", "uid": "n1"});
        ensure!(events[0]["regarding"] == expected, "{}", events[0]);
        ensure!(events[0]["type"] == "Warning" && events[0]["note"] == "one", "{}", events[0]);
        ensure!(
            events[0]["reason"] == "NetworkDegraded" && events[0]["reportingController"] == "podnet",
            "{}",
            events[0]
        );
        ensure!(events[0]["reportingInstance"] == "n1", "{}", events[0]);
        ensure!(events[1]["type"] == "Normal", "{}", events[1]);
        ensure!(events[1]["note"].as_str().is_some_and(|note| note.len() == 1024), "{}", events[1]);
        let expected = json!({"apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice", "namespace": "x",
            "name": "web-1", "uid": "uid-7"});
        ensure!(events[2]["regarding"] == expected, "{}", events[2]);
        Ok(())
    })
}

#[test]
fn unwritable_events_delay_nothing() -> Result<()> {
    alone(|| {
        let mut site = Site::new(Abilities { events: false, ..Abilities::default() }, &[])?;
        site.until("all lists", |site| site.source.status().synced)?;
        for mood in [Mood::Well, Mood::Refusing(500), Mood::HangingUp] {
            site.api.set_mood(mood);
            (0..10_000).for_each(|i| site.source.tell(of_node(&i.to_string())));
        }
        site.api.set_mood(Mood::Well);
        site.api.set_abilities(Abilities::default());
        // Part of the flood may still be in transit.
        let mut flood = 0;
        wait_until("the next one", || {
            site.source.tell(of_node("next"));
            let events = written(&site.api)?;
            flood += events.iter().filter(|event| event["note"] != "next").count();
            Ok(events.iter().any(|event| event["note"] == "next"))
        })?;
        ensure!(flood < 100, "{flood} of the flood were written");
        site.all("later")
    })
}

#[test]
fn invalid_object_is_reported_once() -> Result<()> {
    alone(|| {
        let mut site = Site::new(Abilities::default(), &[service("a", 800_000), service("b", 80)])?;
        site.until("all lists", |site| site.source.status().synced)?;
        let complaint = site.source.complaint().context("no complaint")?;
        ensure!(complaint.key.to_string() == "Service x/a" && complaint.uid == "uid-a", "{complaint:?}");
        ensure!(complaint.reason.contains("800000"), "{complaint:?}");
        ensure!(site.source.complaint().is_none(), "nothing else is wrong");
        // A relist does not repeat the complaint.
        site.api.forget();
        site.api.disconnect();
        site.all("c")?;
        ensure!(site.source.complaint().is_none(), "it was said before");
        // Another reason is reported; an object that is valid again by then is not.
        site.api.apply(service("a", 900_000));
        site.api.apply(service("b", 900_000));
        site.api.apply(service("b", 80));
        site.all("d")?;
        let complaint = site.source.complaint().context("no complaint")?;
        ensure!(complaint.reason.contains("900000"), "{complaint:?}");
        ensure!(site.source.complaint().is_none(), "b can be used");
        // The number of complaints is limited.
        (0..1000).for_each(|i| site.api.apply(service(&format!("bad-{i}"), 800_000)));
        site.all("e")?;
        let count = std::iter::from_fn(|| site.source.complaint()).count();
        ensure!((1..=256).contains(&count) && site.source.status().mistakes.len() == 1001, "{count}");
        Ok(())
    })
}

#[test]
fn daemon_writes_events_for_invalid_objects_and_persistent_problems() -> Result<()> {
    let lab = Lab::builder().nodes(1).api(Abilities::default()).build()?;
    let node = lab.node(0);
    let mut events = Vec::new();
    let mut told = |what: &str, is: &dyn Fn(&Value) -> bool| {
        wait_until(what, || {
            events.extend(written(lab.api())?);
            Ok(events.iter().any(is))
        })
    };
    lab.api().apply(service("bad", 800_000));
    told("an Event of the Service", &|event| {
        event["regarding"]["kind"] == "Service" && event["regarding"]["uid"] == "uid-bad" && event["type"] == "Warning"
    })?;
    node.stop_daemon()?;
    let taken = node.place.netns().run(|| TcpListener::bind("127.0.0.1:10249"))??;
    node.start_daemon()?;
    let about = |kind: &'static str| {
        move |event: &Value| {
            let text = event["note"].as_str().unwrap_or_default();
            event["regarding"]["kind"] == "Node" && event["type"] == kind && text.contains("metricsBindAddress")
        }
    };
    told("a Warning of the node", &about("Warning"))?;
    drop(taken);
    told("its end", &about("Normal"))?;
    let count = |kind| events.iter().filter(|event| about(kind)(event)).count();
    ensure!((count("Warning"), count("Normal")) == (1, 1), "{events:?}");
    // The daemon keeps working.
    let service = Service::new("web", 10, 80, 8080);
    service.apply(&lab, None)?;
    wait_until("the service", || Ok(node.podnet(&["service", "list"])?.contains("web")))
}
