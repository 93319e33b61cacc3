//! The server under attack by clients that try to lock others out. All of them use the loopback interface; other
//! sources are in tests/netns/health.rs.

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

/// Time limit for the response to a probe.
const PROBE: Duration = Duration::from_secs(1);
/// Number of connections that attackers try to keep open.
const ATTACKERS: usize = 400;
/// Limits of the server.
const OWN: usize = 100;

/// How a client uses its connection.
#[derive(Clone, Copy, Debug)]
enum Manner {
    Silent,
    /// Sends a byte at a time.
    Slow,
    HugeHead,
    HugeBody,
    /// Sends a request, and doesn't read the response.
    NeverReading,
}

struct Bench {
    runtime: Runtime,
    server: Server,
    port: u16,
}

impl Bench {
    /// A server with a response body of `body` bytes.
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

    /// Sends requests until one is answered in time. On a busy machine some aren't; a server that is locked out by its
    /// clients answers none.
    fn probe(&self, host: IpAddr, why: &str) {
        const TRIES: usize = 5;
        let ask = || -> io::Result<String> {
            let mut stream = std::net::TcpStream::connect_timeout(&(host, self.port).into(), PROBE)?;
            stream.set_read_timeout(Some(PROBE))?;
            stream.write_all(b"GET /livez HTTP/1.1\r\nHost: x\r\n\r\n")?;
            let mut text = String::new();
            stream.read_to_string(&mut text)?;
            Ok(text)
        };
        let mut answer = ask();
        for _ in 1..TRIES {
            if answer.is_err() {
                answer = ask();
            }
        }
        assert!(answer.as_ref().is_ok_and(|text| text.starts_with("HTTP/1.1 200 OK\r\n")), "{why}: {answer:?}");
    }
}

/// Starts a server on a free port of an address. Until the port is bound, a client of another test may take it.
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

/// Connects repeatedly from an address, and holds each connection as long as possible.
async fn attack(source: IpAddr, port: u16, manner: Manner) {
    loop {
        // An error means that the server has closed the connection.
        let _ = once(source, port, manner).await;
        // Paced, since otherwise the CPU would be the bottleneck instead of the server's limits.
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
            // Nothing is read, so the end of the connection isn't noticed either.
            sleep(Duration::from_secs(1)).await;
        }
    }
    stream.read_to_end(&mut Vec::new()).await.map(drop)
}

#[test]
fn probe_is_answered_in_time_under_attack() {
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
fn unread_response_is_abandoned() {
    // More than the kernel buffers for a connection.
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
fn local_connections_have_a_separate_queue() {
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
