//! Pods run by containerd and runc, controlled through the Container Runtime Interface, with the plugin installed by
//! the daemon: they start, communicate, restart and are removed.

use std::collections::BTreeSet;
use std::fs;
use std::net::IpAddr;
use std::path::Path;
use std::thread;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use ipnetwork::IpNetwork;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use podnet_tests::lab::cri::{self, PodSpec, Runtime, Sandbox};
use podnet_tests::lab::{Lab, Pod, Service, wait_until};
use podnet_tests::traffic::{Family, Outcome, Server, Stream, Transport};
use serde_json::Value;

/// Port on which containers listen.
const PORT: u16 = 8080;

struct Site {
    // Order of fields = order of dropping.
    runtime: Runtime,
    /// Pods created by the lab: on the first node beside those of the runtime, and on the second node.
    clients: [Pod; 2],
    lab: Lab,
}

impl Site {
    /// A runtime on the first node, started before the daemon.
    fn new() -> Result<Self> {
        let lab = Lab::builder().daemons(false).config(|_, config| config.install = Some(cri::install())).build()?;
        let runtime = Runtime::start(lab.node(0))?;
        let network = runtime.network()?;
        ensure!(!network.ready && network.message.contains("cni plugin not initialized"), "{network:?}");
        let error = runtime.run(&PodSpec::new("early")).expect_err("there is no plugin");
        ensure!(format!("{error:#}").contains("cni plugin not initialized"), "{error:#}");
        for node in lab.nodes() {
            node.start_daemon()?;
        }
        wait_until("a network", || Ok(runtime.network()?.ready))?;
        let clients = [lab.node(0).add_pod("client-1")?, lab.node(1).add_pod("client-2")?];
        Ok(Self { runtime, clients, lab })
    }

    /// State kept for pods on the first node: the plugin's records, host ends, addresses in the datapath's table, and
    /// bound network namespaces.
    fn traces(&self) -> Result<[BTreeSet<String>; 4]> {
        let node = self.lab.node(0);
        let names = |dir: &Path| -> Result<BTreeSet<String>> {
            fs::read_dir(dir)?.map(|entry| Ok(entry?.file_name().to_string_lossy().into_owned())).collect()
        };
        let values = |rows: &Value, key: &str| -> Result<BTreeSet<String>> {
            let rows = rows.as_array().context("no list")?;
            rows.iter().map(|row| row[key].as_str().map(str::to_owned).context("no text")).collect()
        };
        let links = serde_json::from_str(&node.place.run("ip", &["-json", "link", "show", "type", "veth"])?)?;
        Ok([
            names(&node.state_dir().join("attachments"))?,
            values(&links, "ifname")?.into_iter().filter(|name| name.starts_with("pn")).collect(),
            values(&node.podnet_json(&["endpoint", "list"])?, "address")?,
            names(&node.run_dir().with_file_name("netns"))?,
        ])
    }

    /// Requires that no state has been added since `before`.
    fn nothing_more_than(&self, before: &[BTreeSet<String>; 4]) -> Result<()> {
        let now = self.traces()?;
        ensure!(now == *before, "{now:?} instead of {before:?}");
        Ok(())
    }

    /// A pod with a server container.
    fn server(&self, spec: &PodSpec) -> Result<Sandbox<'_>> {
        let pod = self.runtime.run(spec)?;
        pod.serve(PORT)?;
        Ok(pod)
    }

    /// Requires that the pod's server answers the lab's pods and sees their addresses.
    fn serves(&self, name: &str, pod: &Sandbox<'_>) -> Result<()> {
        for (family, transport) in Transport::over_all() {
            for client in &self.clients {
                let expected = Outcome::answer(name, client.ip(family));
                client.place.expect(transport, pod.addr(family, PORT), &expected)?;
            }
        }
        Ok(())
    }
}

fn end(pod: Sandbox<'_>) -> Result<()> {
    pod.stop()?;
    pod.remove()
}

#[test]
fn pods_of_containerd() -> Result<()> {
    podnet_tests::cases!(
        Site::new()?,
        pods_serve_directly_and_through_a_service,
        containers_of_a_pod_share_its_network,
        host_ports_lead_to_their_pod,
        host_network_pod_gets_no_attachment,
        address_is_kept_until_the_pod_ends_and_not_reused_at_once,
        pods_start_and_end_without_the_daemon,
        pods_keep_working_while_containerd_restarts,
        pod_with_lost_namespace_can_be_removed,
        failed_pod_start_leaves_nothing_behind,
        fifty_pods_start_and_end_in_parallel,
    )
}

fn pods_serve_directly_and_through_a_service(site: &Site) -> Result<()> {
    let before = site.traces()?;
    let web = site.server(&PodSpec::new("web"))?;
    let cidrs = site.lab.node(0).pod_cidrs();
    ensure!(web.ips.len() == cidrs.len(), "{:?}", web.ips);
    for (ip, cidr) in web.ips.iter().zip(cidrs) {
        ensure!(cidr.parse::<IpNetwork>()?.contains(*ip), "{ip} is not in {cidr}");
    }
    site.serves("web", &web)?;

    let service = Service::new("web", 10, 80, PORT);
    service.apply(&site.lab, None)?;
    service.set_endpoints(&site.lab, &web.ips)?;
    let neighbour = site.runtime.run(&PodSpec::new("neighbour"))?;
    let process = neighbour.start("process", &["wait"])?;
    for (family, transport) in Transport::over_all() {
        for client in &site.clients {
            client.place.expect(transport, service.addr(family), &Outcome::answer("web", client.ip(family)))?;
        }
        for to in [web.addr(family, PORT), service.addr(family)] {
            let answer = process.exec(&["ask", transport.name(), &to.to_string()])?;
            ensure!(answer == format!("web {}", neighbour.ip(family)), "{transport} to {to}: {answer}");
        }
    }
    end(web)?;
    end(neighbour)?;
    site.nothing_more_than(&before)
}

fn containers_of_a_pod_share_its_network(site: &Site) -> Result<()> {
    let web = site.server(&PodSpec::new("web"))?;
    let pod = site.runtime.run(&PodSpec::new("several"))?;
    // Init containers, one after the other: the first is successful, the second is not.
    let ask = |port| pod.start("init", &["ask", "TCP", &web.addr(Family::V4, port).to_string()])?.wait();
    ensure!(ask(PORT)? == 0 && ask(PORT + 1)? == 1, "an init container's status");

    let port = PORT.to_string();
    let first = pod.start("first", &["serve", "first", &port])?;
    let second = pod.start("second", &["serve", "second", "9090"])?;
    for (family, transport) in Transport::over_all() {
        let local = family.loopback();
        for client in &site.clients {
            let seen = client.ip(family);
            client.place.expect(transport, pod.addr(family, PORT), &Outcome::answer("first", seen))?;
            client.place.expect(transport, pod.addr(family, 9090), &Outcome::answer("second", seen))?;
        }
        // A connection from outside the containers, in the pod's network, as port-forward makes it.
        pod.place.expect(transport, (local, PORT).into(), &Outcome::answer("first", local))?;
    }
    for (container, to, expected) in
        [(&second, "127.0.0.1:8080", "first 127.0.0.1"), (&first, "[::1]:9090", "second ::1")]
    {
        let answer = container.exec(&["ask", "TCP", to])?;
        ensure!(answer == expected, "{answer} from {to}");
    }
    end(web)?;
    end(pod)
}

fn host_ports_lead_to_their_pod(site: &Site) -> Result<()> {
    let before = site.traces()?;
    let spec = |name| PodSpec::new(name).host_port(Transport::Tcp, 9000, PORT).host_port(Transport::Udp, 9000, PORT);
    let web = site.server(&spec("web"))?;
    let node = site.lab.node(0);
    let places = [&site.clients[0].place, &site.clients[1].place, &node.place, &site.lab.node(1).place];
    let at = |family| (node.ip(family), 9000).into();
    for (family, transport) in Transport::over_all() {
        for place in places {
            place.reaches(transport, at(family), &["web"])?;
        }
    }
    let one = site.traces()?;
    let error = site.runtime.run(&spec("late")).expect_err("the port is taken");
    ensure!(format!("{error:#}").contains("port 9000"), "{error:#}");
    site.nothing_more_than(&one)?;
    end(web)?;
    for (family, transport) in Transport::over_all() {
        for place in places {
            place.expect(transport, at(family), &Outcome::Refused)?;
        }
    }
    site.nothing_more_than(&before)
}

fn host_network_pod_gets_no_attachment(site: &Site) -> Result<()> {
    let before = site.traces()?;
    let web = site.server(&PodSpec::new("web"))?;
    let service = Service::new("web", 11, 80, PORT);
    service.apply(&site.lab, None)?;
    service.set_endpoints(&site.lab, &web.ips)?;
    let with_web = site.traces()?;

    let host = site.runtime.run(&PodSpec::new("host").host_network())?;
    ensure!(host.ips.is_empty() && host.netns_path.is_empty(), "{host:?}");
    let process = host.start("server", &["serve", "host", "8090"])?;
    site.nothing_more_than(&with_web)?;
    for (family, transport) in Transport::over_all() {
        let ip = site.lab.node(0).ip(family);
        for client in &site.clients {
            client.place.expect(transport, (ip, 8090).into(), &Outcome::answer("host", client.ip(family)))?;
        }
        site.clients[0].place.expect(
            transport,
            service.addr(family),
            &Outcome::answer("web", site.clients[0].ip(family)),
        )?;
        let answer = process.exec(&["ask", transport.name(), &service.addr(family).to_string()])?;
        ensure!(answer == format!("web {ip}"), "{answer}");
    }
    end(host)?;
    end(web)?;
    site.nothing_more_than(&before)
}

fn address_is_kept_until_the_pod_ends_and_not_reused_at_once(site: &Site) -> Result<()> {
    let before = site.traces()?;
    let web = site.runtime.run(&PodSpec::new("web"))?;
    for _ in 0..2 {
        let server = web.serve(PORT)?;
        site.serves("web", &web)?;
        server.stop()?;
        ensure!(web.is_ready()? && !server.is_running()?, "the container has been stopped, and not the pod");
        for (family, transport) in Transport::over_all() {
            site.clients[1].place.expect(transport, web.addr(family, PORT), &Outcome::Refused)?;
        }
    }
    let ips = web.ips.clone();
    web.stop()?;
    ensure!(!web.is_ready()?, "it has been stopped");
    site.nothing_more_than(&before)?;
    let again = site.server(&PodSpec::new("web"))?;
    web.remove()?;
    ensure!(again.ips.iter().all(|ip| !ips.contains(ip)), "{ips:?} were given again at once");
    site.serves("web", &again)?;
    for client in &site.clients {
        for transport in Transport::ALL {
            for ip in &ips {
                let outcome = client.place.outcome(transport, (*ip, PORT).into());
                ensure!(!matches!(outcome, Outcome::Answer { .. }), "{outcome} at {ip}, where nobody is");
            }
        }
    }
    end(again)?;
    site.nothing_more_than(&before)
}

fn pods_start_and_end_without_the_daemon(site: &Site) -> Result<()> {
    let before = site.traces()?;
    let old = site.server(&PodSpec::new("old"))?;
    site.lab.node(0).stop_daemon()?;
    ensure!(site.runtime.network()?.ready, "the plugin is there still");
    let new = site.server(&PodSpec::new("new"))?;
    site.serves("old", &old)?;
    site.serves("new", &new)?;
    end(old)?;
    end(new)?;
    site.nothing_more_than(&before)?;
    site.lab.node(0).start_daemon()
}

fn pods_keep_working_while_containerd_restarts(site: &Site) -> Result<()> {
    let before = site.traces()?;
    let web = site.server(&PodSpec::new("web"))?;
    site.serves("web", &web)?;
    let to = web.addr(Family::V4, PORT);
    let stream = Stream::start(&site.clients[1].place, Transport::Tcp, to, Duration::from_millis(5))?;
    for signal in [Signal::SIGTERM, Signal::SIGKILL] {
        site.runtime.pause(signal)?;
        site.serves("web", &web)?;
        site.runtime.resume()?;
        wait_until("a network", || Ok(site.runtime.network()?.ready))?;
        ensure!(web.is_ready()?, "the pod is lost");
    }
    let report = stream.stop();
    ensure!(report.is_clean(), "{report:?}");
    web.serve(PORT + 1)?;
    end(web)?;
    site.nothing_more_than(&before)
}

fn pod_with_lost_namespace_can_be_removed(site: &Site) -> Result<()> {
    let before = site.traces()?;
    let pod = site.runtime.run(&PodSpec::new("lost"))?;
    pod.lose_netns()?;
    pod.stop()?;
    site.nothing_more_than(&before)?;
    pod.stop().context("once more")?;
    pod.remove()
}

/// runc rejects the container, after the pod's network has been set up.
fn failed_pod_start_leaves_nothing_behind(site: &Site) -> Result<()> {
    let before = site.traces()?;
    let spec = PodSpec::new("unlucky").sysctl("net.ipv4.no_such_setting", "1");
    let error = site.runtime.run(&spec).expect_err("there is no such setting");
    ensure!(format!("{error:#}").contains("no_such_setting"), "{error:#}");
    site.nothing_more_than(&before)
}

fn fifty_pods_start_and_end_in_parallel(site: &Site) -> Result<()> {
    let before = site.traces()?;
    let specs: Vec<_> = (0..50).map(|number| PodSpec::new(&format!("pod-{number}"))).collect();
    let pods = at_once(&specs, |spec| site.runtime.run(spec))?;
    let distinct: BTreeSet<IpAddr> = pods.iter().flat_map(|pod| pod.ips.iter().copied()).collect();
    ensure!(distinct.len() == 100, "{} addresses: {distinct:?}", distinct.len());
    let servers = pods.iter().flat_map(|pod| pod.ips.iter().map(move |ip| (pod, ip)));
    let servers = servers.map(|(pod, ip)| Server::start(&pod.place, pod.place.name(), (*ip, PORT).into()));
    let servers = servers.collect::<Result<Vec<_>>>()?;
    for pod in &pods {
        site.serves(pod.place.name(), pod)?;
    }
    drop(servers);
    at_once(&pods, Sandbox::stop)?;
    site.nothing_more_than(&before)?;
    pods.into_iter().try_for_each(Sandbox::remove)
}

/// Runs a closure for all items in parallel.
fn at_once<'a, I: Sync, T: Send>(items: &'a [I], work: impl Fn(&'a I) -> Result<T> + Sync) -> Result<Vec<T>> {
    thread::scope(|scope| {
        let threads: Vec<_> = items.iter().map(|item| scope.spawn(|| work(item))).collect();
        threads.into_iter().map(|thread| thread.join().expect("the work doesn't panic")).collect()
    })
}

#[test]
fn processes_of_a_runtime_end_with_it() -> Result<()> {
    let lab = Lab::builder().daemons(false).build()?;
    // Found by command line; the agents belong to the lab.
    let processes = |cgroup: &Path| -> Result<Vec<(i32, String)>> {
        let groups = fs::read_dir(cgroup)?.map(|entry| Ok(entry?.path())).collect::<Result<Vec<_>>>()?;
        let groups = groups.iter().filter(|path| path.is_dir()).map(|path| &**path).chain([cgroup]);
        let ids = groups.map(|group| fs::read_to_string(group.join("cgroup.procs"))).collect::<Result<Vec<_>, _>>()?;
        let ids = ids.concat().lines().map(|id| Ok(id.parse()?)).collect::<Result<Vec<i32>>>()?;
        let words = |id: &i32| fs::read_to_string(format!("/proc/{id}/cmdline")).unwrap_or_default();
        Ok(ids.iter().map(|id| (*id, words(id))).filter(|(_, words)| !words.contains("agent")).collect())
    };
    for (node, killed) in lab.nodes().iter().zip([false, true]) {
        let runtime = Runtime::start(node)?;
        let cgroup = lab.cgroup().join(node.name());
        let pod = runtime.run(&PodSpec::new("host").host_network())?;
        pod.serve(PORT)?;
        let running = processes(&cgroup)?;
        for part in ["supervise", "containerd-shim", "serve"] {
            ensure!(running.iter().any(|(_, words)| words.contains(part)), "there is no {part}: {running:?}");
        }
        if killed {
            let supervisor = running.iter().find(|(_, words)| words.contains("supervise"));
            kill(Pid::from_raw(supervisor.context("no supervisor")?.0), Signal::SIGKILL)?;
            wait_until("the end of all", || Ok(processes(&cgroup)?.is_empty()))?;
        }
        drop(runtime);
        let left = processes(&cgroup)?;
        ensure!(left.is_empty(), "{left:?}");
    }
    let (dir, cgroup) = (lab.dir().to_owned(), lab.cgroup().to_owned());
    drop(lab);
    ensure!(!dir.exists() && !cgroup.exists(), "the lab has left {} or {}", dir.display(), cgroup.display());
    Ok(())
}
