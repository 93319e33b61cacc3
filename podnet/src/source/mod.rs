//! Sources of objects: a directory of manifests, or the Kubernetes API.
//!
//! A source returns [`Batch`]es of validated objects. The first synced batch completes the set of existing objects; the
//! following ones contain changes.

pub mod kubernetes;
pub mod manifest;
mod parse;
mod status;

use std::collections::BTreeSet;
use std::io;
use std::path::Path;
use std::time::Instant;

use anyhow::{Context as _, Result};
use tokio::io::unix::AsyncFd;
use tokio::time::sleep_until;

use crate::async_fd::watch;
use crate::config::Config;
use crate::metrics::api::ApiMetrics;
use crate::model::{Batch, Complaint};
use kubernetes::{KubernetesSource, Note};
use manifest::ManifestSource;
pub use status::{Status, what_holds};

/// A source of objects.
#[derive(Debug)]
pub enum Source {
    /// A directory, boxed since it contains all objects read.
    Manifests(Box<AsyncFd<ManifestSource>>),
    /// The Kubernetes API, boxed as well.
    Kubernetes(Box<KubernetesSource>),
}

impl Source {
    /// Opens the configured source. Must be called within a tokio runtime.
    ///
    /// # Errors
    /// If the directory doesn't exist, or the API's address or credentials are missing.
    pub fn open(config: &Config) -> Result<Self> {
        match (&config.kubernetes, &config.manifests) {
            (Some(kubernetes), _) => Ok(Self::Kubernetes(Box::new(KubernetesSource::start(kubernetes, &config.node)?))),
            (None, Some(directory)) => Self::directory(directory),
            (None, None) => anyhow::bail!("the configuration names neither `manifests` nor `kubernetes`"),
        }
    }

    fn directory(directory: &Path) -> Result<Self> {
        let source = watch(ManifestSource::open(directory)?).context("cannot wait for manifests")?;
        Ok(Self::Manifests(Box::new(source)))
    }

    /// The batch available at once: the whole content of a directory.
    pub fn first(&mut self) -> Batch {
        match self {
            Self::Manifests(source) => source.get_mut().poll(Instant::now()),
            Self::Kubernetes(_) => Batch::default(),
        }
    }

    /// Waits for a batch, which may be empty if only [`Self::status`] has changed. Cancel-safe.
    ///
    /// # Errors
    /// If the source has ended.
    pub async fn next(&mut self) -> io::Result<Batch> {
        match self {
            Self::Manifests(source) => {
                let poll = source.get_ref().next_poll();
                tokio::select! {
                    ready = source.readable() => ready?.clear_ready(),
                    () = at(poll) => {}
                }
                Ok(source.get_mut().poll(Instant::now()))
            }
            Self::Kubernetes(source) => source.next().await,
        }
    }

    /// Uids of this node's pods, if known.
    pub fn pods(&self) -> Option<BTreeSet<String>> {
        match self {
            Self::Manifests(_) => None,
            Self::Kubernetes(source) => source.pods(),
        }
    }

    /// Host and port of the API server, if that is the source.
    pub fn api_server(&self) -> Option<(String, u16)> {
        match self {
            Self::Manifests(_) => None,
            Self::Kubernetes(source) => source.server(),
        }
    }

    /// Metrics of the Kubernetes API, if that is the source.
    pub fn api_metrics(&self) -> Option<&ApiMetrics> {
        match self {
            Self::Manifests(_) => None,
            Self::Kubernetes(source) => Some(source.metrics()),
        }
    }

    /// Announces to the cluster, if there is one, that pods can start.
    pub fn announce(&self) {
        if let Self::Kubernetes(source) = self {
            source.announce();
        }
    }

    /// Whether the source can write Events.
    pub fn can_tell(&self) -> bool {
        matches!(self, Self::Kubernetes(_))
    }

    /// Queues an Event, if the source can write Events. Doesn't block; the Event may be lost.
    pub fn tell(&self, note: Note) {
        if let Self::Kubernetes(source) = self {
            source.tell(note);
        }
    }

    /// The next complaint that hasn't been taken yet.
    pub fn complaint(&mut self) -> Option<Complaint> {
        match self {
            Self::Manifests(_) => None,
            Self::Kubernetes(source) => source.complaint(),
        }
    }

    /// Returns a complaint to the front of the queue.
    pub fn keep(&mut self, complaint: Complaint) {
        if let Self::Kubernetes(source) = self {
            source.keep(complaint);
        }
    }

    /// The problem with the source as a whole, if any.
    pub fn error(&self) -> Option<String> {
        match self {
            Self::Manifests(source) => source.get_ref().error(),
            Self::Kubernetes(source) => source.error(),
        }
    }

    /// Status of the source.
    pub fn status(&self) -> Status {
        match self {
            Self::Manifests(source) => source.get_ref().status().into(),
            Self::Kubernetes(source) => source.status(),
        }
    }
}

/// Waits until a time, or forever.
async fn at(time: Option<Instant>) {
    match time {
        Some(time) => sleep_until(time.into()).await,
        None => std::future::pending().await,
    }
}
