//! The server among clients that want to keep others out. All of them come by the loopback interface; sources elsewhere
//! are in tests/netns/health.rs.

use std::{
    io::{Read as _, Write as _},
    net::IpAddr,
    time::Instant,
};

use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpSocket,
    runtime::Runtime,
};

use super::*;

/// How long a probe may wait for its answer.
const PROBE: Duration = Duration::from_secs(1);
/// How many connections those who want to keep others out try to have at once.
const ATTACKERS: usize = 400;
/// What the server may have.
const OWN: usize = 100;

/// What a client does with its connection.
#[derive(Clone, Copy, Debug)]
enum Manner {
    Silent,
    /// A byte at a time.
    Slow,
    HugeHead,
    HugeBody,
    /// Asks, and doesn't read the answer.
    NeverReading,
}

struct Bench {
    runtime: Runtime,
    server: Server,
    port: u16,
}

impl Bench {
    /// A server whose answer is `body` bytes long.
    fn new(body: usize) -> Self {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
        let body = "x".repeat(body);
        let answering: Answering =
            Arc::new(move |_| Answer { status: 200, content_type: "text/plain", body: body.clone(), header: None });
        let start = |port| {
            let address = SocketAddr::from((Ipv6Addr::UNSPECIFIED, port));
            Server::start(runtime.handle(), address, &Places::new(OWN, OWN), answering.clone())
        };
        let (port, server) = at_a_free_port(Ipv6Addr::UNSPECIFIED.into(), start);
        Self { runtime, server, port }
    }

    /// Asks once, which has to be answered in time.
    fn probe(&self, host: IpAddr, why: &str) {
        let start = Instant::now();
        let ask = || -> io::Result<usize> {
            let mut stream = std::net::TcpStream::connect_timeout(&(host, self.port).into(), PROBE)?;
            stream.set_read_timeout(Some(PROBE))?;
            stream.write_all(b"GET /livez HTTP/1.1\r\nHost: x\r\n\r\n")?;
            let mut text = String::new();
            stream.read_to_string(&mut text)?;
            assert!(text.starts_with("HTTP/1.1 200 OK\r\n"), "{why}: {text}");
            Ok(text.len())
        };
        let answered = ask();
        assert!(answered.is_ok() && start.elapsed() < PROBE, "{why}: {answered:?} after {:?}", start.elapsed());
    }
}

/// Starts something at a port that is free at an address. Until it has it, a client of another test may take it.
fn at_a_free_port<R>(host: IpAddr, mut start: impl FnMut(u16) -> io::Result<R>) -> (u16, R) {
    const TRIES: usize = 100;
    for _ in 0..TRIES {
        let port = std::net::TcpListener::bind((host, 0)).unwrap().local_addr().unwrap().port();
        match start(port) {
            Err(error) if error.kind() == io::ErrorKind::AddrInUse => {}
            started => return (port, started.unwrap()),
        }
    }
    panic!("no port stays free at {host}");
}

/// Connects again and again from an address, and each time does what keeps a connection longest.
async fn attack(source: IpAddr, port: u16, manner: Manner) {
    loop {
        // An error is the server's end of the connection.
        let _ = once(source, port, manner).await;
        // Not at once, or else it is the CPU that is short and not the server's patience.
        sleep(Duration::from_millis(50)).await;
    }
}

async fn once(source: IpAddr, port: u16, manner: Manner) -> io::Result<()> {
    let socket = if source.is_ipv4() { TcpSocket::new_v4()? } else { TcpSocket::new_v6()? };
    socket.bind((source, 0).into())?;
    let host: IpAddr = if source.is_ipv4() { Ipv4Addr::LOCALHOST.into() } else { Ipv6Addr::LOCALHOST.into() };
    let mut stream = socket.connect((host, port).into()).await?;
    match manner {
        Manner::Silent => {}
        Manner::Slow => {
            for byte in b"GET /livez HTTP/1.1\r\nHost: ".iter().chain(b"x".iter().cycle()) {
                stream.write_all(&[*byte]).await?;
                sleep(Duration::from_millis(100)).await;
            }
        }
        Manner::HugeHead => {
            stream.write_all(b"GET /livez HTTP/1.1\r\nX: ").await?;
            loop {
                stream.write_all(&[b'x'; 4096]).await?;
            }
        }
        Manner::HugeBody => {
            stream.write_all(b"POST /livez HTTP/1.1\r\nHost: x\r\nContent-Length: 1000000000\r\n\r\n").await?;
            loop {
                stream.write_all(&[b'x'; 4096]).await?;
            }
        }
        Manner::NeverReading => {
            stream.write_all(b"GET /livez HTTP/1.1\r\nHost: x\r\n\r\n").await?;
            // Nothing is read, so the connection's end isn't noticed either.
            sleep(Duration::from_secs(1)).await;
        }
    }
    stream.read_to_end(&mut Vec::new()).await.map(drop)
}

#[test]
fn a_probe_is_answered_in_time_whatever_others_do() {
    let one: Vec<IpAddr> = vec![Ipv4Addr::LOCALHOST.into()];
    let one_v6: Vec<IpAddr> = vec![Ipv6Addr::LOCALHOST.into()];
    let many: Vec<IpAddr> = (0..=250).map(|i| Ipv4Addr::new(127, 1, 2, i).into()).collect();
    for manner in [Manner::Silent, Manner::Slow, Manner::HugeHead, Manner::HugeBody, Manner::NeverReading] {
        let bench = Bench::new(100);
        for sources in [&one, &one_v6, &many] {
            let attackers = Runtime::new().unwrap();
            for source in sources.iter().cycle().take(ATTACKERS) {
                attackers.spawn(attack(*source, bench.port, manner));
            }
            let until = Instant::now() + Duration::from_millis(1500);
            while Instant::now() < until {
                for host in [IpAddr::from(Ipv4Addr::LOCALHOST), Ipv6Addr::LOCALHOST.into()] {
                    bench.probe(host, &format!("{manner:?} from {} sources", sources.len()));
                }
                std::thread::sleep(Duration::from_millis(20));
            }
            attackers.shutdown_background();
        }
        drop(bench.server);
        bench.runtime.shutdown_background();
    }
}

#[test]
fn an_answer_that_is_not_read_is_given_up() {
    // More than the kernel keeps for a connection.
    let bench = Bench::new(8 << 20);
    let mut stream = std::net::TcpStream::connect((Ipv4Addr::LOCALHOST, bench.port)).unwrap();
    stream.write_all(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n").unwrap();
    let start = Instant::now();
    let given_up = || stream.take_error().unwrap().map(|error| error.kind());
    loop {
        match given_up() {
            Some(kind) => break assert_eq!(kind, io::ErrorKind::ConnectionReset),
            None => assert!(start.elapsed() < PATIENCE + Duration::from_secs(2), "it is still open"),
        }
        std::thread::sleep(Duration::from_millis(20));
    }
}

#[test]
fn what_the_node_itself_asks_is_accepted_from_a_queue_of_its_own() {
    for host in [IpAddr::from(Ipv4Addr::LOCALHOST), Ipv6Addr::LOCALHOST.into()] {
        for at in [Ipv4Addr::UNSPECIFIED.into(), host] {
            let (port, [others, own]) = at_a_free_port(host, |port| listeners((at, port).into()));
            let address = SocketAddr::from((at, port));
            let _client = std::net::TcpStream::connect((host, port)).unwrap();
            assert!(own.accept().is_ok(), "{address}");
            assert_eq!(others.accept().unwrap_err().kind(), io::ErrorKind::WouldBlock, "{address}");
            assert_eq!(std::net::TcpListener::bind(address).unwrap_err().kind(), io::ErrorKind::AddrInUse);
        }
    }
}
