//! The client of the socket, used by commands.

use std::{
    io::{self, BufRead as _, BufReader, Read as _, Write as _},
    os::{fd::AsRawFd as _, unix::net::UnixStream},
    path::{Path, PathBuf},
    time::Duration,
};

use nix::{
    errno::Errno,
    sys::{
        socket::{AddressFamily, SockFlag, SockType, UnixAddr, connect, setsockopt, socket, sockopt},
        time::{TimeVal, TimeValLike as _},
    },
};
use serde_json::Error as JsonError;
use thiserror::Error;

use super::{
    bind,
    dropped::Dropped,
    policies::{DenyingRule, PodAnswer, PolicyDetail, PolicySummary},
    protocol::{Answer, Explanation, ExternalAddresses, Request, Stream, Subject},
};
use crate::{model::ObjectName, status::DaemonStatus};

/// Time limit for the daemon to accept a connection, and to answer a request.
const PATIENCE: Duration = Duration::from_secs(5);
/// Maximum length of an answer, in bytes.
const ANSWER_MAX: u64 = 256 << 20;

/// A failed request to the daemon.
#[derive(Debug, Error)]
pub enum AskError {
    /// There is no socket, no daemon listens on it, or the daemon has closed the connection.
    #[error("no daemon answers at {} ({source})", path.display())]
    Down {
        /// The socket.
        path: PathBuf,
        /// The cause.
        source: io::Error,
    },
    /// The socket belongs to another user, so this process may not connect.
    #[error("permission denied by the daemon's socket {}: run podnet as root", path.display())]
    NotRoot {
        /// The socket.
        path: PathBuf,
    },
    /// The daemon hasn't answered in time: it is busier than usual.
    #[error("the daemon has not answered at {} within {} s: check its log", path.display(), PATIENCE.as_secs())]
    Silent {
        /// The socket.
        path: PathBuf,
    },
    /// The connection failed.
    #[error("cannot ask the daemon at {}: {source}", path.display())]
    Io {
        /// The socket.
        path: PathBuf,
        /// The cause.
        source: io::Error,
    },
    /// The answer can't be decoded: the daemon is probably of another version.
    #[error("cannot parse the daemon's answer ({source}): use a podnet binary of the daemon's version")]
    Malformed {
        /// The cause.
        source: JsonError,
    },
    /// The answer is not of the requested kind.
    #[error("unexpected answer from the daemon: use a podnet binary of the daemon's version")]
    Unexpected,
    /// The daemon has answered with an error.
    #[error("the daemon at {} has rejected the request: {reason}", path.display())]
    Refused {
        /// The socket.
        path: PathBuf,
        /// The daemon's reason.
        reason: String,
    },
}

/// A connection to the daemon.
#[derive(Debug)]
pub struct Client {
    path: PathBuf,
    stream: BufReader<UnixStream>,
}

impl Client {
    /// Connects to the daemon of a run directory.
    ///
    /// # Errors
    /// [`AskError::Down`] if no daemon listens there, [`AskError::NotRoot`] if this process may not ask it.
    pub fn connect(run_dir: &Path) -> Result<Self, AskError> {
        let path = bind::path(run_dir);
        let connected = (|| {
            let socket = socket(AddressFamily::Unix, SockType::Stream, SockFlag::SOCK_CLOEXEC, None)?;
            let patience = TimeVal::milliseconds(PATIENCE.as_millis() as i64);
            // Also limits the time for connecting.
            setsockopt(&socket, sockopt::SendTimeout, &patience)?;
            setsockopt(&socket, sockopt::ReceiveTimeout, &patience)?;
            connect(socket.as_raw_fd(), &UnixAddr::new(&path)?)?;
            Ok(socket.into())
        })();
        match connected {
            Ok(stream) => Ok(Self { path, stream: BufReader::new(stream) }),
            Err(errno) => Err(match errno {
                // `ECONNREFUSED` is also the error for a file that is not a socket.
                Errno::ENOENT | Errno::ENOTDIR | Errno::ECONNREFUSED => AskError::Down { path, source: errno.into() },
                Errno::EACCES | Errno::EPERM => AskError::NotRoot { path },
                errno => failed(path, errno.into()),
            }),
        }
    }

    /// Returns the daemon's status.
    ///
    /// # Errors
    /// The request fails, is refused, or has an unexpected answer.
    pub fn status(&mut self) -> Result<DaemonStatus, AskError> {
        match self.ask(&Request::Get(Subject::Status))? {
            Answer::Status(status) => Ok(*status),
            _ => Err(AskError::Unexpected),
        }
    }

    /// Explains a Service: its frontends and backends, with the reasons.
    ///
    /// # Errors
    /// The request fails, is refused, or has an unexpected answer.
    pub fn explain(&mut self, name: &ObjectName) -> Result<Explanation, AskError> {
        let ObjectName { namespace, name } = name.clone();
        match self.ask(&Request::Explain { namespace, name })? {
            Answer::Explanation(explanation) => Ok(explanation),
            _ => Err(AskError::Unexpected),
        }
    }

    /// Returns the external addresses of all Services.
    ///
    /// # Errors
    /// The request fails, is refused, or has an unexpected answer.
    pub fn addresses(&mut self) -> Result<Vec<ExternalAddresses>, AskError> {
        match self.ask(&Request::Get(Subject::Addresses))? {
            Answer::Addresses(addresses) => Ok(addresses),
            _ => Err(AskError::Unexpected),
        }
    }

    /// Returns the network policies of the cluster.
    ///
    /// # Errors
    /// The request fails, is refused, or has an unexpected answer.
    pub fn policies(&mut self) -> Result<Vec<PolicySummary>, AskError> {
        match self.ask(&Request::Get(Subject::Policies))? {
            Answer::Policies(policies) => Ok(policies),
            _ => Err(AskError::Unexpected),
        }
    }

    /// Returns the policies behind each entry of `policy_denials`, which counts denied packets.
    ///
    /// # Errors
    /// The request fails, is refused, or has an unexpected answer.
    pub fn denials(&mut self) -> Result<Vec<DenyingRule>, AskError> {
        match self.ask(&Request::Get(Subject::Denials))? {
            Answer::Denials(denials) => Ok(denials),
            _ => Err(AskError::Unexpected),
        }
    }

    /// Returns a network policy, if there is such a policy.
    ///
    /// # Errors
    /// The request fails, is refused, or has an unexpected answer.
    pub fn policy(&mut self, name: &ObjectName) -> Result<Option<PolicyDetail>, AskError> {
        let ObjectName { namespace, name } = name.clone();
        match self.ask(&Request::Policy { namespace, name })? {
            Answer::Policy(policy) => Ok(policy.map(|policy| *policy)),
            _ => Err(AskError::Unexpected),
        }
    }

    /// Returns the policies of a pod.
    ///
    /// # Errors
    /// The request fails, is refused, or has an unexpected answer.
    pub fn pod_policies(&mut self, pod: &ObjectName) -> Result<PodAnswer, AskError> {
        let ObjectName { namespace, name } = pod.clone();
        match self.ask(&Request::PodPolicies { namespace, name })? {
            Answer::PodPolicies(answer) => Ok(*answer),
            _ => Err(AskError::Unexpected),
        }
    }

    /// Follows dropped packets from now on.
    ///
    /// # Errors
    /// The request fails, is refused, or has an unexpected answer.
    pub fn follow_drops(mut self) -> Result<Followed, AskError> {
        match self.ask(&Request::Follow(Stream::Drops))? {
            Answer::Following(Stream::Drops) => {}
            _ => return Err(AskError::Unexpected),
        }
        // Any time may pass between drops.
        self.stream.get_ref().set_read_timeout(None).map_err(|source| failed(self.path.clone(), source))?;
        Ok(Followed(self))
    }

    /// Sends a request and waits for its answer.
    fn ask(&mut self, request: &Request) -> Result<Answer, AskError> {
        let mut line = serde_json::to_vec(request).map_err(|source| AskError::Malformed { source })?;
        line.push(b'\n');
        let sent = self.stream.get_mut().write_all(&line);
        match (self.answer(), sent) {
            (Ok(Some(answer)), _) => Ok(answer),
            // The daemon may have sent the reason for a refusal before it closed the connection.
            (Err(error @ AskError::Refused { .. }), _) => Err(error),
            (_, Err(source)) => Err(failed(self.path.clone(), source)),
            (Ok(None), Ok(())) => {
                let source = io::ErrorKind::ConnectionReset.into();
                Err(AskError::Down { path: self.path.clone(), source })
            }
            (Err(error), Ok(())) => Err(error),
        }
    }

    /// Reads the next answer; `None` if the daemon has ended.
    fn answer(&mut self) -> Result<Option<Answer>, AskError> {
        let mut line = Vec::new();
        let read = (&mut self.stream).take(ANSWER_MAX).read_until(b'\n', &mut line);
        read.map_err(|source| failed(self.path.clone(), source))?;
        if line.last() != Some(&b'\n') {
            return Ok(None);
        }
        match serde_json::from_slice(&line).map_err(|source| AskError::Malformed { source })? {
            Answer::Error(reason) => Err(AskError::Refused { path: self.path.clone(), reason }),
            answer => Ok(Some(answer)),
        }
    }
}

/// Dropped packets as the daemon reports them, until it ends.
#[derive(Debug)]
pub struct Followed(Client);

/// An item of [`Followed`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Report {
    /// A dropped packet.
    Drop(Dropped),
    /// Number of dropped packets missing at this point, because they were not read in time.
    Lost(u64),
}

impl Iterator for Followed {
    type Item = Result<Report, AskError>;

    fn next(&mut self) -> Option<Self::Item> {
        Some(self.0.answer().transpose()?.and_then(|answer| match answer {
            Answer::Drop(dropped) => Ok(Report::Drop(dropped)),
            Answer::Lost(lost) => Ok(Report::Lost(lost)),
            _ => Err(AskError::Unexpected),
        }))
    }
}

fn failed(path: PathBuf, source: io::Error) -> AskError {
    match source.kind() {
        io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut => AskError::Silent { path },
        _ => AskError::Io { path, source },
    }
}
