//! Which endpoints each frontend of a service uses: a pure function of the service, its slices, the node and the
//! settings.
//!
//! ```text
//! Service ── its frontends ──┐
//! slices ─── candidates ─────┴─ rule (Cluster or Local) ──→ fate of each candidate ──→ select(), explain()
//! ```
//! A service has a share of the tables, enforced by `meter`. [`select()`] and [`explain()`] use the same evaluation, so
//! explanations always agree with the tables.

mod explain;
mod health;
mod inputs;
mod meter;
mod places;
mod refused;
mod remarks;
mod rule;
mod selection;
mod settings;
mod view;

pub use explain::{Choice, Clients, Explained, ExplainedEndpoint, ExplainedFrontend, explain};
pub use health::{HealthCheck, health};
pub use inputs::Inputs;
pub(crate) use places::{all_addresses, all_places};
pub use refused::refused;
pub use remarks::remarks;
pub use rule::Fate;
pub use selection::{Beyond, Selection};
pub use settings::Settings;

use crate::entry_counts::Share;
use crate::frontend::{Frontend, FrontendAddr, FrontendKind, ServicePortName, SourceMode};
use crate::guard::Guard;
use crate::model::{EndpointSlice, ObjectName, Service};
use meter::Meter;
use places::{addresses, places, policies, source, source_ranges};
use rule::Targets;
use view::View;

/// The frontends of a service on this node for which its share has room: first those of ClusterIPs, then all others,
/// port by port. `slices` are the service's own.
pub fn select<'a>(
    name: &ObjectName,
    service: &Service,
    slices: impl Iterator<Item = &'a EndpointSlice>,
    settings: &Settings,
    guard: &'a Guard,
    share: Share,
) -> Selection {
    let source = source(service, settings);
    let targets = Targets::new(slices, guard);
    let addresses = addresses(service, guard);
    let ports = if service.ignored.is_none() { &service.ports[..] } else { &[] };
    // Created on demand: few services have both families.
    let mut views: Vec<[Option<View<'_>>; 2]> = Vec::new();
    views.resize_with(ports.len(), Default::default);
    let (mut meter, mut selected) = (Meter::new(share, settings.spread), Vec::with_capacity(ports.len()));
    for of_cluster in [true, false] {
        for (index, port) in ports.iter().enumerate() {
            for (kind, addr) in places(&addresses, service, port, guard) {
                if (kind == FrontendKind::ClusterIp) != of_cluster {
                    continue;
                }
                let key = FrontendAddr { socket: addr, protocol: port.protocol };
                if meter.is_full() {
                    meter.refuse(key);
                    continue;
                }
                let v4 = addr.is_ipv4();
                let view = views[index][usize::from(v4)].get_or_insert_with(|| {
                    let candidates = targets.candidates(port, v4);
                    meter.examine(candidates.len());
                    View::new(candidates, settings)
                });
                let policies = policies(service, kind);
                let forwards = kind != FrontendKind::ClusterIp && source == SourceMode::Preserve;
                let mut frontend = Frontend {
                    key,
                    kind,
                    service: ServicePortName { service: name.clone(), port: port.name.clone() },
                    source,
                    affinity: service.affinity,
                    source_ranges: source_ranges(service, kind, &addr.ip()),
                    backends: view.backends(policies.inside),
                    outside: policies.outside.map(|policy| view.backends(policy)),
                    here: (forwards && policies.outside.is_none()).then(|| view.here()),
                    spread: true,
                };
                if meter.admit(&mut view.counted, policies, &mut frontend) {
                    selected.push((index, frontend));
                }
            }
        }
    }
    selected.sort_by_key(|(index, _)| *index);
    let frontends = selected.into_iter().map(|(_, frontend)| frontend).collect();
    Selection { frontends, takes: meter.takes(), beyond: meter.beyond(), unspread: meter.unspread() }
}

#[cfg(test)]
mod tests;
