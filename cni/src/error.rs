//! Errors in the form of the CNI specification: a JSON object on standard output with a numeric code, a message and
//! details.
//!
//! Every module has its own error type, which is mapped to a code here. `docs/cni.md` lists the codes.

use std::error::Error;
use std::io::{self, ErrorKind};

use serde::Serialize;

use crate::alloc::PoolError;
use crate::bandwidth::LimitError;
use crate::datapath::DatapathError;
use crate::id::IdError;
use crate::netlink::NetlinkError;
use crate::netns::NetnsError;
use crate::node_info::NodeInfoError;
use crate::store::StoreError;
use crate::text::{advice, chain, errno, on_one_line};
use crate::version::Version;
use crate::wiring::WiringError;

/// Maximum length of each text of an error, in bytes.
const TEXT_MAX: usize = 4096;

/// Codes of the CNI specification (below 100) and podnet's own.
#[repr(u32)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Code {
    /// The configuration's cniVersion is not supported, or does not have the command.
    IncompatibleVersion = 1,
    /// A key of the configuration requests an unsupported feature.
    UnsupportedField = 2,
    /// The container's network namespace does not exist.
    UnknownContainer = 3,
    /// An environment variable is missing or malformed.
    InvalidEnvironment = 4,
    /// Reading or writing a file failed.
    Io = 5,
    /// Standard input is not JSON.
    Decode = 6,
    /// The network configuration is not valid.
    InvalidConfig = 7,
    /// A transient condition: the runtime should retry.
    TryAgainLater = 11,
    /// STATUS: the plugin cannot serve ADD now.
    NotAvailable = 50,
    /// ADD of an attachment that exists already.
    AttachmentExists = 100,
    /// CHECK found a difference.
    CheckFailed = 101,
    /// No free address is left.
    PoolExhausted = 102,
    /// A requested address is in use, reserved or outside the pod CIDRs.
    AddressUnavailable = 103,
    /// The pod already has an interface of that name.
    InterfaceExists = 104,
    /// The kernel refused to change links, addresses or routes.
    Network = 105,
    /// The kernel refused to attach a program or to change a table.
    Datapath = 106,
    /// GC was incomplete; something remains.
    Incomplete = 107,
    /// A host port is mapped to another pod.
    HostPortTaken = 108,
    /// The pod already has a default route through another interface.
    DefaultRouteExists = 109,
}

/// The error of a failed command.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CniError {
    /// The code.
    pub code: Code,
    /// One sentence that says what failed.
    pub msg: String,
    /// What to do next, or details of the cause; may be empty.
    pub details: String,
}

impl CniError {
    /// An error without details.
    pub fn new(code: Code, msg: impl Into<String>) -> Self {
        Self { code, msg: msg.into(), details: String::new() }
    }

    /// A refusal of the kernel, with what to do about it.
    fn refused(code: Code, error: &(dyn Error + 'static)) -> Self {
        Self::new(code, chain(error)).details(errno(error).map_or("", advice))
    }

    /// A network configuration that is not valid.
    pub fn invalid_config(msg: impl Into<String>) -> Self {
        Self::new(Code::InvalidConfig, msg)
    }

    /// Sets the details.
    pub fn details(mut self, details: impl Into<String>) -> Self {
        self.details = details.into();
        self
    }

    /// The message, followed by the details if there are any.
    pub fn text(&self) -> String {
        let Self { msg, details, .. } = self;
        if details.is_empty() { msg.clone() } else { format!("{msg}; {details}") }
    }

    /// The JSON object of the specification.
    pub fn to_json(&self, version: Version) -> String {
        #[derive(Serialize)]
        #[serde(rename_all = "camelCase")]
        struct Printed<'a> {
            cni_version: &'a str,
            code: u32,
            msg: &'a str,
            #[serde(skip_serializing_if = "str::is_empty")]
            details: &'a str,
        }
        // Runtimes copy both to logs and Events, decoded: JSON's own escape sequences do not protect these.
        let [msg, details] = [&self.msg, &self.details].map(|text| on_one_line(text, TEXT_MAX));
        let printed = Printed { cni_version: version.as_str(), code: self.code as u32, msg: &msg, details: &details };
        serde_json::to_string(&printed).unwrap_or_default()
    }
}

/// The remedy for a file of stateDir that cannot be read or written.
fn io_advice(error: &io::Error) -> &'static str {
    match error.kind() {
        ErrorKind::StorageFull | ErrorKind::QuotaExceeded => {
            "the file system of stateDir is full: free space (df) or inodes (df -i)"
        }
        ErrorKind::ReadOnlyFilesystem => {
            "the file system of stateDir is read-only: remount it read-write, or set another stateDir"
        }
        ErrorKind::PermissionDenied => "check the permissions of stateDir: it must be writable for root",
        _ if matches!(error.raw_os_error(), Some(libc::EMFILE | libc::ENFILE)) => {
            "too many open files: raise the limit (ulimit -n, fs.file-max), or retry later"
        }
        _ => "",
    }
}

impl From<IdError> for CniError {
    fn from(e: IdError) -> Self {
        Self::new(Code::InvalidEnvironment, e.to_string())
    }
}

impl From<StoreError> for CniError {
    fn from(e: StoreError) -> Self {
        match &e {
            StoreError::Exhausted { .. } => Self::new(Code::PoolExhausted, chain(&e))
                .details("delete pods, or give the node a larger pod CIDR; GC releases the addresses of dead pods"),
            StoreError::Unavailable { .. } => Self::new(Code::AddressUnavailable, chain(&e)),
            StoreError::HostPort { .. } => Self::new(Code::HostPortTaken, chain(&e))
                .details("delete that pod first, or use another hostPort or hostIP for this one"),
            StoreError::Exists { .. } => Self::new(Code::AttachmentExists, chain(&e)).details("run DEL for it first"),
            StoreError::Busy { .. } => Self::new(Code::TryAgainLater, chain(&e)),
            StoreError::Io { source, .. } => Self::new(Code::Io, chain(&e)).details(io_advice(source)),
        }
    }
}

impl From<LimitError> for CniError {
    fn from(e: LimitError) -> Self {
        Self::new(Code::InvalidConfig, e.to_string())
    }
}

impl From<PoolError> for CniError {
    fn from(e: PoolError) -> Self {
        Self::new(Code::InvalidConfig, chain(&e))
    }
}

impl From<NetnsError> for CniError {
    fn from(e: NetnsError) -> Self {
        let code = match e {
            NetnsError::Missing { .. } => Code::UnknownContainer,
            NetnsError::NotANamespace { .. } => {
                return Self::new(Code::InvalidEnvironment, chain(&e)).details(
                    "CNI_NETNS must be the path of a network namespace, such as /run/netns/NAME or /proc/PID/ns/net",
                );
            }
            NetnsError::Io { .. } => Code::Io,
            NetnsError::Enter { .. } => return Self::refused(Code::Network, &e),
        };
        Self::new(code, chain(&e))
    }
}

impl From<NodeInfoError> for CniError {
    fn from(e: NodeInfoError) -> Self {
        let code = match e {
            NodeInfoError::Missing { .. } => {
                return Self::new(Code::TryAgainLater, chain(&e))
                    .details("start `podnet daemon`; `podnet status` says what is missing");
            }
            NodeInfoError::Io { .. } => Code::Io,
            NodeInfoError::Malformed { .. } | NodeInfoError::Schema { .. } => Code::InvalidConfig,
        };
        Self::new(code, chain(&e))
    }
}

impl From<NetlinkError> for CniError {
    fn from(e: NetlinkError) -> Self {
        Self::refused(Code::Network, &e)
    }
}

impl From<WiringError> for CniError {
    fn from(e: WiringError) -> Self {
        match e {
            WiringError::Netns(e) => e.into(),
            WiringError::InterfaceExists { .. } => Self::new(Code::InterfaceExists, chain(&e))
                .details("the runtime must run DEL before it reuses an interface name"),
            WiringError::DefaultRouteExists { .. } => Self::new(Code::DefaultRouteExists, chain(&e)).details(
                "podnet provides the pod's default route and supports one attachment per pod; use other plugins for \
                 further networks",
            ),
            WiringError::Mismatch(_) => Self::new(Code::CheckFailed, chain(&e)),
            WiringError::Netlink(_) | WiringError::Sysctl { .. } | WiringError::Random(_) => {
                Self::refused(Code::Network, &e)
            }
        }
    }
}

impl From<DatapathError> for CniError {
    fn from(e: DatapathError) -> Self {
        match e {
            DatapathError::NotPinned { .. } => Self::new(Code::TryAgainLater, chain(&e)).details(
                "the daemon has not loaded the datapath yet: start `podnet daemon`, or wait until it is ready",
            ),
            _ => Self::refused(Code::Datapath, &e),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn json_has_the_keys_of_the_specification() {
        let error = CniError::new(Code::TryAgainLater, "not \"yet\"").details("wait");
        let json: serde_json::Value = serde_json::from_str(&error.to_json(Version::V1_0_0)).unwrap();
        assert_eq!(
            json,
            serde_json::json!({"cniVersion": "1.0.0", "code": 11, "msg": "not \"yet\"", "details": "wait"})
        );
    }

    #[test]
    fn what_is_advised_fits_the_error() {
        let error = |errno| {
            let source = std::io::Error::from_raw_os_error(errno);
            CniError::from(StoreError::Io { what: "write", path: "/var/lib/podnet/x".into(), source })
        };
        for (errno, advice) in
            [(libc::ENOSPC, "free space"), (libc::EROFS, "read-only"), (libc::EACCES, "writable"), (libc::EIO, "")]
        {
            let error = error(errno);
            assert!(error.details.contains(advice) && (error.details.is_empty() == advice.is_empty()), "{error:?}");
            assert!(error.msg.contains("/var/lib/podnet/x: ") && error.msg.ends_with(&format!("(os error {errno})")));
        }
    }

    #[test]
    fn a_refusal_of_the_kernel_has_its_number_and_an_advice() {
        for (errno, advice) in [(libc::EPERM, "CAP_NET_ADMIN"), (libc::ENOBUFS, "memory"), (libc::EBUSY, "dmesg")] {
            let source = io::Error::from_raw_os_error(errno);
            let netlink = NetlinkError::Refused { what: "set link 7 up".into(), hint: String::new(), source };
            let error = CniError::from(WiringError::from(netlink));
            assert!(error.msg.starts_with("cannot set link 7 up: "), "{error:?}");
            assert!(error.msg.ends_with(&format!("(os error {errno})")) && error.details.contains(advice), "{error:?}");
        }
        let unknown = CniError::from(NetlinkError::Answer("no link".into()));
        assert_eq!(unknown.details, "", "the kernel has refused nothing");
    }

    #[test]
    fn texts_stay_on_their_line_when_a_runtime_prints_them() {
        let error = CniError::new(Code::Io, "a\nb\u{202e}").details("\u{9b}2J".repeat(10_000));
        let json: serde_json::Value = serde_json::from_str(&error.to_json(Version::V1_0_0)).unwrap();
        assert_eq!(json["msg"], "a\\nb\\u{202e}");
        let details = json["details"].as_str().unwrap();
        assert!(details.len() <= TEXT_MAX && !details.contains('\u{9b}'), "{details}");
    }
}
