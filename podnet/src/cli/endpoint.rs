//! `podnet endpoint list`: this node's pods in the datapath, with their names from the plugin's records.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::path::Path;

use podnet_cni::store::{Content, Store, StoreError};
use podnet_cni::{mac, record::Record};
use podnet_common::addr::{IfIndex, Mac};
use serde::Serialize;

use super::output::{Column, Show, Text, or_nothing};
use crate::datapath::inspect::{View, ViewError};

/// Owners of addresses, according to the plugin's records.
#[derive(Debug, Default)]
pub(super) struct Pods {
    by_address: BTreeMap<IpAddr, Record>,
}

impl Pods {
    /// Reads the records; empty if the plugin was never used here.
    pub(super) fn read(state_dir: &Path) -> Result<Self, StoreError> {
        let store = Store::open(state_dir)?;
        let mut by_address = BTreeMap::new();
        for name in store.list()? {
            if let Some(Content::Valid(record)) = store.read(&name)? {
                by_address.extend(record.ips.iter().map(|ip| (*ip, Record::clone(&record))));
            }
        }
        Ok(Self { by_address })
    }

    /// The addresses of a pod.
    pub(super) fn addresses(&self, namespace: &str, name: &str) -> Vec<IpAddr> {
        let is =
            |record: &Record| record.pod.as_ref().is_some_and(|pod| pod.namespace == namespace && pod.name == name);
        self.by_address.iter().filter(|(_, record)| is(record)).map(|(ip, _)| *ip).collect()
    }

    /// `namespace/name` of the pod with an address.
    pub(super) fn name(&self, ip: IpAddr) -> Option<String> {
        let pod = self.by_address.get(&ip)?.pod.as_ref()?;
        Some(format!("{}/{}", pod.namespace, pod.name))
    }
}

/// One address of a pod.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct EndpointRow {
    address: IpAddr,
    /// `None` if the plugin's record is missing or the runtime did not name the pod.
    namespace: Option<String>,
    pod: Option<String>,
    #[serde(rename = "containerID")]
    container_id: Option<String>,
    /// Name of the host end; `None` if the interface no longer exists.
    interface: Option<String>,
    ifindex: u32,
    mtu: u32,
    #[serde(with = "mac")]
    mac: Mac,
    #[serde(with = "mac")]
    host_mac: Mac,
}

/// `podnet endpoint list`.
#[derive(Debug, Serialize)]
#[serde(transparent)]
pub(super) struct EndpointList(Vec<EndpointRow>);

/// Reads all endpoints. `interface` returns the name of an interface.
pub(super) fn list(
    view: &dyn View,
    pods: &Pods,
    interface: impl Fn(IfIndex) -> Option<String>,
) -> Result<EndpointList, ViewError> {
    let mut rows: Vec<EndpointRow> = Vec::new();
    for (addr, endpoint) in view.endpoints()? {
        let address = IpAddr::from(addr);
        let record = pods.by_address.get(&address);
        let pod = record.and_then(|record| record.pod.as_ref());
        rows.push(EndpointRow {
            address,
            namespace: pod.map(|pod| pod.namespace.clone()),
            pod: pod.map(|pod| pod.name.clone()),
            container_id: record.map(|record| record.id.container.as_str().to_owned()),
            interface: interface(endpoint.ifindex),
            ifindex: endpoint.ifindex.0,
            mtu: endpoint.mtu,
            mac: endpoint.mac,
            host_mac: endpoint.host_mac,
        });
    }
    rows.sort_by_key(|row| row.address);
    Ok(EndpointList(rows))
}

impl Show for EndpointList {
    fn text(&self) -> Text {
        let columns = [
            Column::Text("ADDRESS"),
            Column::Text("NAMESPACE"),
            Column::Text("POD"),
            Column::Text("INTERFACE"),
            Column::Text("MAC"),
            Column::Number("MTU"),
        ];
        let rows = self.0.iter().map(|row| {
            vec![
                row.address.to_string(),
                or_nothing(&row.namespace),
                or_nothing(&row.pod),
                row.interface.clone().unwrap_or_else(|| format!("(gone: {})", row.ifindex)),
                row.mac.to_string(),
                row.mtu.to_string(),
            ]
        });
        Text::of_table(&columns, rows)
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use crate::datapath::memory::MemoryTables;

    /// The plugin's record of a pod, as in its file.
    pub(in crate::cli) fn pods() -> Pods {
        let record: Record = serde_json::from_value(serde_json::json!({
            "containerID": "c1", "ifname": "eth0", "state": "ready", "network": "podnet", "netns": "/var/run/netns/x",
            "ips": ["10.244.1.5", "fd00:244:1::5"], "mac": "02:00:00:00:00:01", "hostIfname": "pn0",
            "hostIfindex": 9, "hostMac": "02:00:00:00:00:02", "hostNetns": 1, "mtu": 1500, "gateways": [],
            "bootID": "b", "pod": {"namespace": "default", "name": "web-1"}
        }))
        .unwrap();
        Pods { by_address: record.ips.iter().map(|ip| (*ip, record.clone())).collect() }
    }

    #[test]
    fn addresses_are_listed_with_pods_and_missing_parts() {
        let mut view = MemoryTables::default();
        view.endpoint("fd00:244:1::5", 9);
        view.endpoint("10.244.1.7", 12);
        view.endpoint("10.244.1.5", 9);
        let list = list(&view, &pods(), |ifindex| (ifindex.0 == 9).then(|| "pn0".to_owned())).unwrap();
        assert_eq!(
            list.text(),
            "\
ADDRESS        NAMESPACE  POD    INTERFACE   MAC                 MTU
10.244.1.5     default    web-1  pn0         02:00:00:00:00:01  1500
10.244.1.7     -          -      (gone: 12)  02:00:00:00:00:01  1500
fd00:244:1::5  default    web-1  pn0         02:00:00:00:00:01  1500
"
        );
        let json = serde_json::to_value(&list).unwrap();
        assert_eq!((&json[0]["containerID"], &json[1]["interface"]), (&"c1".into(), &serde_json::Value::Null));
        assert_eq!(json[0]["mac"], "02:00:00:00:00:01");
    }
}
