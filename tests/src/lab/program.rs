//! The program in containers: the lab's own, with the tests' server and client.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::thread;

use anyhow::Result;
use clap::Subcommand;

use crate::traffic::{Ask, Server, Transport};

/// Commands after `podnet-lab pod`.
#[derive(Clone, Debug, Subcommand)]
pub enum Program {
    /// Sleep for ever, to keep a pod's namespaces.
    Wait,
    /// Answer requests over TCP and UDP, on all addresses of both families.
    Serve {
        /// Name that the server reports.
        name: String,
        /// Port on which it listens.
        port: u16,
    },
    /// Send a request to a server and print its name and the client address that it sees; exit status 1 without an
    /// answer.
    Ask {
        /// `TCP` or `UDP`.
        transport: Transport,
        /// Address of the server.
        to: SocketAddr,
    },
}

impl Program {
    /// Runs the command.
    pub fn run(&self) -> Result<()> {
        match self {
            Self::Wait => wait(),
            Self::Serve { name, port } => {
                let start = |ip: IpAddr| Server::start_here(name, (ip, *port).into());
                let _servers = [start(Ipv4Addr::UNSPECIFIED.into())?, start(Ipv6Addr::UNSPECIFIED.into())?];
                wait()
            }
            Self::Ask { transport, to } => {
                let answer = Ask::new(*transport, *to).from_here()?;
                println!("{} {}", answer.server, answer.seen.ip());
                Ok(())
            }
        }
    }
}

fn wait() -> ! {
    loop {
        thread::park();
    }
}
