//! Where objects come from: a directory of manifests, or the Kubernetes API.
//!
//! A source gives [`Batch`]es of validated objects. The first that is synced holds everything that there is; those that
//! follow hold what has changed.

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

/// A source.
#[derive(Debug)]
pub enum Source {
    /// A directory, boxed since it holds all that it has read.
    Manifests(Box<AsyncFd<ManifestSource>>),
    /// The Kubernetes API, boxed as well.
    Kubernetes(Box<KubernetesSource>),
}

impl Source {
    /// The source that a configuration names. To be called in a tokio runtime.
    ///
    /// # Errors
    /// If there is no such directory, or nothing to say how to reach the API.
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

    /// What there is to say at once: of a directory, all that is in it.
    pub fn first(&mut self) -> Batch {
        match self {
            Self::Manifests(source) => source.get_mut().poll(Instant::now()),
            Self::Kubernetes(_) => Batch::default(),
        }
    }

    /// Waits until there is something to say, if only that [`Self::status`] differs. May be dropped while it waits.
    ///
    /// # Errors
    /// If nothing will ever come.
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

    /// The uids of this node's pods, if that is known.
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

    /// How the Kubernetes API answers, if that is the source.
    pub fn api_metrics(&self) -> Option<&ApiMetrics> {
        match self {
            Self::Manifests(_) => None,
            Self::Kubernetes(source) => Some(source.metrics()),
        }
    }

    /// Pods can start: who has a use for that is told.
    pub fn announce(&self) {
        if let Self::Kubernetes(source) = self {
            source.announce();
        }
    }

    /// Whether there is somebody who reads Events.
    pub fn can_tell(&self) -> bool {
        matches!(self, Self::Kubernetes(_))
    }

    /// Tells the cluster something, if there is one. Waits for nothing, and may be lost.
    pub fn tell(&self, note: Note) {
        if let Self::Kubernetes(source) = self {
            source.tell(note);
        }
    }

    /// The next object that can't be used and that nobody has asked for yet.
    pub fn complaint(&mut self) -> Option<Complaint> {
        match self {
            Self::Manifests(_) => None,
            Self::Kubernetes(source) => source.complaint(),
        }
    }

    /// Gives one back, to be the next again.
    pub fn keep(&mut self, complaint: Complaint) {
        if let Self::Kubernetes(source) = self {
            source.keep(complaint);
        }
    }

    /// What is wrong with it as a whole.
    pub fn error(&self) -> Option<String> {
        match self {
            Self::Manifests(source) => source.get_ref().error(),
            Self::Kubernetes(source) => source.error(),
        }
    }

    /// How it stands.
    pub fn status(&self) -> Status {
        match self {
            Self::Manifests(source) => source.get_ref().status().into(),
            Self::Kubernetes(source) => source.status(),
        }
    }
}

/// Waits until a time, or for ever.
async fn at(time: Option<Instant>) {
    match time {
        Some(time) => sleep_until(time.into()).await,
        None => std::future::pending().await,
    }
}
