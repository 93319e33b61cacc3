//! The values of capabilities (`runtimeConfig`): parsed and validated.

use std::net::IpAddr;

use ipnetwork::IpNetwork;
use podnet_common::addr::Mac;
use serde::Deserialize;

use crate::alloc::Pool;
use crate::bandwidth::{Bandwidth, Limit};
use crate::error::CniError;
use crate::mac;
use crate::record::PortMapping;
use crate::result::Dns;

/// Validated values of capabilities, but for `dns`.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Runtime {
    /// `portMappings`.
    pub port_mappings: Vec<PortMapping>,
    /// `ips`.
    pub ips: Vec<IpAddr>,
    /// `mac`.
    pub mac: Option<Mac>,
    /// `bandwidth`.
    pub bandwidth: Bandwidth,
    /// `ipRanges`: pools instead of the pod CIDRs; empty if not given.
    pub pools: Vec<Pool>,
}

/// `runtimeConfig` as the runtime writes it. containerd's library spells the keys of capabilities like Go field names;
/// Go's decoder ignores case.
#[derive(Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub(super) struct RawRuntime {
    port_mappings: Option<Vec<RawPortMapping>>,
    ips: Option<Vec<String>>,
    mac: Option<String>,
    ip_ranges: Option<Vec<Vec<RawRange>>>,
    dns: Option<RawDns>,
    bandwidth: Option<RawBandwidth>,
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct RawBandwidth {
    #[serde(alias = "IngressRate")]
    ingress_rate: Option<i64>,
    #[serde(alias = "IngressBurst")]
    ingress_burst: Option<i64>,
    #[serde(alias = "EgressRate")]
    egress_rate: Option<i64>,
    #[serde(alias = "EgressBurst")]
    egress_burst: Option<i64>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct RawPortMapping {
    #[serde(alias = "HostPort")]
    host_port: i64,
    #[serde(alias = "ContainerPort")]
    container_port: i64,
    #[serde(alias = "Protocol")]
    protocol: Option<String>,
    #[serde(rename = "hostIP", alias = "HostIP")]
    host_ip: Option<String>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct RawRange {
    #[serde(alias = "Subnet")]
    subnet: IpNetwork,
    #[serde(alias = "RangeStart")]
    range_start: Option<IpAddr>,
    #[serde(alias = "RangeEnd")]
    range_end: Option<IpAddr>,
}

/// The `dns` capability. Its keys differ from those of `dns` in results.
#[derive(Default, Deserialize)]
#[serde(default)]
struct RawDns {
    // Null if the pod has none: Go's encoding of a nil slice.
    #[serde(alias = "Servers")]
    servers: Option<Vec<String>>,
    #[serde(alias = "Searches")]
    searches: Option<Vec<String>>,
    #[serde(alias = "Options")]
    options: Option<Vec<String>>,
}

impl RawRuntime {
    /// Resolver settings for the result, if the runtime passes any.
    pub(super) fn dns(&self) -> Option<Dns> {
        let dns = self.dns.as_ref()?;
        let list = |list: &Option<Vec<String>>| list.clone().unwrap_or_default();
        let (nameservers, search, options) = (list(&dns.servers), list(&dns.searches), list(&dns.options));
        Some(Dns { nameservers, domain: None, search, options })
    }

    /// Everything but the resolver settings.
    pub(super) fn validate(self) -> Result<Runtime, CniError> {
        let mac = |text: String| {
            mac::parse(&text).filter(|m| mac::is_unicast(*m)).ok_or_else(|| {
                CniError::invalid_config(format!("runtimeConfig.mac `{text}` is not a unicast MAC address"))
            })
        };
        let ip = |text: String| {
            let bare = text.split('/').next().unwrap_or_default();
            let prefix = !text.contains('/') || text.parse::<IpNetwork>().is_ok();
            bare.parse::<IpAddr>()
                .ok()
                .filter(|_| prefix)
                .ok_or_else(|| CniError::invalid_config(format!("runtimeConfig.ips: `{text}` is not an address")))
        };
        let pool = |set: Vec<RawRange>| {
            let parts: Vec<_> = set.into_iter().map(|r| (r.subnet, r.range_start, r.range_end)).collect();
            Pool::from_ranges(&parts).map_err(CniError::from)
        };
        Ok(Runtime {
            port_mappings: port_mappings(self.port_mappings.unwrap_or_default())?,
            ips: self.ips.unwrap_or_default().into_iter().map(ip).collect::<Result<_, _>>()?,
            mac: self.mac.filter(|m| !m.is_empty()).map(mac).transpose()?,
            bandwidth: self.bandwidth.unwrap_or_default().validate()?,
            pools: self.ip_ranges.unwrap_or_default().into_iter().map(pool).collect::<Result<_, _>>()?,
        })
    }
}

impl RawBandwidth {
    fn validate(self) -> Result<Bandwidth, CniError> {
        let limit = |direction: &str, rate: Option<i64>, burst: Option<i64>| {
            Limit::parse(direction, rate.unwrap_or_default(), burst.unwrap_or_default())
        };
        Ok(Bandwidth {
            ingress: limit("ingress", self.ingress_rate, self.ingress_burst)?,
            egress: limit("egress", self.egress_rate, self.egress_burst)?,
        })
    }
}

fn port_mappings(raw: Vec<RawPortMapping>) -> Result<Vec<PortMapping>, CniError> {
    let mut mappings: Vec<PortMapping> = Vec::new();
    // Runtimes also list container ports without a host port.
    for mapping in raw.into_iter().filter(|m| m.host_port != 0) {
        let mapping = mapping.validate()?;
        let key = |m: &PortMapping| (m.host_port, m.host_ip) == (mapping.host_port, mapping.host_ip);
        match mappings.iter().find(|m| key(m) && m.protocol == mapping.protocol) {
            None => mappings.push(mapping),
            Some(same) if *same == mapping => {}
            Some(other) => {
                let ports = format!("{} and {}", other.container_port, mapping.container_port);
                return Err(CniError::invalid_config(format!(
                    "runtimeConfig.portMappings: hostPort {mapping} is mapped to both {ports}"
                )));
            }
        }
    }
    Ok(mappings)
}

impl RawPortMapping {
    fn validate(self) -> Result<PortMapping, CniError> {
        let port = |key: &str, port: i64| {
            u16::try_from(port).ok().filter(|p| *p != 0).ok_or_else(|| {
                CniError::invalid_config(format!("runtimeConfig.portMappings: {key} {port} is not between 1 and 65535"))
            })
        };
        let protocol = self.protocol.filter(|p| !p.is_empty()).unwrap_or_else(|| "tcp".into()).to_ascii_lowercase();
        if !["tcp", "udp", "sctp"].contains(&protocol.as_str()) {
            return Err(CniError::invalid_config(format!(
                "runtimeConfig.portMappings: protocol `{protocol}` is not tcp, udp or sctp"
            )));
        }
        let host_ip = |text: String| {
            let ip = text.parse::<IpAddr>().ok().map(|ip| ip.to_canonical()).filter(|ip| !ip.is_multicast());
            ip.ok_or_else(|| {
                CniError::invalid_config(format!(
                    "runtimeConfig.portMappings: hostIP `{text}` is not a unicast IP address"
                ))
            })
        };
        Ok(PortMapping {
            host_port: port("hostPort", self.host_port)?,
            container_port: port("containerPort", self.container_port)?,
            protocol,
            host_ip: self.host_ip.filter(|ip| !ip.is_empty()).map(host_ip).transpose()?,
        })
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn parse(capabilities: Value) -> (Runtime, Dns) {
        let raw: RawRuntime = serde_json::from_value(capabilities).unwrap();
        let dns = raw.dns().unwrap_or_default();
        (raw.validate().unwrap(), dns)
    }

    #[test]
    fn capabilities_may_be_spelled_as_go_does() {
        let (runtime, dns) = parse(json!({
            "portMappings": [{"HostPort": 8080, "ContainerPort": 80, "Protocol": "tcp", "HostIP": "192.0.2.1"}],
            "dns": {"Servers": ["10.96.0.10"], "Searches": ["svc"], "Options": ["ndots:5"]},
            "bandwidth": {"IngressRate": 10_000_000, "IngressBurst": 4_294_967_295u32, "EgressRate": 0, "EgressBurst": null},
        }));
        let ingress = Some(Limit { rate: 10_000_000, burst: u32::MAX.into() });
        assert_eq!(runtime.bandwidth, Bandwidth { ingress, egress: None });
        assert_eq!(runtime.port_mappings[0].to_string(), "8080/tcp of 192.0.2.1");
        assert_eq!((dns.nameservers, dns.options), (vec!["10.96.0.10".to_owned()], vec!["ndots:5".to_owned()]));
    }

    #[test]
    fn a_pod_without_resolver_settings_has_null_for_them() {
        let (_, dns) = parse(json!({
            "dns": {"Servers": ["10.96.0.10"], "Searches": null, "Options": null},
            "portMappings": null, "ips": null, "ipRanges": null,
        }));
        assert_eq!((dns.nameservers.len(), dns.search.len(), dns.options.len()), (1, 0, 0));
    }

    #[test]
    fn capabilities() {
        let (runtime, dns) = parse(json!({
            "portMappings": [
                {"hostPort": 8080, "containerPort": 80, "protocol": "TCP", "hostIP": ""},
                {"hostPort": 53, "containerPort": 53, "protocol": "udp", "hostIP": "192.0.2.1"},
                {"hostPort": 0, "containerPort": 81},
                {"hostPort": 8080, "containerPort": 80, "protocol": "tcp"},
                {"hostPort": 53, "containerPort": 54, "protocol": "Udp", "hostIP": "::ffff:192.0.2.2"},
                {"hostPort": 65535, "containerPort": 65535, "protocol": "SCTP", "hostIP": "::"},
            ],
            "ips": ["10.0.0.9/24", "fd00::9"],
            "mac": "02:11:22:33:44:55",
            "ipRanges": [[{"subnet": "10.0.0.0/24", "rangeStart": "10.0.0.8", "rangeEnd": "10.0.0.9"}]],
            "dns": {"servers": ["10.96.0.10"], "searches": ["svc"], "options": ["ndots:5"]},
        }));
        let mappings: Vec<_> = runtime.port_mappings.iter().map(ToString::to_string).collect();
        assert_eq!(mappings, ["8080/tcp", "53/udp of 192.0.2.1", "53/udp of 192.0.2.2", "65535/sctp of ::"]);
        assert_eq!(runtime.ips, ["10.0.0.9", "fd00::9"].map(|ip| ip.parse::<IpAddr>().unwrap()));
        assert_eq!(runtime.mac, Some(Mac([2, 0x11, 0x22, 0x33, 0x44, 0x55])));
        assert!(runtime.pools[0].contains("10.0.0.8".parse().unwrap()));
        assert!(!runtime.pools[0].contains("10.0.0.10".parse().unwrap()));
        assert_eq!((dns.nameservers, dns.domain), (vec!["10.96.0.10".to_owned()], None));
    }
}
