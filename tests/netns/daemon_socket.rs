//! The daemon's socket on a running node: commands, several followers, and misbehaving clients.

use std::fmt::Write as _;
use std::fs;
use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::os::unix::fs::{FileTypeExt as _, MetadataExt as _, PermissionsExt as _};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::Output;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use podnet::model::ObjectName;
use podnet::socket::{self, Client, Report};
use podnet_tests::cases;
use podnet_tests::lab::{Endpoint, Lab, Node, Pod, Service, eventually};
use podnet_tests::traffic::{Family, Transport};
use serde_json::{Value, json};

/// Time limit for a command on a node of a large cluster.
const SHOW_MAX: Duration = Duration::from_millis(100);
const SERVICES: u32 = 10_000;

/// Two nodes, and two pods on the first: a client and a server.
struct Site {
    client: Pod,
    server: Pod,
    empty: Service,
    lab: Lab,
}

impl Site {
    fn new() -> Result<Self> {
        let lab = Lab::builder().build()?;
        let (client, server) = (lab.node(0).add_pod("client")?, lab.node(0).add_server("web-0", 8080)?);
        Ok(Self { client, server, empty: Service::new("empty", 11, 80, 8080), lab })
    }

    /// Creates a service with every kind of address, a ready endpoint and one that isn't; and a service without
    /// endpoints.
    fn apply(&self) -> Result<()> {
        let web = Service::new("web", 10, 80, 8080).load_balancer(&["203.0.113.1".parse()?], 30_080);
        let web = web.external_ips(&["203.0.113.2".parse()?]).external_local();
        web.apply(&self.lab, None)?;
        let away = Endpoint::at(&["10.244.2.77".parse()?, "fd00:244:2::77".parse()?]).not_ready();
        web.set_endpoints(&self.lab, &[Endpoint::of(&self.server), away])?;
        self.empty.apply(&self.lab, None)?;
        eventually("the services", || {
            for service in ["default/web", "default/empty"] {
                let shown = self.node().podnet_json(&["service", "show", service])?;
                ensure!(shown["explanation"].is_object() && shown["differences"] == json!([]), "{shown:#}");
            }
            Ok(())
        })
    }

    fn node(&self) -> &Node {
        self.lab.node(0)
    }

    /// Makes the node drop packets, by connecting to the service without endpoints.
    fn drop_some(&self) {
        for family in Family::ALL {
            // The connection is refused.
            let _ = self.client.place.ask(Transport::Tcp, self.empty.addr(family));
        }
    }
}

fn connect(node: &Node) -> Result<UnixStream> {
    let stream = UnixStream::connect(socket::path(&node.run_dir()))?;
    stream.set_read_timeout(Some(Duration::from_secs(20)))?;
    Ok(stream)
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

#[test]
fn commands_ask_the_daemon() -> Result<()> {
    cases!(
        Site::new()?,
        only_root_can_access_the_socket,
        other_users_are_refused,
        answers_agree_with_the_objects,
        all_followers_see_the_same_drops,
        misbehaving_clients_do_no_harm,
        a_removed_socket_is_recreated,
        without_a_daemon_commands_name_their_source,
    )
}

fn only_root_can_access_the_socket(site: &Site) -> Result<()> {
    let file = fs::symlink_metadata(socket::path(&site.node().run_dir()))?;
    ensure!(file.file_type().is_socket(), "{file:?}");
    assert_eq!((file.mode() & 0o7777, file.uid()), (0o600, 0));
    Ok(())
}

/// Runs the command line tool as the user `nobody`, with access to the program and the run directory.
fn podnet_as_nobody(node: &Node, args: &[&str]) -> Result<Output> {
    let place = tempfile::Builder::new().permissions(fs::Permissions::from_mode(0o755)).tempdir()?;
    let program = place.path().join("podnet");
    fs::copy(node.program(), &program)?;
    let program = program.to_str().context("a path without a text")?;
    node.place.output("setpriv", &[&["--reuid=65534", "--regid=65534", "--clear-groups", program], args].concat(), "")
}

fn other_users_are_refused(site: &Site) -> Result<()> {
    let node = site.node();
    for args in [&["status"][..], &["drops", "--follow"]] {
        let output = podnet_as_nobody(node, args)?;
        let error = text(&output.stderr);
        ensure!(!output.status.success() && output.stdout.is_empty(), "{args:?}: {output:?}");
        ensure!(error.contains("run podnet as root"), "{args:?}: {error}");
    }
    Ok(())
}

fn answers_agree_with_the_objects(site: &Site) -> Result<()> {
    let node = site.node();
    site.apply()?;
    let commands =
        [&["service", "list"][..], &["service", "show", "default/web"], &["service", "show", "default/empty"]];
    for command in commands {
        let asked = node.podnet_output(&[command, &["-o", "json"]].concat())?;
        ensure!(asked.status.success() && asked.stderr.is_empty(), "{command:?}: {asked:?}");
        let offline = node.podnet_json(&[command, &["--offline"]].concat())?;
        assert_eq!(serde_json::from_slice::<Value>(&asked.stdout)?, offline, "{command:?}");
    }
    let list = node.podnet_json(&["service", "list"])?;
    for (address, kind) in [("203.0.113.1", "LoadBalancer"), ("203.0.113.2", "ExternalIP")] {
        let rows = list.as_array().into_iter().flatten();
        let kinds: Vec<_> = rows.filter(|row| row["address"] == address).map(|row| &row["kind"]).collect();
        assert_eq!(kinds, [kind, kind], "TCP and UDP of {address}");
    }
    // The daemon's answer agrees with `status.json`.
    let status = Client::connect(&node.run_dir())?.status()?;
    let written = podnet::status::DaemonStatus::read(&node.run_dir())?.context("no status.json")?;
    assert_eq!((&status.node, &status.uplinks, &status.nodes), (&written.node, &written.uplinks, &written.nodes));
    let nobody = ObjectName { namespace: "default".into(), name: "nobody".into() };
    assert_eq!(Client::connect(&node.run_dir())?.explain(&nobody)?.service, None);
    let mut raw = BufReader::new(connect(node)?);
    raw.get_mut().write_all(b"{\"pending\":{}}\n")?;
    let mut line = String::new();
    raw.read_line(&mut line)?;
    assert_eq!(line, "{\"pending\":{\"synced\":true,\"frontends\":[]}}\n");
    Ok(())
}

fn all_followers_see_the_same_drops(site: &Site) -> Result<()> {
    let node = site.node();
    site.apply()?;
    let follow = || Ok::<_, anyhow::Error>(Client::connect(&node.run_dir())?.follow_drops()?);
    let (mut first, mut second) = (follow()?, follow()?);
    let mut command = node.place.command(node.program())?;
    command.args(["drops", "--follow"]).stdout(std::process::Stdio::piped());
    let mut shown = podnet_tests::lab::Process::start(command)?;
    let mut lines = BufReader::new(shown.child().stdout.take().context("is piped")?).lines();
    ensure!(lines.next().context("no header")??.starts_with("TIME (UTC)"), "there is no header");
    site.drop_some();
    for family in Family::ALL {
        let service = site.empty.ip(family);
        let next = |follower: &mut socket::Followed| loop {
            match follower.next().context("the daemon has ended")?? {
                Report::Drop(dropped) if dropped.destination == Some(service) => {
                    return Ok::<_, anyhow::Error>(dropped);
                }
                Report::Drop(_) => {}
                Report::Lost(count) => anyhow::bail!("{count} are lost"),
            }
        };
        let dropped = next(&mut first)?;
        assert_eq!(dropped, next(&mut second)?, "another follower's");
        let facts = (dropped.reason.as_str(), dropped.hook.as_str(), dropped.protocol, dropped.destination_port);
        assert_eq!(facts, ("no_endpoint", "from_pod", Some(6), Some(80)));
        assert_eq!(dropped.source, Some(site.client.ip(family)));
        let to = format!("→ {}", site.empty.addr(family));
        let end = site.client.host_ifname()?;
        let line = loop {
            let line = lines.next().context("the command has ended")??;
            if line.contains(&to) {
                break line;
            }
        };
        ensure!(line.contains("no_endpoint") && line.contains(&end), "{line}");
    }
    Ok(())
}

fn misbehaving_clients_do_no_harm(site: &Site) -> Result<()> {
    let node = site.node();
    site.apply()?;
    let mut bad = Vec::new();
    for _ in 0..10 {
        // A client that sends nothing, a follower that never reads, and a request without end.
        bad.push(connect(node)?);
        let mut deaf = connect(node)?;
        deaf.write_all(b"{\"follow\":\"drops\"}\n")?;
        bad.push(deaf);
        let mut endless = connect(node)?;
        // Writing may fail, since the daemon closes the connection meanwhile.
        let _ = endless.write_all(&vec![b'x'; 1 << 20]);
        let mut answer = String::new();
        let _ = endless.read_to_string(&mut answer);
        assert_eq!(answer, "{\"error\":\"the request has more than 4096 bytes\"}\n");
    }
    site.drop_some();
    let shown = node.podnet_output(&["service", "show", "default/web"])?;
    ensure!(shown.stderr.is_empty(), "not from the daemon: {shown:?}");
    // More connections than the daemon accepts.
    let many: Vec<_> = (0..40).map(|_| connect(node)).collect::<Result<_>>()?;
    let status = node.podnet_output(&["status"])?;
    ensure!(status.status.success() && text(&status.stderr).contains("too many connections"), "{status:?}");
    drop((bad, many));
    let again = || {
        let status = node.podnet_output(&["status"])?;
        ensure!(status.stderr.is_empty(), "{status:?}");
        Ok(())
    };
    eventually("places", again)?;
    ensure!(node.daemon_runs()?, "the daemon has ended");
    // Changes still take effect.
    site.empty.set_endpoints(&site.lab, &[&site.server])?;
    for family in Family::ALL {
        eventually("the service", || Ok(site.client.place.ask(Transport::Tcp, site.empty.addr(family)).map(drop)?))?;
    }
    Ok(())
}

fn a_removed_socket_is_recreated(site: &Site) -> Result<()> {
    fs::remove_file(socket::path(&site.node().run_dir()))?;
    eventually("the socket", || Ok(Client::connect(&site.node().run_dir())?.status().map(drop)?))
}

fn without_a_daemon_commands_name_their_source(site: &Site) -> Result<()> {
    let node = site.node();
    site.apply()?;
    let show = ["service", "show", "default/web"];
    let before = node.podnet_json(&show)?;
    node.kill_daemon()?;
    for command in [&["status"][..], &["service", "list"], &show] {
        let output = node.podnet_output(command)?;
        let told = text(&output.stderr);
        ensure!(output.status.success() && told.lines().count() == 1, "{command:?}: {output:?}");
        ensure!(told.contains("no daemon answers at") && told.contains("podnet.sock"), "{command:?}: {told}");
    }
    let status = node.podnet_json(&["status"])?;
    assert_eq!((&status["daemon"]["running"], &status["daemon"]["report"]["node"]), (&json!(false), &json!("node1")));
    let shown = node.podnet_json(&show)?;
    let counts = |detail: &Value| detail["frontends"].as_array().map(Vec::len);
    assert_eq!((counts(&shown), &shown["explanation"]), (counts(&before), &Value::Null));
    ensure!(shown["notExplained"].to_string().contains("--offline"), "{shown:#}");
    let offline = node.podnet_output(&[&show[..], &["--offline", "-o", "json"]].concat())?;
    ensure!(offline.stderr.is_empty(), "it asks nobody: {offline:?}");
    assert_eq!(serde_json::from_slice::<Value>(&offline.stdout)?, before);
    let followed = node.podnet_output(&["drops", "--follow"])?;
    ensure!(!followed.status.success() && text(&followed.stderr).contains("no daemon answers at"), "{followed:?}");
    node.start_daemon()?;
    let status = node.podnet_output(&["status"])?;
    ensure!(status.stderr.is_empty(), "{status:?}");
    Ok(())
}

/// Writes the manifests of as many services as a large cluster has, with ten endpoints each.
fn write_services(directory: &Path) -> Result<()> {
    for part in 0..100 {
        let mut text = String::new();
        for service in part * SERVICES / 100..(part + 1) * SERVICES / 100 {
            let [_, _, high, low] = service.to_be_bytes();
            write!(
                text,
                "---\n{{apiVersion: v1, kind: Service, metadata: {{name: svc-{service}, namespace: default}}, spec: \
                 {{clusterIP: 10.96.{high}.{low}, ports: [{{name: http, port: 80, targetPort: 8080}}]}}}}\n\
                 ---\n{{apiVersion: discovery.k8s.io/v1, kind: EndpointSlice, metadata: {{name: svc-{service}-a, namespace: \
                 default, labels: {{kubernetes.io/service-name: svc-{service}}}}}, addressType: IPv4, ports: [{{name: http, \
                 port: 8080}}], endpoints: ["
            )?;
            for endpoint in 0..10u8 {
                write!(text, "{{addresses: [{}.10.{high}.{low}], nodeName: node2}}, ", 50 + endpoint)?;
            }
            text.push_str("]}\n");
        }
        let temporary = directory.join(format!(".many-{part}.tmp"));
        fs::write(&temporary, text)?;
        fs::rename(temporary, directory.join(format!("many-{part}.yaml")))?;
    }
    Ok(())
}

#[test]
fn one_of_ten_thousand_services_is_shown_quickly() -> Result<()> {
    let lab = Lab::builder().nodes(1).build()?;
    let node = lab.node(0);
    write_services(&node.manifest_dir())?;
    let show = ["service", "show", "default/svc-9999"];
    eventually("all services", || {
        let detail = node.podnet_json(&show)?;
        ensure!(detail["differences"] == json!([]) && detail["frontends"][0]["backends"] == 10, "{detail:#}");
        let status = Client::connect(&node.run_dir())?.status()?;
        ensure!(status.sources.iter().map(|source| source.services).sum::<usize>() >= SERVICES as usize, "{status:?}");
        Ok(())
    })?;
    // Other processes on this machine may slow down some of the calls; the fastest counts.
    let took = (0..10).map(|_| {
        let began = Instant::now();
        let output = node.podnet_output(&show)?;
        ensure!(output.status.success() && output.stderr.is_empty(), "{output:?}");
        Ok(began.elapsed())
    });
    let mut took = took.collect::<Result<Vec<_>>>()?;
    took.sort();
    println!("podnet service show, one of {SERVICES}: {took:?}");
    ensure!(took[0] < SHOW_MAX, "it takes {took:?}");
    Ok(())
}
