//! `podnet conntrack list`: the tracked flows, one row for both directions.

use std::collections::BTreeMap;
use std::net::IpAddr;

use podnet_common::layout::CtEntry;
use serde::Serialize;

use super::flow::{self, End, Filter, Flow, Kind, State};
use super::output::{Column, NOTHING, Show, Text, duration, or_nothing, protocol};
use crate::compile::{ServiceId, ServiceNames};
use crate::datapath::inspect::{View, ViewError};

/// Names of other nodes, by address.
pub(super) type NodeNames = BTreeMap<IpAddr, String>;

/// A flow.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
struct FlowRow {
    kind: Kind,
    protocol: String,
    client: End,
    /// Destination that the client has addressed.
    frontend: End,
    /// `None` if another node chooses it.
    backend: Option<End>,
    /// Address of the node to which the packets are forwarded for direct server return.
    forwarded_to: Option<IpAddr>,
    /// Name of that node, if known.
    forwarded_to_node: Option<String>,
    /// The client, as seen by the backend.
    source: End,
    state: State,
    /// Seconds since the last packet, accurate to about a second.
    idle_seconds: u64,
    /// Egress of the client's packets: `stack`, `pod`, `uplink`, `host`, `link`, `via`, `tunnel`, `queue` or `denied`;
    /// `None` if unknown.
    egress: Option<&'static str>,
    /// `namespace/name:port`; `None` if the service is gone, or for a flow without a service.
    service: Option<String>,
    /// `None` for a flow without a service.
    service_id: Option<u32>,
}

/// `podnet conntrack list`.
#[derive(Debug, Serialize)]
#[serde(transparent)]
pub(super) struct FlowList(Vec<FlowRow>);

/// Reads the flows. `now` is in ticks.
pub(super) fn list(
    view: &dyn View,
    names: &ServiceNames,
    nodes: &NodeNames,
    filter: &Filter,
    now: u32,
) -> Result<FlowList, ViewError> {
    let row = |flow: &Flow| {
        let forwarded = flow.entry.flags & CtEntry::ONE_WAY != 0;
        let to = flow.backend();
        FlowRow {
            kind: flow.kind(),
            protocol: protocol(flow.tuple.proto),
            client: flow.client(),
            frontend: flow.frontend(),
            backend: (!forwarded).then_some(to),
            forwarded_to: forwarded.then_some(to.ip),
            forwarded_to_node: nodes.get(&to.ip).filter(|_| forwarded).cloned(),
            source: flow.source(),
            state: flow.state(),
            idle_seconds: flow.idle(now),
            egress: flow.egress(),
            service: names.name(ServiceId(flow.entry.service)).map(ToString::to_string),
            service_id: Some(ServiceId(flow.entry.service).port().0).filter(|id| *id != 0),
        }
    };
    Ok(FlowList(flow::read(view, names, filter)?.iter().map(row).collect()))
}

/// What the service column shows.
pub(super) fn service_or_kind(service: &Option<String>, kind: Kind) -> String {
    match (service, kind) {
        (Some(name), _) => name.clone(),
        (None, Kind::Masquerade) => "(masquerade)".to_owned(),
        (None, Kind::Direct) => "(direct)".to_owned(),
        (None, Kind::Service | Kind::DirectReturn) => NOTHING.to_owned(),
    }
}

impl Show for FlowList {
    fn text(&self) -> Text {
        let columns = [
            Column::Text("PROTOCOL"),
            Column::Text("CLIENT"),
            Column::Text("FRONTEND"),
            Column::Text("BACKEND"),
            Column::Text("TRANSLATED SOURCE"),
            Column::Text("STATE"),
            Column::Text("IDLE"),
            Column::Text("EGRESS"),
            Column::Text("SERVICE"),
        ];
        let backend = |row: &FlowRow| match (&row.forwarded_to_node, row.forwarded_to) {
            (Some(node), _) => format!("(forwarded to {node})"),
            (None, Some(node)) => format!("(forwarded to node {node})"),
            (None, None) => or_nothing(&row.backend),
        };
        let rows = self.0.iter().map(|row| {
            vec![
                row.protocol.clone(),
                row.client.to_string(),
                row.frontend.to_string(),
                backend(row),
                row.source.to_string(),
                row.state.name().to_owned(),
                duration(row.idle_seconds),
                row.egress.unwrap_or(NOTHING).to_owned(),
                service_or_kind(&row.service, row.kind),
            ]
        });
        Text::of_table(&columns, rows)
    }
}

#[cfg(test)]
mod tests {
    use podnet_common::addr::Proto;
    use podnet_common::layout::Out;

    use super::*;
    use crate::datapath::memory::{MemoryTables, samples::names};

    fn listed(view: &MemoryTables) -> FlowList {
        let nodes = NodeNames::from([("172.30.0.2".parse().unwrap(), "node2".to_owned())]);
        list(view, &names(), &nodes, &Filter::default(), 1000).unwrap()
    }

    #[test]
    fn every_kind_of_flow_is_one_row() {
        let mut view = MemoryTables::default();
        let sctp = ["10.244.1.9:40000", "10.96.0.10:80", "172.30.0.1:2000", "10.244.2.5:8080"];
        let flow = view.flow(1, Proto::SCTP, sctp, CtEntry::REPLIED, 1000 - 56);
        view.entry(&flow).out = Out::Link as u8;
        let dns = ["[fd00:244:1::9]:41000", "[fd00:96::53]:53", "[fd00:244:1::9]:41000", "[fd00:244:1::7]:53"];
        let flow = view.flow(7, Proto::UDP, dns, 0, 1000);
        view.entry(&flow).out = Out::Pod as u8;
        let out = ["10.244.1.9:40001", "203.0.113.9:443", "172.30.0.1:2001", "203.0.113.9:443"];
        let flow = view.flow(0, Proto::TCP, out, CtEntry::REPLIED, 1000);
        view.entry(&flow).out = Out::Uplink as u8;
        let pods = ["10.244.1.9:40002", "10.244.2.5:443", "10.244.1.9:40002", "10.244.2.5:443"];
        let flow = view.flow(0, Proto::TCP, pods, CtEntry::REPLIED | CtEntry::DOUBTFUL, 1000);
        view.entry(&flow).out = Out::Link as u8;
        let echo = ["10.244.1.9:7", "203.0.113.9:0", "172.30.0.1:2002", "203.0.113.9:0"];
        let flow = view.flow(0, Proto::ICMP, echo, CtEntry::REPLIED, 1000);
        view.conntrack.get_mut().remove(&flow);
        let direct = ["198.51.100.7:5000", "172.30.0.1:30080", "198.51.100.7:5000", "172.30.0.2:30080"];
        view.one_way(1, Proto::TCP, direct, 1000);
        let elsewhere = ["198.51.100.7:5001", "172.30.0.1:30080", "198.51.100.7:5001", "172.30.0.3:30080"];
        view.one_way(1, Proto::TCP, elsewhere, 1000);
        assert_eq!(
            listed(&view).text(),
            "\
PROTOCOL  CLIENT                 FRONTEND          BACKEND                         TRANSLATED SOURCE      STATE        \
IDLE  EGRESS  SERVICE
SCTP      10.244.1.9:40000       10.96.0.10:80     10.244.2.5:8080                 172.30.0.1:2000        established  \
1m0s  link    default/web:http
TCP       10.244.1.9:40002       10.244.2.5:443    10.244.2.5:443                  10.244.1.9:40002       closing      \
0s    link    (direct)
TCP       198.51.100.7:5000      172.30.0.1:30080  (forwarded to node2)            198.51.100.7:5000      one-way      \
0s    via     default/web:http
TCP       198.51.100.7:5001      172.30.0.1:30080  (forwarded to node 172.30.0.3)  198.51.100.7:5001      one-way      \
0s    via     default/web:http
ICMP      10.244.1.9 id 7        203.0.113.9       203.0.113.9                     172.30.0.1 id 2002     established  \
0s    -       (masquerade)
TCP       10.244.1.9:40001       203.0.113.9:443   203.0.113.9:443                 172.30.0.1:2001        established  \
0s    uplink  (masquerade)
UDP       [fd00:244:1::9]:41000  [fd00:96::53]:53  [fd00:244:1::7]:53              [fd00:244:1::9]:41000  new          \
0s    pod     -
"
        );
        let json = serde_json::to_value(listed(&view)).unwrap();
        assert_eq!(
            json[2],
            serde_json::json!({
                "kind": "directReturn", "protocol": "TCP", "client": "198.51.100.7:5000",
                "frontend": "172.30.0.1:30080", "backend": null, "forwardedTo": "172.30.0.2", "forwardedToNode": "node2",
                "source": "198.51.100.7:5000", "state": "oneWay", "idleSeconds": 0, "egress": "via",
                "service": "default/web:http", "serviceId": 1
            })
        );
        assert_eq!((&json[4]["kind"], &json[4]["serviceId"]), (&"masquerade".into(), &serde_json::Value::Null));
    }
}
