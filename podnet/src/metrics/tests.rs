//! The exposed text, parsed and compared with the metrics in the documentation, the dashboard and the alerts.

use std::collections::{BTreeMap, BTreeSet};
use std::io::{self, Read as _, Write as _};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::time::{Instant, SystemTime};

use podnet_cni::call_log::{Call, CommandName};
use podnet_common::tables;
use podnet_common::verdict::{COUNTERS, COUNTERS_BASE, Counter, Reason};
use prometheus_client::encoding::text::encode;

use super::*;
use crate::metrics::api::{ApiError, ListCause};
use crate::model::{Kind, Origin};
use crate::status::ALARMING;

#[derive(Debug)]
struct FakeKernel(Option<Vec<u64>>);

impl KernelReader for FakeKernel {
    fn counters(&self) -> io::Result<Vec<u64>> {
        self.0.clone().ok_or_else(|| io::Error::other("no table"))
    }

    fn pods(&self) -> io::Result<PodCounts> {
        Ok(PodCounts { pods: 3, addresses: 6 })
    }
}

/// The exposed text, with a measurement in each family.
fn text() -> String {
    let (metrics, api) = (Metrics::new(), ApiMetrics::new());
    metrics.fills.set_entries(tables::CONNTRACK, 7);
    metrics.fills.set_capacity(tables::CONNTRACK, 1024);
    metrics.reconciled(Writes { done: 5, failed: 2, pending: 1 });
    metrics.node(NodeState { took: Duration::from_millis(3), problems: 1, takes_pods: true });
    let origin = Origin { arrived: Instant::now(), trigger: Some(SystemTime::now()) };
    metrics.latency.observe(&origin, (Instant::now(), SystemTime::now()));
    metrics.calls.observe(&Call { command: CommandName::Add, code: 11, duration: Duration::from_millis(40) });
    metrics.links.repaired("route");
    metrics.denials.set([("default/web".to_owned(), "ingress", 3)].into_iter());
    api.set_connected(Kind::Node, true);
    api.heard(Kind::Node);
    api.event(Kind::Service, true);
    api.list(Kind::EndpointSlice, ListCause::Expired);
    api.error(Kind::Service, ApiError::of_code(403));
    api.given(5);
    api.taken(3);
    let mut counters = vec![0; COUNTERS];
    counters[(COUNTERS_BASE + Reason::SnatExhausted as u32) as usize] = 12;
    counters[Counter::FlowsCreated as usize] = 99;
    let mut text = String::new();
    encode(&mut text, &metrics.registry(1, Some(&api), Box::new(FakeKernel(Some(counters))))).unwrap();
    text
}

/// A family, parsed from its lines.
#[derive(Debug, Default)]
struct Parsed {
    help: String,
    kind: String,
    /// By name and labels.
    samples: BTreeMap<String, f64>,
}

/// Parses OpenMetrics, as strictly as Prometheus does: each family in one piece, with HELP and TYPE first, no duplicate
/// samples, names that match the family's type, and an end.
fn parse(text: &str) -> BTreeMap<String, Parsed> {
    let mut families: BTreeMap<String, Parsed> = BTreeMap::new();
    let mut current = String::new();
    let body = text.strip_suffix("# EOF\n").expect("an end");
    for line in body.lines() {
        if let Some(described) = line.strip_prefix("# ") {
            let mut words = described.splitn(3, ' ');
            let (what, name, rest) = (words.next().unwrap(), words.next().unwrap(), words.next().unwrap());
            match what {
                "HELP" => {
                    let parsed = Parsed { help: rest.into(), ..Parsed::default() };
                    assert!(families.insert(name.into(), parsed).is_none(), "{name} is there twice");
                    current = name.into();
                }
                "TYPE" => families.get_mut(&current).filter(|_| current == name).expect(line).kind = rest.into(),
                "UNIT" => assert!(current == name && name.ends_with(&format!("_{rest}")), "{line}"),
                _ => panic!("{line}"),
            }
            continue;
        }
        let (series, value) = line.rsplit_once(' ').expect(line);
        let name = series.split('{').next().unwrap();
        let family = families.get_mut(&current).expect(line);
        let suffixes: &[&str] = match family.kind.as_str() {
            "counter" => &["_total"],
            "gauge" => &[""],
            "histogram" => &["_bucket", "_sum", "_count"],
            "info" => &["_info"],
            other => panic!("{current} is of type {other:?}"),
        };
        let fits = name.strip_prefix(current.as_str()).is_some_and(|suffix| suffixes.contains(&suffix));
        assert!(fits, "{line} in the family {current}");
        let value = value.parse().expect(line);
        assert!(family.samples.insert(series.into(), value).is_none(), "{line} is there twice");
    }
    families
}

#[test]
fn text_is_valid_and_every_family_has_help() {
    let text = text();
    for (name, family) in parse(&text) {
        assert!(family.help.len() > 10 && family.help.ends_with('.'), "{name}: {:?}", family.help);
        assert!(!family.samples.is_empty(), "{name} has no samples");
        assert!(name.starts_with("podnet_") || name.starts_with("process_"), "{name}");
        if family.kind == "histogram" {
            let infinite = family.samples.iter().find(|(series, _)| series.contains("le=\"+Inf\"")).unwrap();
            let count = family.samples.iter().find(|(series, _)| series.starts_with(&format!("{name}_count"))).unwrap();
            assert_eq!(infinite.1, count.1, "{name}");
        }
    }
}

#[test]
fn text_has_all_measurements() {
    let families = parse(&text());
    let sample = |series: &str| families.values().find_map(|family| family.samples.get(series)).copied();
    for (series, value) in [
        ("podnet_dropped_packets_total{reason=\"snat_exhausted\"}", 12.0),
        ("podnet_datapath_events_total{event=\"flows_created\"}", 99.0),
        ("podnet_table_entries{table=\"conntrack\"}", 7.0),
        ("podnet_table_entries{table=\"endpoints\"}", 6.0),
        ("podnet_table_capacity_entries{table=\"conntrack\"}", 1024.0),
        ("podnet_pods", 3.0),
        ("podnet_policy_denied_packets_total{policy=\"default/web\",direction=\"ingress\"}", 3.0),
        ("podnet_reconcile_operations_total{result=\"done\"}", 5.0),
        ("podnet_reconcile_operations_total{result=\"failed\"}", 2.0),
        ("podnet_reconcile_pending", 1.0),
        ("podnet_node_ready", 1.0),
        ("podnet_node_syncs_total{result=\"failed\"}", 1.0),
        ("podnet_network_programming_duration_seconds_count", 1.0),
        ("podnet_change_application_duration_seconds_count", 1.0),
        ("podnet_cni_calls_total{command=\"ADD\",code=\"11\"}", 1.0),
        ("podnet_cni_call_duration_seconds_bucket{le=\"0.05\",command=\"ADD\"}", 1.0),
        ("podnet_api_connected{kind=\"Node\"}", 1.0),
        ("podnet_api_connected{kind=\"Service\"}", 0.0),
        ("podnet_api_events_total{kind=\"Service\",change=\"deleted\"}", 1.0),
        ("podnet_api_lists_total{kind=\"EndpointSlice\",cause=\"expired\"}", 1.0),
        ("podnet_api_errors_total{kind=\"Service\",error=\"denied\"}", 1.0),
        ("podnet_api_queue_length", 2.0),
    ] {
        assert_eq!(sample(series), Some(value), "{series}");
    }
    assert_eq!(families["podnet_dropped_packets"].samples.len(), Reason::ALL.len(), "also reasons that never came up");
    let unknown = "podnet_table_entries{table=\"slots\"}";
    assert_eq!(sample(unknown), None, "what isn't counted isn't 0");
}

#[test]
fn unreadable_counters_hide_no_other_families() {
    let mut text = String::new();
    encode(&mut text, &Metrics::new().registry(0, None, Box::new(FakeKernel(None)))).unwrap();
    let families = parse(&text);
    assert!(!families.contains_key("podnet_dropped_packets") && families.contains_key("podnet_pods"), "{text}");
    assert!(!text.contains("podnet_api_"), "there is no API");
}

#[test]
fn labels_are_few() {
    let known =
        ["reason", "event", "table", "result", "command", "code", "kind", "change", "cause", "error", "part", "le"];
    let others = |name: &str| match name {
        "podnet_build" => ["version", "generation"],
        "podnet_policy_denied_packets" => ["policy", "direction"],
        _ => [""; 2],
    };
    for (name, family) in parse(&text()) {
        for series in family.samples.keys() {
            let labels = series.split_once('{').map(|(_, labels)| labels.trim_end_matches('}')).unwrap_or_default();
            for label in labels.split(',').filter(|label| !label.is_empty()) {
                let label = label.split('=').next().unwrap();
                assert!(known.contains(&label) || others(&name).contains(&label), "{series}");
            }
        }
    }
}

/// All names of series that queries may use.
fn names() -> BTreeSet<String> {
    let families = parse(&text());
    families
        .values()
        .flat_map(|family| family.samples.keys())
        .map(|s| s.split('{').next().unwrap().to_owned())
        .collect()
}

#[test]
fn documentation_has_exactly_the_families() {
    let document = include_str!("../../../docs/metrics.md");
    let told: BTreeSet<String> = document
        .lines()
        .filter_map(|line| line.strip_prefix("| `")?.split(['`', '{']).next())
        .filter(|name| name.starts_with("podnet_") || name.starts_with("process_"))
        .map(ToOwned::to_owned)
        .collect();
    let served: BTreeSet<String> = parse(&text())
        .into_iter()
        .map(|(name, family)| match family.kind.as_str() {
            "counter" => format!("{name}_total"),
            "info" => format!("{name}_info"),
            _ => name,
        })
        .collect();
    assert_eq!(told, served);
}

#[test]
fn documentation_has_exactly_the_drop_reasons() {
    let document = include_str!("../../../docs/metrics.md");
    let (_, section) = document.split_once("\n### Drop reasons\n").unwrap();
    let rows = section.lines().skip_while(|line| !line.starts_with("|---")).skip(1);
    let documented: Vec<&str> = rows
        .take_while(|line| line.starts_with('|'))
        .map(|line| line.strip_prefix("| `").unwrap().split('`').next().unwrap())
        .collect();
    assert_eq!(documented, Reason::ALL.iter().map(|reason| reason.name()).collect::<Vec<_>>());
}

/// Names of families in a text with PromQL, in order of appearance.
fn spoken_of(text: &str) -> Vec<&str> {
    let words = text.split(|c: char| !(c.is_ascii_alphanumeric() || c == '_'));
    words.filter(|word| ["podnet_", "process_"].iter().any(|prefix| word.starts_with(prefix))).collect()
}

/// All strings in a document.
fn texts(value: &serde_json::Value) -> Vec<&str> {
    match value {
        serde_json::Value::String(text) => vec![text],
        serde_json::Value::Array(values) => values.iter().flat_map(texts).collect(),
        serde_json::Value::Object(values) => values.values().flat_map(texts).collect(),
        _ => Vec::new(),
    }
}

#[test]
fn dashboard_and_alerts_use_existing_series() {
    let names = names();
    let dashboard: serde_json::Value =
        serde_json::from_str(include_str!("../../../deploy/grafana-dashboard.json")).unwrap();
    let alerts: serde_json::Value = serde_saphyr::from_str(include_str!("../../../deploy/alerts.yaml")).unwrap();
    for document in [&dashboard, &alerts] {
        let asked: Vec<_> = texts(document).into_iter().flat_map(spoken_of).collect();
        assert!(asked.len() > 8, "{asked:?}");
        for name in asked {
            // Prose names a histogram itself, queries its series.
            let parts = [name.to_owned(), format!("{name}_count")];
            assert!(parts.iter().any(|part| names.contains(part)), "{name} is not served");
        }
    }
    for panel in dashboard["panels"].as_array().unwrap() {
        for target in panel["targets"].as_array().into_iter().flatten() {
            let query = target["expr"].as_str().unwrap();
            assert!(spoken_of(query).iter().all(|name| names.contains(*name)), "{query}");
        }
    }
    let rules = alerts["spec"]["groups"][0]["rules"].as_array().unwrap();
    for rule in rules {
        let query = rule["expr"].as_str().unwrap();
        assert!(spoken_of(query).iter().all(|name| names.contains(*name)), "{query}");
        for part in ["summary", "runbook"] {
            assert!(rule["annotations"][part].as_str().is_some_and(|text| text.len() > 20), "{rule} lacks its {part}");
        }
    }
    let selected = |query: &str| Some(query.split_once("reason=~\"")?.1.split('"').next()?.to_owned());
    let selected: Vec<_> = rules.iter().filter_map(|rule| selected(rule["expr"].as_str()?)).collect();
    assert_eq!(selected, [ALARMING.map(Reason::name).join("|")], "the alert is for the drops that the status warns of");
}

fn get(address: SocketAddr, path: &str) -> String {
    let mut stream = TcpStream::connect(address).unwrap();
    stream.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
    write!(stream, "GET {path} HTTP/1.1\r\nHost: x\r\n\r\n").unwrap();
    let mut text = String::new();
    stream.read_to_string(&mut text).unwrap();
    text
}

#[test]
fn listener_serves_the_text_and_retries_a_busy_port() {
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = taken.local_addr().unwrap();
    let registry = || Metrics::new().registry(0, None, Box::new(FakeKernel(Some(vec![0; COUNTERS]))));
    let mut listener = Listener::start(registry(), Some(address)).unwrap();
    let problem = listener.problem().expect("a problem");
    assert!(problem.contains("in use") && problem.contains("metricsBindAddress"), "{problem}");
    drop(taken);
    listener.retry();
    assert_eq!(listener.problem(), None);
    let answer = get(address, "/metrics");
    let (head, body) = answer.split_once("\r\n\r\n").unwrap();
    assert!(head.starts_with("HTTP/1.1 200 OK"), "{head}");
    assert!(head.contains("content-type: application/openmetrics-text; version=1.0.0; charset=utf-8"), "{head}");
    assert!(parse(body).contains_key("podnet_dropped_packets"));
    assert!(get(address, "/").starts_with("HTTP/1.1 404"));
    let off = Listener::start(registry(), None).unwrap();
    assert_eq!(off.problem(), None);
}
