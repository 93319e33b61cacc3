//! `<runDir>/node.json`: the file that the daemon publishes for the plugin once the datapath is ready.

use std::collections::BTreeSet;
use std::fs;
use std::io::{self, Write as _};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::path::{Path, PathBuf};

use ipnetwork::IpNetwork;
use serde::{Deserialize, Serialize};
use thiserror::Error;

use crate::files;

/// Version of the file's format.
pub const SCHEMA: u32 = 1;

/// The pods' default gateways unless the file names others: link-local, the same on every host end.
pub const GATEWAYS: [IpAddr; 2] =
    [IpAddr::V4(Ipv4Addr::new(169, 254, 1, 1)), IpAddr::V6(Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, 1))];

/// The published file.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct NodeInfo {
    /// [`SCHEMA`].
    pub schema: u32,
    /// Mount point of the bpffs in which the programs are pinned.
    pub bpffs: PathBuf,
    /// The node's pod CIDRs.
    #[serde(rename = "podCIDRs")]
    pub pod_cidrs: Vec<IpNetwork>,
    /// The pods' MTU in bytes.
    pub mtu: u32,
    /// The pods' default gateways, one per family.
    pub gateways: Vec<IpAddr>,
    /// The pods that start closed.
    #[serde(flatten)]
    pub policed: Policed,
    /// How long ADD waits for the network policies of such a pod, in seconds.
    #[serde(default = "default_policy_wait", skip_serializing_if = "is_default_policy_wait")]
    pub policy_wait_seconds: u32,
}

/// The time in seconds for which ADD waits for a pod's network policies if nothing else is configured.
pub fn default_policy_wait() -> u32 {
    2
}

fn is_default_policy_wait(seconds: &u32) -> bool {
    *seconds == default_policy_wait()
}

/// The pods that network policies may apply to, and that therefore start closed.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Policed {
    /// Those of all namespaces.
    #[serde(default, rename = "allPoliced", skip_serializing_if = "std::ops::Not::not")]
    pub all: bool,
    /// Those of these namespaces.
    #[serde(default, rename = "policed", skip_serializing_if = "BTreeSet::is_empty")]
    pub namespaces: BTreeSet<String>,
}

impl Policed {
    /// Whether pods of a namespace start closed.
    pub fn contains(&self, namespace: &str) -> bool {
        self.all || self.namespaces.contains(namespace)
    }
}

/// Why the file could not be read or written.
#[derive(Debug, Error)]
pub enum NodeInfoError {
    /// The daemon has not written it.
    #[error("{} does not exist: the podnet daemon is not ready on this node", path.display())]
    Missing {
        /// The file.
        path: PathBuf,
    },
    /// It could not be read or written.
    #[error("cannot {what} {}: {source}", path.display())]
    Io {
        /// The operation.
        what: &'static str,
        /// The file.
        path: PathBuf,
        /// The cause.
        source: io::Error,
    },
    /// It cannot be parsed.
    #[error("cannot parse {}: {source}", path.display())]
    Malformed {
        /// The file.
        path: PathBuf,
        /// The cause.
        source: serde_json::Error,
    },
    /// It was written by a daemon with another format.
    #[error("{} has schema {found}, but this plugin supports {SCHEMA}: install the plugin version that matches the \
             daemon", path.display())]
    Schema {
        /// The file.
        path: PathBuf,
        /// Its schema.
        found: u32,
    },
}

impl NodeInfo {
    /// Path of the file in a run directory.
    pub fn path(run_dir: &Path) -> PathBuf {
        run_dir.join("node.json")
    }

    /// Reads the file.
    pub fn read(run_dir: &Path) -> Result<Self, NodeInfoError> {
        let path = Self::path(run_dir);
        let bytes = match files::read(&path, files::OWN_MAX) {
            Ok(bytes) => bytes,
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Err(NodeInfoError::Missing { path }),
            Err(source) => return Err(NodeInfoError::Io { what: "read", path, source }),
        };
        // The schema is checked first: with another one, the other keys may differ.
        #[derive(Deserialize)]
        struct Schema {
            schema: u32,
        }
        let parsed = serde_json::from_slice::<Schema>(&bytes).and_then(|s| match s.schema {
            SCHEMA => serde_json::from_slice(&bytes).map(Ok),
            found => Ok(Err(found)),
        });
        match parsed {
            Ok(Ok(info)) => Ok(info),
            Ok(Err(found)) => Err(NodeInfoError::Schema { path, found }),
            Err(source) => Err(NodeInfoError::Malformed { path, source }),
        }
    }

    /// Writes the file atomically: a reader sees either the old or the new one.
    pub fn write_atomically(&self, run_dir: &Path) -> Result<(), NodeInfoError> {
        let path = Self::path(run_dir);
        let written = (|| {
            fs::create_dir_all(run_dir)?;
            let mut file = tempfile::NamedTempFile::new_in(run_dir)?;
            file.write_all(&serde_json::to_vec(self)?)?;
            file.persist(&path).map_err(|e| e.error)?;
            Ok(())
        })();
        written.map_err(|source| NodeInfoError::Io { what: "write", path, source })
    }

    /// Removes the file, so that the plugin answers "try again later". It need not exist.
    pub fn remove(run_dir: &Path) -> Result<(), NodeInfoError> {
        let path = Self::path(run_dir);
        match fs::remove_file(&path) {
            Err(source) if source.kind() != io::ErrorKind::NotFound => {
                Err(NodeInfoError::Io { what: "remove", path, source })
            }
            _ => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn written_and_read() {
        let dir = tempfile::tempdir().unwrap();
        let run = dir.path().join("run");
        assert!(matches!(NodeInfo::read(&run), Err(NodeInfoError::Missing { .. })));
        let info = NodeInfo {
            schema: SCHEMA,
            bpffs: "/sys/fs/bpf".into(),
            pod_cidrs: vec!["10.244.1.0/24".parse().unwrap(), "fd00:244:1::/64".parse().unwrap()],
            mtu: 1500,
            gateways: GATEWAYS.to_vec(),
            policed: Policed::default(),
            policy_wait_seconds: default_policy_wait(),
        };
        info.write_atomically(&run).unwrap();
        assert_eq!(NodeInfo::read(&run).unwrap(), info);
        assert_eq!(
            fs::read_to_string(NodeInfo::path(&run)).unwrap(),
            r#"{"schema":1,"bpffs":"/sys/fs/bpf","podCIDRs":["10.244.1.0/24","fd00:244:1::/64"],"mtu":1500,"gateways":["169.254.1.1","fe80::1"]}"#
        );
        assert_eq!(fs::read_dir(&run).unwrap().count(), 1, "no temporary file stays");
        let namespaces = BTreeSet::from(["x".to_owned()]);
        for (policed, text) in [
            (Policed { all: false, namespaces }, r#","policed":["x"]}"#),
            (Policed { all: true, ..Policed::default() }, r#","allPoliced":true}"#),
        ] {
            assert!(policed.contains("x") && policed.contains("y") == policed.all);
            let info = NodeInfo { policed, ..info.clone() };
            info.write_atomically(&run).unwrap();
            assert_eq!(NodeInfo::read(&run).unwrap(), info);
            assert!(fs::read_to_string(NodeInfo::path(&run)).unwrap().ends_with(text));
        }
        let info = NodeInfo { policy_wait_seconds: 0, ..info };
        info.write_atomically(&run).unwrap();
        assert_eq!(NodeInfo::read(&run).unwrap(), info);
    }

    #[test]
    fn a_newer_schema_is_told_from_a_broken_file() {
        let dir = tempfile::tempdir().unwrap();
        fs::write(NodeInfo::path(dir.path()), r#"{"schema":2,"bpffs":7}"#).unwrap();
        assert!(matches!(NodeInfo::read(dir.path()), Err(NodeInfoError::Schema { found: 2, .. })));
        fs::write(NodeInfo::path(dir.path()), r#"{"schema":1"#).unwrap();
        assert!(matches!(NodeInfo::read(dir.path()), Err(NodeInfoError::Malformed { .. })));
        fs::remove_file(NodeInfo::path(dir.path())).unwrap();
        crate::files::tests::pipe(&NodeInfo::path(dir.path()));
        let path = dir.path().to_owned();
        let read = crate::files::tests::at_once("reading it", move || NodeInfo::read(&path));
        assert!(matches!(read, Err(NodeInfoError::Io { .. })));
    }
}
