//! Network policies apply to a pod's very first packet: pods that start while others send to all addresses that they
//! may get.

use std::collections::BTreeSet;
use std::ffi::OsStr;
use std::fs;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread::{self, JoinHandle};

use anyhow::{Context as _, Result, ensure};
use ipnetwork::IpNetwork;
use nix::sys::inotify::{AddWatchFlags, InitFlags, Inotify, InotifyEvent};
use podnet_cni::node_info::NodeInfo;
use podnet_tests::cases;
use podnet_tests::lab::policed::{PORT, Site, announced, app, is_denied, policy, reaches};
use podnet_tests::lab::{Lab, Node, Pod, eventually, manifest, wait_until};
use podnet_tests::traffic::{Family, Flood, Frames, Transport, syn_frame, udp_frame};
use serde_json::{Value, json};

/// Pods that start under attack.
const PODS: usize = 100;
/// Pods that start under attack before and after a daemon starts, half of them before.
const WITHOUT_DAEMON: usize = 40;
/// Pods that start at the same time.
const AT_ONCE: usize = 8;
/// Addresses of each family that are attacked, from the start of the node's pod CIDR: more than all pods here get.
const ATTACKED: usize = 200;
/// The attackers' source port.
const SOURCE: u16 = 10_000;

#[test]
fn network_policy_start() -> Result<()> {
    cases!(
        Site::new(Lab::builder())?,
        the_attack_reaches_pods_without_policies,
        pods_receive_nothing_that_policies_forbid_while_they_start,
        pods_receive_nothing_that_policies_forbid_while_no_daemon_runs,
    )
}

/// The packets of attackers whom a policy isolates are tracked, but not to addresses that no pod has yet.
#[test]
fn flows_from_before_a_pod() -> Result<()> {
    cases!(
        Site::new(Lab::builder())?,
        flows_to_an_address_are_evaluated_when_a_pod_gets_it,
        flows_to_an_address_are_evaluated_when_a_pod_gets_it_without_a_daemon,
    )
}

#[test]
fn pods_that_start_while_a_daemon_starts() -> Result<()> {
    cases!(Site::new(Lab::builder())?, pods_receive_nothing_that_policies_forbid_while_a_daemon_starts)
}

/// Policies from before the daemon's first start apply to the node's first pod, with the daemon gone.
#[test]
fn a_pod_that_starts_after_a_boot_is_closed() -> Result<()> {
    let lab = Lab::builder().daemons(false).build()?;
    let closed = policy("closed", "late", json!({"policyTypes": ["Ingress"]}));
    lab.apply("network-policies", &manifest::yaml(&[closed]))?;
    let [node, other] = [lab.node(0), lab.node(1)];
    let first = first_published(node)?;
    lab.nodes().iter().try_for_each(|node| node.start_daemon())?;
    published(node, true)?;
    let (info, applied) = first.join().expect("reading does not panic")?;
    ensure!(info.policed.contains("default") && applied, "policies are not in effect at first: {applied}, {info:?}");
    node.kill_daemon()?;
    let pods = [announced("late", node, "late"), announced("client", other, "client")];
    lab.apply("pods", &manifest::yaml(&pods))?;
    let (client, mut late) = (other.add_pod("client")?, node.add_pod("late")?);
    late.serve(PORT)?;
    is_denied(&client, &late)?;
    lab.withdraw("network-policies")?;
    node.start_daemon()?;
    eventually("the pod is open without policies", || reaches(&client, &late))
}

/// A started pod, and all frames that have been in it since its namespace was made.
struct Started {
    pod: Pod,
    frames: Frames,
}

impl Started {
    fn new(node: &Arc<Node>, name: &str) -> Result<Self> {
        let (mut pod, frames) = node.add_pod_prepared(name, |place| Ok(Frames::of_all(place)?))?;
        pod.serve(PORT)?;
        Ok(Self { pod, frames })
    }

    /// Senders of the TCP and UDP packets that have come to the pod since the last call.
    fn senders(&self) -> Result<BTreeSet<(IpAddr, Transport)>> {
        Ok(self.frames.seen()?.iter().filter_map(|frame| sender(frame)).collect())
    }
}

/// Source and protocol of a TCP or UDP packet.
fn sender(frame: &[u8]) -> Option<(IpAddr, Transport)> {
    let (ip, protocol): (IpAddr, u8) = match frame.get(12..14)? {
        [8, 0] => (<[u8; 4]>::try_from(frame.get(26..30)?).ok()?.into(), *frame.get(23)?),
        [0x86, 0xdd] => (<[u8; 16]>::try_from(frame.get(22..38)?).ok()?.into(), *frame.get(20)?),
        _ => return None,
    };
    let transport = match i32::from(protocol) {
        libc::IPPROTO_TCP => Transport::Tcp,
        libc::IPPROTO_UDP => Transport::Udp,
        _ => return None,
    };
    Some((ip, transport))
}

/// Datagrams and SYNs from the strangers on both nodes to node1's pods, until it is dropped.
struct Attack {
    _floods: [Flood; 2],
    expected: BTreeSet<(IpAddr, Transport)>,
    targets: [BTreeSet<IpAddr>; 2],
}

impl Attack {
    fn start(site: &Site) -> Result<Self> {
        let first = |cidr: &String| -> Result<Vec<IpAddr>> {
            Ok(cidr.parse::<IpNetwork>()?.iter().skip(1).take(ATTACKED).collect())
        };
        let targets = site.lab.node(0).pod_cidrs().iter().map(first).collect::<Result<Vec<_>>>()?;
        let [four, six] = <[_; 2]>::try_from(targets).ok().context("the node has not two pod CIDRs")?;
        let strangers = [&site.stranger, &site.far_stranger];
        let flood = |pod: &Pod| {
            let macs = (pod.place.mac("eth0")?, pod.node().place.mac(&pod.host_ifname()?)?);
            let (own, four, six) = (Family::ALL.map(|family| pod.ip(family)), four.clone(), six.clone());
            Flood::start(&pod.place, "eth0", move |number| {
                let number = number as usize;
                let targets = if number & 1 == 0 { &four } else { &six };
                let from = SocketAddr::new(own[number & 1], SOURCE);
                let to = SocketAddr::new(targets[(number >> 2) % ATTACKED], PORT);
                if number & 2 == 0 { udp_frame(macs, from, to, b"?") } else { syn_frame(macs, from, to) }
            })
        };
        let floods = [flood(strangers[0])?, flood(strangers[1])?];
        let ips = strangers.iter().flat_map(|pod| pod.ips.iter().copied());
        let expected = ips.flat_map(|ip| Transport::ALL.map(|transport| (ip, transport))).collect();
        Ok(Self { _floods: floods, expected, targets: [four, six].map(|ips| ips.into_iter().collect()) })
    }

    /// A pod is among the targets, and no packet of the attack has come to it since the last call.
    /// Returns all senders.
    fn is_kept_from(&self, started: &Started) -> Result<BTreeSet<(IpAddr, Transport)>> {
        for (targets, ip) in self.targets.iter().zip(&started.pod.ips) {
            ensure!(targets.contains(ip), "{ip} is not attacked");
        }
        let senders = started.senders()?;
        let forbidden: Vec<_> = senders.intersection(&self.expected).collect();
        ensure!(forbidden.is_empty(), "{} has received packets of {forbidden:?}", started.pod.name());
        Ok(senders)
    }
}

/// Applies a policy that allows nothing, for all pods but the strangers, and one for the pods `late` that allows their
/// friends, together with the objects of pods that will start.
fn announce(site: &Site, names: &[String]) -> Result<()> {
    let others = json!({"key": "app", "operator": "NotIn", "values": ["stranger"]});
    announce_with(site, names, json!({"matchExpressions": [others]}))
}

/// Same, with this selector of the pods that are closed.
fn announce_with(site: &Site, names: &[String], closed: Value) -> Result<()> {
    let node = site.lab.node(0);
    // What an earlier case had applied is gone.
    published(node, false)?;
    reaches(&site.stranger, &site.friend)?;
    let mut deny = policy("default-deny", "", json!({"policyTypes": ["Ingress"]}));
    deny["spec"]["podSelector"] = closed;
    site.apply(&[deny, policy("late", "late", json!({"ingress": [{"from": [app("friend")]}]}))])?;
    let mut objects = site.objects();
    objects.extend(names.iter().map(|name| announced(name, node, "late")));
    site.lab.apply("pods", &manifest::yaml(&objects))?;
    published(node, true)?;
    is_denied(&site.stranger, &site.friend)
}

/// Waits until the daemon has told the plugin whether there are policies.
fn published(node: &Node, policed: bool) -> Result<()> {
    eventually("node.json is up to date", || {
        let info: Value = serde_json::from_str(&fs::read_to_string(node.run_dir().join("node.json"))?)?;
        ensure!((info["policed"] == json!(["default"])) == policed, "{info}");
        Ok(())
    })
}

/// The first `node.json` that the node's next daemon writes, and whether the programs apply policies at that moment.
/// Both may change within milliseconds.
fn first_published(node: &Arc<Node>) -> Result<JoinHandle<Result<(NodeInfo, bool)>>> {
    let (node, directory) = (node.clone(), node.run_dir());
    fs::create_dir_all(&directory)?;
    let inotify = Inotify::init(InitFlags::IN_CLOEXEC)?;
    inotify.add_watch(&directory, AddWatchFlags::IN_MOVED_TO)?;
    let is_published = |event: &InotifyEvent| event.name.as_deref() == Some(OsStr::new("node.json"));
    Ok(thread::spawn(move || {
        while !inotify.read_events()?.iter().any(is_published) {}
        let applied = node.applies_policies()?;
        Ok((NodeInfo::read(&directory)?, applied))
    }))
}

/// Starts the pods, several at once.
fn start(site: &Site, names: &[String]) -> Result<Vec<Started>> {
    let next = AtomicUsize::new(0);
    let work = || -> Result<Vec<Started>> {
        let mut pods = Vec::new();
        while let Some(name) = names.get(next.fetch_add(1, Ordering::Relaxed)) {
            pods.push(Started::new(site.lab.node(0), name)?);
        }
        Ok(pods)
    };
    thread::scope(|scope| {
        let workers: Vec<_> = (0..AT_ONCE).map(|_| scope.spawn(work)).collect();
        let pods = workers.into_iter().map(|worker| worker.join().expect("starting a pod does not panic"));
        Ok(pods.collect::<Result<Vec<_>>>()?.into_iter().flatten().collect())
    })
}

/// Each friend reaches the pods, and nothing of the attack has come to any of them, for the sake of the policies.
fn only_friends_get_through(site: &Site, attack: &Attack, pods: &[Started]) -> Result<()> {
    for (started, friend) in pods.iter().zip([&site.friend, &site.far_friend].into_iter().cycle()) {
        reaches(friend, &started.pod)?;
        let senders = attack.is_kept_from(started)?;
        ensure!(friend.ips.iter().all(|ip| senders.contains(&(*ip, Transport::Udp))), "{senders:?} without the friend");
    }
    let dropped = || Ok::<_, anyhow::Error>(site.lab.node(0).drops()?.get("policy_ingress").copied());
    let before = dropped()?;
    wait_until("packets of the attack are dropped", || Ok(dropped()? > before))?;
    pods.iter().try_for_each(|started| attack.is_kept_from(started).map(drop))
}

fn names(prefix: &str, count: usize) -> Vec<String> {
    (0..count).map(|number| format!("{prefix}-{number}")).collect()
}

/// Otherwise the other cases would show nothing.
fn the_attack_reaches_pods_without_policies(site: &Site) -> Result<()> {
    let attack = Attack::start(site)?;
    let started = Started::new(site.lab.node(0), "open")?;
    let mut seen = started.senders()?;
    wait_until("all of the attack arrives", || {
        seen.append(&mut started.senders()?);
        Ok(seen.is_superset(&attack.expected))
    })
}

fn pods_receive_nothing_that_policies_forbid_while_they_start(site: &Site) -> Result<()> {
    let names = names("late", PODS);
    announce(site, &names)?;
    let attack = Attack::start(site)?;
    let pods = start(site, &names)?;
    only_friends_get_through(site, &attack, &pods)
}

/// The daemon is killed before, and another one starts once these pods have started; more pods follow.
fn pods_receive_nothing_that_policies_forbid_while_no_daemon_runs(site: &Site) -> Result<()> {
    let names = names("later", WITHOUT_DAEMON);
    announce(site, &names)?;
    let node = site.lab.node(0);
    node.kill_daemon()?;
    let attack = Attack::start(site)?;
    let (before, after) = names.split_at(WITHOUT_DAEMON / 2);
    let mut pods = start(site, before)?;
    pods.iter().try_for_each(|started| attack.is_kept_from(started).map(drop))?;
    node.start_daemon()?;
    pods.append(&mut start(site, after)?);
    only_friends_get_through(site, &attack, &pods)
}

/// Waits until the attack has gone over all addresses several times: in each round it also meets closed pods.
fn has_gone_round(site: &Site) -> Result<()> {
    const DROPS: u64 = 200;
    let denied =
        || Ok::<_, anyhow::Error>(site.lab.node(0).drops()?.get("policy_ingress").copied().unwrap_or_default());
    let before = denied()?;
    wait_until("packets to closed pods", || Ok(denied()? >= before + DROPS))
}

fn flows_to_an_address_are_evaluated_when_a_pod_gets_it(site: &Site) -> Result<()> {
    let names = names("late", WITHOUT_DAEMON);
    announce_with(site, &names, json!({}))?;
    let attack = Attack::start(site)?;
    has_gone_round(site)?;
    let pods = start(site, &names)?;
    only_friends_get_through(site, &attack, &pods)
}

fn flows_to_an_address_are_evaluated_when_a_pod_gets_it_without_a_daemon(site: &Site) -> Result<()> {
    let names = names("later", AT_ONCE);
    announce_with(site, &names, json!({}))?;
    let attack = Attack::start(site)?;
    has_gone_round(site)?;
    site.lab.node(0).kill_daemon()?;
    let pods = start(site, &names)?;
    let kept = pods.iter().try_for_each(|started| attack.is_kept_from(started).map(drop));
    site.lab.node(0).start_daemon()?;
    kept?;
    only_friends_get_through(site, &attack, &pods)
}

/// The plugin is at work on pods while the daemon reads the tables.
fn pods_receive_nothing_that_policies_forbid_while_a_daemon_starts(site: &Site) -> Result<()> {
    const ROUNDS: usize = 5;
    let (names, node) = (names("late", PODS + ROUNDS * AT_ONCE * 2), site.lab.node(0));
    let (running, others) = names.split_at(PODS);
    announce(site, &names)?;
    let mut pods = start(site, running)?;
    let attack = Attack::start(site)?;
    for round in others.chunks(AT_ONCE * 2) {
        node.kill_daemon()?;
        let started = thread::scope(|scope| {
            let started = scope.spawn(|| start(site, round));
            node.start_daemon()?;
            started.join().expect("starting a pod does not panic")
        })?;
        started.iter().try_for_each(|started| attack.is_kept_from(started).map(drop))?;
        pods.extend(started);
    }
    only_friends_get_through(site, &attack, &pods)
}
