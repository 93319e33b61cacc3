//! The lab itself: properties that the other tests rely on.

use std::fs;
use std::time::Duration;

use anyhow::Result;
use podnet_tests::lab::{Lab, wait_until};
use podnet_tests::traffic::{Ask, Family, Ping, PingAnswer, Stream, Transport};

#[test]
fn hosts_communicate_and_nothing_is_left_behind() -> Result<()> {
    let lab = Lab::builder().daemons(false).client(true).build()?;
    let (dir, cgroup) = (lab.dir().to_owned(), lab.cgroup().to_owned());
    let servers = lab.node(1).serve(8080)?;
    for family in Family::ALL {
        let to = (lab.node(1).ip(family), 8080).into();
        for place in [&lab.node(0).place, lab.client()] {
            place.ping(lab.node(1).ip(family))?;
            for transport in Transport::ALL {
                let answer = place.ask(transport, to)?;
                assert_eq!(answer.server, "node2");
                assert_eq!(answer.peer, to);
                assert_eq!(answer.seen.port(), answer.local.port());
            }
        }
    }
    assert_eq!(lab.node(0).place.run("hostname", &[])?, "node1\n");
    drop(servers);
    drop(lab);
    assert!(!dir.exists() && !cgroup.exists());
    Ok(())
}

#[test]
fn processes_and_sockets_of_a_node_are_in_its_cgroup() -> Result<()> {
    let lab = Lab::builder().nodes(1).daemons(false).build()?;
    // The node sees its own cgroup as the root; the machine sees it below the lab's.
    assert_eq!(lab.node(0).place.run("grep", &["^0::", "/proc/self/cgroup"])?, "0::/\n");
    let procs = fs::read_to_string(lab.cgroup().join("node1/cgroup.procs"))?;
    assert_eq!(procs.lines().count(), 1, "the agent, which makes the sockets: {procs}");
    assert!(lab.node(0).place.run("ls", &["/sys/fs/cgroup/"])?.contains("cgroup.procs"));
    assert_eq!(lab.node(0).place.run("ls", &["/sys/class/net"])?, "eth0\nlo\n");
    // Only the kernel's two files.
    assert_eq!(lab.node(0).place.run("ls", &["/sys/fs/bpf"])?, "maps.debug\nprogs.debug\n");
    Ok(())
}

#[test]
fn failures_differ_from_silence() -> Result<()> {
    let lab = Lab::builder().daemons(false).build()?;
    let place = &lab.node(0).place;
    let closed = (lab.node(1).ip(Family::V4), 9).into();
    assert_eq!(place.ask(Transport::Tcp, closed).unwrap_err().kind(), std::io::ErrorKind::ConnectionRefused);
    let udp = Ask::new(Transport::Udp, closed).connected().from(place);
    assert_eq!(udp.unwrap_err().kind(), std::io::ErrorKind::ConnectionRefused);
    let nobody = Ask::new(Transport::Udp, "172.30.0.77:9".parse()?).timeout(Duration::from_millis(50)).from(place);
    assert_eq!(nobody.unwrap_err().kind(), std::io::ErrorKind::TimedOut);
    // node2 does not forward, so the hop limit is checked by the fabric's gateway only, which a TTL of 1 reaches.
    let answer = Ping::new("172.30.0.254".parse()?).ttl(1).from(place)?;
    assert_eq!(answer, PingAnswer::Reply("172.30.0.254".parse()?));
    Ok(())
}

#[test]
fn streams_report_what_is_lost_in_either_direction() -> Result<()> {
    let lab = Lab::builder().daemons(false).build()?;
    let [near, far] = [lab.node(0), lab.node(1)];
    let _servers = far.serve(8080)?;
    let pause = Duration::from_millis(5);
    for (family, transport) in Transport::over_all() {
        let to = (far.ip(family), 8080).into();
        for (sender, receiver) in [(near, far), (far, near)] {
            let stream = Stream::start(&near.place, transport, to, pause)?;
            let goes_on = |stream: &Stream| {
                let before = stream.answered();
                wait_until("the stream goes on", || Ok(stream.answered() > before + 5))
            };
            goes_on(&stream)?;
            // To a machine that doesn't exist.
            let neighbour = format!("neigh replace {} dev eth0 nud permanent lladdr", receiver.ip(family));
            sender.place.ip(&format!("{neighbour} 02:00:00:00:00:99"))?;
            // Long enough for at least one message.
            std::thread::sleep(Duration::from_millis(300));
            let mac = receiver.place.mac("eth0")?.map(|byte| format!("{byte:02x}")).join(":");
            sender.place.ip(&format!("{neighbour} {mac}"))?;
            goes_on(&stream)?;
            let report = stream.stop();
            assert!(report.lost + report.lost_segments > 0, "{transport}: {report:?}");
        }
        let stream = Stream::start(&near.place, transport, to, pause)?;
        wait_until("answers", || Ok(stream.answered() > 50))?;
        let report = stream.stop();
        assert!(report.is_clean(), "{transport}: {report:?}");
    }
    Ok(())
}

#[test]
fn leftovers_of_a_dead_lab_are_removed() -> Result<()> {
    let lab = Lab::builder().nodes(1).daemons(false).build()?;
    // No process can have this id, which exceeds the kernel's limit.
    let name = "podnet-lab-99999999-0";
    let (dir, cgroup) = (lab.dir().with_file_name(name), lab.cgroup().with_file_name(name));
    fs::create_dir_all(dir.join("node1/run"))?;
    fs::create_dir_all(cgroup.join("node1"))?;
    drop(Lab::builder().nodes(1).daemons(false).build()?);
    assert!(!dir.exists() && !cgroup.exists());
    assert!(lab.dir().exists() && lab.cgroup().exists(), "a living lab is left alone");
    Ok(())
}
