//! Results of ADD, in the format of every version of the specification.
//!
//! In memory a result has the newest format. On output it is converted: versions up to 1.0.0 lose the keys that 1.1.0
//! added, 0.3 and 0.4 state the IP version of each address, and 0.1 and 0.2 have one address per family (`ip4`, `ip6`).
//! An incoming result (`prevResult`) may have any of these formats.

use std::net::IpAddr;

use ipnetwork::IpNetwork;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};

use crate::error::{CniError, Code};
use crate::version::Version;

/// An interface of a result. Unknown keys are passed on.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Interface {
    /// Its name.
    #[serde(default)]
    pub name: String,
    /// Its MAC.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub mac: String,
    /// Its MTU in bytes (1.1.0).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mtu: Option<u32>,
    /// Path of its network namespace; empty for the host's.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub sandbox: String,
    /// `socketPath`, `pciID` and others (1.1.0).
    #[serde(flatten)]
    pub other: Map<String, Value>,
}

/// An address of a result.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Ip {
    /// The address with its prefix.
    pub address: IpNetwork,
    /// Its gateway.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub gateway: Option<IpAddr>,
    /// Index of its interface in the result's list of interfaces.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub interface: Option<usize>,
}

/// A route of a result. Unknown keys are passed on.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Route {
    /// Its destination.
    pub dst: IpNetwork,
    /// Its gateway.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub gw: Option<IpAddr>,
    /// `mtu`, `advmss`, `priority`, `table`, `scope` (1.1.0).
    #[serde(flatten)]
    pub other: Map<String, Value>,
}

/// Resolver settings of a result.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Dns {
    /// Addresses of name servers.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub nameservers: Vec<String>,
    /// The local domain.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub domain: Option<String>,
    /// Search domains.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub search: Vec<String>,
    /// Resolver options.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub options: Vec<String>,
}

/// A result.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct CniResult {
    /// Interfaces.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub interfaces: Vec<Interface>,
    /// Addresses.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub ips: Vec<Ip>,
    /// Routes.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub routes: Vec<Route>,
    /// Resolver settings.
    pub dns: Dns,
}

/// `ip4` and `ip6` of versions 0.1.0 and 0.2.0.
#[derive(Deserialize, Serialize)]
struct OldIp {
    ip: IpNetwork,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    gateway: Option<IpAddr>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    routes: Vec<Route>,
}

impl CniResult {
    /// Parses a `prevResult` of any version.
    pub fn parse(value: &Value) -> Result<Self, CniError> {
        let failed = |e: serde_json::Error| CniError::new(Code::InvalidConfig, format!("prevResult is not valid: {e}"));
        let value = &without_nulls(value);
        let mut result: Self = serde_json::from_value(value.clone()).map_err(failed)?;
        for key in ["ip4", "ip6"] {
            let Some(old) = value.get(key) else { continue };
            let old: OldIp = serde_json::from_value(old.clone()).map_err(failed)?;
            result.ips.push(Ip { address: old.ip, gateway: old.gateway, interface: None });
            result.routes.extend(old.routes);
        }
        Ok(result)
    }

    /// Appends this result to that of an earlier plugin of the chain.
    pub fn chained_to(mut self, previous: Self) -> Self {
        let offset = previous.interfaces.len();
        for ip in &mut self.ips {
            ip.interface = ip.interface.map(|i| i + offset);
        }
        let dns = if self.dns == Dns::default() { previous.dns } else { self.dns };
        Self {
            interfaces: [previous.interfaces, self.interfaces].concat(),
            ips: [previous.ips, self.ips].concat(),
            routes: [previous.routes, self.routes].concat(),
            dns,
        }
    }

    /// The result in JSON, in the format of a version.
    pub fn to_json(&self, version: Version) -> Value {
        let mut result = self.clone();
        if version < Version::V1_1_0 {
            for interface in &mut result.interfaces {
                interface.mtu = None;
                interface.other.clear();
            }
            for route in &mut result.routes {
                route.other.clear();
            }
        }
        if version < Version::V0_3_0 {
            return result.to_old_json(version);
        }
        let mut json = json!(result);
        if version < Version::V1_0_0 {
            for (ip, json) in result.ips.iter().zip(json["ips"].as_array_mut().into_iter().flatten()) {
                json["version"] = json!(if ip.address.is_ipv4() { "4" } else { "6" });
            }
        }
        json["cniVersion"] = json!(version.as_str());
        json
    }

    fn to_old_json(&self, version: Version) -> Value {
        let mut json = json!({"cniVersion": version.as_str(), "dns": self.dns});
        for (key, ipv4) in [("ip4", true), ("ip6", false)] {
            if let Some(ip) = self.ips.iter().find(|ip| ip.address.is_ipv4() == ipv4) {
                let routes = self.routes.iter().filter(|r| r.dst.is_ipv4() == ipv4).cloned().collect();
                json[key] = json!(OldIp { ip: ip.address, gateway: ip.gateway, routes });
            }
        }
        json
    }
}

/// Removes keys whose value is null, with which plugins in Go express absence.
fn without_nulls(value: &Value) -> Value {
    match value {
        Value::Object(keys) => {
            let there = keys.iter().filter(|(_, value)| !value.is_null());
            Value::Object(there.map(|(key, value)| (key.clone(), without_nulls(value))).collect())
        }
        Value::Array(values) => values.iter().map(without_nulls).collect(),
        other => other.clone(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn example() -> CniResult {
        CniResult::parse(&json!({
            "cniVersion": "1.1.0",
            "interfaces": [
                {"name": "pn0", "mac": "02:00:00:00:00:01", "mtu": 1500},
                {"name": "eth0", "mac": "02:00:00:00:00:02", "mtu": 1500, "sandbox": "/run/netns/p", "pciID": "x"},
            ],
            "ips": [
                {"address": "10.0.0.5/32", "gateway": "169.254.1.1", "interface": 1},
                {"address": "fd00::5/128", "gateway": "fe80::1", "interface": 1},
            ],
            "routes": [{"dst": "0.0.0.0/0", "gw": "169.254.1.1", "mtu": 1400}, {"dst": "::/0", "gw": "fe80::1"}],
            "dns": {"nameservers": ["10.96.0.10"]},
        }))
        .unwrap()
    }

    #[test]
    fn the_newest_form_is_the_inner_one() {
        let json = example().to_json(Version::V1_1_0);
        assert_eq!(json["cniVersion"], "1.1.0");
        assert_eq!(json["interfaces"][1]["pciID"], "x");
        assert_eq!(json["routes"][0]["mtu"], 1400);
        assert_eq!(CniResult::parse(&json).unwrap(), example());
    }

    #[test]
    fn down_to_1_0_and_0_4() {
        let json = example().to_json(Version::V1_0_0);
        let eth0 = json!({"name": "eth0", "mac": "02:00:00:00:00:02", "sandbox": "/run/netns/p"});
        assert_eq!(json["interfaces"][1], eth0);
        assert_eq!(json["routes"][0], json!({"dst": "0.0.0.0/0", "gw": "169.254.1.1"}));
        assert_eq!(json["ips"][0].get("version"), None);
        let json = example().to_json(Version::V0_4_0);
        assert_eq!((&json["ips"][0]["version"], &json["ips"][1]["version"]), (&json!("4"), &json!("6")));
    }

    #[test]
    fn down_to_0_2_and_up_again() {
        let json = example().to_json(Version::V0_2_0);
        assert_eq!(
            json,
            json!({
                "cniVersion": "0.2.0",
                "ip4": {"ip": "10.0.0.5/32", "gateway": "169.254.1.1", "routes": [{"dst": "0.0.0.0/0", "gw": "169.254.1.1"}]},
                "ip6": {"ip": "fd00::5/128", "gateway": "fe80::1", "routes": [{"dst": "::/0", "gw": "fe80::1"}]},
                "dns": {"nameservers": ["10.96.0.10"]},
            })
        );
        let up = CniResult::parse(&json).unwrap();
        assert_eq!(
            up.ips.iter().map(|ip| ip.address).collect::<Vec<_>>(),
            example().ips.iter().map(|ip| ip.address).collect::<Vec<_>>()
        );
        assert_eq!(up.routes.len(), 2);
    }

    #[test]
    fn chaining_keeps_what_was_there_and_shifts_our_indices() {
        let previous = CniResult::parse(&json!({
            "interfaces": [{"name": "lo", "sandbox": "/run/netns/p"}],
            "ips": [{"address": "127.0.0.1/8", "interface": 0}],
            "dns": {"domain": "first"},
        }))
        .unwrap();
        let chained = example().chained_to(previous.clone());
        assert_eq!(chained.interfaces.len(), 3);
        assert_eq!(chained.ips.iter().map(|ip| ip.interface).collect::<Vec<_>>(), [Some(0), Some(2), Some(2)]);
        assert_eq!(chained.dns, example().dns);
        let without = CniResult { dns: Dns::default(), ..example() }.chained_to(previous.clone());
        assert_eq!(without.dns, previous.dns);
    }

    #[test]
    fn keys_that_are_null_are_not_there() {
        let value = json!({
            "interfaces": [{"name": "lo", "mac": null, "mtu": null, "sandbox": null, "pciID": null}],
            "ips": [{"address": "127.0.0.1/8", "gateway": null, "interface": null}],
            "routes": [{"dst": "0.0.0.0/0", "gw": null, "mtu": null}],
            "dns": {"nameservers": null, "domain": null, "search": null, "options": null},
            "ip4": null,
            "ip6": {"ip": "::1/128", "gateway": null, "routes": null},
        });
        let result = CniResult::parse(&value).unwrap();
        let expected = json!({
            "cniVersion": "1.1.0",
            "interfaces": [{"name": "lo"}],
            "ips": [{"address": "127.0.0.1/8"}, {"address": "::1/128"}],
            "routes": [{"dst": "0.0.0.0/0"}],
            "dns": {},
        });
        assert_eq!(result.to_json(Version::V1_1_0), expected);
        let nothing = json!({"interfaces": null, "ips": null, "routes": null, "dns": null});
        assert_eq!(CniResult::parse(&nothing).unwrap(), CniResult::default());
    }

    #[test]
    fn garbage_is_refused() {
        for value in [json!({"ips": "x"}), json!({"ips": [{"address": "10.0.0.300/8"}]}), json!({"ip4": {"ip": 4}})] {
            assert_eq!(CniResult::parse(&value).unwrap_err().code, Code::InvalidConfig, "{value}");
        }
    }
}
