//! `podnet trace` against real packets: the traced packet is sent, and must take the same path with the same bytes.

mod site;

use std::collections::BTreeMap;
use std::fs;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use nix::sys::resource::{UsageWho, getrusage};
use nix::sys::time::{TimeVal, TimeValLike as _};
use podnet_tests::cases;
use podnet_tests::lab::{client_ip, eventually, wait_for_cached_routes_to_expire};
use podnet_tests::traffic::Family;
use serde_json::Value;

use site::{Sender, Site, TARGET, arguments, digits};

#[test]
fn traced_and_sent() -> Result<()> {
    cases!(
        Site::new()?,
        service_packets_follow_their_trace,
        other_packets_follow_their_trace,
        dropped_packets_are_traced_with_their_reason,
        fragments_and_large_packets_follow_their_trace,
        trace_shows_backend_probabilities_and_the_next_node,
        socket_calls_are_traced_like_their_packets,
        trace_changes_nothing_and_needs_no_daemon,
        thousand_packets_are_traced_within_a_second,
    )
}

/// Traces and sends all of these: sender, arguments, kind of outcome.
fn all(site: &Site, port: &mut u16, cases: &[(Sender, String, &str)], family: Family) -> Result<()> {
    for (sender, words, outcome) in cases {
        let args = arguments(*sender, family, words, port);
        // The first packet of a flow, and the next one, which finds the flow in the tables.
        for packet in ["first", "second"] {
            let trace = site.same(sender, &args).with_context(|| format!("{packet}: {}", args.join(" ")))?;
            ensure!(
                trace["outcome"]["kind"] == *outcome,
                "{packet}: {} has {} for outcome",
                args.join(" "),
                trace["outcome"]
            );
        }
    }
    Ok(())
}

fn service_packets_follow_their_trace(site: &Site) -> Result<()> {
    use Sender::{Client, Host, Outside};
    site.services()?;
    let mut port = 41_000;
    for family in Family::ALL {
        let node = site.node().ip(family);
        let at = |port: u16| std::net::SocketAddr::new(node, port);
        for proto in ["tcp", "udp"] {
            let to = |to: &dyn std::fmt::Display| format!("--proto {proto} --to {to}");
            all(
                site,
                &mut port,
                &[
                    (Client, to(&"default/near:80"), "pod"),
                    (Client, to(&"default/far:80"), "leaves"),
                    (Client, to(&"default/itself:80"), "pod"),
                    (Client, to(&"default/snat:80"), "leaves"),
                    (Client, to(&at(30_010)), "pod"),
                    (Outside, to(&at(30_010)), "pod"),
                    (Outside, to(&at(30_011)), "leaves"),
                    (Outside, to(&at(30_012)), "leaves"),
                    // Not translated by the socket hooks: a bound or a connected socket.
                    (Host, to(&"default/near:80") + " --connected", "pod"),
                    (Host, to(&"default/far:80") + " --connected", "leaves"),
                ],
                family,
            )?;
        }
        all(site, &mut port, &[(Client, "--proto sctp --to default/sctp:80".to_owned(), "pod")], family)?;
    }
    Ok(())
}

fn other_packets_follow_their_trace(site: &Site) -> Result<()> {
    use Sender::{Client, Outside};
    site.services()?;
    let mut port = 43_000;
    for family in Family::ALL {
        let icmp = |to: &dyn std::fmt::Display, id: u16| format!("--icmp-type echo-request --icmp-id {id} --to {to}");
        let (outside, near, far) = (client_ip(family), site.near.ip(family), site.far.ip(family));
        let [outside_at, near_at, far_at] =
            [(outside, 443), (near, TARGET), (far, TARGET)].map(|(ip, port)| std::net::SocketAddr::new(ip, port));
        all(
            site,
            &mut port,
            &[
                // Masquerade.
                (Client, format!("--to {outside_at}"), "leaves"),
                (Client, format!("--proto udp --to {outside_at}"), "leaves"),
                (Client, icmp(&outside, 7), "leaves"),
                // Pods.
                (Client, format!("--to {near_at}"), "pod"),
                (Client, format!("--to {far_at}"), "leaves"),
                (Client, icmp(&near, 8), "pod"),
                (Outside, format!("--to {near_at}"), "pod"),
                // A service answers echo requests.
                (Client, icmp(&"default/near", 9), "answered"),
            ],
            family,
        )?;
    }
    Ok(())
}

fn dropped_packets_are_traced_with_their_reason(site: &Site) -> Result<()> {
    use Sender::{Client, Outside};
    site.services()?;
    let mut port = 44_000;
    for family in Family::ALL {
        let pick = |four: &'static str, six: &'static str| if family == Family::V4 { four } else { six };
        let near = std::net::SocketAddr::new(site.near.ip(family), TARGET);
        let balancer = pick("192.0.2.80:80", "[2001:db8:80::80]:80");
        let nobody = pick("10.96.0.200:80", "[fd00:96::200]:80");
        let interface = site.client.host_ifname()?;
        for (sender, words, reason, says) in [
            (Client, "--to default/none:80".to_owned(), "no_endpoint", "no ready endpoint"),
            (Client, format!("--to {nobody}"), "unallocated_service", "no service"),
            (Client, format!("--to {}", pick("10.96.0.10:99", "[fd00:96::a]:99")), "undefined_port", "does not define"),
            (Client, "--ttl 1 --to default/far:80".to_owned(), "ttl_exceeded", "exceeded"),
            (
                Outside,
                format!("--to {}", pick("10.96.0.10:80", "[fd00:96::a]:80")),
                "cluster_ip_from_outside",
                "ClusterIP",
            ),
            (Outside, format!("--to {balancer}"), "source_range", "loadBalancerSourceRanges"),
        ] {
            let args = arguments(sender, family, &words, &mut port);
            let trace = site.same(&sender, &args).with_context(|| args.join(" "))?;
            ensure!(trace["outcome"]["reason"] == reason, "{}: {}", args.join(" "), trace["outcome"]);
            let steps = trace["steps"].as_array().context("steps")?;
            let admission = steps.last().context("a step")?["admission"].as_str().unwrap_or_default();
            ensure!(admission.contains(says), "{}: {admission}", args.join(" "));
        }
        // A pod sends from another pod's address.
        let forged = pick("10.244.1.200", "fd00:244:1::200");
        let mut args = vec!["--from".to_owned(), format!("{forged}%{interface}")];
        args.extend(["--to".to_owned(), near.to_string()]);
        let trace = site.same(&Client, &args).with_context(|| args.join(" "))?;
        ensure!(trace["outcome"]["reason"] == "spoofed_source", "{family}: {}", trace["outcome"]);
    }
    Ok(())
}

fn fragments_and_large_packets_follow_their_trace(site: &Site) -> Result<()> {
    use Sender::{Client, Outside};
    site.services()?;
    let mut port = 45_000;
    for family in Family::ALL {
        let outside = std::net::SocketAddr::new(client_ip(family), 443);
        let udp = |words: &str| format!("--proto udp --sport 45999 {words}");
        all(
            site,
            &mut port,
            &[
                (Client, udp("--to default/far:80 --size 1500"), "leaves"),
                (Client, udp("--to default/far:80 --size 1000 --fragment first"), "leaves"),
                (Client, udp("--to default/far:80 --size 1000 --fragment 976"), "leaves"),
                (Client, udp(&format!("--to {outside} --size 1200 --fragment first")), "leaves"),
                (Client, udp(&format!("--to {outside} --size 1200 --fragment 1176+")), "leaves"),
                (Client, format!("--ttl 1 --to {outside}"), "answered"),
                (
                    Outside,
                    format!("--ttl 1 --to {}", std::net::SocketAddr::new(site.node().ip(family), 30_011)),
                    "answered",
                ),
            ],
            family,
        )?;
        // A route with a smaller MTU than its interface, which the daemon detects.
        let node = &site.node().place;
        node.ip(&format!("route add {} dev eth0 mtu lock 1300", outside.ip()))?;
        let words = format!("--size 1400 --dont-fragment --to {outside}");
        let args = arguments(Client, family, &words, &mut port);
        eventually("the route's MTU counts", || {
            let trace = site.trace(&args)?;
            ensure!(trace["outcome"]["reason"] == "too_big", "{}", trace["outcome"]);
            Ok(())
        })?;
        wait_for_cached_routes_to_expire();
        all(site, &mut port, &[(Client, words, "answered")], family)?;
        node.ip(&format!("route del {} dev eth0 mtu lock 1300", outside.ip()))?;
    }
    Ok(())
}

fn trace_shows_backend_probabilities_and_the_next_node(site: &Site) -> Result<()> {
    site.services()?;
    let node = site.node();
    let trace = site
        .trace(&["--from", "pod/default/client", "--to", "default/both:80", "--sport", "46000"].map(str::to_owned))?;
    let hook =
        trace["steps"].as_array().and_then(|steps| steps.iter().find(|step| step["at"] == "hook")).context("a hook")?;
    let shares = hook["backend"]["of"].as_array().context("shares")?;
    ensure!(shares.len() == 2 && shares.iter().all(|share| share["percent"] == 50.0), "{hook}");
    ensure!(hook["backend"]["by"].as_str().is_some_and(|by| by.contains("hash")), "{hook}");
    ensure!(hook["class"] == "first packet of a flow, to service default/both:tcp", "{hook}");
    let look_ups = hook["lookUps"].as_array().context("look-ups")?;
    for table in ["conntrack", "frontends", "slots", "backends", "endpoints"] {
        ensure!(look_ups.iter().any(|look_up| look_up["table"] == table), "{table} is not among {look_ups:?}");
    }
    // The other node's part of the path, traced with the arguments that this trace suggests.
    let far =
        site.trace(&["--from", "pod/default/client", "--to", "default/far:80", "--sport", "46001"].map(str::to_owned))?;
    ensure!(far["next"]["node"] == "node2", "{}", far["next"]);
    let command = far["next"]["command"].as_str().context("a command")?;
    let words: Vec<_> = command.split(' ').skip(1).collect();
    let there = site.lab.node(1).podnet_json(&[&words[..], &["--bytes"]].concat())?;
    ensure!(there[0]["outcome"]["kind"] == "pod" && there[0]["outcome"]["pod"] == "default/far", "{there}");
    // Same for direct server return, where the other node recognises this one's MAC.
    let to = std::net::SocketAddr::new(node.ip(Family::V4), 30_012);
    let outside = client_ip(Family::V4);
    let direct =
        site.trace(&["--from", &outside.to_string(), "--to", &to.to_string(), "--sport", "46002"].map(str::to_owned))?;
    let command = direct["next"]["command"].as_str().with_context(|| format!("a command in {direct}"))?;
    let words: Vec<_> = command.split(' ').skip(1).collect();
    let there = site.lab.node(1).podnet_json(&words)?;
    ensure!(there[0]["outcome"]["pod"] == "default/far", "{command}: {there}");
    // Session affinity, once there is an entry.
    let sticky = ["--from", "pod/default/client", "--to", "default/sticky:80", "--sport", "46003"].map(str::to_owned);
    let first = site.same(&Sender::Client, &sticky)?;
    let again = ["--from", "pod/default/client", "--to", "default/sticky:80", "--sport", "46004"].map(str::to_owned);
    let second = site.same(&Sender::Client, &again)?;
    let backend = |trace: &Value| trace["steps"][0]["backend"].clone();
    ensure!(backend(&first)["backend"] == backend(&second)["backend"], "{first}\n{second}");
    ensure!(backend(&second)["by"].as_str().is_some_and(|by| by.contains("session affinity")), "{second}");
    // Output for people.
    let text = node.podnet(&["trace", "--from", "pod/default/client", "--to", "default/far:80"])?;
    for words in ["packet", "default/far:tcp", "goes to node2, ask there: podnet trace", "leaves on"] {
        ensure!(text.contains(words), "{words} is not in\n{text}");
    }
    Ok(())
}

fn socket_calls_are_traced_like_their_packets(site: &Site) -> Result<()> {
    site.services()?;
    let node = site.node();
    for family in Family::ALL {
        let six = if family == Family::V6 { &["--ipv6"][..] } else { &[] };
        for proto in ["tcp", "udp"] {
            let args = ["trace", "--from", "host", "--to", "default/near:80", "--proto", proto];
            let trace = node.podnet_json(&[&args[..], six].concat())?;
            ensure!(trace[0]["steps"][0]["at"] == "socket", "{trace}");
            ensure!(trace[0]["outcome"]["pod"] == "default/near", "{trace}");
            let refused = ["trace", "--from", "host", "--to", "default/none:80", "--proto", proto];
            let refused = node.podnet_json(&[&refused[..], six].concat())?;
            ensure!(refused[0]["outcome"]["kind"] == "refused", "{refused}");
        }
        let connected = ["trace", "--from", "host", "--to", "default/near:80", "--proto", "udp", "--connected"];
        let connected = node.podnet_json(&[&connected[..], six].concat())?;
        let hook = |step: &Value| step["hook"] == "from_host";
        ensure!(connected[0]["steps"].as_array().is_some_and(|steps| steps.iter().any(hook)), "{connected}");
    }
    Ok(())
}

fn trace_changes_nothing_and_needs_no_daemon(site: &Site) -> Result<()> {
    site.services()?;
    let node = site.node();
    node.stop_daemon()?;
    let tables = || -> Result<BTreeMap<&str, Value>> {
        [["conntrack", "list"], ["affinity", "list"]]
            .into_iter()
            .map(|args| {
                let mut rows = node.podnet_json(&args)?;
                for row in rows.as_array_mut().into_iter().flatten() {
                    for time in ["idleSeconds", "ageSeconds", "leftSeconds"] {
                        row.as_object_mut().map(|row| row.remove(time));
                    }
                }
                Ok((args[0], rows))
            })
            .collect()
    };
    let (before, drops) = (tables()?, node.drops()?);
    for to in ["default/sticky:80", "default/snat:80", "default/none:80", "203.0.113.9:443"] {
        for sport in 47_000..47_003 {
            node.podnet(&["trace", "--from", "pod/default/client", "--to", to, "--sport", &sport.to_string()])?;
        }
    }
    ensure!(tables()? == before, "{before:?} has become {:?}", tables()?);
    ensure!(node.drops()? == drops, "drops were counted");
    node.start_daemon()
}

/// A capture file as written by tcpdump.
fn capture(frames: &[Vec<u8>]) -> Vec<u8> {
    let mut bytes = [0xa1b2_c3d4u32, 0x0004_0002, 0, 0, 65_535, 1].map(u32::to_le_bytes).concat();
    for frame in frames {
        let len = frame.len() as u32;
        bytes.extend([0, 0, len, len].map(u32::to_le_bytes).concat());
        bytes.extend(frame);
    }
    bytes
}

fn thousand_packets_are_traced_within_a_second(site: &Site) -> Result<()> {
    site.services()?;
    let mut frames = Vec::new();
    for (n, to) in ["default/near:80", "default/far:80", "default/both:80", "203.0.113.9:443"].into_iter().enumerate() {
        let trace = site.trace(&["--from", "pod/default/client", "--to", to, "--sport", "48000"].map(str::to_owned))?;
        let frame = digits(&trace["steps"][0]["before"])?;
        for sport in 0..250u16 {
            let mut frame = frame.clone();
            // The pipeline updates checksums without verifying them.
            frame[34..36].copy_from_slice(&(48_000 + sport + 250 * n as u16).to_be_bytes());
            frames.push(frame);
        }
    }
    let path = site.lab.dir().join("thousand.pcap");
    fs::write(&path, capture(&frames))?;
    let path = path.display().to_string();
    let args = ["trace", "--from", "pod/default/client", "--pcap", &path];
    let traces = site.node().podnet_json(&args)?;
    ensure!(traces.as_array().map(Vec::len) == Some(1000), "not a thousand traces");
    let outcomes: BTreeMap<String, usize> =
        traces.as_array().into_iter().flatten().fold(BTreeMap::new(), |mut counts, trace| {
            *counts.entry(trace["outcome"]["kind"].to_string()).or_default() += 1;
            counts
        });
    ensure!(outcomes.len() == 2, "{outcomes:?}");
    // CPU time, since other tests use the processors as well.
    let before = children_time()?;
    site.node().podnet(&args)?;
    let took = children_time()? - before;
    println!("a thousand packets took {took:?}");
    ensure!(took < Duration::from_secs(1), "a thousand packets took {took:?}");
    Ok(())
}

/// CPU time of this process's terminated children.
fn children_time() -> Result<Duration> {
    let usage = getrusage(UsageWho::RUSAGE_CHILDREN)?;
    let time = |time: TimeVal| Duration::from_micros(time.num_microseconds().unsigned_abs());
    Ok(time(usage.user_time()) + time(usage.system_time()))
}
