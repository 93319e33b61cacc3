//! The load: one server and three clients over plain TCP sockets.
//!
//! The first byte of a connection selects its purpose, so that a service needs only one port:
//!
//! | byte | server | measured |
//! |---|---|---|
//! | `r` | answers each byte with one byte until the client closes | requests on one connection |
//! | `c` | answers one byte and closes | connect, request, response, close |
//! | `s` | reads until the client shuts down, then answers with the byte count | a stream, counted where it arrives |
//!
//! With `c`, the server closes first, so that the sockets in TIME-WAIT are on its side and the client's ports are free
//! at once; a new connection on a port in TIME-WAIT is accepted because of its later timestamp (RFC 6191). The network
//! path sees a normal close. iperf3 is not used here: its shortest run takes a second and begins with a control
//! connection, while the noise of virtual machines requires hundreds of short slices in turn.

use std::{
    io::{self, ErrorKind, Read, Write},
    net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream, UdpSocket},
    thread,
    time::{Duration, Instant},
};

use serde::{Deserialize, Serialize};

/// What a client measures.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Metric {
    /// One connection at full speed, in Gbit/s of received payload.
    TcpStream,
    /// One byte in each direction on one connection, in transactions per second.
    TcpRr,
    /// Connect, one byte in each direction, close; in connections per second.
    TcpCrr,
}

impl Metric {
    /// All of them.
    pub const ALL: [Self; 3] = [Self::TcpStream, Self::TcpRr, Self::TcpCrr];

    /// The first part of row names.
    pub const fn name(self) -> &'static str {
        match self {
            Self::TcpStream => "tcp_stream",
            Self::TcpRr => "tcp_rr",
            Self::TcpCrr => "tcp_crr",
        }
    }

    /// The unit of the result.
    pub const fn unit(self) -> &'static str {
        match self {
            Self::TcpStream => "Gbit/s",
            Self::TcpRr => "transactions/s",
            Self::TcpCrr => "connections/s",
        }
    }
}

/// Size of a write in a stream, iperf3's default.
const CHUNK: usize = 128 * 1024;

/// Listens on the ports, and serves them on background threads for the lifetime of the process.
pub fn serve(ports: &[u16]) -> io::Result<()> {
    for &port in ports {
        let listener = TcpListener::bind((Ipv4Addr::UNSPECIFIED, port))?;
        thread::spawn(move || {
            loop {
                match listener.accept() {
                    Ok((connection, _)) => first_byte(connection),
                    Err(e) => eprintln!("accept on port {port}: {e}"),
                }
            }
        });
        // Never read: measurements with datagrams end at the socket, which stays open for the lifetime of the process.
        std::mem::forget(UdpSocket::bind((Ipv4Addr::UNSPECIFIED, port))?);
    }
    Ok(())
}

/// Serves short connections on the accepting thread, since the cost of a thread for each would be included in the
/// measurement.
fn first_byte(mut connection: TcpStream) {
    let mut byte = [0];
    if connection.read_exact(&mut byte).is_err() {
        return;
    }
    match byte[0] {
        b'c' => drop(connection.write_all(&byte)),
        b'r' => drop(thread::spawn(move || echo(connection))),
        b's' => drop(thread::spawn(move || drain(connection))),
        _ => {}
    }
}

fn echo(mut connection: TcpStream) -> io::Result<()> {
    connection.set_nodelay(true)?;
    let mut byte = [b'r'];
    loop {
        connection.write_all(&byte)?;
        connection.read_exact(&mut byte)?;
    }
}

fn drain(mut connection: TcpStream) -> io::Result<()> {
    let mut buffer = vec![0; CHUNK];
    let mut total = 0u64;
    loop {
        match connection.read(&mut buffer)? {
            0 => return connection.write_all(&total.to_be_bytes()),
            n => total += n as u64,
        }
    }
}

/// A slice of load; returns the rate in the metric's unit.
pub fn measure(metric: Metric, target: SocketAddr, length: Duration) -> io::Result<f64> {
    match metric {
        Metric::TcpStream => stream(target, length),
        Metric::TcpRr => request_response(target, length),
        Metric::TcpCrr => connections(target, length),
    }
}

fn stream(target: SocketAddr, length: Duration) -> io::Result<f64> {
    let mut connection = TcpStream::connect(target)?;
    connection.write_all(b"s")?;
    let buffer = vec![0x5a; CHUNK];
    let start = Instant::now();
    while start.elapsed() < length {
        connection.write_all(&buffer)?;
    }
    connection.shutdown(std::net::Shutdown::Write)?;
    let mut arrived = [0; 8];
    connection.read_exact(&mut arrived)?;
    Ok(u64::from_be_bytes(arrived) as f64 * 8.0 / 1e9 / start.elapsed().as_secs_f64())
}

fn request_response(target: SocketAddr, length: Duration) -> io::Result<f64> {
    let mut connection = TcpStream::connect(target)?;
    connection.set_nodelay(true)?;
    let mut byte = [b'r'];
    let mut transact = || {
        connection.write_all(&byte)?;
        connection.read_exact(&mut byte)
    };
    transact()?;
    rate(length, &mut transact)
}

fn connections(target: SocketAddr, length: Duration) -> io::Result<f64> {
    rate(length, &mut || {
        let mut connection = TcpStream::connect(target)?;
        connection.write_all(b"c")?;
        let mut answer = [0; 2];
        connection.read_exact(&mut answer[..1])?;
        match connection.read(&mut answer)? {
            0 => Ok(()),
            _ => Err(io::Error::new(ErrorKind::InvalidData, "the server answered more than one byte")),
        }
    })
}

fn rate(length: Duration, transact: &mut dyn FnMut() -> io::Result<()>) -> io::Result<f64> {
    let start = Instant::now();
    let mut count = 0u64;
    while start.elapsed() < length {
        transact()?;
        count += 1;
    }
    Ok(count as f64 / start.elapsed().as_secs_f64())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_metric_runs_over_loopback() {
        let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        serve(&[port]).unwrap();
        let target = SocketAddr::from((Ipv4Addr::LOCALHOST, port));
        for metric in Metric::ALL {
            let rate = measure(metric, target, Duration::from_millis(50)).unwrap();
            assert!(rate > 0.1, "{metric:?}: {rate}");
        }
    }

    #[test]
    fn closed_port_is_an_error() {
        let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        let target = SocketAddr::from((Ipv4Addr::LOCALHOST, port));
        let error = measure(Metric::TcpCrr, target, Duration::from_millis(50)).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::ConnectionRefused);
    }
}
