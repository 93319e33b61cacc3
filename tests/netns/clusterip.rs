//! ClusterIPs: which backends answer which clients, and what happens when they change.

use std::collections::{BTreeMap, BTreeSet};
use std::io::ErrorKind;
use std::net::IpAddr;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use podnet_tests::lab::{Lab, Offload, Place, Pod, Service, eventually, wait_until};
use podnet_tests::traffic::{Ask, Family, Stream, Transport};

/// A pod with a server on port 8080.
fn server(lab: &Lab, node: usize, name: &str) -> Result<Pod> {
    let mut pod = lab.node(node).add_pod(name)?;
    pod.serve(8080)?;
    Ok(pod)
}

/// Waits until the service answers from all places, over all families and protocols.
fn up(service: &Service, places: &[&Place]) -> Result<()> {
    for place in places {
        for family in Family::ALL {
            for transport in Transport::ALL {
                let what = format!("{transport}/{family} from {} to {}", place.name(), service.name());
                eventually(&what, || Ok(place.ask(transport, service.addr(family))?))?;
            }
        }
    }
    Ok(())
}

#[test]
fn requests_are_spread_over_all_replicas() -> Result<()> {
    let lab = Lab::builder().build()?;
    let web = [server(&lab, 0, "web-0")?, server(&lab, 1, "web-1")?, server(&lab, 0, "web-2")?];
    let clients = [lab.node(0).add_pod("client-1")?, lab.node(1).add_pod("client-2")?];
    let service = Service::new("web", 10, 80, 8080);
    service.apply(&lab, None)?;
    service.set_endpoints(&lab, &web.iter().flat_map(|pod| pod.ips.clone()).collect::<Vec<_>>())?;
    let places = [&clients[0].place, &clients[1].place, &web[0].place, &lab.node(0).place, &lab.node(1).place];
    up(&service, &places)?;
    for place in places {
        for family in Family::ALL {
            for transport in Transport::ALL {
                let mut counts = BTreeMap::<String, u32>::new();
                for _ in 0..90 {
                    let answer = place.ask(transport, service.addr(family))?;
                    assert_eq!(answer.peer, service.addr(family));
                    *counts.entry(answer.server).or_default() += 1;
                }
                // Binomial distribution: mean 30, standard deviation 4.5.
                let fair = counts.len() == 3 && counts.values().all(|count| *count >= 8);
                ensure!(fair, "{transport}/{family} from {}: {counts:?}", place.name());
            }
        }
    }
    Ok(())
}

/// A sender either computes checksums or leaves them to the device, with only the sum of the pseudo header in the field
/// (CHECKSUM_PARTIAL). The receiver verifies the checksum that the device, or the kernel in its place, has computed.
#[test]
fn checksums_are_correct_with_and_without_offload() -> Result<()> {
    let lab = Lab::builder().build()?;
    let pods = [lab.node(0).add_pod("client-1")?, server(&lab, 0, "web-0")?, server(&lab, 1, "web-1")?];
    let [client, web @ ..] = &pods;
    let service = Service::new("web", 10, 80, 8080);
    service.apply(&lab, None)?;
    service.set_endpoints(&lab, &web.iter().flat_map(|pod| pod.ips.clone()).collect::<Vec<_>>())?;
    up(&service, &[&client.place])?;
    for node in lab.nodes() {
        node.place.set_offload("eth0", Offload::TxChecksum, false)?;
    }
    for offload in [true, false] {
        for pod in &pods {
            pod.place.set_offload("eth0", Offload::TxChecksum, offload)?;
        }
        for family in Family::ALL {
            for transport in Transport::ALL {
                let mut servers = BTreeSet::new();
                for _ in 0..100 {
                    let answer = client.place.ask(transport, service.addr(family));
                    let answer = answer.with_context(|| format!("{transport}/{family}, offload in pods: {offload}"))?;
                    servers.insert(answer.server);
                }
                assert_eq!(servers, BTreeSet::from(["web-0", "web-1"].map(str::to_owned)));
            }
        }
    }
    Ok(())
}

#[test]
fn pod_reaches_itself_through_its_service() -> Result<()> {
    let lab = Lab::builder().nodes(1).build()?;
    let pod = server(&lab, 0, "web-0")?;
    let service = Service::new("web", 10, 80, 8080);
    service.apply(&lab, None)?;
    service.set_endpoints(&lab, &pod.ips)?;
    up(&service, &[&pod.place])?;
    for family in Family::ALL {
        for transport in Transport::ALL {
            let answer = pod.place.ask(transport, service.addr(family))?;
            assert_eq!(answer.server, "web-0");
            assert_ne!(answer.seen.ip(), pod.ip(family), "the source is the pod's own address");
        }
        // A stream rather than one request.
        let stream = Stream::start(&pod.place, Transport::Tcp, service.addr(family), Duration::from_millis(1))?;
        wait_until("100 messages", || Ok(stream.answered() >= 100))?;
        let report = stream.stop();
        ensure!(report.is_clean(), "{report:?}");
    }
    Ok(())
}

/// One port of a client, two services, one backend: both flows are open at the same time and must not be confused.
fn one_port_two_services(from_hosts: bool) -> Result<()> {
    let lab = Lab::builder().build()?;
    let web = server(&lab, 1, "web-0")?;
    let clients = [lab.node(0).add_pod("client-1")?, lab.node(1).add_pod("client-2")?];
    let places: [&Place; 2] = [0, 1].map(|i: usize| if from_hosts { &lab.node(i).place } else { &clients[i].place });
    let services = [Service::new("one", 11, 80, 8080), Service::new("two", 12, 80, 8080)];
    for service in &services {
        service.apply(&lab, None)?;
        service.set_endpoints(&lab, &web.ips)?;
        up(service, &places)?;
    }
    for place in places {
        for family in Family::ALL {
            for transport in Transport::ALL {
                let what = || format!("{transport}/{family} from {}", place.name());
                let open = |service: &Service| {
                    let ask = Ask::new(transport, service.addr(family)).from_port(20_000).connected();
                    ask.open(place).with_context(what)
                };
                let flows = [open(&services[0])?, open(&services[1])?];
                for _ in 0..3 {
                    for (flow, service) in flows.iter().zip(&services) {
                        let answer = flow.ask().with_context(what)?;
                        ensure!(answer.server == "web-0", "{}: {} answered", what(), answer.server);
                        ensure!(answer.peer == service.addr(family), "{}: from {}", what(), answer.peer);
                    }
                }
            }
        }
    }
    Ok(())
}

#[test]
fn one_port_of_a_pod_reaches_two_services_sharing_a_backend() -> Result<()> {
    one_port_two_services(false)
}

#[test]
fn one_port_of_a_host_reaches_two_services_sharing_a_backend() -> Result<()> {
    one_port_two_services(true)
}

#[test]
fn host_network_backends_work() -> Result<()> {
    let lab = Lab::builder().build()?;
    let clients = [lab.node(0).add_pod("client-1")?, lab.node(1).add_pod("client-2")?];
    let _servers = lab.node(0).serve(6443)?;
    let service = Service::new("kubernetes", 1, 443, 6443);
    service.apply(&lab, None)?;
    service.set_endpoints(&lab, &Family::ALL.map(|family| lab.node(0).ip(family)))?;
    let places = [&clients[0].place, &clients[1].place, &lab.node(0).place, &lab.node(1).place];
    up(&service, &places)?;
    for place in places {
        for family in Family::ALL {
            for transport in Transport::ALL {
                for _ in 0..5 {
                    let answer = place.ask(transport, service.addr(family))?;
                    assert_eq!((&answer.server[..], answer.peer), ("node1", service.addr(family)));
                }
                let stream = Stream::start(place, transport, service.addr(family), Duration::from_millis(1))?;
                wait_until("50 messages", || Ok(stream.answered() >= 50))?;
                let report = stream.stop();
                ensure!(report.is_clean(), "{transport}/{family} from {}: {report:?}", place.name());
            }
        }
    }
    Ok(())
}

#[test]
fn connected_udp_moves_to_a_live_backend_and_tcp_does_not() -> Result<()> {
    let lab = Lab::builder().build()?;
    let web = [server(&lab, 0, "web-0")?, server(&lab, 1, "web-1")?];
    let client = lab.node(0).add_pod("client-1")?;
    let service = Service::new("web", 10, 80, 8080);
    service.apply(&lab, None)?;
    for place in [&client.place, &lab.node(0).place, &lab.node(1).place] {
        for family in Family::ALL {
            service.set_endpoints(&lab, &web[0].ips)?;
            up(&service, &[place])?;
            served_by(place, &service, "web-0")?;
            let pause = Duration::from_millis(2);
            let udp = Stream::start(place, Transport::Udp, service.addr(family), pause)?;
            let tcp = Stream::start(place, Transport::Tcp, service.addr(family), pause)?;
            wait_until("both flow", || Ok(udp.answered() > 20 && tcp.answered() > 20))?;
            service.set_endpoints(&lab, &web[1].ips)?;
            served_by(place, &service, "web-1")?;
            let (udp_before, tcp_before) = (udp.answered(), tcp.answered());
            // New flows may reach the other backend slightly before this flow is moved there.
            wait_until(
                "both still flow",
                || Ok(udp.answered() > udp_before + 100 && tcp.answered() > tcp_before + 50),
            )?;
            let (udp, tcp) = (udp.stop(), tcp.stop());
            let what = format!("{family} from {}", place.name());
            ensure!(tcp.is_clean() && tcp.answers.keys().eq(["web-0"]), "{what}: TCP {tcp:?}");
            ensure!(udp.lost == 0 && udp.errors.is_empty(), "{what}: UDP {udp:?}");
            ensure!(udp.answers.get("web-1").is_some_and(|count| *count >= 50), "{what}: UDP did not move: {udp:?}");
        }
    }
    Ok(())
}

/// Waits until only this server answers new flows.
fn served_by(place: &Place, service: &Service, server: &str) -> Result<()> {
    let what = format!("{} is served by {server}", service.name());
    eventually(&what, || {
        for family in Family::ALL {
            for transport in Transport::ALL {
                let answer = place.ask(transport, service.addr(family))?;
                ensure!(answer.server == server, "{} answered", answer.server);
            }
        }
        Ok(())
    })
}

#[test]
fn requests_without_a_backend_are_refused_or_dropped() -> Result<()> {
    let lab = Lab::builder().nodes(1).build()?;
    let web = server(&lab, 0, "web-0")?;
    let client = lab.node(0).add_pod("client-1")?;
    let (used, empty) = (Service::new("used", 10, 80, 8080), Service::new("empty", 11, 80, 8080));
    used.apply(&lab, None)?;
    used.set_endpoints(&lab, &web.ips)?;
    empty.apply(&lab, None)?;
    let places = [&client.place, &lab.node(0).place];
    up(&used, &places)?;
    for place in places {
        for family in Family::ALL {
            for transport in Transport::ALL {
                let ask = |addr| Ask::new(transport, addr).connected().timeout(Duration::from_millis(500)).from(place);
                let what = |case: &str| format!("{case}, {transport}/{family} from {}", place.name());
                let refused = |case: &str, addr| -> Result<()> {
                    match ask(addr) {
                        Err(error) if error.kind() == ErrorKind::ConnectionRefused => Ok(()),
                        other => bail!("{}: {other:?}", what(case)),
                    }
                };
                let none = eventually("the empty service is known", || refused("no endpoint", empty.addr(family)));
                none?;
                refused("undefined port", (used.ip(family), 81).into())?;
                let unallocated = Service::new("nobody", 99, 80, 80);
                match ask(unallocated.addr(family)) {
                    Err(error) if error.kind() == ErrorKind::TimedOut => {}
                    other => bail!("{}: {other:?}", what("unallocated address")),
                }
            }
        }
    }
    Ok(())
}

#[test]
fn service_can_lose_and_regain_endpoints_and_be_deleted() -> Result<()> {
    let lab = Lab::builder().nodes(1).build()?;
    let web = server(&lab, 0, "web-0")?;
    let client = lab.node(0).add_pod("client-1")?;
    let service = Service::new("web", 10, 80, 8080);
    service.apply(&lab, None)?;
    let kinds = |place: &Place| -> BTreeSet<String> {
        let ask = |transport, family| {
            Ask::new(transport, service.addr(family)).connected().timeout(Duration::from_millis(300)).from(place)
        };
        let kind =
            |result: std::io::Result<_>| result.map_or_else(|error| format!("{:?}", error.kind()), |_| "answer".into());
        Transport::ALL
            .into_iter()
            .flat_map(|transport| Family::ALL.map(|family| kind(ask(transport, family))))
            .collect()
    };
    let becomes = |wanted: &str| {
        for place in [&client.place, &lab.node(0).place] {
            eventually(wanted, || {
                let kinds = kinds(place);
                ensure!(kinds.len() == 1 && kinds.contains(wanted), "from {}: {kinds:?}", place.name());
                Ok(())
            })?;
        }
        Ok::<_, anyhow::Error>(())
    };
    for _ in 0..2 {
        service.set_endpoints(&lab, &web.ips)?;
        becomes("answer")?;
        service.set_endpoints(&lab, &[] as &[IpAddr])?;
        becomes("ConnectionRefused")?;
    }
    service.set_endpoints(&lab, &web.ips)?;
    becomes("answer")?;
    lab.withdraw("web")?;
    becomes("TimedOut")
}
