//! A cluster of two nodes with kubelets, containerd and runc, a complete control plane, and the unmodified
//! `deploy/podnet.yaml`: podnet is installed, pods and Services work, the daemons are replaced, and podnet is removed.
//!
//! The lab treats the pods' network namespaces as places, so that traffic comes from and goes to real pods.

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use podnet_tests::lab::cri::IMAGE;
use podnet_tests::lab::{ControlPlane, Kubelet, Lab, Node, Place, Process, eventually, wait_until};
use podnet_tests::traffic::{Ask, Family, Load, OWN_PORTS, Outcome, Server, Stream, Transport};
use serde_json::{Value, json};

const MANIFEST: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../deploy/podnet.yaml");
const NODE_PORT: u16 = 30080;

struct Site {
    // Order of fields = order of dropping.
    kubelets: Vec<Kubelet>,
    control: ControlPlane,
    _outside: Server,
    lab: Lab,
}

/// A pod, from the API.
#[derive(Debug)]
struct Pod {
    name: String,
    node: usize,
    ips: Vec<IpAddr>,
    object: Value,
}

impl Pod {
    fn addr(&self, family: Family, port: u16) -> SocketAddr {
        let ip = self.ips.iter().find(|ip| Family::of(**ip) == family);
        (*ip.unwrap_or_else(|| panic!("{} has no {family} address", self.name)), port).into()
    }
}

impl Site {
    fn kubectl(&self, args: &[&str]) -> Result<String> {
        self.control.kubectl(args, "")
    }

    fn get(&self, args: &[&str]) -> Result<Value> {
        Ok(serde_json::from_str(&self.kubectl(&[&["get", "--output=json"], args].concat())?)?)
    }

    /// Waits until all pods of a workload are up to date and ready.
    fn rolled_out(&self, args: &[&str]) -> Result<()> {
        let status = [&["rollout", "status", "--timeout=80s"], args].concat();
        self.kubectl(&status).map(drop).with_context(|| self.complaints())
    }

    /// Problems reported by the cluster and by the daemons, for failure messages.
    fn complaints(&self) -> String {
        let events =
            ["get", "events", "--all-namespaces", "--field-selector=type=Warning", "--output=custom-columns=:.message"];
        let pods = ["get", "pods", "--all-namespaces", "--output=wide"];
        let podnet = ["--namespace=kube-system", "--selector=app.kubernetes.io/name=podnet", "--tail=5"];
        let logs = [&["logs", "--prefix", "--all-containers"][..], &podnet].concat();
        [&pods[..], &events, &logs].map(|args| self.kubectl(args).unwrap_or_default()).join("\n")
    }

    /// Pods with this label that are not terminating.
    fn pods(&self, app: &str) -> Result<Vec<Pod>> {
        let found = self.get(&["pods", "--all-namespaces", "--selector", app])?;
        let there = found["items"].as_array().context("no pods")?.iter();
        let pods = there.filter(|pod| pod["metadata"]["deletionTimestamp"].is_null()).map(|object| {
            let node = self.lab.nodes().iter().position(|node| object["spec"]["nodeName"] == node.name());
            let ips = object["status"]["podIPs"].as_array().into_iter().flatten();
            Ok(Pod {
                name: object["metadata"]["name"].as_str().context("no name")?.to_owned(),
                node: node.context("on no node")?,
                ips: ips.map(|ip| Ok(ip["ip"].as_str().context("no text")?.parse()?)).collect::<Result<_>>()?,
                object: object.clone(),
            })
        });
        pods.collect()
    }

    /// The only pod with a label.
    fn pod(&self, app: &str) -> Result<Pod> {
        let mut pods = self.pods(app)?;
        ensure!(pods.len() == 1, "{pods:?}");
        Ok(pods.remove(0))
    }

    fn place(&self, pod: &Pod) -> Result<Place> {
        self.kubelets[pod.node].pod_place(&pod.name, *pod.ips.first().context("no address")?)
    }

    /// A client pod on each node.
    fn clients(&self) -> Result<Vec<Place>> {
        self.pods("app=client")?.iter().map(|pod| self.place(pod)).collect()
    }

    fn node(&self, index: usize) -> &Node {
        self.lab.node(index)
    }

    /// IPv4 and IPv6 addresses of the Service.
    fn cluster_ips(&self, name: &str) -> Result<Vec<IpAddr>> {
        let ips: Vec<IpAddr> = serde_json::from_value(self.get(&["service", name])?["spec"]["clusterIPs"].clone())?;
        ensure!(ips.len() == 2, "{name} has {ips:?}");
        Ok(ips)
    }

    /// All addresses of the Service, each with the places from which it must be reachable.
    fn frontends(&self) -> Result<Vec<(SocketAddr, Vec<Place>)>> {
        let hosts = self.lab.nodes().iter().map(|node| node.place.clone());
        let inside: Vec<_> = self.clients()?.into_iter().chain(hosts).collect();
        let everybody = [&inside[..], &[self.lab.client().clone()]].concat();
        let mut frontends: Vec<_> =
            self.cluster_ips("web")?.into_iter().map(|ip| ((ip, 80).into(), inside.clone())).collect();
        for node in self.lab.nodes() {
            frontends.extend(Family::ALL.map(|family| ((node.ip(family), NODE_PORT).into(), everybody.clone())));
        }
        Ok(frontends)
    }

    /// Waits until all pods of the Service answer at every frontend.
    fn web_answers(&self) -> Result<()> {
        let pods = self.pods("app=web")?;
        let names: Vec<_> = pods.iter().map(|pod| &pod.name[..]).collect();
        for (addr, places) in self.frontends()? {
            for (place, transport) in places.iter().flat_map(|place| Transport::ALL.map(|transport| (place, transport)))
            {
                place.reaches(transport, addr, &names)?;
            }
        }
        let addr = SocketAddr::new(self.cluster_ips("web")?[0], 80);
        let client = &self.clients()?[0];
        let mut answered = BTreeSet::new();
        wait_until("an answer by each pod", || {
            answered.insert(client.ask(Transport::Tcp, addr)?.server);
            Ok(names.iter().all(|name| answered.contains(*name)))
        })
    }
}

/// The cluster with podnet installed, two server pods and a client pod on each node.
fn site() -> Result<Site> {
    let lab = Lab::builder().daemons(false).client(true).build()?;
    // Requests of the harness bind to these ports explicitly: see docs/configuration.md.
    let own = format!("{}-{}", OWN_PORTS.start, OWN_PORTS.end - 1);
    for node in lab.nodes() {
        node.place.set_sysctl("net.ipv4.ip_local_reserved_ports", &own)?;
    }
    let mut control = ControlPlane::start(&lab)?;
    control.add_controllers()?;
    let kubelets = lab.nodes().iter().map(|node| Kubelet::start(&control, node)).collect::<Result<Vec<_>>>()?;
    let outside = Server::start(lab.fabric(), "outside", OUTSIDE.parse()?)?;
    let site = Site { kubelets, control, _outside: outside, lab };
    eventually("two nodes without a network", || {
        let nodes = site.get(&["nodes"])?;
        let nodes = nodes["items"].as_array().context("no nodes")?;
        ensure!(nodes.len() == 2 && nodes.iter().all(|node| node["spec"]["podCIDRs"].is_array()), "{nodes:?}");
        Ok(())
    })?;
    site.kubectl(&["apply", "--filename", MANIFEST])?;
    site.rolled_out(&["--namespace=kube-system", "daemonset/podnet"])?;
    // Wait for both nodes, or both servers would be scheduled to the first one that is ready.
    site.kubectl(&["wait", "--for=condition=Ready", "--timeout=80s", "node", "--all"])
        .with_context(|| site.complaints())?;
    for object in [client(), web(), service()] {
        site.control.apply(&object)?;
    }
    site.rolled_out(&["daemonset/client"])?;
    site.rolled_out(&["deployment/web"])?;
    Ok(site)
}

/// A server that is not a pod.
const OUTSIDE: &str = "172.30.0.254:7000";

/// Labels, selector and template of a workload. Its pods terminate at once, since their processes ignore signals.
fn workload(kind: &str, app: &str, pod: Value) -> Value {
    let labels = json!({"app": app});
    let mut template = json!({"metadata": {"labels": labels}, "spec": pod});
    template["spec"]["terminationGracePeriodSeconds"] = 1.into();
    json!({
        "apiVersion": "apps/v1", "kind": kind, "metadata": {"name": app, "namespace": "default"},
        "spec": {"selector": {"matchLabels": labels}, "template": template},
    })
}

fn client() -> Value {
    workload("DaemonSet", "client", json!({"containers": [{"name": "client", "image": IMAGE}]}))
}

fn web() -> Value {
    let name = json!({"name": "POD", "valueFrom": {"fieldRef": {"fieldPath": "metadata.name"}}});
    let probe = json!({"httpGet": {"path": "/", "port": 8080}, "periodSeconds": 1});
    let mut web = workload(
        "Deployment",
        "web",
        json!({
            "topologySpreadConstraints": [{"maxSkew": 1, "topologyKey": "kubernetes.io/hostname",
                "whenUnsatisfiable": "ScheduleAnyway", "labelSelector": {"matchLabels": {"app": "web"}}}],
            // Runs before all others, in the pod's network.
            "initContainers": [{"name": "first", "image": IMAGE, "args": ["ask", "TCP", OUTSIDE]}],
            "containers": [
                {"name": "web", "image": IMAGE, "args": ["serve", "$(POD)", "8080"], "env": [name],
                    "readinessProbe": probe, "livenessProbe": probe},
                {"name": "beside", "image": IMAGE, "args": ["serve", "beside", "9090"]},
            ],
        }),
    );
    web["spec"]["replicas"] = 2.into();
    web
}

fn service() -> Value {
    let port = |name: &str, protocol: &str| json!({"name": name, "protocol": protocol, "port": 80, "targetPort": 8080, "nodePort": NODE_PORT});
    json!({
        "apiVersion": "v1", "kind": "Service", "metadata": {"name": "web", "namespace": "default"},
        "spec": {"type": "NodePort", "ipFamilyPolicy": "RequireDualStack", "selector": {"app": "web"},
            "ports": [port("tcp", "TCP"), port("udp", "UDP")]},
    })
}

fn nodes_are_ready_without_warnings(site: &Site) -> Result<()> {
    eventually("nodes that are Ready", || {
        let nodes = site.get(&["nodes"])?;
        for node in nodes["items"].as_array().context("no nodes")? {
            let conditions = node["status"]["conditions"].as_array().context("no conditions")?;
            let status = |kind: &str| {
                let condition = conditions.iter().find(|condition| condition["type"] == kind);
                condition.map(|condition| &condition["status"])
            };
            ensure!(status("Ready") == Some(&"True".into()), "{conditions:?}");
            ensure!(status("NetworkUnavailable") == Some(&"False".into()), "{conditions:?}");
        }
        Ok(())
    })?;
    let pods = site.pods("app.kubernetes.io/name=podnet")?;
    ensure!(pods.len() == 2, "{pods:?}");
    for pod in pods {
        eventually("nothing to attend to", || {
            let command = ["--", "podnet", "status"];
            let exec = ["exec", "--namespace=kube-system", "--container=podnet", &pod.name];
            let status = site.kubectl(&[&exec[..], &command].concat())?;
            let node = format!("node       {}", site.node(pod.node).name());
            for part in ["no problems found", "routes     to 2 of 2 pod CIDRs of other nodes", &node] {
                ensure!(status.contains(part), "no {part:?} in:\n{status}");
            }
            Ok(())
        })?;
    }
    Ok(())
}

fn pods_reach_each_other(site: &Site) -> Result<()> {
    let pods = site.pods("app=web")?;
    ensure!(pods.iter().map(|pod| pod.node).collect::<BTreeSet<_>>().len() == 2, "both on one node: {pods:?}");
    for client in site.pods("app=client")? {
        let place = site.place(&client)?;
        for (pod, (family, transport)) in pods.iter().flat_map(|pod| Transport::over_all().map(move |way| (pod, way))) {
            let own = client.addr(family, 0).ip();
            place.expect(transport, pod.addr(family, 8080), &Outcome::answer(&pod.name, own))?;
        }
    }
    // Containers of a pod share one network.
    for pod in &pods {
        let beside = ["exec", &pod.name, "--container=web", "--", "/podnet-lab", "pod", "ask", "TCP", "127.0.0.1:9090"];
        let answer = site.kubectl(&beside)?;
        ensure!(answer.trim() == "beside 127.0.0.1", "{answer}");
    }
    Ok(())
}

fn services_answer(site: &Site) -> Result<()> {
    site.web_answers()
}

fn host_ports_and_host_network_pods_are_reachable(site: &Site) -> Result<()> {
    let pod = |name: &str, spec: &Value| {
        let mut spec = spec.clone();
        spec["terminationGracePeriodSeconds"] = 1.into();
        let labels = json!({"app": name});
        let metadata = json!({"name": name, "namespace": "default", "labels": labels});
        site.control.apply(&json!({"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": spec}))
    };
    let ports: Vec<_> =
        Transport::ALL.map(|way| json!({"containerPort": 8080, "hostPort": 18080, "protocol": way.name()})).into();
    let serve = |name: &str, port: &str| json!({"name": "c", "image": IMAGE, "args": ["serve", name, port]});
    let mut mapped = serve("mapped", "8080");
    mapped["ports"] = ports.into();
    pod("mapped", &json!({"nodeName": site.node(1).name(), "containers": [mapped]}))?;
    let hosts = json!({"nodeName": site.node(0).name(), "hostNetwork": true, "containers": [serve("host", "18090")]});
    pod("host", &hosts)?;
    site.kubectl(&["wait", "--for=condition=Ready", "--timeout=80s", "pod/mapped", "pod/host"])
        .with_context(|| site.complaints())?;
    ensure!(site.pod("app=host")?.ips.contains(&site.node(0).ip(Family::V4)), "it has another network");

    let asking: Vec<_> = site.clients()?.into_iter().chain([site.lab.client().clone()]).collect();
    for (place, (family, transport)) in
        asking.iter().flat_map(|place| Transport::over_all().map(move |way| (place, way)))
    {
        place.reaches(transport, (site.node(1).ip(family), 18080).into(), &["mapped"])?;
        place.reaches(transport, (site.node(0).ip(family), 18090).into(), &["host"])?;
    }
    // From there to a Service.
    let addr = format!("{}:80", site.cluster_ips("web")?[0]);
    let answer = site.kubectl(&["exec", "host", "--", "/podnet-lab", "pod", "ask", "TCP", &addr])?;
    ensure!(answer.starts_with("web-"), "{answer}");
    site.kubectl(&["delete", "pod", "mapped", "host"])?;
    let gone = Outcome::Refused;
    site.lab.client().expect(Transport::Tcp, (site.node(1).ip(Family::V4), 18080).into(), &gone)
}

fn port_forward_works(site: &Site) -> Result<()> {
    let pod = site.pods("app=web")?.remove(0);
    let told = site.lab.dir().join("port-forward");
    let mut command = site.control.kubectl_command(&["port-forward", &format!("pod/{}", pod.name), ":8080"])?;
    command.stdout(File::create(&told)?);
    let _forward = Process::start(command)?;
    let port = eventually("a port", || {
        let text = fs::read_to_string(&told)?;
        let port = text.strip_prefix("Forwarding from 127.0.0.1:").and_then(|rest| rest.split(' ').next());
        Ok(port.with_context(|| format!("no port in {text:?}"))?.parse()?)
    })?;
    let answer = Ask::new(Transport::Tcp, SocketAddr::from(([127, 0, 0, 1], port))).from(site.lab.fabric())?;
    ensure!(answer.server == pod.name, "{answer:?}");
    Ok(())
}

/// Number of restarts of the container.
fn restarts(pod: &Pod) -> Option<u64> {
    let statuses = pod.object["status"]["containerStatuses"].as_array()?;
    statuses.iter().find(|status| status["name"] == "web" && status["ready"] == true)?["restartCount"].as_u64()
}

fn pods_recover_after_a_crash_and_on_another_node(site: &Site) -> Result<()> {
    let pod = site.pods("app=web")?.into_iter().find(|pod| pod.node == 0).context("none on the first node")?;
    let statuses = pod.object["status"]["containerStatuses"].as_array().context("no containers")?;
    let id = statuses.iter().find(|status| status["name"] == "web").and_then(|status| status["containerID"].as_str());
    let id = id.and_then(|id| id.strip_prefix("containerd://")).context("no id")?;
    site.kubelets[0].runtime().ctr(&["tasks", "kill", "--signal=SIGKILL", id])?;
    wait_until("another container", || {
        let pods = site.pods("app=web")?;
        Ok(pods.iter().find(|there| there.name == pod.name).and_then(restarts) == Some(1))
    })?;
    let same = site.pods("app=web")?.into_iter().find(|there| there.name == pod.name).context("it has gone")?;
    ensure!(same.ips == pod.ips, "a restart changed its addresses: {pod:?}, {same:?}");
    site.web_answers()?;

    let node = site.node(0).name();
    site.kubectl(&["cordon", node])?;
    site.kubectl(&["delete", "pod", &pod.name])?;
    site.rolled_out(&["deployment/web"])?;
    let pods = site.pods("app=web")?;
    ensure!(pods.len() == 2 && pods.iter().all(|pod| pod.node == 1), "{pods:?}");
    site.web_answers()?;
    site.kubectl(&["uncordon", node])?;
    // Delete it once more, so that each node has one again.
    site.kubectl(&["delete", "pod", &pods[0].name])?;
    site.rolled_out(&["deployment/web"])?;
    site.web_answers()
}

fn daemon_rollout_loses_no_packet(site: &Site) -> Result<()> {
    let pause = Duration::from_millis(3);
    let before: BTreeSet<_> = site.pods("app.kubernetes.io/name=podnet")?.into_iter().map(|pod| pod.name).collect();
    let frontends = site.frontends()?;
    let (mut loads, mut streams) = (Vec::new(), Vec::new());
    for (number, (addr, places)) in frontends.iter().enumerate() {
        // Each frontend from one place, and each place to one frontend; all combinations would take too long.
        let place = &places[number % places.len()];
        for transport in Transport::ALL {
            loads.push((place.name(), addr, transport, Load::start(place, transport, *addr, pause)));
            streams.push((place.name(), addr, transport, Stream::start(place, transport, *addr, pause)?));
        }
    }
    site.kubectl(&["rollout", "restart", "--namespace=kube-system", "daemonset/podnet"])?;
    site.rolled_out(&["--namespace=kube-system", "daemonset/podnet"])?;
    let after: BTreeSet<_> = site.pods("app.kubernetes.io/name=podnet")?.into_iter().map(|pod| pod.name).collect();
    ensure!(before.is_disjoint(&after) && after.len() == 2, "{before:?} and then {after:?}");
    // More requests, with the new daemons.
    let answered =
        |streams: &[(_, _, _, Stream)]| streams.iter().map(|(.., stream)| stream.answered()).collect::<Vec<_>>();
    let so_far = answered(&streams);
    wait_until("more answers", || {
        Ok(answered(&streams).iter().zip(&so_far).all(|(now, before)| *now >= before + 100))
    })?;
    for (from, addr, transport, load) in loads {
        let report = load.stop();
        ensure!(report.errors.is_empty() && report.answered() > 0, "{transport} from {from} to {addr}: {report:?}");
    }
    for (from, addr, transport, stream) in streams {
        let report = stream.stop();
        ensure!(report.is_clean(), "a stream by {transport} from {from} to {addr}: {report:?}");
    }
    nodes_are_ready_without_warnings(site)
}

/// As described in docs/kubernetes.md.
fn removal_leaves_clean_nodes(site: &Site) -> Result<()> {
    site.kubectl(&["delete", "service/web", "deployment/web", "daemonset/client"])?;
    wait_until("no pods", || {
        let pods = site.get(&["pods", "--namespace=default"])?;
        Ok(pods["items"].as_array().is_some_and(Vec::is_empty))
    })?;
    site.kubectl(&["delete", "--filename", MANIFEST])?;
    let image = concat!("--image=localhost/podnet:", env!("CARGO_PKG_VERSION"));
    for node in site.lab.nodes() {
        let debug = ["debug", &format!("node/{}", node.name()), "--profile=sysadmin", image, "--", "podnet", "cleanup"];
        site.kubectl(&[&debug[..], &["--bpffs", "/host/sys/fs/bpf", "--run-dir", "/host/run/podnet"]].concat())?;
    }
    wait_until("the end of both", || {
        let pods = site.get(&["pods", "--namespace=default"])?;
        let pods = pods["items"].as_array().context("no pods")?;
        ensure!(pods.iter().all(|pod| pod["status"]["phase"] != "Failed"), "{pods:?}");
        Ok(pods.len() == 2 && pods.iter().all(|pod| pod["status"]["phase"] == "Succeeded"))
    })?;
    for kubelet in &site.kubelets {
        let node = kubelet.runtime().node();
        let links = node.place.run("ip", &["-json", "link", "show"])?;
        let links: Vec<Value> = serde_json::from_str(&links)?;
        let names: Vec<_> = links.iter().filter_map(|link| link["ifname"].as_str()).collect();
        ensure!(names == ["lo", "eth0"], "{}: {names:?}", node.name());
        for family in ["-4", "-6"] {
            let routes = node.place.run("ip", &[family, "route", "show", "table", "all", "proto", "112"])?;
            ensure!(routes.is_empty(), "{}: {routes}", node.name());
        }
        let filters = node.place.run("tc", &["filter", "show", "dev", "eth0", "ingress"])?;
        ensure!(filters.is_empty(), "{}: {filters}", node.name());
        let pins = kubelet.list("/sys/fs/bpf")?;
        ensure!(!pins.is_empty() && !pins.iter().any(|name| name == "podnet"), "{}: {pins:?}", node.name());
        for (directory, expected) in [("/opt/cni/bin", &["loopback"][..]), ("/etc/cni/net.d", &[])] {
            let there = kubelet.list(directory)?;
            ensure!(there == expected, "{}: {directory} has {there:?}", node.name());
        }
        wait_until("a runtime without a network", || Ok(!kubelet.runtime().network()?.ready))?;
    }
    Ok(())
}

#[test]
#[ignore = "needs kubelet, kube-controller-manager, kube-scheduler and kubectl too in KUBEBUILDER_ASSETS"]
fn two_node_cluster_from_installation_to_removal() -> Result<()> {
    podnet_tests::cases!(
        site()?,
        nodes_are_ready_without_warnings,
        pods_reach_each_other,
        services_answer,
        host_ports_and_host_network_pods_are_reachable,
        port_forward_works,
        pods_recover_after_a_crash_and_on_another_node,
        daemon_rollout_loses_no_packet,
        removal_leaves_clean_nodes,
    )
}
