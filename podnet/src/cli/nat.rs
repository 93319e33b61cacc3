//! `podnet nat list`: flows whose source was translated, and the usage of source ports for each destination.
//!
//! A port is taken for a single protocol, source address and destination, so exhaustion is per destination.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use podnet_common::addr::Proto;
use podnet_common::layout::{CtEntry, Tuple};
use serde::Serialize;

use super::conntrack::service_or_kind;
use super::flow::{self, End, Filter, Flow, Kind, State};
use super::output::{Column, Show, Text, duration, percent, protocol};
use crate::compile::{ServiceId, ServiceNames};
use crate::datapath::inspect::{View, ViewError};

/// Number of destinations shown in the text output, fullest first.
const SHOWN: usize = 20;

/// A flow with a translated source.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
struct NatRow {
    kind: Kind,
    protocol: String,
    client: End,
    /// Destination that the client has addressed.
    destination: End,
    /// Receiver of the packets.
    backend: End,
    /// The client, as seen by the backend.
    source: End,
    state: State,
    /// Seconds since the last packet, accurate to about a second.
    idle_seconds: u64,
    /// `namespace/name:port`; `None` if the service is gone, or for a flow without a service.
    service: Option<String>,
    /// `None` for a flow without a service.
    service_id: Option<u32>,
}

/// Usage of source ports towards a destination.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct PortUse {
    pub(super) protocol: String,
    /// Source address of the ports.
    pub(super) address: IpAddr,
    pub(super) destination: End,
    /// Number of source NAT ports in use.
    pub(super) used: usize,
    /// Number of source NAT ports.
    pub(super) ports: usize,
}

/// `podnet nat list`.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct NatList {
    flows: Vec<NatRow>,
    /// Fullest first.
    port_use: Vec<PortUse>,
}

/// Reads the flows. `now` is in ticks.
pub(super) fn list(view: &dyn View, names: &ServiceNames, filter: &Filter, now: u32) -> Result<NatList, ViewError> {
    let mut flows = flow::read(view, names, filter)?;
    flows.retain(|flow| flow.client() != flow.source());
    let row = |flow: &Flow| NatRow {
        kind: flow.kind(),
        protocol: protocol(flow.tuple.proto),
        client: flow.client(),
        destination: flow.frontend(),
        backend: flow.backend(),
        source: flow.source(),
        state: flow.state(),
        idle_seconds: flow.idle(now),
        service: names.name(ServiceId(flow.entry.service)).map(ToString::to_string),
        service_id: Some(ServiceId(flow.entry.service).port().0).filter(|id| *id != 0),
    };
    let mut taken = TakenPorts::new(&view.snat_ports()?);
    view.conntrack(&mut |tuple, entry| taken.visit(tuple, entry))?;
    let mut port_use = taken.by_use();
    // Flows outside the filter count too, since they use the same ports towards the same destinations.
    let wanted: BTreeSet<_> = flows.iter().map(|flow| (protocol(flow.tuple.proto), flow.backend())).collect();
    port_use.retain(|towards| wanted.contains(&(towards.protocol.clone(), towards.destination)));
    Ok(NatList { flows: flows.iter().map(row).collect(), port_use })
}

/// Source ports in use.
#[derive(Debug)]
pub(super) struct TakenPorts {
    /// The ports for source NAT.
    usable: BTreeSet<u16>,
    /// By protocol, source address and destination.
    taken: BTreeMap<(Proto, IpAddr, End), usize>,
}

impl TakenPorts {
    /// With these ports, none of them in use.
    pub(super) fn new(usable: &[u16]) -> Self {
        Self { usable: usable.iter().copied().collect(), taken: BTreeMap::new() }
    }

    /// Counts an entry of the connection table. It is the reply's entry that reserves the port.
    pub(super) fn visit(&mut self, tuple: &Tuple, entry: &CtEntry) {
        let changed = (tuple.dst, tuple.dport) != (entry.dst, entry.dport);
        if entry.flags & CtEntry::REPLY != 0 && changed && self.usable.contains(&tuple.dport.get()) {
            let towards = (tuple.proto, tuple.dst.into(), End::new(tuple.src, tuple.sport, tuple.proto));
            *self.taken.entry(towards).or_default() += 1;
        }
    }

    /// Usage by destination, fullest first.
    pub(super) fn by_use(self) -> Vec<PortUse> {
        let ports = self.usable.len();
        let towards = |((proto, address, destination), used)| PortUse {
            protocol: protocol(proto),
            address,
            destination,
            used,
            ports,
        };
        let mut all: Vec<PortUse> = self.taken.into_iter().map(towards).collect();
        all.sort_by_key(|towards| Reverse(towards.used));
        all
    }
}

impl Show for NatList {
    fn text(&self) -> Text {
        let columns = [
            Column::Text("PROTOCOL"),
            Column::Text("CLIENT"),
            Column::Text("DESTINATION"),
            Column::Text("BACKEND"),
            Column::Text("TRANSLATED SOURCE"),
            Column::Text("STATE"),
            Column::Text("IDLE"),
            Column::Text("SERVICE"),
        ];
        let rows = self.flows.iter().map(|row| {
            vec![
                row.protocol.clone(),
                row.client.to_string(),
                row.destination.to_string(),
                row.backend.to_string(),
                row.source.to_string(),
                row.state.name().to_owned(),
                duration(row.idle_seconds),
                service_or_kind(&row.service, row.kind),
            ]
        });
        let mut text = Text::default();
        text.table(&columns, rows);
        if self.port_use.is_empty() {
            return text;
        }
        let columns = [
            Column::Text("PROTOCOL"),
            Column::Text("SOURCE"),
            Column::Text("DESTINATION"),
            Column::Number("PORTS USED"),
            Column::Number("OF"),
            Column::Number("FULL"),
        ];
        let rows = self.port_use.iter().take(SHOWN).map(|towards| {
            vec![
                towards.protocol.clone(),
                towards.address.to_string(),
                towards.destination.to_string(),
                towards.used.to_string(),
                towards.ports.to_string(),
                percent(towards.used as u64, towards.ports as u64),
            ]
        });
        text.gap();
        text.table(&columns, rows);
        match self.port_use.len().saturating_sub(SHOWN) {
            0 => {}
            rest => text.sentence(&format!("and {rest} more destinations with fewer ports in use")),
        }
        text
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::datapath::memory::{MemoryTables, samples::names};

    /// Two clients of a service, three masqueraded flows, and one that keeps its source.
    fn view() -> MemoryTables {
        let mut view = MemoryTables::default();
        view.snat_ports = (2000..2040).collect();
        let node_port = ["198.51.100.7:5000", "172.30.0.1:30080", "172.30.0.1:2000", "10.244.2.5:8080"];
        view.flow(1, Proto::TCP, node_port, CtEntry::REPLIED, 1000);
        let web = ["10.244.1.9:40000", "203.0.113.9:443", "172.30.0.1:2000", "203.0.113.9:443"];
        view.flow(0, Proto::TCP, web, CtEntry::REPLIED, 1000 - 56);
        let again = ["10.244.1.9:40001", "203.0.113.9:443", "172.30.0.1:2001", "203.0.113.9:443"];
        view.flow(0, Proto::TCP, again, 0, 1000);
        let echo = ["10.244.1.9:7", "203.0.113.9:0", "172.30.0.1:2000", "203.0.113.9:0"];
        view.flow(0, Proto::ICMP, echo, CtEntry::REPLIED, 1000);
        let itself = ["10.244.1.5:4000", "10.96.0.10:80", "10.244.1.1:4000", "10.244.1.5:8080"];
        view.flow(1, Proto::TCP, itself, CtEntry::REPLIED, 1000);
        let kept = ["10.244.1.9:40002", "10.96.0.10:80", "10.244.1.9:40002", "10.244.2.5:8080"];
        view.flow(1, Proto::TCP, kept, CtEntry::REPLIED, 1000);
        view
    }

    #[test]
    fn translated_sources_are_listed_and_ports_counted_per_destination() {
        let list = list(&view(), &names(), &Filter::default(), 1000).unwrap();
        assert_eq!(
            list.text(),
            "\
PROTOCOL  CLIENT             DESTINATION       BACKEND          TRANSLATED SOURCE   STATE        IDLE  SERVICE
TCP       10.244.1.5:4000    10.96.0.10:80     10.244.1.5:8080  10.244.1.1:4000     established  0s    default/web:http
TCP       198.51.100.7:5000  172.30.0.1:30080  10.244.2.5:8080  172.30.0.1:2000     established  0s    default/web:http
ICMP      10.244.1.9 id 7    203.0.113.9       203.0.113.9      172.30.0.1 id 2000  established  0s    (masquerade)
TCP       10.244.1.9:40000   203.0.113.9:443   203.0.113.9:443  172.30.0.1:2000     established  1m0s  (masquerade)
TCP       10.244.1.9:40001   203.0.113.9:443   203.0.113.9:443  172.30.0.1:2001     new          0s    (masquerade)

PROTOCOL  SOURCE      DESTINATION      PORTS USED  OF  FULL
TCP       172.30.0.1  203.0.113.9:443           2  40   5 %
ICMP      172.30.0.1  203.0.113.9               1  40   2 %
TCP       172.30.0.1  10.244.2.5:8080           1  40   2 %
"
        );
        let json = serde_json::to_value(&list).unwrap();
        assert_eq!(
            json["portUse"][0],
            serde_json::json!({
                "protocol": "TCP", "address": "172.30.0.1", "destination": "203.0.113.9:443", "used": 2, "ports": 40
            })
        );
        let of_web = Filter { service: Some("default/web".into()), ..Filter::default() };
        let of_web = super::list(&view(), &names(), &of_web, 1000).unwrap();
        assert_eq!((of_web.flows.len(), of_web.port_use.len()), (2, 1), "{of_web:?}");
        assert_eq!((&json["flows"][0]["kind"], &json["flows"][3]["kind"]), (&"service".into(), &"masquerade".into()));
    }

    #[test]
    fn only_text_output_truncates_the_list_of_destinations() {
        let mut view = MemoryTables::default();
        view.snat_ports = vec![2000];
        for n in 0..25 {
            let to = format!("203.0.113.{n}:443");
            view.flow(0, Proto::TCP, ["10.244.1.9:40000", &to, "172.30.0.1:2000", &to], 0, 1000);
        }
        let list = list(&view, &names(), &Filter::default(), 1000).unwrap();
        assert!(list.text().ends_with("100 %\nand 5 more destinations with fewer ports in use\n"), "{}", list.text());
        assert_eq!(list.port_use.len(), 25);
    }
}
