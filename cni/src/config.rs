//! The network configuration: read from standard input, parsed and validated.

mod capabilities;

use std::collections::BTreeSet;
use std::io::Read;
use std::path::{Path, PathBuf};

use ipnetwork::IpNetwork;
use serde::{Deserialize, Deserializer};
use serde_json::Value;

use crate::alloc::Pool;
use crate::error::{CniError, Code};
use crate::id::{AttachmentId, is_identifier};
use crate::result::Dns;
use crate::version::Version;

use capabilities::RawRuntime;
pub use capabilities::Runtime;

/// Maximum size of a configuration in bytes. GC lists every attachment of the node twice, with 200 bytes each.
pub const MAX_BYTES: u64 = 8 << 20;

/// Default directory of what the daemon publishes.
pub const RUN_DIR: &str = "/run/podnet";
/// Default directory of the records, and of what the daemon keeps across restarts.
pub const STATE_DIR: &str = "/var/lib/podnet";

/// What forwards the pods' packets.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Datapath {
    /// The daemon's pinned programs.
    #[default]
    Ebpf,
    /// The node's own network stack alone.
    None,
}

/// A network configuration.
#[derive(Clone, Debug, PartialEq)]
pub struct Config {
    /// cniVersion.
    pub version: Version,
    /// The network's name.
    pub name: String,
    /// What forwards packets.
    pub datapath: Datapath,
    /// Pod CIDRs; if empty, the daemon's apply.
    pub pod_cidrs: Vec<IpNetwork>,
    /// Directory of the records.
    pub state_dir: PathBuf,
    /// Directory of the daemon's published file.
    pub run_dir: PathBuf,
    /// The pods' MTU in bytes, if configured.
    pub mtu: Option<u32>,
    /// Resolver settings for the result: those of the capability, else those of the configuration.
    pub dns: Dns,
    /// The result of the previous plugin in the chain.
    pub prev_result: Option<Value>,
    /// The values of capabilities.
    pub runtime: Runtime,
    /// GC: the attachments to keep; `None` if the runtime passed no list.
    pub valid_attachments: Option<BTreeSet<AttachmentId>>,
}

/// The keys for every command but VERSION.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct RawCommon {
    name: Option<String>,
    state_dir: Option<PathBuf>,
}

/// The keys for commands that create or inspect attachments.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Raw {
    run_dir: Option<PathBuf>,
    ip_masq: Option<bool>,
    ipam: Option<Value>,
    dns: Option<Dns>,
    prev_result: Option<Value>,
    runtime_config: Option<RawRuntime>,
    datapath: Option<Datapath>,
    #[serde(rename = "podCIDRs")]
    pod_cidrs: Option<Vec<IpNetwork>>,
    mtu: Option<u32>,
}

/// The keys for GC.
#[derive(Deserialize)]
struct RawListed {
    datapath: Option<Value>,
    #[serde(rename = "cni.dev/valid-attachments", default, deserialize_with = "present")]
    valid_attachments: Option<Option<Vec<Value>>>,
    #[serde(rename = "cni.dev/attachments", default, deserialize_with = "present")]
    attachments: Option<Option<Vec<Value>>>,
}

/// Distinguishes a key with the value null from a missing one.
fn present<'de, D: Deserializer<'de>, T: Deserialize<'de>>(value: D) -> Result<Option<T>, D::Error> {
    T::deserialize(value).map(Some)
}

#[derive(Deserialize)]
struct RawAttachment {
    #[serde(rename = "containerID")]
    container_id: String,
    ifname: String,
}

/// Reads the configuration, at most [`MAX_BYTES`].
pub fn read(input: impl Read) -> Result<Vec<u8>, CniError> {
    let mut bytes = Vec::new();
    let read = input.take(MAX_BYTES + 1).read_to_end(&mut bytes);
    read.map_err(|e| CniError::new(Code::Io, format!("cannot read the network configuration: {e}")))?;
    if bytes.len() as u64 > MAX_BYTES {
        return Err(CniError::invalid_config(format!("the network configuration is larger than {MAX_BYTES} bytes")));
    }
    Ok(bytes)
}

/// The version that a configuration requests, parsed before anything else. Without the key it is 0.1.0, as specified;
/// without a configuration (VERSION) it is the latest.
pub fn version(bytes: &[u8]) -> Result<Version, CniError> {
    #[derive(Deserialize)]
    struct Versioned {
        #[serde(rename = "cniVersion")]
        cni_version: Option<String>,
    }
    if bytes.iter().all(u8::is_ascii_whitespace) {
        return Ok(Version::LATEST);
    }
    let given = serde_json::from_slice::<Versioned>(bytes).map_err(|e| parse_error(&e))?.cni_version;
    match given.filter(|v| !v.is_empty()) {
        None => Ok(Version::V0_1_0),
        Some(text) => Version::parse(&text).ok_or_else(|| {
            CniError::new(Code::IncompatibleVersion, format!("cniVersion `{text}` is not supported"))
                .details(format!("supported: {}", Version::ALL.map(Version::as_str).join(", ")))
        }),
    }
}

/// The default run directory.
pub fn default_run_dir() -> PathBuf {
    RUN_DIR.into()
}

/// The run directory in a configuration that may be invalid otherwise.
pub fn run_dir(bytes: &[u8]) -> Option<PathBuf> {
    #[derive(Deserialize)]
    #[serde(rename_all = "camelCase")]
    struct Located {
        run_dir: PathBuf,
    }
    let located: Located = serde_json::from_slice(bytes).ok()?;
    Some(located.run_dir).filter(|path| path.is_absolute())
}

fn parse_error(error: &serde_json::Error) -> CniError {
    if error.is_data() {
        CniError::invalid_config(format!("the network configuration is not valid: {error}"))
    } else {
        CniError::new(Code::Decode, format!("standard input is not a network configuration in JSON: {error}"))
    }
}

/// The part of a configuration that has to be valid.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Needs {
    /// Everything but GC's list.
    Everything,
    /// The keys for DEL: an invalid key that only matters to new pods must not keep an old one from being removed.
    Removing,
    /// The keys for DEL and GC's list.
    Collecting,
}

impl Config {
    /// Parses and validates.
    pub fn parse(bytes: &[u8], needs: Needs) -> Result<Self, CniError> {
        let version = version(bytes)?;
        let raw: RawCommon = parse(bytes)?;
        let name = raw.name.unwrap_or_default();
        if !is_identifier(&name) {
            return Err(CniError::invalid_config(format!("network name `{name}` is not valid"))
                .details("it must start with a letter or digit, followed by letters, digits, '_', '.' or '-'"));
        }
        let config = Self {
            version,
            name,
            datapath: Datapath::default(),
            pod_cidrs: Vec::new(),
            state_dir: absolute("stateDir", raw.state_dir, STATE_DIR)?,
            run_dir: run_dir(bytes).unwrap_or_else(default_run_dir),
            mtu: None,
            dns: Dns::default(),
            prev_result: None,
            runtime: Runtime::default(),
            valid_attachments: None,
        };
        match needs {
            Needs::Everything => config.complete(parse(bytes)?),
            Needs::Removing => Ok(config),
            Needs::Collecting => {
                let raw: RawListed = parse(bytes)?;
                let datapath = raw.datapath.and_then(|v| serde_json::from_value(v).ok()).unwrap_or_default();
                // Go encodes an empty list as null.
                let listed = raw.valid_attachments.or(raw.attachments).map(Option::unwrap_or_default);
                Ok(Self { datapath, valid_attachments: listed.map(attachments), ..config })
            }
        }
    }

    /// Validates the remaining keys, so that every command that needs them rejects a configuration that cannot work.
    fn complete(self, raw: Raw) -> Result<Self, CniError> {
        unsupported(raw.ip_masq, raw.ipam)?;
        let run_dir = absolute("runDir", raw.run_dir, RUN_DIR)?;
        let pod_cidrs = raw.pod_cidrs.unwrap_or_default();
        Pool::from_cidrs(&pod_cidrs)?;
        let mtu = raw.mtu.filter(|mtu| *mtu != 0);
        if let Some(mtu) = mtu.filter(|mtu| !(68..=65535).contains(mtu)) {
            return Err(CniError::invalid_config(format!("mtu {mtu} is not between 68 and 65535")));
        }
        let runtime = raw.runtime_config.unwrap_or_default();
        Ok(Self {
            run_dir,
            datapath: raw.datapath.unwrap_or_default(),
            pod_cidrs,
            mtu,
            dns: runtime.dns().or(raw.dns).unwrap_or_default(),
            prev_result: raw.prev_result.filter(|v| !v.is_null()),
            runtime: runtime.validate()?,
            ..self
        })
    }
}

fn parse<'a, T: Deserialize<'a>>(bytes: &'a [u8]) -> Result<T, CniError> {
    serde_json::from_slice(bytes).map_err(|e| parse_error(&e))
}

fn unsupported(ip_masq: Option<bool>, ipam: Option<Value>) -> Result<(), CniError> {
    let refuse = |key: &str, value: String, details: &str| {
        Err(CniError::new(Code::UnsupportedField, format!("{key} {value} is not supported")).details(details))
    };
    if ip_masq == Some(true) {
        return refuse("ipMasq", "true".into(), "the daemon masquerades pods' traffic, not the plugin: remove the key");
    }
    match ipam {
        Some(Value::Object(o)) if o.is_empty() => Ok(()),
        None | Some(Value::Null) => Ok(()),
        Some(other) => refuse(
            "ipam",
            other.to_string(),
            "podnet-cni allocates addresses from podCIDRs without an IPAM plugin: remove the key",
        ),
    }
}

fn absolute(key: &str, path: Option<PathBuf>, default: &str) -> Result<PathBuf, CniError> {
    match path {
        None => Ok(Path::new(default).to_owned()),
        Some(path) if path.is_absolute() => Ok(path),
        Some(path) => Err(CniError::invalid_config(format!("{key} `{}` is not an absolute path", path.display()))),
    }
}

/// The attachments that GC must keep. One with an invalid id cannot be ours.
fn attachments(raw: Vec<Value>) -> BTreeSet<AttachmentId> {
    let id = |value: Value| {
        let listed: RawAttachment = serde_json::from_value(value).ok()?;
        Some(AttachmentId { container: listed.container_id.try_into().ok()?, ifname: listed.ifname.try_into().ok()? })
    };
    raw.into_iter().filter_map(id).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn parse(changes: Value) -> Result<Config, CniError> {
        let mut conf = json!({"cniVersion": "1.1.0", "name": "podnet", "type": "podnet-cni"});
        conf.as_object_mut().unwrap().extend(changes.as_object().unwrap().clone());
        Config::parse(conf.to_string().as_bytes(), Needs::Everything)
    }

    #[test]
    fn removing_needs_no_key_of_new_pods() {
        let list = json!([{"containerID": "c1", "ifname": "eth0"}]);
        for (key, value) in [
            ("mtu", json!(67)),
            ("mtu", json!("1450")),
            ("ipMasq", json!(true)),
            ("ipMasq", json!("yes")),
            ("ipam", json!({"type": "host-local"})),
            ("podCIDRs", json!(["10.0.0.0/31"])),
            ("podCIDRs", json!(["10.231.0.0/99"])),
            ("podCIDRs", json!("10.0.0.0/24")),
            ("datapath", json!("eBPF")),
            ("datapath", json!(7)),
            ("dns", json!("10.96.0.10")),
            ("runDir", json!(7)),
            ("runDir", json!("run/podnet")),
            ("runtimeConfig", json!("x")),
            ("runtimeConfig", json!({"portMappings": [{"hostPort": 99999, "containerPort": 0}]})),
            ("runtimeConfig", json!({"ipRanges": {}})),
        ] {
            let conf = json!({
                "cniVersion": "1.1.0", "name": "podnet", "type": "podnet-cni", "stateDir": "/s", key: value,
                "cni.dev/valid-attachments": list, "prevResult": 7,
            });
            let parse = |needs| Config::parse(conf.to_string().as_bytes(), needs);
            assert!(parse(Needs::Everything).is_err(), "{conf}");
            assert_eq!(parse(Needs::Removing).unwrap().state_dir, Path::new("/s"), "{conf}");
            assert_eq!(parse(Needs::Collecting).unwrap().valid_attachments.unwrap().len(), 1, "{conf}");
        }
        // DEL and ADD ignore the list.
        let listed = json!({"cniVersion": "1.1.0", "name": "podnet", "cni.dev/valid-attachments": 7}).to_string();
        assert!(Config::parse(listed.as_bytes(), Needs::Removing).is_ok());
        assert!(Config::parse(listed.as_bytes(), Needs::Everything).is_ok());
        assert!(Config::parse(listed.as_bytes(), Needs::Collecting).is_err());
    }

    fn code(changes: Value) -> Code {
        parse(changes).unwrap_err().code
    }

    #[test]
    fn defaults() {
        let config = parse(json!({"unknownKey": {"x": 1}, "capabilities": {"mac": true}, "args": {}})).unwrap();
        assert_eq!(config.datapath, Datapath::Ebpf);
        assert_eq!(config.state_dir, Path::new("/var/lib/podnet"));
        assert_eq!(config.run_dir, Path::new("/run/podnet"));
        assert_eq!((config.mtu, config.pod_cidrs.len(), config.valid_attachments), (None, 0, None));
    }

    #[test]
    fn versions() {
        for version in Version::ALL {
            assert_eq!(parse(json!({"cniVersion": version.as_str()})).unwrap().version, version);
        }
        let error = parse(json!({"cniVersion": "1.2.0", "name": 7})).unwrap_err();
        assert_eq!(error.code, Code::IncompatibleVersion, "the version is checked before the rest");
        assert_eq!(error.details, "supported: 0.1.0, 0.2.0, 0.3.0, 0.3.1, 0.4.0, 1.0.0, 1.1.0");
        assert_eq!(version(b"{}").unwrap(), Version::V0_1_0);
        assert_eq!(version(b" \n").unwrap(), Version::LATEST);
    }

    #[test]
    fn malformed_is_told_from_invalid() {
        for text in ["{", "", "{}x", "\u{0}"] {
            assert_eq!(Config::parse(text.as_bytes(), Needs::Everything).unwrap_err().code, Code::Decode, "{text:?}");
        }
        for changes in [
            json!({"name": ""}),
            json!({"name": "-x"}),
            json!({"name": "a/b"}),
            json!({"mtu": "big"}),
            json!({"mtu": 67}),
            json!({"mtu": 65536}),
            json!({"datapath": "iptables"}),
            json!({"podCIDRs": ["10.0.0.0/33"]}),
            json!({"podCIDRs": ["10.0.0.0/31"]}),
            json!({"stateDir": "relative"}),
            json!({"runtimeConfig": {"mac": "01:00:5e:00:00:01"}}),
            json!({"runtimeConfig": {"ips": ["10.0.0.1/99"]}}),
            json!({"runtimeConfig": {"ips": ["pod"]}}),
            json!({"runtimeConfig": {"portMappings": [{"hostPort": 70000, "containerPort": 80}]}}),
            json!({"runtimeConfig": {"portMappings": [{"hostPort": 80, "containerPort": 0}]}}),
            json!({"runtimeConfig": {"portMappings": [{"hostPort": -1, "containerPort": 80}]}}),
            json!({"runtimeConfig": {"portMappings": [{"hostPort": 80, "containerPort": 80, "protocol": "icmp"}]}}),
            json!({"runtimeConfig": {"portMappings": [{"hostPort": 80, "containerPort": 80, "hostIP": "localhost"}]}}),
            json!({"runtimeConfig": {"portMappings": [{"hostPort": 80, "containerPort": 80, "hostIP": "224.0.0.1"}]}}),
            json!({"runtimeConfig": {"portMappings": [
                {"hostPort": 80, "containerPort": 80}, {"hostPort": 80, "containerPort": 81, "protocol": "TCP"},
            ]}}),
            json!({"runtimeConfig": {"ipRanges": [[]]}}),
            json!({"runtimeConfig": {"bandwidth": {"ingressRate": 1000}}}),
            json!({"runtimeConfig": {"bandwidth": {"egressRate": -1, "egressBurst": 1}}}),
            json!({"runtimeConfig": {"bandwidth": {"egressRate": "10M", "egressBurst": 1}}}),
        ] {
            assert_eq!(code(changes.clone()), Code::InvalidConfig, "{changes}");
        }
    }

    #[test]
    fn what_the_plugin_does_not_do_is_refused_by_name() {
        assert_eq!(code(json!({"ipMasq": true})), Code::UnsupportedField);
        assert_eq!(code(json!({"ipam": {"type": "host-local"}})), Code::UnsupportedField);
        assert!(parse(json!({"ipMasq": false, "ipam": {}})).is_ok());
    }

    #[test]
    fn attachments_to_keep() {
        let list = json!([
            {"containerID": "not/ours", "ifname": "eth0"}, {"containerID": 7, "ifname": "eth0"}, {"containerID": "c0"},
            null, "c0", {"containerID": "c1", "ifname": "eth0", "netns": null},
        ]);
        let kept = |key: &str, list: &Value| {
            let conf = json!({"cniVersion": "1.1.0", "name": "podnet", "datapath": "none", key: list});
            let config = Config::parse(conf.to_string().as_bytes(), Needs::Collecting).unwrap();
            assert_eq!(config.datapath, Datapath::None);
            config.valid_attachments
        };
        assert_eq!(kept("cni.dev/valid-attachments", &list), kept("cni.dev/attachments", &list));
        assert_eq!(kept("cni.dev/attachments", &list).unwrap().len(), 1);
        assert_eq!(kept("cni.dev/valid-attachments", &Value::Null), Some(BTreeSet::new()));
        assert_eq!(kept("other", &list), None);
    }

    #[test]
    fn input_is_bounded() {
        assert!(read(std::io::repeat(b' ').take(MAX_BYTES)).is_ok());
        assert_eq!(read(std::io::repeat(b' ')).unwrap_err().code, Code::InvalidConfig);
    }
}
