//! The commands of the specification, and what they have in common.

mod add;
mod check;
mod del;
mod gc;
mod status;

pub(crate) use add::{endpoint, publish};

use std::ffi::OsString;
use std::io::Read;
use std::net::IpAddr;
use std::path::PathBuf;
use std::time::Instant;

use ipnetwork::IpNetwork;
use serde_json::{Value, json};
use tracing::{Span, info_span};

use crate::alloc::Pool;
use crate::call_log::{Call, CallLog, CommandName};
use crate::config::{self, Config, Datapath, Needs};
use crate::datapath::PinDir;
use crate::env::{self, Attachment, Command};
use crate::error::{CniError, Code};
use crate::netns::NetNs;
use crate::node_info::{GATEWAYS, NodeInfo, NodeInfoError};
use crate::version::Version;

/// What a call has said of itself before it ended.
struct Told {
    version: Version,
    run_dir: PathBuf,
    span: Span,
}

/// Does what the environment and standard input say. Returns what to print: a result, or an error.
pub fn run(var: impl Fn(&str) -> Option<OsString>, input: impl Read) -> Result<String, String> {
    let started = Instant::now();
    let mut told = Told { version: Version::LATEST, run_dir: config::default_run_dir(), span: Span::none() };
    let command = CommandName::of(&var("CNI_COMMAND").unwrap_or_default().to_string_lossy());
    let result = dispatch(var, input, &mut told);
    let code = result.as_ref().err().map_or(0, |error| error.code as u32);
    CallLog::new(&told.run_dir).append(Call { command, code, duration: started.elapsed() });
    result.map_err(|error| {
        let _in = told.span.enter();
        tracing::error!(code = error.code as u32, details = error.details, "{}", error.msg);
        error.to_json(told.version)
    })
}

fn dispatch(var: impl Fn(&str) -> Option<OsString>, input: impl Read, told: &mut Told) -> Result<String, CniError> {
    let command = env::parse(var)?;
    told.span = span(&command);
    let _in = told.span.clone().entered();
    let bytes = config::read(input)?;
    if let Some(run_dir) = config::run_dir(&bytes) {
        told.run_dir = run_dir;
    }
    if command == Command::Version {
        return Ok(supported_versions(&bytes)?.to_string());
    }
    told.version = config::version(&bytes)?;
    let needs = match command {
        Command::Del(_) => Needs::Removing,
        Command::Gc => Needs::Collecting,
        _ => Needs::Everything,
    };
    let config = Config::parse(&bytes, needs)?;
    require_version(&command, config.version)?;
    let printed = match command {
        Command::Add(attachment) => Some(add::add(&config, &attachment)?),
        Command::Del(attachment) => del::del(&config, &attachment).map(|()| None)?,
        Command::Check(attachment) => check::check(&config, &attachment).map(|()| None)?,
        Command::Status => status::status(&config).map(|()| None)?,
        Command::Gc => gc::gc(&config).map(|()| None)?,
        Command::Version => None,
    };
    Ok(printed.map(|result| result.to_json(config.version).to_string()).unwrap_or_default())
}

/// What log lines of a call have in common.
fn span(command: &Command) -> Span {
    macro_rules! of_attachment {
        ($name:literal, $attachment:expr) => {{
            let Attachment { id, pod, .. } = $attachment;
            info_span!(
                $name,
                attachment = %id,
                pod.namespace = pod.as_ref().map(|pod| pod.namespace.as_str()),
                pod.name = pod.as_ref().map(|pod| pod.name.as_str()),
            )
        }};
    }
    match command {
        Command::Add(attachment) => of_attachment!("cni.add", attachment),
        Command::Del(attachment) => of_attachment!("cni.del", attachment),
        Command::Check(attachment) => of_attachment!("cni.check", attachment),
        Command::Status => info_span!("cni.status"),
        Command::Gc => info_span!("cni.gc"),
        Command::Version => info_span!("cni.version"),
    }
}

/// VERSION: echoes the caller's version, whichever it is.
fn supported_versions(bytes: &[u8]) -> Result<Value, CniError> {
    let given = match bytes.iter().all(u8::is_ascii_whitespace) {
        true => Value::Null,
        false => serde_json::from_slice(bytes)
            .map_err(|e| CniError::new(Code::Decode, format!("standard input is not JSON: {e}")))?,
    };
    let echoed = given["cniVersion"].as_str().unwrap_or(Version::LATEST.as_str());
    Ok(json!({"cniVersion": echoed, "supportedVersions": Version::ALL.map(Version::as_str)}))
}

/// CHECK came with 0.4.0, STATUS and GC with 1.1.0.
fn require_version(command: &Command, version: Version) -> Result<(), CniError> {
    let (name, first) = match command {
        Command::Check(_) => ("CHECK", Version::V0_4_0),
        Command::Status => ("STATUS", Version::V1_1_0),
        Command::Gc => ("GC", Version::V1_1_0),
        _ => return Ok(()),
    };
    if version >= first {
        return Ok(());
    }
    let msg = format!("cniVersion {} does not have {name}", version.as_str());
    Err(CniError::new(Code::IncompatibleVersion, msg).details(format!("it came with {}", first.as_str())))
}

/// What ADD and STATUS know of the node: from the configuration, else from the daemon, else defaults.
struct Node {
    pools: Vec<Pool>,
    mtu: u32,
    gateways: Vec<IpAddr>,
    /// The bpffs with the pinned programs; none without eBPF datapath.
    bpffs: Option<PathBuf>,
}

impl Node {
    fn load(config: &Config) -> Result<Self, CniError> {
        let ebpf = config.datapath == Datapath::Ebpf;
        let given = !config.runtime.pools.is_empty() || !config.pod_cidrs.is_empty();
        let info = match NodeInfo::read(&config.run_dir) {
            Ok(info) => Some(info),
            Err(NodeInfoError::Missing { .. }) if given && !ebpf => None,
            Err(e @ NodeInfoError::Missing { .. }) => {
                let details = if ebpf {
                    "start `podnet daemon` on this node, or wait until it has loaded its programs"
                } else {
                    "set podCIDRs in the network configuration, or start `podnet daemon` on this node"
                };
                return Err(CniError::from(e).details(details));
            }
            Err(e) => return Err(e.into()),
        };
        let published = || info.as_ref().map(|i| i.pod_cidrs.as_slice()).unwrap_or_default();
        let cidrs: &[IpNetwork] = if config.pod_cidrs.is_empty() { published() } else { &config.pod_cidrs };
        let pools = match config.runtime.pools.as_slice() {
            [] => Pool::from_cidrs(cidrs)?,
            pools => pools.to_vec(),
        };
        if pools.is_empty() {
            return Err(CniError::new(Code::TryAgainLater, "this node has no pod CIDR yet").details(
                "the cluster assigns it to the Node object (spec.podCIDRs); or set podCIDRs in the configuration",
            ));
        }
        let mtu = config.mtu.or(info.as_ref().map(|i| i.mtu)).filter(|mtu| *mtu != 0).unwrap_or(1500);
        let least = if pools.iter().any(|p| p.family() == crate::alloc::Family::V6) { 1280 } else { 68 };
        if mtu < least {
            return Err(CniError::new(Code::InvalidConfig, format!("mtu {mtu} is too small: IPv6 needs 1280 bytes")));
        }
        Ok(Self { mtu, gateways: gateways(info.as_ref()), bpffs: info.filter(|_| ebpf).map(|i| i.bpffs), pools })
    }

    fn pins(&self) -> Option<PinDir> {
        self.bpffs.as_deref().map(PinDir::new)
    }
}

/// One gateway a family: the daemon's where it says one.
fn gateways(info: Option<&NodeInfo>) -> Vec<IpAddr> {
    let published = info.map(|i| i.gateways.as_slice()).unwrap_or_default();
    let of_family = |default: IpAddr| published.iter().copied().find(|g| g.is_ipv4() == default.is_ipv4());
    GATEWAYS.map(|default| of_family(default).unwrap_or(default)).to_vec()
}

/// Refuses a network namespace that is our own, unless the caller insists.
fn refuse_own(attachment: &Attachment, pod: &NetNs, own: &NetNs) -> Result<(), CniError> {
    if pod.is(own) && !attachment.netns_override {
        return Err(CniError::new(Code::InvalidEnvironment, "CNI_NETNS is the plugin's own network namespace")
            .details("a pod needs a namespace of its own; CNI_NETNS_OVERRIDE=1 allows it nevertheless"));
    }
    Ok(())
}
