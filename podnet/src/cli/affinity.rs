//! `podnet affinity list`: clients with their backends, and the time until each entry expires.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};

use podnet_common::layout::{Affinity, AffinityKey};
use podnet_common::time::ticks_of_seconds;
use serde::Serialize;

use super::endpoint::Pods;
use super::flow::seconds_between;
use super::output::{Column, Show, Text, duration, or_nothing, socket};
use crate::compile::{ServiceId, ServiceNames};
use crate::datapath::inspect::{View, ViewError};

/// A client and its backend.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
struct AffinityRow {
    client: IpAddr,
    /// `namespace/name:port`; `None` if the service is gone.
    service: Option<String>,
    service_id: u32,
    clients: Clients,
    backend: SocketAddr,
    /// `namespace/name` of the backend's pod, if it is on this node.
    pod: Option<String>,
    /// Seconds since the client last began a flow, accurate to about a second.
    age_seconds: u64,
    /// Seconds until the entry expires. `None` if the client no longer gets this backend: the entry has expired, or the
    /// service has no affinity now.
    left_seconds: Option<u64>,
}

/// The clients that an entry applies to: each kind may have different backends, and thus separate affinity.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "camelCase")]
enum Clients {
    /// Clients of ClusterIPs.
    ClusterIp,
    /// Clients of other addresses.
    Other,
    /// Clients of other addresses that arrive on an uplink, where these have separate backends.
    Outside,
    /// Clients whose packets another node has forwarded, for direct server return.
    Forwarded,
}

impl Clients {
    /// From the group in the id.
    fn of(service: ServiceId) -> Self {
        let groups = [(1, Self::Other), (2, Self::Outside), (3, Self::Forwarded)];
        let own = groups.into_iter().find(|(group, _)| service.port().with_affinity(*group) == service);
        own.map_or(Self::ClusterIp, |(_, clients)| clients)
    }

    const fn name(self) -> &'static str {
        match self {
            Self::ClusterIp => "ClusterIP",
            Self::Other => "other addresses",
            Self::Outside => "external clients",
            Self::Forwarded => "forwarded",
        }
    }
}

/// `podnet affinity list`.
#[derive(Debug, Serialize)]
#[serde(transparent)]
pub(super) struct AffinityList(Vec<AffinityRow>);

/// Reads all entries. `now` is in ticks.
pub(super) fn list(view: &dyn View, names: &ServiceNames, pods: &Pods, now: u32) -> Result<AffinityList, ViewError> {
    let mut timeouts: BTreeMap<u32, u32> = BTreeMap::new();
    for (_, frontend) in view.frontends()? {
        let timeout = timeouts.entry(frontend.service).or_default();
        *timeout = frontend.affinity.max(*timeout);
    }
    let row = |key: AffinityKey, value: Affinity| {
        let backend = socket(value.addr, value.port);
        let timeout = timeouts.get(&key.service).copied().unwrap_or_default();
        let age_seconds = seconds_between(value.last_used, now);
        // As the programs do.
        let over = now.wrapping_sub(value.last_used) as i32 > ticks_of_seconds(timeout.into()) as i32;
        AffinityRow {
            client: key.client.into(),
            service: names.name(ServiceId(key.service)).map(ToString::to_string),
            service_id: ServiceId(key.service).port().0,
            clients: Clients::of(ServiceId(key.service)),
            backend,
            pod: pods.name(backend.ip()),
            age_seconds,
            left_seconds: (timeout != 0 && !over).then(|| u64::from(timeout).saturating_sub(age_seconds)),
        }
    };
    let mut rows: Vec<AffinityRow> = view.affinity()?.into_iter().map(|(key, value)| row(key, value)).collect();
    let order = |row: &AffinityRow| (row.service.clone(), row.service_id, row.client, row.clients);
    rows.sort_by_cached_key(order);
    Ok(AffinityList(rows))
}

impl Show for AffinityList {
    fn text(&self) -> Text {
        let columns = [
            Column::Text("CLIENT"),
            Column::Text("SCOPE"),
            Column::Text("SERVICE"),
            Column::Text("BACKEND"),
            Column::Text("POD"),
            Column::Text("AGE"),
            Column::Text("LEFT"),
        ];
        let rows = self.0.iter().map(|row| {
            vec![
                row.client.to_string(),
                row.clients.name().to_owned(),
                row.service.clone().unwrap_or_else(|| format!("(id {})", row.service_id)),
                row.backend.to_string(),
                or_nothing(&row.pod),
                duration(row.age_seconds),
                row.left_seconds.map_or_else(|| "expired".to_owned(), duration),
            ]
        });
        Text::of_table(&columns, rows)
    }
}

#[cfg(test)]
mod tests {
    use podnet_common::addr::{Port, Proto};
    use podnet_common::layout::FrontendKey;

    use super::*;
    use crate::datapath::memory::{MemoryTables, samples::names};

    #[test]
    fn clients_are_listed_with_the_time_until_expiry() {
        let mut view = MemoryTables::default();
        let web = view.service(1, "10.96.0.10:80", Proto::TCP, 0, &["10.244.1.5:8080"]);
        view.frontends.entry(web).and_modify(|frontend| frontend.affinity = 10_800);
        let outside = ServiceId(1).with_affinity(2).0;
        let port = view.frontend(outside, "0.0.0.0:30080", Proto::TCP, FrontendKey::OUTSIDE, 0, &["10.244.1.5:8080"]);
        view.frontends.entry(port).and_modify(|frontend| frontend.affinity = 60);
        view.service(2, "10.96.0.53:53", Proto::UDP, 0, &["10.244.1.5:53"]);
        for (client, service, last_used) in [
            ("10.244.1.9", 1, 20_000 - 56),
            ("10.244.1.9", outside, 20_000),
            ("fd00::9", 2, 20_000),
            ("10.244.1.8", 1, 0),
            ("10.244.1.8", 9, 20_001),
        ] {
            let key = AffinityKey { client: client.parse::<IpAddr>().unwrap().into(), service };
            let addr = "10.244.1.5".parse::<IpAddr>().unwrap().into();
            let value = Affinity { addr, port: Port::new(8080), last_used, ..Affinity::default() };
            view.affinity.get_mut().insert(key, value);
        }
        let list = list(&view, &names(), &Pods::default(), 20_000).unwrap();
        assert_eq!(
            list.text(),
            "\
CLIENT      SCOPE             SERVICE           BACKEND          POD  AGE    LEFT
10.244.1.8  ClusterIP         (id 9)            10.244.1.5:8080  -    0s     expired
fd00::9     ClusterIP         default/dns       10.244.1.5:8080  -    0s     expired
10.244.1.8  ClusterIP         default/web:http  10.244.1.5:8080  -    5h57m  expired
10.244.1.9  ClusterIP         default/web:http  10.244.1.5:8080  -    1m0s   2h59m
10.244.1.9  external clients  default/web:http  10.244.1.5:8080  -    0s     1m0s
"
        );
        let json = serde_json::to_value(&list).unwrap();
        assert_eq!((&json[3]["ageSeconds"], &json[3]["leftSeconds"]), (&60.into(), &10_740.into()));
        assert_eq!((&json[4]["clients"], &json[4]["serviceId"]), (&"outside".into(), &1.into()));
        assert_eq!(json[0]["leftSeconds"], serde_json::Value::Null);
    }
}
