use std::{
    fs,
    io::{BufRead as _, BufReader, Read as _, Write as _},
    os::unix::net::UnixStream,
    sync::mpsc,
    thread::JoinHandle,
    time::{Duration, Instant},
};

use podnet_common::verdict::Reason;
use tokio::sync::oneshot;

use super::super::{
    client::{AskError, Client, Report},
    dropped::tests::event,
    policies::{DenyingRule, PodFacts, PolicySummary},
    protocol::{Answer, ExternalAddresses, Pending},
    question::{AddressPage, Explainable, PolicyPage, Unsynced},
};
use super::*;
use crate::{
    model::ObjectName,
    policy::Policies,
    status::{DaemonStatus, PendingStatus},
};

/// An event loop that only answers questions from the socket.
struct Daemon {
    dir: tempfile::TempDir,
    drops: broadcast::Sender<Event>,
    stop: Option<oneshot::Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl Daemon {
    fn start() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let mut server = Server::start(dir.path()).unwrap();
        assert_eq!(server.problem(), None);
        let (drops, (stop, mut stopped)) = (server.drops(), oneshot::channel());
        let thread = std::thread::spawn(move || {
            let runtime = Builder::new_current_thread().build().unwrap();
            runtime.block_on(async {
                loop {
                    tokio::select! {
                        question = server.question() => answer(question),
                        _ = &mut stopped => return,
                    }
                }
            });
        });
        Self { dir, drops, stop: Some(stop), thread: Some(thread) }
    }

    fn stop(&mut self) {
        drop(self.stop.take());
        if let Some(thread) = self.thread.take() {
            thread.join().unwrap();
        }
    }

    fn client(&self) -> Client {
        Client::connect(self.dir.path()).unwrap()
    }

    fn raw(&self) -> UnixStream {
        let stream = UnixStream::connect(bind::path(self.dir.path())).unwrap();
        stream.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
        stream
    }

    /// Waits until this many clients follow.
    fn wait_for_followers(&self, count: usize) {
        let start = Instant::now();
        while self.drops.receiver_count() != count {
            assert!(start.elapsed() < Duration::from_secs(10), "{} follow", self.drops.receiver_count());
            std::thread::sleep(Duration::from_millis(5));
        }
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        drop(self.stop.take());
    }
}

fn name(number: u32) -> ObjectName {
    ObjectName { namespace: "default".into(), name: format!("web{number}") }
}

fn answer(question: Question) {
    match question {
        Question::Status(reply) => {
            drop(reply.send(DaemonStatus { node: "node1".into(), ..DaemonStatus::default() }));
        }
        Question::Pending(reply) => drop(reply.send(Pending {
            synced: true,
            frontends: vec![PendingStatus { frontend: "10.96.0.10:80".into(), ..PendingStatus::default() }],
        })),
        Question::Explain(name, reply) => {
            drop(reply.send(Explainable { service: None, invalid: vec![name.to_string()] }));
        }
        Question::Addresses(after, reply) => {
            // Three pages of one service each.
            let number = after.map_or(1, |name| name.name.trim_start_matches("web").parse::<u32>().unwrap() + 1);
            let ObjectName { namespace, name } = name(number);
            let services = vec![ExternalAddresses { namespace, name, ..ExternalAddresses::default() }];
            drop(reply.send(AddressPage { services, last: (number < 3).then(|| self::name(number)) }));
        }
        Question::Policies(after, reply) => {
            // Two pages of one policy each.
            let number = after.as_ref().map_or(1, |_| 2);
            let ObjectName { namespace, name } = name(number);
            let policies = vec![PolicySummary { namespace, name, ..PolicySummary::default() }];
            drop(reply.send(Ok(PolicyPage { policies, last: (number < 2).then(|| self::name(number)) })));
        }
        Question::Policy(name, reply) => {
            drop(reply.send(if name == self::name(1) { Ok(None) } else { Err(Unsynced) }));
        }
        Question::Denials(reply) => {
            drop(reply.send(vec![DenyingRule { set: 1, rule: 0, policies: vec!["default/web".into()] }]));
        }
        Question::Denying(_, reply) => drop(reply.send(vec![name(1)])),
        Question::PodPolicies(name, reply) => drop(reply.send(Ok(PodFacts::of(&Policies::default(), &name)))),
    }
}

/// Reads the next line.
fn line(stream: &mut BufReader<UnixStream>) -> String {
    let mut line = String::new();
    stream.read_line(&mut line).unwrap();
    line
}

#[test]
fn a_client_gets_an_answer_to_each_of_its_requests() {
    let daemon = Daemon::start();
    let mut client = daemon.client();
    assert_eq!(client.status().unwrap().node, "node1");
    assert_eq!(client.explain(&name(7)).unwrap().invalid, ["default/web7"]);
    let addresses = client.addresses().unwrap();
    let names: Vec<_> = addresses.iter().map(|service| service.name.as_str()).collect();
    assert_eq!(names, ["web1", "web2", "web3"], "all pages");
    let mut raw = BufReader::new(daemon.raw());
    raw.get_mut().write_all(b"{\"pending\":{}}\n{\"get\":\"status\"}\n").unwrap();
    assert!(line(&mut raw).starts_with(r#"{"pending":{"synced":true,"frontends":[{"frontend":"10.96.0.10:80""#));
    assert!(line(&mut raw).starts_with(r#"{"status":{"#));
    // A request without a newline, from a client that then closes its sending side.
    raw.get_mut().write_all(br#"{"get":"status"}"#).unwrap();
    raw.get_mut().shutdown(std::net::Shutdown::Write).unwrap();
    assert!(line(&mut raw).starts_with(r#"{"status":{"#));
    assert_eq!(line(&mut raw), "");
}

#[test]
fn policy_requests_are_answered() {
    let daemon = Daemon::start();
    let mut client = daemon.client();
    let policies = client.policies().unwrap();
    assert!(policies.iter().map(|policy| policy.name.as_str()).eq(["web1", "web2"]), "all pages");
    assert_eq!(client.policy(&name(1)).unwrap(), None);
    let error = client.policy(&name(2)).unwrap_err().to_string();
    assert!(error.contains("rejected the request: not all objects have been read yet"), "{error}");
    assert_eq!(client.pod_policies(&name(1)).unwrap().pod, None);
}

#[test]
fn invalid_requests_get_an_error() {
    let daemon = Daemon::start();
    let mut raw = BufReader::new(daemon.raw());
    for request in ["nonsense\n", "\n", "{\"set\":\"status\"}\n", "\u{1b}[2J\n"] {
        raw.get_mut().write_all(request.as_bytes()).unwrap();
        let answer = line(&mut raw);
        assert!(answer.starts_with(r#"{"error":"not a request: "#), "{request:?}: {answer}");
    }
    raw.get_mut().write_all(&[0xff, b'\n']).unwrap();
    assert!(line(&mut raw).starts_with(r#"{"error":"#));
    raw.get_mut().write_all(b"{\"get\":\"status\"}\n").unwrap();
    assert!(line(&mut raw).starts_with(r#"{"status":"#), "the connection is as good as before");
}

#[test]
fn an_overlong_request_is_rejected() {
    let daemon = Daemon::start();
    let mut raw = daemon.raw();
    // Writing may fail, since the daemon closes the connection meanwhile.
    let _ = raw.write_all(&vec![b'x'; 1 << 20]);
    let mut answer = String::new();
    let _ = raw.read_to_string(&mut answer);
    assert_eq!(answer, "{\"error\":\"the request has more than 4096 bytes\"}\n");
    assert_eq!(daemon.client().status().unwrap().node, "node1");
}

#[test]
fn the_number_of_clients_is_limited() {
    let daemon = Daemon::start();
    let mut clients: Vec<_> = (0..32).map(|_| daemon.client()).collect();
    clients.iter_mut().for_each(|client| drop(client.status().unwrap()));
    let refused = daemon.client().status().unwrap_err();
    assert!(matches!(&refused, AskError::Refused { .. }), "{refused}");
    assert!(refused.to_string().ends_with("too many connections (32 at most): close some and try again"), "{refused}");
    clients.pop();
    let start = Instant::now();
    while daemon.client().status().is_err() {
        assert!(start.elapsed() < Duration::from_secs(10), "a place is free");
    }
}

#[test]
fn all_followers_get_the_same_drops_and_slow_ones_the_number_missed() {
    let daemon = Daemon::start();
    let mut followers: Vec<_> = (0..2).map(|_| daemon.client().follow_drops().unwrap()).collect();
    // One that never reads.
    let mut silent = daemon.raw();
    silent.write_all(b"{\"follow\":\"drops\"}\n").unwrap();
    daemon.wait_for_followers(3);
    let sent = Event { reason: Reason::ConntrackFull as u16, ..event(&[]) };
    daemon.drops.send(sent).unwrap();
    for follower in &mut followers {
        let Report::Drop(dropped) = follower.next().unwrap().unwrap() else { panic!("nothing was lost") };
        assert_eq!((dropped.reason.as_str(), dropped.length), ("conntrack_full", 74));
    }
    // More than fits in the sockets and the queue.
    let many = 20_000u64;
    let reader = std::thread::spawn(move || {
        followers
            .into_iter()
            .map(|mut follower| {
                let (mut got, mut lost) = (0, 0);
                while got + lost < many {
                    match follower.next().unwrap().unwrap() {
                        Report::Drop(_) => got += 1,
                        Report::Lost(count) => lost += count,
                    }
                }
                (got, lost)
            })
            .collect::<Vec<_>>()
    });
    for _ in 0..many {
        daemon.drops.send(sent).unwrap();
    }
    for (got, lost) in reader.join().unwrap() {
        assert_eq!(got + lost, many, "each is read or counted as lost");
    }
    assert_eq!(daemon.client().status().unwrap().node, "node1", "others are answered");
    // The silent client finally reads: it gets some drops, and the number of those that it has missed.
    let mut lines = BufReader::new(silent).lines().map(Result::unwrap);
    assert_eq!(lines.next().unwrap(), r#"{"following":"drops"}"#);
    let (mut got, mut lost) = (0, 0);
    while got + lost < 1 + many {
        match serde_json::from_str(&lines.next().unwrap()).unwrap() {
            Answer::Drop(_) => got += 1,
            Answer::Lost(count) => lost += count,
            other => panic!("{other:?}"),
        }
    }
    assert!(got + lost == 1 + many && lost > many / 10, "{got} read, {lost} lost");
}

#[test]
fn disconnected_followers_are_removed() {
    let daemon = Daemon::start();
    let (gone, stays) = (daemon.client().follow_drops().unwrap(), daemon.client().follow_drops().unwrap());
    daemon.wait_for_followers(2);
    drop(gone);
    daemon.wait_for_followers(1);
    drop(stays);
    daemon.wait_for_followers(0);
}

#[test]
fn clients_of_a_stopped_daemon_get_an_error() {
    let mut daemon = Daemon::start();
    let (mut client, mut follower) = (daemon.client(), daemon.client().follow_drops().unwrap());
    client.status().unwrap();
    daemon.stop();
    assert!(follower.next().is_none());
    assert!(client.status().is_err());
    // The server's thread closes the listening socket, maybe only after its other sockets.
    let start = Instant::now();
    let error = loop {
        match Client::connect(daemon.dir.path()) {
            Err(error) => break error,
            Ok(_) => assert!(start.elapsed() < Duration::from_secs(10), "the socket still listens"),
        }
    };
    assert!(matches!(error, AskError::Down { .. }), "{error}");
    fs::remove_file(bind::path(daemon.dir.path())).unwrap();
    let error = Client::connect(daemon.dir.path()).unwrap_err();
    assert!(error.to_string().starts_with("no daemon answers at "), "{error}");
}

#[test]
fn requests_to_a_hanging_daemon_time_out() {
    let dir = tempfile::tempdir().unwrap();
    let server = Server::start(dir.path()).unwrap();
    let (done, result) = mpsc::channel();
    let path = dir.path().to_owned();
    std::thread::spawn(move || done.send(Client::connect(&path).unwrap().status().unwrap_err()));
    let error = result.recv_timeout(Duration::from_secs(10)).unwrap();
    assert!(error.to_string().ends_with("within 5 s: check its log"), "{error}");
    drop(server);
}

#[test]
fn a_missing_socket_is_recreated() {
    let dir = tempfile::tempdir().unwrap();
    let mut server = Server::start(dir.path()).unwrap();
    let path = bind::path(dir.path());
    let before = Identity::at(&path);
    server.keep();
    assert_eq!(Identity::at(&path), before);
    fs::remove_file(&path).unwrap();
    server.keep();
    UnixStream::connect(&path).unwrap();
    fs::remove_file(&path).unwrap();
    fs::create_dir(&path).unwrap();
    server.keep();
    let problem = server.problem().unwrap();
    assert!(problem.contains("cannot replace") && problem.contains("podnet.sock"), "{problem}");
    fs::remove_dir(&path).unwrap();
    server.keep();
    assert_eq!(server.problem(), None);
    UnixStream::connect(&path).unwrap();
}
