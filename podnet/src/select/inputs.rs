//! A service with all that decides what becomes of it on this node.

use std::sync::Arc;

use super::{
    explain::{Explained, explain},
    settings::Settings,
};
use crate::{
    guard::Guard,
    model::{EndpointSlice, ObjectName, Service},
    room::Share,
};

/// What [`select`](super::select()) works from, shared, so that it can be explained while the control plane goes on.
#[derive(Clone, Debug)]
pub struct Inputs {
    /// The service's name.
    pub name: ObjectName,
    /// The service.
    pub service: Arc<Service>,
    /// Its slices with their names.
    pub slices: Vec<(String, Arc<EndpointSlice>)>,
    /// What holds for all services of this node.
    pub settings: Settings,
    /// Which addresses and ports no service may take.
    pub guard: Arc<Guard>,
    /// How much of the tables it may take.
    pub share: Share,
}

impl Inputs {
    /// What becomes of the service, and why.
    pub fn explain(&self) -> Explained {
        let slices = self.slices.iter().map(|(name, slice)| (name.as_str(), &**slice));
        explain(&self.name, &self.service, slices, &self.settings, &self.guard, self.share)
    }
}
