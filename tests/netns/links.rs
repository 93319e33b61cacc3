//! Changes by other programs to pods' links and records: they are reverted at once, reported with the pod's name, and
//! take no pod down.

use std::fs;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use podnet_tests::cases;
use podnet_tests::lab::{Lab, Node, Pod, eventually};
use podnet_tests::traffic::{Family, Transport};
use serde_json::{Value, json};

/// Much less than the 30 s between the daemon's full checks.
const SOON: Duration = Duration::from_secs(10);

struct Site {
    lab: Lab,
    other: Pod,
}

#[test]
fn links() -> Result<()> {
    let lab = Lab::builder().nodes(1).build()?;
    let other = lab.node(0).add_server("other", 8080)?;
    cases!(
        Site { lab, other },
        removed_parts_of_links_are_restored_and_reported,
        links_from_before_a_restart_are_restored_at_once,
        names_that_are_no_text_hinder_nothing,
        continual_changes_are_restored_less_often_and_reported,
        changed_settings_are_restored_at_once,
        renamed_link_is_recognised_and_deleted_with_its_pod,
        removed_records_are_rewritten,
        damaged_records_take_no_pod_down,
        replaced_record_directory_is_watched,
        pods_outside_the_node_pod_cidrs_are_reported,
    )
}

/// Retries until success, for up to [`SOON`].
fn soon<T>(what: &str, mut attempt: impl FnMut() -> Result<T>) -> Result<T> {
    let start = Instant::now();
    loop {
        match attempt() {
            Err(error) if start.elapsed() > SOON => return Err(error.context(format!("not after {SOON:?}: {what}"))),
            Err(_) => std::thread::sleep(Duration::from_millis(20)),
            success => return success,
        }
    }
}

/// The node's agents and another pod reach a pod in every way, and vice versa.
fn works(site: &Site, pod: &Pod) -> Result<()> {
    let node = site.lab.node(0);
    for family in Family::ALL {
        node.place.is_seen_as(node.ip(family), pod.addr(family, 8080), pod.name())?;
        site.other.place.is_seen_as(site.other.ip(family), pod.addr(family, 8080), pod.name())?;
        pod.place.is_seen_as(pod.ip(family), site.other.addr(family, 8080), "other")?;
    }
    pod.invoke("CHECK").map(drop)
}

/// Number of repairs of a pod's link.
fn repairs(node: &Node, pod: &Pod) -> Result<u64> {
    let status = node.podnet_json(&["status"])?;
    let rows = status["daemon"]["report"]["repairs"].as_array().context("no repairs in the report")?.clone();
    let of = format!("pod default/{}", pod.name());
    Ok(rows.iter().find(|row| row["of"] == of.as_str()).and_then(|row| row["times"].as_u64()).unwrap_or_default())
}

fn removed_parts_of_links_are_restored_and_reported(site: &Site) -> Result<()> {
    let node = site.lab.node(0);
    // {0} is the host end, {1} and {2} are the pod's addresses. Each has a pod of its own: repairs of one link are
    // limited, and a disturbance in several steps may cause several.
    for (number, (disturbance, part)) in [
        ("ip route flush dev {0}; ip -6 route flush dev {0}", "route to"),
        ("ip route replace {1} dev lo; ip -6 route replace {2} dev lo", "route to"),
        ("ip route replace blackhole {1}; ip -6 route replace unreachable {2}", "route to"),
        ("ip addr flush dev {0}", "address"),
        ("ip link set {0} down", "link state up"),
        ("ip link set {0} down; ip link set {0} up", "route to"),
        ("ip link set {0} address 02:00:00:00:77:77", "MAC"),
        ("ip link set {0} mtu 1000", "MTU"),
        ("ip neigh del {1} dev {0}; ip -6 neigh del {2} dev {0}", "neighbour"),
        ("ip neigh replace {1} dev {0} lladdr 02:00:00:00:77:77", "neighbour"),
        // The daemon may be faster than the last command.
        ("ip link set {0} down; ip link set {0} name lan7; ip link set lan7 up || true", "name"),
        ("ip link set {0} alias other", "alias"),
        ("ip link add lan9 type bridge; ip link set lan9 up; ip link set {0} master lan9", "no bridge"),
        ("tc qdisc del dev {0} clsact", "programs"),
        ("tc filter del dev {0} ingress", "programs"),
        ("echo 1 > /proc/sys/net/ipv6/conf/{0}/disable_ipv6", "address"),
    ]
    .into_iter()
    .enumerate()
    {
        let pod = node.add_server(&format!("web{number}"), 8080)?;
        works(site, &pod)?;
        let [v4, v6] = Family::ALL.map(|family| pod.ip(family).to_string());
        let script = disturbance.replace("{0}", &pod.host_ifname()?).replace("{1}", &v4).replace("{2}", &v6);
        let before = restored(node, &pod);
        ensure!(before.is_empty(), "nothing has been disturbed, but: {before}");
        node.place.run("sh", &["-ec", &script])?;
        soon(&script, || {
            let restored = restored(node, &pod);
            ensure!(restored.contains(part), "no {part} among what was restored: {restored}");
            works(site, &pod)
        })?;
        ensure!(repairs(node, &pod)? > 0, "{script}: the status has no repair");
        pod.delete()?;
    }
    node.place.ip("link del lan9\n")
}

fn links_from_before_a_restart_are_restored_at_once(site: &Site) -> Result<()> {
    let node = site.lab.node(0);
    let pods = ["old0", "old1", "old2"].map(|name| node.add_server(name, 8080));
    let pods = pods.into_iter().collect::<Result<Vec<_>>>()?;
    node.stop_daemon()?;
    node.place.run("tc", &["qdisc", "del", "dev", &pods[0].host_ifname()?, "clsact"])?;
    let error = pods[0].invoke("CHECK").err().context("CHECK has not noticed that the programs are gone")?;
    ensure!(format!("{error:#}").contains("is not attached"), "{error:#}");
    node.start_daemon()?;
    works(site, &pods[0])?;
    for (pod, disturbance) in
        pods.iter().zip(["tc qdisc del dev {0} clsact", "ip addr flush dev {0}", "ip neigh del {1} dev {0}"])
    {
        let v4 = pod.ip(Family::V4).to_string();
        let script = disturbance.replace("{0}", &pod.host_ifname()?).replace("{1}", &v4);
        let before = restored(node, pod).len();
        node.place.run("sh", &["-ec", &script])?;
        soon(&script, || {
            ensure!(restored(node, pod).len() > before, "nothing has been restored");
            works(site, pod)
        })?;
    }
    pods.into_iter().try_for_each(Pod::delete)
}

fn names_that_are_no_text_hinder_nothing(site: &Site) -> Result<()> {
    let node = site.lab.node(0);
    let script = "ip link add odd0 type bridge; ip link set odd0 alias $(printf 'B\\374ro'); \
                  ip link property add dev odd0 altname $(printf 'n\\377'); ip addr add 192.0.2.77/32 dev odd0";
    node.place.run("sh", &["-ec", script])?;
    let alias = node.place.run("od", &["-An", "-tx1", "/sys/class/net/odd0/ifalias"])?;
    ensure!(alias.contains("fc"), "the alias is text: {alias}");
    let pod = node.add_server("beside-odd", 8080)?;
    works(site, &pod)?;
    let host_end = pod.host_ifname()?;
    node.place.run("tc", &["qdisc", "del", "dev", &host_end, "clsact"])?;
    soon("the programs are back", || works(site, &pod))?;
    pod.delete()?;
    node.place.ip("link del odd0\n")
}

/// The daemon's log lines about repairs of a pod's link.
fn restored(node: &Node, pod: &Pod) -> String {
    let of = format!("restored the link of pod default/{},", pod.name());
    node.log().lines().filter(|line| line.contains(&of)).collect::<Vec<_>>().join("\n")
}

fn continual_changes_are_restored_less_often_and_reported(site: &Site) -> Result<()> {
    let node = site.lab.node(0);
    let pod = node.add_server("web", 8080)?;
    let mtu = format!("/sys/class/net/{}/mtu", pod.host_ifname()?);
    let read = || node.place.run("cat", &[&mtu]);
    let own = read()?;
    // More than are restored at once.
    for change in 0..12 {
        node.place.run("sh", &["-ec", &format!("echo {} > {mtu}", 1000 + change)])?;
        soon("the MTU is back", || {
            let now = read()?;
            ensure!(now == own, "it is {now}");
            Ok(())
        })?;
    }
    let warnings = node.podnet_json(&["status"])?["warnings"].to_string();
    ensure!(warnings.contains("keeps changing the link of pod default/web ("), "{warnings}");
    let text = node.podnet(&["status"])?;
    ensure!(text.contains("of the links of"), "the screenful says nothing: {text}");
    works(site, &pod)?;
    pod.delete()
}

/// Same as `sysctl --system`, when a package installs settings of its own.
fn changed_settings_are_restored_at_once(site: &Site) -> Result<()> {
    let node = site.lab.node(0);
    let pod = node.add_server("web", 8080)?;
    let end = pod.host_ifname()?;
    for (name, value) in [
        (format!("net.ipv4.conf.{end}.forwarding"), "0"),
        (format!("net.ipv6.conf.{end}.forwarding"), "0"),
        (format!("net.ipv4.conf.{end}.rp_filter"), "1"),
        ("net.ipv4.conf.eth0.rp_filter".into(), "1"),
        ("net.ipv4.ip_forward".into(), "0"),
        ("net.ipv6.conf.all.forwarding".into(), "0"),
    ] {
        node.place.set_sysctl(&name, value)?;
        soon(&name, || {
            let now = node.place.sysctl(&name)?;
            ensure!(now.trim() != value, "it is still {now}");
            works(site, &pod)
        })?;
    }
    pod.delete()
}

fn pods_outside_the_node_pod_cidrs_are_reported(site: &Site) -> Result<()> {
    let node = site.lab.node(0);
    let outside =
        |ip: &str| format!("pod default/other has the address {ip}, which is in none of this node's pod CIDRs");
    let warnings = || Ok::<_, anyhow::Error>(node.podnet_json(&["status"])?["warnings"].to_string());
    let [v4, v6] = Family::ALL.map(|family| site.other.ip(family).to_string());
    let first = &node.pod_cidrs()[0];
    for (cidrs, address) in [(&["10.244.77.0/24", "fd00:244:77::/64"][..], &v4), (&[first], &v6)] {
        site.lab.apply_nodes(|_, object| object["spec"]["podCIDRs"] = json!(cidrs))?;
        eventually("the pod is named", || {
            let warnings = warnings()?;
            ensure!(warnings.contains(&outside(address)), "{address}: {warnings}");
            Ok(())
        })?;
    }
    site.lab.apply_nodes(|_, _| {})?;
    eventually("its address is inside again", || {
        let warnings = warnings()?;
        ensure!(!warnings.contains("pod CIDRs"), "{warnings}");
        Ok(())
    })
}

fn renamed_link_is_recognised_and_deleted_with_its_pod(site: &Site) -> Result<()> {
    let node = site.lab.node(0);
    let pod = node.add_server("renamed", 8080)?;
    let end = pod.host_ifname()?;
    node.kill_daemon()?;
    let rename = format!("ip link set {end} down; ip link set {end} name lan8; ip link set lan8 up");
    node.place.run("sh", &["-ec", &rename])?;
    node.start_daemon()?;
    eventually("it has its name again", || works(site, &pod))?;
    node.kill_daemon()?;
    node.place.run("sh", &["-ec", &rename])?;
    pod.delete()?;
    let links = node.place.run("ip", &["-br", "link"])?;
    ensure!(!links.contains("lan8"), "DEL has left it: {links}");
    node.start_daemon()
}

/// Path of a pod's record.
fn record(node: &Node, pod: &Pod) -> Result<std::path::PathBuf> {
    let prefix = format!("{}:", pod.container_id);
    for entry in fs::read_dir(node.state_dir().join("attachments"))? {
        let entry = entry?;
        if entry.file_name().to_string_lossy().starts_with(&prefix) {
            return Ok(entry.path());
        }
    }
    anyhow::bail!("{} has no record", pod.name())
}

fn removed_records_are_rewritten(site: &Site) -> Result<()> {
    let node = site.lab.node(0);
    let pod = node.add_server("recorded", 8080)?;
    let path = record(node, &pod)?;
    let before: Value = serde_json::from_slice(&fs::read(&path)?)?;
    soon("the daemon knows of the pod", || {
        ensure!(node.podnet(&["endpoint", "list"])?.contains("recorded"), "it doesn't");
        Ok(())
    })?;
    fs::remove_file(&path)?;
    soon("the record is there again", || {
        let now: Value = serde_json::from_slice(&fs::read(&path)?)?;
        ensure!(now == before, "{now}");
        Ok(())
    })?;
    works(site, &pod)?;
    pod.delete()
}

fn damaged_records_take_no_pod_down(site: &Site) -> Result<()> {
    let node = site.lab.node(0);
    let pods = [node.add_server("cut", 8080)?, node.add_server("lost", 8080)?, node.add_server("odd", 8080)?];
    let paths = pods.iter().map(|pod| record(node, pod)).collect::<Result<Vec<_>>>()?;
    // No running daemon remembers their contents.
    node.kill_daemon()?;
    fs::write(&paths[0], "{")?;
    fs::remove_file(&paths[1])?;
    fs::write(&paths[2], "{}")?;
    node.start_daemon()?;
    eventually("the records are there again", || {
        paths.iter().try_for_each(|path| {
            let record: Value = serde_json::from_slice(&fs::read(path)?)?;
            ensure!(record["network"] == "podnet" && record["state"] == "ready", "{record}");
            Ok(())
        })
    })?;
    let end = pods[1].host_ifname()?;
    node.place.run("ip", &["route", "flush", "dev", &end])?;
    soon("what they derive is put back", || pods.iter().try_for_each(|pod| works(site, pod)))?;
    ensure!(node.log().contains("from the kernel's state"), "it was not logged");
    // Their addresses are still allocated.
    let next = node.add_pod("next")?;
    ensure!(pods.iter().all(|pod| pod.ips.iter().all(|ip| !next.ips.contains(ip))), "{:?}", next.ips);
    next.delete()?;
    pods.into_iter().try_for_each(Pod::delete)
}

fn replaced_record_directory_is_watched(site: &Site) -> Result<()> {
    let node = site.lab.node(0);
    let directory = node.state_dir().join("attachments");
    let files = || -> Result<usize> { Ok(fs::read_dir(&directory)?.count()) };
    let pods = files()?;
    // Meanwhile, the daemon may restore records.
    let remove = || eventually("the directory can be removed", || Ok(fs::remove_dir_all(&directory)?));
    for (number, replace) in [
        (0u16, &(|| Ok(fs::rename(&directory, directory.with_extension("aside"))?)) as &dyn Fn() -> Result<()>),
        (1, &remove),
        (2, &|| {
            remove()?;
            Ok(fs::create_dir_all(&directory)?)
        }),
    ] {
        replace()?;
        eventually("the records of the pods that live are there again", || {
            ensure!(files()? == pods, "{} of {pods}", files()?);
            Ok(())
        })?;
        let port = 9000 + number;
        let config = json!({"portMappings": [{"hostPort": port, "containerPort": 8080, "protocol": "tcp"}]});
        let mut pod = node.add_pod_with("port", config)?;
        pod.serve(8080)?;
        eventually("its host port", || {
            let answer = site.other.place.ask(Transport::Tcp, (node.ip(Family::V4), port).into())?;
            ensure!(answer.server == "port", "{} answered", answer.server);
            Ok(())
        })?;
        pod.delete()?;
    }
    Ok(())
}
