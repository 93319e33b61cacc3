//! The servers, with real sockets.

use std::io::{Read as _, Write as _};
use std::net::{TcpListener, TcpStream};

use super::*;
use crate::model::ObjectName;

const GOOD: Condition = Condition { ready: true, current: true, leaving: false };

/// A port that is free at the moment.
fn free_port() -> u16 {
    TcpListener::bind("[::]:0").unwrap().local_addr().unwrap().port()
}

fn check(name: &str, port: u16, local_endpoints: usize) -> HealthCheck {
    let service = ObjectName { namespace: "shop".into(), name: name.into() };
    HealthCheck { port, service, local_endpoints }
}

fn healthy() -> Health {
    let health = Health::new(false, Instant::now());
    health.report(GOOD, Instant::now());
    health
}

/// Status line, headers and body.
fn get(host: &str, port: u16, path: &str) -> Option<String> {
    let mut stream = TcpStream::connect((host, port)).ok()?;
    stream.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
    write!(stream, "GET {path} HTTP/1.1\r\nHost: x\r\n\r\n").unwrap();
    let mut text = String::new();
    stream.read_to_string(&mut text).ok()?;
    Some(text)
}

fn status(host: &str, port: u16, path: &str) -> Option<u16> {
    get(host, port, path)?.split(' ').nth(1)?.parse().ok()
}

#[test]
fn datapath_is_unhealthy_if_out_of_date_or_unreported_for_too_long() {
    let start = Instant::now();
    let at = |seconds| start + Duration::from_secs(seconds);
    let moment = |health: &Health, seconds| health.moment(at(seconds)).healthy;

    let fresh = Health::new(false, start);
    assert!(!moment(&fresh, 0), "nothing works yet");
    fresh.report(GOOD, at(1));
    assert!(moment(&fresh, 1));
    let behind = Condition { current: false, ..GOOD };
    for seconds in [10, 30, 69] {
        fresh.report(behind, at(seconds));
        assert!(moment(&fresh, seconds), "{seconds}");
    }
    fresh.report(behind, at(70));
    assert!(!moment(&fresh, 70), "60 seconds behind");
    fresh.report(GOOD, at(71));
    assert!(moment(&fresh, 71));
    fresh.report(Condition { ready: false, ..GOOD }, at(72));
    assert!(moment(&fresh, 131) && !moment(&fresh, 132));

    let adopted = Health::new(true, start);
    assert!(moment(&adopted, 59), "an earlier daemon's datapath goes on");
    assert!(!moment(&adopted, 60), "but its tables grow old");
    adopted.report(GOOD, at(61));
    assert!(moment(&adopted, 120));
    assert!(!moment(&adopted, 121), "the daemon hangs");

    adopted.report(Condition { leaving: true, ..GOOD }, at(122));
    let leaving = adopted.moment(at(122));
    assert!(leaving.healthy && !leaving.eligible);
}

#[test]
fn node_server_responds_in_both_families() {
    let (health, port) = (healthy(), free_port());
    let servers = Servers::start(health.clone(), Some(SocketAddr::from(([0, 0, 0, 0], port)))).unwrap();
    for host in ["127.0.0.1", "::1"] {
        for (path, expected) in [("/healthz", 200), ("/livez", 200), ("/other", 404)] {
            assert_eq!(status(host, port, path), Some(expected), "{host} {path}");
        }
    }
    health.report(Condition { leaving: true, ..GOOD }, Instant::now());
    assert_eq!((status("::1", port, "/healthz"), status("::1", port, "/livez")), (Some(503), Some(200)));
    let text = get("127.0.0.1", port, "/healthz").unwrap();
    assert!(text.contains("content-type: application/json") && text.contains(r#""nodeEligible":false"#), "{text}");
    let expected = HealthStatus { address: Some(format!("0.0.0.0:{port}")), error: None, node_ports: 0 };
    assert_eq!(servers.status(), expected);
}

#[test]
fn ports_of_services_are_opened_changed_and_closed() {
    let (health, port, other) = (healthy(), free_port(), free_port());
    let mut servers = Servers::start(health.clone(), None).unwrap();
    servers.settle([check("web", port, 2)]);
    let text = get("127.0.0.1", port, "/").unwrap();
    assert!(text.starts_with("HTTP/1.1 200 OK\r\n") && text.contains("x-load-balancing-endpoint-weight: 2"), "{text}");
    assert!(text.contains(r#""localEndpoints":2"#) && text.contains(r#""name":"web""#), "{text}");
    assert_eq!(status("::1", port, "/anything"), Some(200));

    servers.settle([check("web", port, 0)]);
    assert_eq!(status("127.0.0.1", port, "/"), Some(503));
    servers.settle([check("web", port, 1)]);
    assert_eq!(status("127.0.0.1", port, "/"), Some(200));
    health.report(Condition { leaving: true, ..GOOD }, Instant::now());
    assert_eq!(status("127.0.0.1", port, "/"), Some(200), "that the node leaves is the load balancer's own matter");

    servers.settle([check("web", other, 1)]);
    assert_eq!(status("127.0.0.1", other, "/"), Some(200));
    let deadline = Instant::now() + Duration::from_secs(2);
    while status("127.0.0.1", port, "/").is_some() {
        assert!(Instant::now() < deadline, "the old port stays open");
        std::thread::sleep(Duration::from_millis(10));
    }
    assert_eq!((servers.status().node_ports, servers.problems()), (1, vec![]));
}

#[test]
fn busy_port_is_a_problem_until_it_is_free() {
    let taken = TcpListener::bind("[::]:0").unwrap();
    let port = taken.local_addr().unwrap().port();
    let mut servers = Servers::start(healthy(), Some(SocketAddr::from(([127, 0, 0, 1], port)))).unwrap();
    assert!(servers.status().error.is_some_and(|error| error.contains("in use")));
    let wanted = [check("web", port, 1), check("another", port, 1)];
    servers.settle(wanted.clone());
    let problems = servers.problems();
    assert_eq!(problems.len(), 2, "{problems:?}");
    assert!(problems[0].starts_with("Service shop/web: cannot listen on its healthCheckNodePort"), "{problems:?}");
    assert!(problems[1].contains("is already used by shop/web"), "{problems:?}");
    drop(taken);
    servers.settle([]);
    assert_eq!(status("127.0.0.1", port, "/livez"), Some(200));
    assert_eq!((servers.status().error, servers.problems()), (None, vec![]));
}

#[test]
fn silent_clients_lock_no_others_out_and_are_disconnected() {
    let (health, port) = (healthy(), free_port());
    let _servers = Servers::start(health, Some(SocketAddr::from(([127, 0, 0, 1], port)))).unwrap();
    let silent: Vec<_> = (0..300).map(|_| TcpStream::connect(("127.0.0.1", port)).unwrap()).collect();
    assert_eq!(status("127.0.0.1", port, "/livez"), Some(200));
    for mut stream in silent {
        stream.set_read_timeout(Some(Duration::from_secs(15))).unwrap();
        assert_eq!(stream.read(&mut [0; 16]).unwrap_or(0), 0);
    }
}
