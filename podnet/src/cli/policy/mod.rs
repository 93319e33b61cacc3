//! `podnet policy`: NetworkPolicies, as the daemon knows them. The tables contain only what they amount to on this
//! node.

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
    /// List the NetworkPolicies of the cluster.
    List,
    /// Show a NetworkPolicy with its rules, this node's pods that it selects, and its problems.
    Show {
        /// The NetworkPolicy [default namespace: default]
        #[arg(value_name = "NAMESPACE/NAME")]
        name: String,
    },
    /// Show which NetworkPolicies select a pod, and what they allow.
    Explain {
        /// The pod [default namespace: default]
        #[arg(value_name = "NAMESPACE/POD")]
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
            let name = object_name(&name);
            output::print(&found(&name, ask(run_dir, |client| client.policy(&name))?)?, format)?;
        }
        PolicyVerb::Explain { pod } => {
            let pod = object_name(&pod);
            output::print(&explained(&pod, ask(run_dir, |client| client.pod_policies(&pod))?)?, format)?;
        }
    }
    Ok(())
}

fn ask<T>(run_dir: &Path, question: impl FnOnce(&mut Client) -> Result<T, AskError>) -> Result<T> {
    daemon::ask_only(run_dir, "network policies", question)
}

/// A name with or without namespace.
fn object_name(text: &str) -> ObjectName {
    let (namespace, name) = text.split_once('/').unwrap_or(("default", text));
    ObjectName { namespace: namespace.to_owned(), name: name.to_owned() }
}

fn found(name: &ObjectName, policy: Option<PolicyDetail>) -> Result<PolicyDetail> {
    match policy {
        Some(policy) => Ok(policy),
        None => bail!("the daemon knows no NetworkPolicy {name}; see `podnet policy list`"),
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
            "the daemon does not know the pod {name}: the cluster has no NetworkPolicy, so no pod is isolated; create one \
             and ask again"
        ),
    }
}
