//! Comparison of the tables with the objects: differences, and reasons for which endpoints are excluded.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};

use super::detail::{Choice, Clients, FrontendDetail};
use super::row::{Family, Place};
use crate::frontend::FrontendKind;
use crate::select::{self, Explained, ExplainedEndpoint, ExplainedFrontend, Fate};

/// Differences between the tables and the demands of the objects, as sentences.
pub(super) fn differences(tables: &[FrontendDetail], wanted: &Explained) -> Vec<String> {
    let mut differences = Vec::new();
    let admitted = || wanted.frontends.iter().filter(|frontend| !frontend.beyond_share);
    for frontend in admitted() {
        let at = at(frontend);
        let found = tables.iter().find(|table| name(table) == at);
        let Some(table) = found else {
            differences.push(format!("{at} is not in the tables yet, or belongs to another service"));
            continue;
        };
        for choice in &frontend.choices {
            let chosen = choice.endpoints.iter().filter(|endpoint| endpoint.fate == Fate::Chosen);
            let chosen: BTreeSet<SocketAddr> =
                chosen.filter_map(|e| Some(SocketAddr::new(e.address, e.port?))).collect();
            let present: BTreeSet<SocketAddr> = of_clients(table, choice.clients)
                .flat_map(|c| &c.targets)
                .map(|t| (t.address, t.port).into())
                .collect();
            let for_clients = clients_of(choice.clients);
            let missing = chosen.difference(&present);
            differences.extend(missing.map(|to| format!("{at} does not include the backend {to} yet{for_clients}")));
            let extra = present.difference(&chosen);
            differences.extend(extra.map(|to| format!("{at} still includes the backend {to}{for_clients}")));
        }
    }
    let places: BTreeSet<String> = admitted().map(at).collect();
    // A host port belongs to a pod.
    let of_services = tables.iter().filter(|table| table.frontend.kind != Some(FrontendKind::HostPort));
    let gone = of_services.map(name).filter(|table| !places.contains(table));
    differences.extend(gone.map(|table| format!("{table} is still in the tables")));
    differences
}

/// The choices of a frontend that apply to these clients: their own, or those for all.
fn of_clients(table: &FrontendDetail, clients: select::Clients) -> impl Iterator<Item = &Choice> {
    let own = match clients {
        select::Clients::All => Clients::All,
        select::Clients::ThisNode => Clients::ThisNode,
        select::Clients::Outside => Clients::Outside,
    };
    let has_own = table.choices.iter().any(|choice| choice.clients == own);
    table.choices.iter().filter(move |choice| {
        if has_own { choice.clients == own } else { matches!(choice.clients, Clients::All | Clients::ThisNode) }
    })
}

fn clients_of(clients: select::Clients) -> &'static str {
    match clients {
        select::Clients::All => "",
        select::Clients::ThisNode => " for clients on this node",
        select::Clients::Outside => " for external clients",
    }
}

/// An endpoint that isn't used, and by which frontends.
#[derive(Debug)]
pub(super) struct LeftOut {
    pub(super) endpoint: String,
    pub(super) node: Option<String>,
    pub(super) zone: Option<String>,
    pub(super) why: &'static str,
    /// The frontends.
    pub(super) at: Vec<String>,
}

/// Endpoints by address, port and fate, with the frontends to which that applies.
type Fates<'a> = BTreeMap<(IpAddr, Option<u16>, Fate), (&'a ExplainedEndpoint, Vec<String>)>;

/// Endpoints that aren't used, with the frontends to which that applies. Endpoints of the other family are mentioned
/// only where no endpoint is used.
pub(super) fn left_out(explained: &Explained) -> Vec<LeftOut> {
    let mut all = Fates::new();
    for frontend in explained.frontends.iter().filter(|frontend| !frontend.beyond_share) {
        for choice in &frontend.choices {
            let is_served = choice.endpoints.iter().any(|endpoint| endpoint.fate == Fate::Chosen);
            let clients = match choice.clients {
                select::Clients::All => "",
                select::Clients::ThisNode => " (this node)",
                select::Clients::Outside => " (external)",
            };
            for endpoint in &choice.endpoints {
                if endpoint.fate == Fate::Chosen || (endpoint.fate == Fate::OtherFamily && is_served) {
                    continue;
                }
                let key = (endpoint.address, endpoint.port, endpoint.fate);
                let (_, places) = all.entry(key).or_insert((endpoint, Vec::new()));
                places.push(format!("{}{clients}", at(frontend)));
            }
        }
    }
    all.into_iter()
        .map(|((address, port, fate), (endpoint, at))| LeftOut {
            endpoint: port.map_or_else(|| address.to_string(), |port| SocketAddr::new(address, port).to_string()),
            node: endpoint.node.clone(),
            zone: endpoint.zone.clone(),
            why: reason(fate),
            at,
        })
        .collect()
}

const fn reason(fate: Fate) -> &'static str {
    match fate {
        Fate::Chosen => "in use",
        Fate::NotReady => "not ready",
        Fate::Terminating => "terminating, while other endpoints are not",
        Fate::NotOnThisNode => "not on this node (traffic policy Local)",
        Fate::HintedForOtherNodes => "hinted for other nodes, and other endpoints are hinted for this one",
        Fate::HintedForOtherZones => "hinted for other zones, and other endpoints are hinted for this one",
        Fate::OtherFamily => "of the other address family",
        Fate::NoSuchPort => "its EndpointSlice does not have the service's port",
        Fate::Refused => "not allowed as an endpoint: see `podnet status`",
    }
}

/// A frontend of the tables, as text.
fn name(table: &FrontendDetail) -> String {
    format!("{}/{}", table.frontend.place, table.frontend.protocol)
}

/// A frontend of the objects, in the same format.
fn at(frontend: &ExplainedFrontend) -> String {
    let place = Place {
        address: (!frontend.address.is_unspecified()).then_some(frontend.address),
        family: if frontend.address.is_ipv4() { Family::V4 } else { Family::V6 },
        port: frontend.port,
    };
    format!("{place}/{}", frontend.protocol)
}
