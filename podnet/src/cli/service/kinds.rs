//! Kinds of services' external addresses: the objects distinguish them, the tables don't.

use std::collections::BTreeMap;
use std::net::IpAddr;

use crate::frontend::FrontendKind;
use crate::model::ObjectName;
use crate::socket::ExternalAddresses;

/// External addresses by service.
#[derive(Debug, Default)]
pub(in crate::cli) struct Kinds(BTreeMap<ObjectName, ExternalAddresses>);

impl Kinds {
    /// The kind of an address; `None` if the service doesn't have it.
    pub(super) fn of(&self, service: &ObjectName, ip: IpAddr) -> Option<FrontendKind> {
        self.0.get(service)?.kind(ip)
    }
}

impl FromIterator<ExternalAddresses> for Kinds {
    fn from_iter<I: IntoIterator<Item = ExternalAddresses>>(services: I) -> Self {
        let name = |of: &ExternalAddresses| ObjectName { namespace: of.namespace.clone(), name: of.name.clone() };
        Self(services.into_iter().map(|addresses| (name(&addresses), addresses)).collect())
    }
}
