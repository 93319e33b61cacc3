//! The Kubernetes API as the daemon's source, against a scripted server and, where binaries are available, real ones;
//! and pods run by a container runtime.

mod cluster;
mod cri;
mod events;
mod kubelets;
mod pods;
mod real;
mod source;

use std::net::TcpListener;

use anyhow::Result;
use podnet::config::Kubernetes;
use podnet::source::kubernetes::KubernetesSource;
use podnet_tests::api::{Abilities, Api};
use serde_json::Value;
use tempfile::TempDir;

/// A server with these objects, the source of a node n1 that uses it, and the directory that both need.
fn asked(abilities: Abilities, objects: &[Value]) -> Result<(Api, KubernetesSource, TempDir)> {
    let api = Api::serve(TcpListener::bind("127.0.0.1:0")?, abilities)?;
    objects.iter().for_each(|object| api.apply(object.clone()));
    let directory = tempfile::tempdir()?;
    let kubeconfig = directory.path().join("kubeconfig");
    std::fs::write(&kubeconfig, api.kubeconfig())?;
    let settings = Kubernetes { kubeconfig: Some(kubeconfig), ..Kubernetes::default() };
    Ok((api, KubernetesSource::start(&settings, "n1")?, directory))
}
