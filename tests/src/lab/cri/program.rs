//! What runs in containers: the lab's own program, with the tests' server and client.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::thread;

use anyhow::Result;
use clap::Subcommand;

use crate::traffic::{Ask, Server, Transport};

/// The words after `podnet-lab pod`.
#[derive(Clone, Debug, Subcommand)]
pub enum Program {
    /// Do nothing for ever: what keeps a pod's namespaces.
    Wait,
    /// Answer questions by TCP and UDP, on all addresses of both families.
    Serve {
        /// What the server calls itself.
        name: String,
        /// Where it listens.
        port: u16,
    },
    /// Ask a server and print its name and whom it sees; exit status 1 without an answer.
    Ask {
        /// `TCP` or `UDP`.
        transport: Transport,
        /// The server.
        to: SocketAddr,
    },
}

impl Program {
    /// Does it.
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
