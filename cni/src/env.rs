//! The environment of a call: CNI_COMMAND and the other variables of the protocol.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::path::PathBuf;

use crate::error::{CniError, Code};
use crate::id::{AttachmentId, ContainerId, IfName};
use crate::record::PodRef;

/// A command of the runtime, with the parts of the environment that it needs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Command {
    /// Add an interface.
    Add(Attachment),
    /// Remove an interface.
    Del(Attachment),
    /// Compare an interface with its record.
    Check(Attachment),
    /// Report whether ADD would be served.
    Status,
    /// Remove attachments that the runtime does not list.
    Gc,
    /// List the supported versions.
    Version,
}

/// The environment of ADD, DEL and CHECK.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Attachment {
    /// Container and interface.
    pub id: AttachmentId,
    /// Path of the container's network namespace; optional for DEL.
    pub netns: Option<PathBuf>,
    /// Whether the namespace may be the plugin's own (CNI_NETNS_OVERRIDE).
    pub netns_override: bool,
    /// The pod, if CNI_ARGS names one.
    pub pod: Option<PodRef>,
}

impl Attachment {
    /// The namespace's path, which is always present for ADD and CHECK (see [`parse`]).
    pub fn netns(&self) -> Result<&std::path::Path, CniError> {
        self.netns.as_deref().ok_or_else(|| missing(&["CNI_NETNS"]))
    }
}

fn invalid(msg: impl Into<String>) -> CniError {
    CniError::new(Code::InvalidEnvironment, msg)
}

fn missing(names: &[&str]) -> CniError {
    invalid(format!("required environment variables are missing: {}", names.join(", "))).details(
        "podnet-cni is a CNI plugin: container runtimes run it with CNI_COMMAND and the other CNI variables set",
    )
}

/// Parses the environment.
pub fn parse(var: impl Fn(&str) -> Option<OsString>) -> Result<Command, CniError> {
    let text = |name: &str| match var(name) {
        Some(value) => value
            .into_string()
            .map(|v| Some(v).filter(|v| !v.is_empty()))
            .map_err(|_| invalid(format!("{name} is not UTF-8"))),
        None => Ok(None),
    };
    let attachment = |netns_needed: bool| {
        let (container, ifname) = (text("CNI_CONTAINERID")?, text("CNI_IFNAME")?);
        let netns = var("CNI_NETNS").filter(|v| !v.is_empty()).map(PathBuf::from);
        let absent = [
            ("CNI_CONTAINERID", container.is_none()),
            ("CNI_NETNS", netns.is_none() && netns_needed),
            ("CNI_IFNAME", ifname.is_none()),
        ];
        let absent: Vec<&str> = absent.into_iter().filter(|(_, absent)| *absent).map(|(name, _)| name).collect();
        let (Some(container), Some(ifname), true) = (container, ifname, absent.is_empty()) else {
            return Err(missing(&absent));
        };
        let id = AttachmentId { container: ContainerId::try_from(container)?, ifname: IfName::try_from(ifname)? };
        let netns_override = text("CNI_NETNS_OVERRIDE")?.is_some_and(|v| is_true(&v));
        let args = text("CNI_ARGS").map(Option::unwrap_or_default);
        let pod = args.and_then(|text| Ok(pod(&self::args(&text)?)));
        // Invalid CNI_ARGS must not keep an old pod from being removed.
        let pod = if netns_needed { pod? } else { pod.unwrap_or_default() };
        Ok(Attachment { id, netns, netns_override, pod })
    };
    match text("CNI_COMMAND")?.as_deref() {
        Some("ADD") => Ok(Command::Add(attachment(true)?)),
        Some("CHECK") => Ok(Command::Check(attachment(true)?)),
        Some("DEL") => Ok(Command::Del(attachment(false)?)),
        Some("STATUS") => Ok(Command::Status),
        Some("GC") => Ok(Command::Gc),
        Some("VERSION") => Ok(Command::Version),
        Some(other) => Err(invalid(format!("CNI_COMMAND `{other}` is unknown"))
            .details("supported: ADD, DEL, CHECK, STATUS, GC, VERSION")),
        None => Err(missing(&["CNI_COMMAND"])),
    }
}

fn is_true(text: &str) -> bool {
    text == "1" || text.eq_ignore_ascii_case("true")
}

/// The known keys of CNI_ARGS (`K=V;K=V`). Unknown keys are an error unless IgnoreUnknown is set.
fn args(text: &str) -> Result<BTreeMap<&str, &str>, CniError> {
    const KNOWN: [&str; 5] =
        ["IgnoreUnknown", "K8S_POD_NAMESPACE", "K8S_POD_NAME", "K8S_POD_INFRA_CONTAINER_ID", "K8S_POD_UID"];
    let mut args = BTreeMap::new();
    for pair in text.split(';').filter(|p| !p.is_empty()) {
        let (key, value) =
            pair.split_once('=').ok_or_else(|| invalid(format!("CNI_ARGS: `{pair}` is not KEY=VALUE")))?;
        args.insert(key, value);
    }
    let unknown: Vec<&str> = args.keys().copied().filter(|k| !KNOWN.contains(k)).collect();
    if !unknown.is_empty() && !args.get("IgnoreUnknown").is_some_and(|v| is_true(v)) {
        return Err(invalid(format!("CNI_ARGS: unknown keys {}", unknown.join(", ")))
            .details("remove them or set IgnoreUnknown=1"));
    }
    Ok(args)
}

fn pod(args: &BTreeMap<&str, &str>) -> Option<PodRef> {
    let get = |key| args.get(key).map(|v| (*v).to_owned());
    Some(PodRef {
        namespace: get("K8S_POD_NAMESPACE")?,
        name: get("K8S_POD_NAME")?,
        uid: get("K8S_POD_UID").unwrap_or_default(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const ADD: [(&str, &str); 4] =
        [("CNI_COMMAND", "ADD"), ("CNI_CONTAINERID", "c1"), ("CNI_NETNS", "/run/netns/p"), ("CNI_IFNAME", "eth0")];

    fn with(changes: &[(&str, &str)]) -> Result<Command, CniError> {
        let vars: BTreeMap<&str, &str> = ADD.iter().chain(changes).copied().collect();
        parse(|name| vars.get(name).map(OsString::from))
    }
    fn attachment(changes: &[(&str, &str)]) -> Attachment {
        match with(changes).unwrap() {
            Command::Add(a) | Command::Del(a) | Command::Check(a) => a,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn what_is_missing_is_named_and_empty_is_missing() {
        let error = parse(|n| (n == "CNI_COMMAND").then(|| "ADD".into())).unwrap_err();
        assert_eq!(error.code, Code::InvalidEnvironment);
        assert_eq!(error.msg, "required environment variables are missing: CNI_CONTAINERID, CNI_NETNS, CNI_IFNAME");
        assert!(with(&[("CNI_NETNS", "")]).is_err());
        assert!(with(&[("CNI_COMMAND", "CHECK"), ("CNI_NETNS", "")]).is_err());
        assert_eq!(attachment(&[("CNI_COMMAND", "DEL"), ("CNI_NETNS", "")]).netns, None);
        assert!(with(&[("CNI_COMMAND", "")]).is_err());
        assert!(with(&[("CNI_COMMAND", "add")]).is_err());
    }

    #[test]
    fn commands_without_attachment_need_nothing() {
        for (name, command) in [("STATUS", Command::Status), ("GC", Command::Gc), ("VERSION", Command::Version)] {
            assert_eq!(parse(|n| (n == "CNI_COMMAND").then(|| name.into())), Ok(command));
        }
    }

    #[test]
    fn arguments_of_kubernetes() {
        let args =
            "IgnoreUnknown=1;K8S_POD_NAMESPACE=ns;K8S_POD_NAME=web-0;K8S_POD_INFRA_CONTAINER_ID=c1;K8S_POD_UID=u-1;X=y";
        let pod = PodRef { namespace: "ns".into(), name: "web-0".into(), uid: "u-1".into() };
        assert_eq!(attachment(&[("CNI_ARGS", args)]).pod, Some(pod));
        assert_eq!(attachment(&[("CNI_ARGS", "")]).pod, None);
        let unknown = with(&[("CNI_ARGS", "K8S_POD_NAME=a;X=y;Z=")]).unwrap_err();
        assert_eq!(unknown.msg, "CNI_ARGS: unknown keys X, Z");
        assert!(with(&[("CNI_ARGS", "K8S_POD_NAME")]).is_err());
        assert!(with(&[("CNI_ARGS", "IgnoreUnknown=0;X=y")]).is_err());
        for wrong in ["X=y", "nonsense"] {
            assert_eq!(attachment(&[("CNI_COMMAND", "DEL"), ("CNI_ARGS", wrong)]).pod, None, "a pod must be removable");
        }
    }

    #[test]
    fn override_of_the_namespace_check() {
        for (value, expected) in [("1", true), ("TRUE", true), ("true", true), ("0", false), ("", false)] {
            assert_eq!(attachment(&[("CNI_NETNS_OVERRIDE", value)]).netns_override, expected, "{value:?}");
        }
    }
}
