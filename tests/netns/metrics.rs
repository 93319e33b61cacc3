//! `/metrics` of a running daemon: every event is counted once, under the right labels, even across a restart.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use podnet::config::LogFormat;
use podnet::model::Kind;
use podnet_tests::api::{Abilities, Mood};
use podnet_tests::cases;
use podnet_tests::lab::policed::{object, policy};
use podnet_tests::lab::{Lab, Node, Pod, Service, eventually, wait_until};
use podnet_tests::traffic::{Ask, Transport, http_get};
use serde_json::{Value, json};

/// Default of `metricsBindAddress`.
const ADDRESS: &str = "127.0.0.1:10249";

const PROGRAMMING: &str = "podnet_network_programming_duration_seconds_count";
const QUEUE: &str = "podnet_api_queue_length";
const APPLICATION: &str = "podnet_change_application_duration_seconds_count";

/// A node with objects from an API server, and a pod.
struct Site {
    lab: Lab,
    pod: Pod,
}

#[test]
fn metrics() -> Result<()> {
    let lab = Lab::builder().nodes(1).api(Abilities::default()).build()?;
    let pod = lab.node(0).add_pod("client")?;
    cases!(
        Site { lab, pod },
        drops_are_counted_by_reason,
        denials_are_counted_by_policy_and_announced_once,
        endpoint_changes_are_counted_once,
        plugin_calls_are_counted_by_code,
        tables_and_objects_are_counted,
        tables_of_policies_are_counted,
        api_connection_is_measured,
        restart_counts_nothing_twice,
        occupied_port_is_reported_and_not_fatal,
        log_lines_are_json_if_configured
    )
}

/// Samples by name and labels; missing ones are 0.
struct Scraped(BTreeMap<String, f64>);

const NOTHING: Scraped = Scraped(BTreeMap::new());

impl Scraped {
    fn get(&self, series: &str) -> f64 {
        self.0.get(series).copied().unwrap_or_default()
    }
}

fn scrape(node: &Node) -> Result<Scraped> {
    let response = http_get(&node.place, ADDRESS.parse()?, "/metrics")?;
    ensure!(response.status == 200, "{response:?}");
    let kind = response.header("content-type").unwrap_or_default();
    ensure!(kind.starts_with("application/openmetrics-text"), "{kind}");
    ensure!(response.body.ends_with("# EOF\n"), "the text is cut off");
    let samples = response.body.lines().filter(|line| !line.starts_with('#'));
    let sample = |line: &str| Some((line.rsplit_once(' ')?.0.to_owned(), line.rsplit_once(' ')?.1.parse().ok()?));
    Ok(Scraped(samples.map(|line| sample(line).with_context(|| line.to_owned())).collect::<Result<_>>()?))
}

/// Waits until a series has grown by this much, and checks that it grows no further.
fn grows(node: &Node, series: &str, before: &Scraped, by: f64) -> Result<()> {
    let wanted = before.get(series) + by;
    eventually(&format!("{series} is {wanted}"), || {
        let now = scrape(node)?.get(series);
        ensure!(now == wanted, "it is {now}");
        Ok(())
    })
}

fn drops_are_counted_by_reason(site: &Site) -> Result<()> {
    let node = site.lab.node(0);
    let series = "podnet_dropped_packets_total{reason=\"unallocated_service\"}";
    let before = scrape(node)?;
    let nobody: SocketAddr = "10.96.200.200:80".parse()?;
    let ask = Ask::new(Transport::Udp, nobody).timeout(Duration::from_millis(100));
    ensure!(ask.from(&site.pod.place).is_err(), "nobody is there");
    let (now, told) = (scrape(node)?, node.drops()?);
    ensure!(now.get(series) > before.get(series), "{}", now.get(series));
    ensure!(now.get(series) == told["unallocated_service"] as f64, "{} and {told:?}", now.get(series));
    Ok(())
}

fn denials_are_counted_by_policy_and_announced_once(site: &Site) -> Result<()> {
    let (node, api) = (site.lab.node(0), site.lab.api());
    let mut closed = policy("closed", "client", json!({"policyTypes": ["Egress"]}));
    closed["metadata"]["uid"] = json!("uid-closed");
    let client = object(&site.pod, "client");
    [&client, &closed].into_iter().for_each(|object| api.apply(object.clone()));
    eventually("the policy is in effect", || {
        let list = node.podnet_json(&["policy", "list"])?;
        ensure!(list[0]["subjects"] == 1, "{list}");
        Ok(())
    })?;
    let series = "podnet_policy_denied_packets_total{policy=\"default/closed\",direction=\"egress\"}";
    let before = scrape(node)?;
    drop(api.writes());
    for _ in 0..2 {
        let ask = Ask::new(Transport::Udp, "192.0.2.1:80".parse()?).timeout(Duration::from_millis(100));
        ensure!(ask.from(&site.pod.place).is_err(), "it is denied");
    }
    grows(node, series, &before, 2.0)?;
    let drops = node.drops()?;
    ensure!(drops["policy_egress"] == 2, "{drops:?}");
    let mut events = Vec::new();
    wait_until("an Event", || {
        events.extend(api.writes().into_iter().map(|(.., body)| body).filter(|body| body["reason"] == "PacketsDenied"));
        Ok(!events.is_empty())
    })?;
    ensure!(events.len() == 1 && events[0]["type"] == "Normal", "{events:?}");
    let regarding = json!({"apiVersion": "networking.k8s.io/v1", "kind": "NetworkPolicy", "namespace": "default",
        "name": "closed", "uid": "uid-closed"});
    ensure!(events[0]["regarding"] == regarding, "{}", events[0]);
    [&closed, &client].into_iter().for_each(|object| api.delete(object));
    eventually("the policy is gone", || {
        ensure!(scrape(node)?.0.keys().all(|series| !series.contains("default/closed")), "it is still counted");
        Ok(())
    })
}

/// An EndpointSlice of the service `web`, changed by an event at this time.
fn slice(addr: &str, trigger: Option<&str>) -> Value {
    let mut object = json!({
        "apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice", "addressType": "IPv4",
        "metadata": {"name": "web-x", "namespace": "default", "labels": {"kubernetes.io/service-name": "web"}},
        "ports": [{"port": 8080}], "endpoints": [{"addresses": [addr]}],
    });
    if let Some(trigger) = trigger {
        object["metadata"]["annotations"] = json!({"endpoints.kubernetes.io/last-change-trigger-time": trigger});
    }
    object
}

fn endpoint_changes_are_counted_once(site: &Site) -> Result<()> {
    let (lab, node) = (&site.lab, site.lab.node(0));
    let service = Service::new("web", 10, 80, 8080);
    let before = scrape(node)?;
    service.apply(lab, None)?;
    grows(node, APPLICATION, &before, 1.0)?;

    let before = scrape(node)?;
    let now = node.place.run("date", &["-u", "+%Y-%m-%dT%H:%M:%S.%3NZ"])?;
    lab.api().apply(slice("10.244.1.9", Some(now.trim())));
    grows(node, PROGRAMMING, &before, 1.0)?;
    grows(node, APPLICATION, &before, 1.0)?;
    let sum = "podnet_network_programming_duration_seconds_sum";
    let took = scrape(node)?.get(sum) - before.get(sum);
    ensure!((0.0..60.0).contains(&took), "it took {took} s");

    // One without changes; one with a clock ahead of ours; one without a time; one deletion.
    let events = "podnet_api_events_total{kind=\"EndpointSlice\",change=\"applied\"}";
    let heard = scrape(node)?;
    lab.api().apply(slice("10.244.1.9", Some("2020-01-01T00:00:00Z")));
    grows(node, events, &heard, 1.0)?;
    wait_until("it is taken", || Ok(scrape(node)?.get(QUEUE) == 0.0))?;
    lab.api().apply(slice("10.244.1.10", Some("2100-01-01T00:00:00Z")));
    grows(node, PROGRAMMING, &before, 2.0)?;
    let both = scrape(node)?.get(sum) - before.get(sum);
    ensure!((both - took).abs() < 1e-6, "a time below zero, or one of nothing new: {took} and {both} s");
    lab.api().apply(slice("10.244.1.11", None));
    grows(node, APPLICATION, &before, 3.0)?;
    lab.api().delete(&slice("", None));
    grows(node, APPLICATION, &before, 4.0)?;
    ensure!(scrape(node)?.get(PROGRAMMING) == before.get(PROGRAMMING) + 2.0, "what has no time was counted");
    service.delete(lab)
}

fn calls(command: &str, code: u32) -> String {
    format!("podnet_cni_calls_total{{command=\"{command}\",code=\"{code}\"}}")
}

fn plugin_calls_are_counted_by_code(site: &Site) -> Result<()> {
    let node = site.lab.node(0);
    grows(node, &calls("ADD", 0), &NOTHING, 1.0).context("the site's own pod")?;
    let before = scrape(node)?;
    let invocation = |command| podnet_tests::lab::Invocation {
        plugin: node.plugin(),
        command,
        container_id: "",
        netns: "",
        ifname: "",
        args: "",
        config: node.plugin_config(),
    };
    site.pod.invoke("CHECK")?;
    ensure!(site.pod.invoke("ADD").is_err(), "it is there already");
    invocation("VERSION").run(&node.place)?;
    ensure!(invocation("NONSENSE").run(&node.place).is_err(), "there is no such command");
    for (command, code) in [("CHECK", 0), ("ADD", 100), ("VERSION", 0)] {
        grows(node, &calls(command, code), &before, 1.0)?;
    }
    let now = scrape(node)?;
    let duration = |command| format!("podnet_cni_call_duration_seconds_count{{command=\"{command}\"}}");
    ensure!(now.get(&duration("ADD")) == before.get(&duration("ADD")) + 1.0, "durations of calls");
    ensure!(now.get(&calls("ADD", 0)) == before.get(&calls("ADD", 0)), "no ADD succeeded");
    Ok(())
}

fn tables_and_objects_are_counted(site: &Site) -> Result<()> {
    let node = site.lab.node(0);
    let service = Service::new("web", 10, 80, 8080);
    service.apply(&site.lab, None)?;
    service.set_endpoints(&site.lab, &[&site.pod])?;
    grows(node, "podnet_services", &NOTHING, 1.0)?;
    grows(node, "podnet_endpoint_slices", &NOTHING, 2.0)?;
    // Entries of earlier cases are in quarantine for a while.
    let of = |table| format!("podnet_table_entries{{table=\"{table}\"}}");
    wait_until("backends", || Ok(scrape(node)?.get(&of("backends")) >= 4.0))?;
    let status = node.podnet_json(&["status"])?;
    let now = scrape(node)?;
    for table in status["datapath"]["tables"].as_array().context("no tables")? {
        let name = table["table"].as_str().context("a table without a name")?;
        let of = |family: &str| now.get(&format!("podnet_table_{family}{{table=\"{name}\"}}"));
        ensure!(of("capacity_entries") == table["capacity"].as_f64().context("no size")?, "{table}");
        // Others are quarantined for a moment, or counted from time to time.
        if ["endpoints", "nodes", "frontends"].contains(&name) {
            ensure!(of("entries") == table["entries"].as_f64().context("no entries")?, "{table}: {}", of("entries"));
        }
    }
    ensure!(now.get("podnet_pods") == 1.0 && now.get("podnet_node_ready") == 1.0 && now.get("podnet_synced") == 1.0);
    ensure!(now.get("process_resident_memory_bytes") > 1e6 && now.get("process_open_fds") > 10.0);
    service.delete(&site.lab)
}

fn tables_of_policies_are_counted(site: &Site) -> Result<()> {
    let (node, api) = (site.lab.node(0), site.lab.api());
    let peers = json!([{"to": [{"ipBlock": {"cidr": "192.0.2.0/24"}}, {"podSelector": {}}]}]);
    let open = policy("open", "client", json!({"policyTypes": ["Egress"], "egress": peers}));
    let client = object(&site.pod, "client");
    let counted = |are_used: bool| {
        eventually("the metrics have the counts of the tables", || {
            let (now, status) = (scrape(node)?, node.podnet_json(&["status"])?);
            let tables = status["datapath"]["tables"].as_array().context("no tables")?;
            for table in ["subjects", "policy_peers", "policy_blocks", "policy_rules"] {
                let entries = now.get(&format!("podnet_table_entries{{table=\"{table}\"}}"));
                let row = tables.iter().find(|row| row["table"] == table).context("a table is missing")?;
                ensure!((entries > 0.0) == are_used && row["entries"].as_f64() == Some(entries), "{entries}, {row}");
            }
            Ok(())
        })
    };
    counted(false)?;
    [&client, &open].into_iter().for_each(|object| api.apply(object.clone()));
    counted(true)?;
    [&open, &client].into_iter().for_each(|object| api.delete(object));
    counted(false)
}

fn api_connection_is_measured(site: &Site) -> Result<()> {
    let node = site.lab.node(0);
    let before = scrape(node)?;
    // Without a policy, pods aren't watched.
    for kind in Kind::ALL.into_iter().filter(|kind| *kind != Kind::Pod).map(Kind::name) {
        ensure!(before.get(&format!("podnet_api_connected{{kind=\"{kind}\"}}")) == 1.0, "{kind}");
        let lists = format!("podnet_api_lists_total{{kind=\"{kind}\",cause=\"start\"}}");
        ensure!(before.get(&lists) == 1.0, "{kind} was listed {} times", before.get(&lists));
    }
    // A bookmark, which refers to no object, is a sign of life.
    let contact = "podnet_api_last_contact_timestamp_seconds{kind=\"Node\"}";
    site.lab.api().bookmark();
    wait_until("contact", || Ok(scrape(node)?.get(contact) > before.get(contact)))?;
    // The server becomes unreachable, and has lost its watch history when it is back.
    let connected = "podnet_api_connected{kind=\"Service\"}";
    let unreachable = "podnet_api_errors_total{kind=\"Service\",error=\"unreachable\"}";
    site.lab.api().set_mood(Mood::HangingUp);
    wait_until("no connection", || Ok(scrape(node)?.get(connected) == 0.0))?;
    ensure!(scrape(node)?.get(unreachable) > before.get(unreachable), "the error has a name");
    let service = Service::new("web", 10, 80, 8080);
    service.apply(&site.lab, None)?;
    site.lab.api().forget();
    site.lab.api().set_mood(Mood::Well);
    grows(node, "podnet_api_lists_total{kind=\"Service\",cause=\"expired\"}", &before, 1.0)?;
    wait_until("a connection", || Ok(scrape(node)?.get(connected) == 1.0))?;
    grows(node, "podnet_services", &NOTHING, 1.0)?;
    wait_until("nothing on its way", || Ok(scrape(node)?.get(QUEUE) == 0.0))?;
    service.delete(&site.lab)
}

fn restart_counts_nothing_twice(site: &Site) -> Result<()> {
    let (lab, node) = (&site.lab, site.lab.node(0));
    let service = Service::new("web", 10, 80, 8080);
    service.apply(lab, None)?;
    let before = scrape(node)?;
    lab.api().apply(slice("10.244.1.9", Some("2020-01-01T00:00:00Z")));
    grows(node, PROGRAMMING, &before, 1.0)?;
    site.pod.invoke("CHECK")?;
    grows(node, &calls("CHECK", 0), &before, 1.0)?;

    let before = scrape(node)?;
    node.kill_daemon()?;
    ensure!(http_get(&node.place, ADDRESS.parse()?, "/metrics").is_err(), "it outlived the daemon");
    let late = node.add_pod("late")?;
    late.delete()?;
    node.start_daemon()?;
    grows(node, &calls("DEL", 0), &NOTHING, 1.0).context("the call while it was down")?;
    wait_until("everything is read", || Ok(scrape(node)?.get("podnet_synced") == 1.0))?;
    let now = scrape(node)?;
    ensure!(now.get(&calls("ADD", 0)) == 1.0 && now.get(&calls("CHECK", 0)) == 0.0, "calls of the earlier daemon");
    ensure!(now.get(PROGRAMMING) == 0.0 && now.get(APPLICATION) == 0.0, "what is there at the start is no change");
    let drops = "podnet_dropped_packets_total{reason=\"unallocated_service\"}";
    ensure!(now.get(drops) == before.get(drops) && now.get(drops) > 0.0, "the kernel's counters go on");
    lab.api().apply(slice("10.244.1.10", Some("2020-01-01T00:00:00Z")));
    grows(node, PROGRAMMING, &now, 1.0)?;
    lab.api().delete(&slice("", None));
    service.delete(lab)
}

fn occupied_port_is_reported_and_not_fatal(site: &Site) -> Result<()> {
    let node = site.lab.node(0);
    node.stop_daemon()?;
    let taken = node.place.netns().run(|| std::net::TcpListener::bind(ADDRESS))??;
    node.start_daemon()?;
    let told = || -> Result<bool> {
        let status = node.podnet_json(&["status"])?;
        let warnings = status["warnings"].as_array().context("no warnings")?;
        Ok(warnings.iter().filter_map(Value::as_str).any(|warning| warning.contains("metricsBindAddress")))
    };
    wait_until("a warning", told)?;
    drop(taken);
    wait_until("no warning", || Ok(!told()?))?;
    ensure!(scrape(node)?.get("podnet_node_ready") == 1.0, "it serves");
    node.stop_daemon()?;
    node.configure(|config| config.metrics_bind_address.0 = None)?;
    node.start_daemon()?;
    ensure!(http_get(&node.place, ADDRESS.parse()?, "/metrics").is_err(), "it is switched off");
    Ok(())
}

fn log_lines_are_json_if_configured(site: &Site) -> Result<()> {
    let node = site.lab.node(0);
    node.stop_daemon()?;
    node.configure(|config| config.log_format = LogFormat::Json)?;
    let logged = node.log().len();
    node.start_daemon()?;
    let log = node.log();
    let lines = log[logged..].lines().map(serde_json::from_str::<Value>).collect::<Result<Vec<_>, _>>();
    let lines = lines.with_context(|| log[logged..].to_owned())?;
    let loaded = lines.iter().find(|line| line["fields"]["message"] == "datapath loaded").context("no line")?;
    ensure!(loaded["fields"]["generation"].is_u64() && loaded["level"] == "INFO", "{loaded}");
    let ready = lines.iter().find(|line| line["fields"]["message"] == "pods can start");
    ensure!(ready.is_none_or(|line| line["span"]["name"] == "node.sync"), "{ready:?}");
    let mut strange = slice("10.244.1.9", None);
    strange["addressType"] = "IPv5".into();
    site.lab.api().apply(strange);
    eventually("the slice is named", || {
        let log = node.log();
        let lines = log[logged..].lines().filter_map(|line| serde_json::from_str::<Value>(line).ok());
        let fields = lines.map(|line| line["fields"].clone());
        let mut named = fields.filter(|fields| fields["object.name"] == "web-x");
        let fields = named.next().context("no such line")?;
        ensure!(fields["object.kind"] == "EndpointSlice" && fields["object.namespace"] == "default", "{fields}");
        Ok(())
    })?;
    site.lab.api().delete(&slice("", None));
    node.stop_daemon()?;
    node.configure(|config| config.log_format = LogFormat::Text)?;
    node.start_daemon()
}
