//! A service with everything that determines its frontends and endpoints on this node.

use std::sync::Arc;

use super::{
    explain::{Explained, explain},
    settings::Settings,
};
use crate::{
    entry_counts::Share,
    guard::Guard,
    model::{EndpointSlice, ObjectName, Service},
};

/// The inputs of [`select`](super::select()), shared, so that they can be explained while the control plane goes on.
#[derive(Clone, Debug)]
pub struct Inputs {
    /// The service's name.
    pub name: ObjectName,
    /// The service.
    pub service: Arc<Service>,
    /// Its EndpointSlices with their names.
    pub slices: Vec<(String, Arc<EndpointSlice>)>,
    /// The settings for all services of this node.
    pub settings: Settings,
    /// Addresses and ports that no service may take.
    pub guard: Arc<Guard>,
    /// Its share of the tables.
    pub share: Share,
}

impl Inputs {
    /// Explains which frontends and endpoints the service has, and why.
    pub fn explain(&self) -> Explained {
        let slices = self.slices.iter().map(|(name, slice)| (name.as_str(), &**slice));
        explain(&self.name, &self.service, slices, &self.settings, &self.guard, self.share)
    }
}
