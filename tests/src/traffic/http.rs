//! HTTP GET, for the daemon's health servers.

use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

use super::Transport;
use crate::place::Place;

/// Timeout of connecting, and of each read.
const TIMEOUT: Duration = Duration::from_secs(2);

/// A server's response.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Response {
    /// The status code.
    pub status: u16,
    /// Names, in lower case, and values.
    pub headers: Vec<(String, String)>,
    /// What comes after the headers.
    pub body: String,
}

impl Response {
    /// Value of a header, by its name in lower case.
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(other, _)| other == name).map(|(_, value)| &value[..])
    }

    fn parse(text: &str) -> Option<Self> {
        let (head, body) = text.split_once("\r\n\r\n")?;
        let mut lines = head.split("\r\n");
        let status = lines.next()?.split(' ').nth(1)?.parse().ok()?;
        let headers = lines
            .map(|line| line.split_once(':').map(|(name, value)| (name.to_lowercase(), value.trim().to_owned())))
            .collect::<Option<_>>()?;
        Some(Self { status, headers, body: body.to_owned() })
    }
}

/// Gets a path from a server.
///
/// # Errors
/// Those of the socket; `InvalidData` if the response is not HTTP.
pub fn http_get(place: &Place, server: SocketAddr, path: &str) -> io::Result<Response> {
    let socket = place.socket_for(server, Transport::Tcp.kind(), Transport::Tcp.protocol())?;
    socket.connect_timeout(&server.into(), TIMEOUT)?;
    socket.set_read_timeout(Some(TIMEOUT))?;
    let mut stream: TcpStream = socket.into();
    stream.write_all(format!("GET {path} HTTP/1.1\r\nHost: {server}\r\nConnection: close\r\n\r\n").as_bytes())?;
    let mut text = String::new();
    stream.read_to_string(&mut text)?;
    Response::parse(&text).ok_or_else(|| io::Error::new(io::ErrorKind::InvalidData, format!("not HTTP: {text:?}")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn responses_are_parsed() {
        let response = Response::parse("HTTP/1.1 503 Service Unavailable\r\nX-Weight: 0\r\n\r\n{}").unwrap();
        assert_eq!((response.status, response.header("x-weight"), &response.body[..]), (503, Some("0"), "{}"));
        assert_eq!(Response::parse("HTTP/1.1 200 OK"), None);
    }
}
