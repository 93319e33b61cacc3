//! `podnet policy`: NetworkPolicies and ClusterNetworkPolicies, as the daemon knows them. The tables contain only what
//! they amount to on this node.

#[cfg(test)]
mod tests;
mod text;

use std::path::Path;

use anyhow::{Result, bail};
use clap::Subcommand;
use serde::Serialize;

use super::daemon;
use super::output::{self, Format};
use crate::model::ObjectName;
use crate::socket::{AskError, Client, PodAnswer, PodPolicies, PolicyDetail, PolicySummary};

#[derive(Debug, Subcommand)]
pub(super) enum PolicyVerb {
    /// List the NetworkPolicies and ClusterNetworkPolicies of the cluster.
    List,
    /// Show a policy: its rules, the pods of this node that it selects, and its problems.
    Show {
        /// The NetworkPolicy [default namespace: default] or ClusterNetworkPolicy
        #[arg(value_name = "NAMESPACE/NAME")]
        name: String,
    },
    /// Show which policies apply to a pod, and their rules in the order in which they are evaluated.
    Explain {
        /// The pod [default namespace: default]
        #[arg(value_name = "[pod/]NAMESPACE/POD")]
        pod: String,
    },
}

/// `podnet policy list`.
#[derive(Debug, Serialize)]
#[serde(transparent)]
struct PolicyList(Vec<PolicySummary>);

/// Runs a command.
pub(super) fn run(run_dir: &Path, verb: PolicyVerb, format: Format) -> Result<()> {
    match verb {
        PolicyVerb::List => output::print(&PolicyList(ask(run_dir, Client::policies)?), format)?,
        PolicyVerb::Show { name } => {
            output::print(&found(&name, ask(run_dir, |client| policy(client, &name))?)?, format)?;
        }
        PolicyVerb::Explain { pod } => {
            // `podnet trace` writes pods in this way.
            let pod = object_name(pod.strip_prefix("pod/").unwrap_or(&pod));
            output::print(&explained(&pod, ask(run_dir, |client| client.pod_policies(&pod))?)?, format)?;
        }
    }
    Ok(())
}

fn ask<T>(run_dir: &Path, question: impl FnOnce(&mut Client) -> Result<T, AskError>) -> Result<T> {
    daemon::ask_only(run_dir, "network policies", question)
}

/// The policy with a name. Without a namespace it may be a ClusterNetworkPolicy.
fn policy(client: &mut Client, name: &str) -> Result<Option<PolicyDetail>, AskError> {
    let found = client.policy(&object_name(name))?;
    if found.is_some() || name.contains('/') {
        return Ok(found);
    }
    client.policy(&ObjectName { namespace: String::new(), name: name.to_owned() })
}

/// A name with or without namespace.
fn object_name(text: &str) -> ObjectName {
    let (namespace, name) = text.split_once('/').unwrap_or(("default", text));
    ObjectName { namespace: namespace.to_owned(), name: name.to_owned() }
}

fn found(name: &str, policy: Option<PolicyDetail>) -> Result<PolicyDetail> {
    match policy {
        Some(policy) => Ok(policy),
        None => bail!("the daemon knows no policy {name}; see `podnet policy list`"),
    }
}

fn explained(name: &ObjectName, answer: PodAnswer) -> Result<PodPolicies> {
    match answer {
        PodAnswer { pod: Some(pod), .. } => Ok(pod),
        PodAnswer { any_policy: true, .. } => bail!(
            "the daemon does not know the pod {name}: check its name with `kubectl get pods --all-namespaces`; policies do \
             not apply to pods that have ended or use their node's network"
        ),
        PodAnswer { any_policy: false, .. } => bail!(
            "the daemon does not know the pod {name}, since it reads pods only while there are policies: the \
             cluster has no network policies, so no pod is isolated"
        ),
    }
}
