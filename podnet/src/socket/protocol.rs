//! Requests and answers on the socket: one JSON value per line.
//!
//! A client may send several requests, one after the other. Each has one answer, except for [`Request::Follow`], which
//! is answered until the client closes the connection.

use std::net::IpAddr;

use serde::{Deserialize, Serialize};

use super::{
    dropped::Dropped,
    policies::{DenyingRule, PodAnswer, PolicyDetail, PolicySummary},
};
use crate::{
    frontend::FrontendKind,
    model::{ObjectName, Service},
    select::Explained,
    status::{DaemonStatus, PendingStatus},
};

/// Maximum length of a request in bytes, without the newline.
pub const REQUEST_MAX: usize = 4096;

/// A request.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub enum Request {
    /// The daemon's state: [`Answer::Status`], [`Answer::Addresses`], [`Answer::Policies`] or
    /// [`Answer::Denials`].
    Get(Subject),
    /// Why a Service has the frontends and backends that it has: [`Answer::Explanation`].
    Explain {
        /// The Service's namespace.
        namespace: String,
        /// Its name.
        name: String,
    },
    /// Frontends that are not in effect yet: [`Answer::Pending`].
    Pending {},
    /// The rules of a network policy, and the pods that it applies to: [`Answer::Policy`].
    Policy {
        /// The policy's namespace; empty for a ClusterNetworkPolicy.
        namespace: String,
        /// Its name.
        name: String,
    },
    /// The policies of a pod: [`Answer::PodPolicies`].
    PodPolicies {
        /// The pod's namespace.
        namespace: String,
        /// Its name.
        name: String,
    },
    /// Events as they happen: [`Answer::Following`] at once, then [`Answer::Drop`] and [`Answer::Lost`].
    Follow(Stream),
}

/// Subject of [`Request::Get`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Subject {
    /// The daemon's status, as in `status.json`.
    Status,
    /// Load balancer addresses and external IPs by Service: the tables don't distinguish them.
    Addresses,
    /// The network policies of the cluster.
    Policies,
    /// The policies behind each entry of `policy_denials`, which counts denied packets.
    Denials,
}

/// Subject of [`Request::Follow`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Stream {
    /// Dropped packets.
    Drops,
}

/// An answer.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Answer {
    /// The daemon's status.
    Status(Box<DaemonStatus>),
    /// External addresses, in ascending order of the Services. Services without any are left out.
    Addresses(Vec<ExternalAddresses>),
    /// Explanation of a Service.
    Explanation(Explanation),
    /// Frontends that are not in effect yet.
    Pending(Pending),
    /// Network policies, in ascending order.
    Policies(Vec<PolicySummary>),
    /// Rule sets with the policies that deny by them.
    Denials(Vec<DenyingRule>),
    /// A network policy; `None` if there is no such policy.
    Policy(Option<Box<PolicyDetail>>),
    /// The policies of a pod.
    PodPolicies(Box<PodAnswer>),
    /// From now on, every dropped packet that the kernel reports is sent as an [`Answer::Drop`].
    Following(Stream),
    /// A dropped packet.
    Drop(Dropped),
    /// Number of dropped packets missing at this point, because the client reads too slowly.
    Lost(u64),
    /// The request failed, for this reason.
    Error(String),
}

/// External addresses of a Service by kind, which is known from its object only.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ExternalAddresses {
    /// The Service's namespace.
    pub namespace: String,
    /// Its name.
    pub name: String,
    /// Addresses of its load balancer.
    #[serde(rename = "loadBalancerIPs")]
    pub load_balancer_ips: Vec<IpAddr>,
    /// Its external IPs.
    #[serde(rename = "externalIPs")]
    pub external_ips: Vec<IpAddr>,
}

impl ExternalAddresses {
    /// The addresses of a Service, if it has any.
    pub fn of(name: &ObjectName, service: &Service) -> Option<Self> {
        let Service { load_balancer_ips, external_ips, .. } = service;
        let ObjectName { namespace, name } = name.clone();
        let has_some = !load_balancer_ips.is_empty() || !external_ips.is_empty();
        let (load_balancer_ips, external_ips) = (load_balancer_ips.clone(), external_ips.clone());
        has_some.then_some(Self { namespace, name, load_balancer_ips, external_ips })
    }

    /// Kind of an address of the Service. An address of both kinds counts as the load balancer's.
    pub fn kind(&self, ip: IpAddr) -> Option<FrontendKind> {
        if self.load_balancer_ips.contains(&ip) {
            Some(FrontendKind::LoadBalancer)
        } else {
            self.external_ips.contains(&ip).then_some(FrontendKind::ExternalIp)
        }
    }
}

/// Frontends and backends of a Service on this node, with the reasons.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Explanation {
    /// `None` if there is no such Service.
    pub service: Option<Explained>,
    /// Files and objects that are invalid; their last valid version remains in effect.
    pub invalid: Vec<String>,
}

/// Frontends that are not in effect yet.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Pending {
    /// Whether all objects have been read; until then, the tables are those of an earlier daemon.
    pub synced: bool,
    /// Frontends that could not be written; they are retried.
    pub frontends: Vec<PendingStatus>,
}

#[cfg(test)]
mod tests {
    use super::*;

    fn request(line: &str) -> Result<Request, serde_json::Error> {
        serde_json::from_str(line)
    }

    #[test]
    fn requests_are_lines_as_documented() {
        let web = Request::Explain { namespace: "default".into(), name: "web".into() };
        for (line, expected) in [
            (r#"{"get":"status"}"#, Request::Get(Subject::Status)),
            (r#"{"get":"addresses"}"#, Request::Get(Subject::Addresses)),
            (r#"{"explain":{"namespace":"default","name":"web"}}"#, web),
            (r#"{"pending":{}}"#, Request::Pending {}),
            (r#"{"follow":"drops"}"#, Request::Follow(Stream::Drops)),
        ] {
            assert_eq!(request(line).unwrap(), expected, "{line}");
            assert_eq!(serde_json::to_string(&expected).unwrap(), line);
        }
    }

    #[test]
    fn policy_requests_are_lines_as_documented() {
        let (namespace, name) = (|| "default".to_owned(), || "web".to_owned());
        for (line, expected) in [
            (r#"{"get":"policies"}"#, Request::Get(Subject::Policies)),
            (r#"{"get":"denials"}"#, Request::Get(Subject::Denials)),
            (
                r#"{"policy":{"namespace":"default","name":"web"}}"#,
                Request::Policy { namespace: namespace(), name: name() },
            ),
            (
                r#"{"podPolicies":{"namespace":"default","name":"web"}}"#,
                Request::PodPolicies { namespace: namespace(), name: name() },
            ),
        ] {
            assert_eq!(request(line).unwrap(), expected, "{line}");
            assert_eq!(serde_json::to_string(&expected).unwrap(), line);
        }
    }

    #[test]
    fn invalid_requests_are_rejected() {
        for line in [
            "",
            "status",
            "{}",
            "[]",
            r#"{"get":"secrets"}"#,
            r#"{"set":"status"}"#,
            r#"{"explain":{"name":"web"}}"#,
            r#"{"explain":{"namespace":"default","name":"web","node":"n2"}}"#,
            r#"{"pending":{"all":true}}"#,
            r#"{"get":"status"} {"get":"status"}"#,
            r#"{"get":"status","follow":"drops"}"#,
        ] {
            assert!(request(line).is_err(), "{line}");
        }
    }

    #[test]
    fn each_answer_is_one_line() {
        let answer = Answer::Error("two\nlines".into());
        let line = serde_json::to_string(&answer).unwrap();
        assert_eq!(line, r#"{"error":"two\nlines"}"#);
        let pending = Answer::Pending(Pending { synced: true, frontends: vec![PendingStatus::default()] });
        let line = serde_json::to_string(&pending).unwrap();
        assert_eq!(line, r#"{"pending":{"synced":true,"frontends":[{"frontend":"","failures":0,"reason":""}]}}"#);
        assert_eq!(serde_json::from_str::<Answer>(&line).unwrap(), pending);
    }
}
