//! The datapath keeps working while the daemon is down.

use std::fs;
use std::path::Path;

use anyhow::{Context, Result, ensure};
use aya::programs::tc::{SchedClassifier, TcAttachType};
use podnet_tests::lab::{Lab, Pod, Service, eventually};
use podnet_tests::traffic::{Family, Streams, Transport};

struct Site {
    lab: Lab,
    client: Pod,
    web: [Pod; 2],
    service: Service,
}

impl Site {
    fn new() -> Result<Self> {
        let lab = Lab::builder().build()?;
        let client = lab.node(0).add_pod("client")?;
        let mut web = [lab.node(0).add_pod("web-0")?, lab.node(1).add_pod("web-1")?];
        web.iter_mut().try_for_each(|pod| pod.serve(8080))?;
        let service = Service::new("web", 10, 80, 8080);
        service.apply(&lab, None)?;
        service.set_endpoints(&lab, &[&web[0].ips[..], &web[1].ips[..]].concat())?;
        let snat = Service::new("snat", 11, 80, 8080);
        snat.apply(&lab, Some("snat"))?;
        snat.set_endpoints(&lab, &web[1].ips)?;
        Ok(Self { lab, client, web, service })
    }

    fn traffic(&self) -> Result<Streams> {
        let snat = Service::new("snat", 11, 80, 8080);
        let mut cases = Vec::new();
        for family in Family::ALL {
            cases.extend(self.web.iter().map(|pod| (&self.client.place, pod.addr(family, 8080))));
            cases.push((&self.client.place, self.service.addr(family)));
            cases.push((&self.client.place, snat.addr(family)));
            cases.push((&self.lab.node(0).place, self.service.addr(family)));
            cases.push((&self.lab.node(1).place, self.service.addr(family)));
        }
        Streams::start(&cases)
    }
}

#[test]
fn killing_and_restarting_the_daemon_loses_no_packet() -> Result<()> {
    let site = Site::new()?;
    let traffic = site.traffic()?;
    traffic.flows(50)?;
    for upgrade in [true, false, true] {
        for node in site.lab.nodes() {
            node.kill_daemon()?;
            if upgrade {
                node.disown_programs()?;
            }
        }
        traffic.flows(50)?;
        for node in site.lab.nodes() {
            node.start_daemon()?;
        }
        traffic.flows(50)?;
    }
    for node in site.lab.nodes() {
        node.stop_daemon()?;
        traffic.flows(20)?;
        node.start_daemon()?;
    }
    traffic.flows(50)?;
    traffic.clean()
}

#[test]
fn pods_recover_after_loss_of_all_pins() -> Result<()> {
    let site = Site::new()?;
    drop(site.traffic()?);
    let node = site.lab.node(0);
    node.kill_daemon()?;
    fs::remove_dir_all(node.bpffs().join("podnet"))?;
    node.start_daemon()?;
    site.traffic()?.flows(20)
}

#[test]
fn pods_and_new_flows_start_while_the_daemon_is_down() -> Result<()> {
    let site = Site::new()?;
    drop(site.traffic()?);
    site.lab.nodes().iter().try_for_each(|node| node.kill_daemon())?;
    for index in [0, 1] {
        let mut pod = site.lab.node(index).add_pod("born-orphan").context("ADD without a daemon")?;
        pod.serve(8080)?;
        pod.invoke("CHECK")?;
        for family in Family::ALL {
            for transport in Transport::ALL {
                site.client.place.ask(transport, pod.addr(family, 8080)).context("to the new pod")?;
                site.web[1].place.ask(transport, pod.addr(family, 8080)).context("to the new pod, from node2")?;
                pod.place.ask(transport, site.service.addr(family)).context("from the new pod to a service")?;
            }
        }
        pod.delete().context("DEL without a daemon")?;
    }
    Ok(())
}

#[test]
fn changes_during_downtime_take_effect_at_start() -> Result<()> {
    let site = Site::new()?;
    drop(site.traffic()?);
    let place = &site.client.place;
    let only = |server: &str| {
        eventually(server, || {
            for _ in 0..10 {
                let answer = place.ask(Transport::Tcp, site.service.addr(Family::V4))?;
                ensure!(answer.server == server, "{} answered", answer.server);
            }
            Ok(())
        })
    };
    site.lab.node(0).kill_daemon()?;
    site.service.set_endpoints(&site.lab, &site.web[1].ips)?;
    let late = Service::new("late", 12, 80, 8080);
    late.apply(&site.lab, None)?;
    late.set_endpoints(&site.lab, &site.web[0].ips)?;
    site.lab.node(0).start_daemon()?;
    only("web-1")?;
    eventually("the new service", || Ok(place.ask(Transport::Tcp, late.addr(Family::V4))?))?;
    Ok(())
}

#[test]
fn daemon_restarts_do_not_attach_programs_twice() -> Result<()> {
    let site = Site::new()?;
    let node = site.lab.node(0);
    let pod_end = site.client.host_ifname()?;
    let attached = || -> Result<Vec<(String, usize)>> {
        let links: Vec<serde_json::Value> = serde_json::from_str(&node.place.run("ip", &["-json", "link", "show"])?)?;
        let mut counts = Vec::new();
        for link in links {
            let name = link["ifname"].as_str().context("a link without a name")?.to_owned();
            for hook in [TcAttachType::Ingress, TcAttachType::Egress] {
                let query = node.place.netns().run(|| SchedClassifier::query_tcx(&name, hook))?;
                let (_, programs) = query.context("this test needs TCX, Linux 6.6 or later")?;
                // Host ends of pods have clsact filters.
                let direction = format!("{hook:?}").to_lowercase();
                let filters = node.place.run("tc", &["filter", "show", "dev", &name, &direction])?;
                let filters = filters.matches("direct-action").count();
                counts.push((format!("{name} {hook:?}"), programs.len() + filters));
            }
        }
        Ok(counts)
    };
    let count_of = |counts: &[(String, usize)], name: &str| {
        counts.iter().find(|(other, _)| other == name).map_or(0, |(_, count)| *count)
    };
    let before = attached()?;
    for wanted in
        [format!("{pod_end} Ingress"), format!("{pod_end} Egress"), "eth0 Ingress".into(), "eth0 Egress".into()]
    {
        assert_eq!(count_of(&before, &wanted), 1, "{wanted}: {before:?}");
    }
    for upgrade in [true, true, false] {
        node.kill_daemon()?;
        if upgrade {
            node.disown_programs()?;
        }
        node.start_daemon()?;
    }
    assert_eq!(attached()?, before);
    Ok(())
}

#[test]
fn manifest_accidents_keep_services_working() -> Result<()> {
    let site = Site::new()?;
    let node = site.lab.node(0);
    let traffic = site.traffic()?;
    let manifests = node.manifest_dir();
    let files: Vec<_> = fs::read_dir(&manifests)?.map(|entry| Ok(entry?.path())).collect::<Result<_>>()?;
    let contents: Vec<_> = files.iter().map(fs::read).collect::<Result<_, _>>()?;
    let restore =
        || -> Result<()> { files.iter().zip(&contents).try_for_each(|(file, content)| Ok(fs::write(file, content)?)) };
    let told = |part: &str| {
        eventually(part, || {
            let status = node.podnet_json(&["status"])?;
            ensure!(status["warnings"].to_string().contains(part), "{}", status["warnings"]);
            Ok(())
        })
    };
    let healthy = || {
        eventually("nothing is wrong any more", || {
            let status = node.podnet_json(&["status"])?;
            ensure!(status["warnings"] == serde_json::json!([]), "{}", status["warnings"]);
            Ok(())
        })
    };
    let empty = || -> Result<()> { files.iter().try_for_each(|file| Ok(fs::write(file, "")?)) };
    let new_flows = || -> Result<()> {
        for family in Family::ALL {
            site.client.place.ask(Transport::Tcp, site.service.addr(family)).context("a new flow")?;
        }
        traffic.flows(50)
    };
    empty()?;
    told("it is empty")?;
    new_flows()?;
    for upgrade in [false, true] {
        node.kill_daemon()?;
        if upgrade {
            node.disown_programs()?;
        }
        node.spawn_daemon()?;
        told("it is empty")?;
        new_flows()?;
    }
    restore()?;
    healthy()?;
    fs::remove_dir_all(&manifests)?;
    told("until it is back")?;
    new_flows()?;
    fs::create_dir(&manifests)?;
    told("without manifests")?;
    new_flows()?;
    restore()?;
    healthy()?;
    // As if the file system were unmounted, or another mounted over it.
    let path = manifests.display().to_string();
    node.place.run("mount", &["-t", "tmpfs", "none", &path])?;
    told("without manifests")?;
    new_flows()?;
    node.place.run("umount", &[&path])?;
    healthy()?;
    traffic.flows(50)?;
    traffic.clean()
}

#[test]
fn second_daemon_is_refused_after_cleaning_the_run_directory() -> Result<()> {
    let lab = Lab::builder().nodes(1).build()?;
    let node = lab.node(0);
    let config = node.config_file().display().to_string();
    let clean: [fn(&Path) -> Result<()>; 2] = [
        |run| Ok(fs::remove_file(run.join("daemon.lock"))?),
        |run| {
            for entry in fs::read_dir(run)? {
                fs::remove_file(entry?.path())?;
            }
            Ok(())
        },
    ];
    for clean in clean {
        for args in [&["daemon", "--config", &config][..], &["cleanup"]] {
            clean(&node.run_dir())?;
            let output = node.podnet_output(args)?;
            ensure!(!output.status.success(), "{args:?} ran beside the daemon");
            let message = String::from_utf8_lossy(&output.stderr);
            ensure!(message.contains("already running"), "{args:?}: {message}");
            ensure!(node.daemon_runs()?, "the first daemon ended");
            eventually("the daemon is seen again", || {
                ensure!(node.podnet_json(&["status"])?["daemon"]["running"] == true, "it isn't");
                for file in ["daemon.lock", "node.json", "podnet.sock"] {
                    ensure!(node.run_dir().join(file).exists(), "{file} is missing");
                }
                Ok(())
            })?;
        }
    }
    node.add_pod("late").map(drop)
}

#[test]
fn second_daemon_on_a_node_is_refused() -> Result<()> {
    let lab = Lab::builder().nodes(1).build()?;
    let node = lab.node(0);
    let config = node.config_file();
    let output = node.podnet_output(&["daemon", "--config", &config.display().to_string()])?;
    ensure!(!output.status.success(), "it ran beside the first");
    let message = String::from_utf8_lossy(&output.stderr).into_owned() + &String::from_utf8_lossy(&output.stdout);
    ensure!(message.contains("already running"), "{message}");
    ensure!(node.daemon_runs()?, "the first daemon ended");
    Ok(())
}
