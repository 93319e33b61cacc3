//! A dual-stack Service of any type, for tests and the demonstration.

use std::net::{IpAddr, SocketAddr};

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};

use super::manifest::{self, Port};
use super::{AsEndpoint, Endpoint, Lab, Node};
use crate::traffic::Family;

/// Kubernetes's maximum number of endpoints per slice.
const SLICE: usize = 100;

/// A Service, as in its manifest.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Service {
    object: Value,
    /// IPv4, IPv6.
    ips: [IpAddr; 2],
    slice: usize,
}

impl Service {
    /// A ClusterIP Service on `10.96.0.<number>` and `fd00:96::<number>`, TCP and UDP; the endpoints listen on
    /// `target`.
    pub fn new(name: &str, number: u8, port: u16, target: u16) -> Self {
        let ips = [[10, 96, 0, number].into(), [0xfd00, 0x96, 0, 0, 0, 0, 0, u16::from(number)].into()];
        let ports = [("tcp", "TCP"), ("udp", "UDP")].map(|(name, protocol)| Port { name, protocol, number: port });
        Self { object: manifest::service_object(name, &ips, &ports, target), ips, slice: SLICE }
    }

    /// A Service from a manifest; it must be dual-stack, and its ports must have the same number.
    pub fn from_object(object: Value) -> Result<Self> {
        let spec = &object["spec"];
        let mut ips: Vec<IpAddr> = serde_json::from_value(spec["clusterIPs"].clone()).context("clusterIPs")?;
        ips.sort();
        let ips: [IpAddr; 2] = ips.try_into().ok().context("it does not have two clusterIPs")?;
        ensure!(ips[0].is_ipv4() && ips[1].is_ipv6(), "it is not dual-stack");
        ensure!(object["metadata"]["name"].is_string(), "it has no name");
        let ports = spec["ports"].as_array().map_or(&[][..], Vec::as_slice);
        ensure!(!ports.is_empty(), "it has no port");
        for port in ports {
            ensure!(port["name"].is_string() && port["protocol"].is_string(), "a port has no name or protocol: {port}");
            for key in ["port", "targetPort"] {
                let number = port[key].as_u64().and_then(|number| u16::try_from(number).ok());
                ensure!(
                    number.is_some() && port[key] == ports[0][key],
                    "{key} is not the same number everywhere: {port}"
                );
            }
        }
        Ok(Self { object, ips, slice: SLICE })
    }

    /// Type NodePort, with this port.
    pub fn node_port(self, port: u16) -> Self {
        self.spec("type", json!("NodePort")).each_port("nodePort", json!(port))
    }

    /// Type LoadBalancer, with these addresses, and this NodePort; 0 allocates none.
    pub fn load_balancer(self, ips: &[IpAddr], node_port: u16) -> Self {
        let ingress: Vec<_> = ips.iter().map(|ip| json!({"ip": ip, "ipMode": "VIP"})).collect();
        let mut service = self.spec("type", json!("LoadBalancer"));
        service.object["status"] = json!({"loadBalancer": {"ingress": ingress}});
        if node_port == 0 {
            service.spec("allocateLoadBalancerNodePorts", json!(false))
        } else {
            service.each_port("nodePort", json!(node_port))
        }
    }

    /// `ipMode` of all load balancer addresses: `VIP` or `Proxy`.
    pub fn ip_mode(mut self, mode: &str) -> Self {
        if let Some(ingress) = self.object["status"]["loadBalancer"]["ingress"].as_array_mut() {
            ingress.iter_mut().for_each(|address| address["ipMode"] = json!(mode));
        }
        self
    }

    /// External IPs, which are routed to the nodes.
    pub fn external_ips(self, ips: &[IpAddr]) -> Self {
        self.spec("externalIPs", json!(ips))
    }

    /// externalTrafficPolicy: Local.
    pub fn external_local(self) -> Self {
        self.spec("externalTrafficPolicy", json!("Local"))
    }

    /// internalTrafficPolicy: Local.
    pub fn internal_local(self) -> Self {
        self.spec("internalTrafficPolicy", json!("Local"))
    }

    /// Session affinity with this timeout in seconds.
    pub fn affinity(self, seconds: u32) -> Self {
        self.spec("sessionAffinity", json!("ClientIP"))
            .spec("sessionAffinityConfig", json!({"clientIP": {"timeoutSeconds": seconds}}))
    }

    /// healthCheckNodePort.
    pub fn health_check(self, port: u16) -> Self {
        self.spec("healthCheckNodePort", json!(port))
    }

    /// loadBalancerSourceRanges.
    pub fn source_ranges(self, cidrs: &[&str]) -> Self {
        self.spec("loadBalancerSourceRanges", json!(cidrs))
    }

    /// `PreferSameZone`, `PreferSameNode` or the older `PreferClose`.
    pub fn distribution(self, preference: &str) -> Self {
        self.spec("trafficDistribution", json!(preference))
    }

    /// Adds a label.
    pub fn label(mut self, key: &str, value: &str) -> Self {
        self.object["metadata"]["labels"][key] = json!(value);
        self
    }

    /// Maximum number of endpoints per slice.
    pub fn slices_of(self, most: usize) -> Self {
        Self { slice: most, ..self }
    }

    fn spec(mut self, key: &str, value: Value) -> Self {
        self.object["spec"][key] = value;
        self
    }

    fn each_port(mut self, key: &str, value: Value) -> Self {
        if let Some(ports) = self.object["spec"]["ports"].as_array_mut() {
            ports.iter_mut().for_each(|port| port[key] = value.clone());
        }
        self
    }

    /// Its name in namespace `default`.
    pub fn name(&self) -> &str {
        self.object["metadata"]["name"].as_str().expect("a Service has a name")
    }

    /// Its address of a family.
    pub fn ip(&self, family: Family) -> IpAddr {
        self.ips[family as usize]
    }

    /// ClusterIP and port.
    pub fn addr(&self, family: Family) -> SocketAddr {
        (self.ip(family), self.port()).into()
    }

    /// Its port.
    pub fn port(&self) -> u16 {
        self.number("port")
    }

    /// The port on which its endpoints listen.
    pub fn target(&self) -> u16 {
        self.number("targetPort")
    }

    /// Its NodePort; 0 if it has none.
    pub fn at_nodes(&self) -> u16 {
        self.number("nodePort")
    }

    /// Its NodePort at a node's address.
    pub fn at(&self, node: &Node, family: Family) -> SocketAddr {
        (node.ip(family), self.at_nodes()).into()
    }

    /// Its load balancer address of a family, if any.
    pub fn ingress(&self, family: Family) -> Option<IpAddr> {
        let ingress = self.object["status"]["loadBalancer"]["ingress"].as_array()?;
        let ips = ingress.iter().filter_map(|address| address["ip"].as_str()?.parse().ok());
        ips.into_iter().find(|ip| Family::of(*ip) == family)
    }

    fn number(&self, key: &str) -> u16 {
        self.object["spec"]["ports"][0][key].as_u64().and_then(|number| u16::try_from(number).ok()).unwrap_or(0)
    }

    /// The Service as a manifest; `source_ip` is the annotation, unless it is the default.
    pub fn manifest(&self, source_ip: Option<&str>) -> String {
        let mut object = self.object.clone();
        manifest::annotate(&mut object, source_ip);
        manifest::yaml([&object])
    }

    /// Applies the Service to all nodes.
    pub fn apply(&self, lab: &Lab, source_ip: Option<&str>) -> Result<()> {
        lab.apply(self.name(), &self.manifest(source_ip))
    }

    /// Sets its endpoints on all nodes: addresses, pods, or [endpoints](Endpoint) in any state.
    pub fn set_endpoints<E: AsEndpoint>(&self, lab: &Lab, endpoints: &[E]) -> Result<()> {
        let endpoints: Vec<Endpoint> = endpoints.iter().map(|endpoint| endpoint.endpoint(lab)).collect();
        let ports = self.object["spec"]["ports"].as_array().map_or(&[][..], Vec::as_slice);
        let text = |port: &Value, key: &str| port[key].as_str().unwrap_or_default().to_owned();
        let ports: Vec<_> = ports.iter().map(|port| (text(port, "name"), text(port, "protocol"))).collect();
        let ports: Vec<_> =
            ports.iter().map(|(name, protocol)| Port { name, protocol, number: self.target() }).collect();
        let slices = manifest::slice_objects(self.name(), &ports, &endpoints, self.slice);
        lab.apply(&format!("{}-endpoints", self.name()), &manifest::yaml(&slices))
    }

    /// Deletes it and its endpoints on all nodes.
    pub fn delete(&self, lab: &Lab) -> Result<()> {
        lab.withdraw(self.name())?;
        lab.withdraw(&format!("{}-endpoints", self.name()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn object_matches_the_form_in_kubernetes() {
        let vips = ["198.51.100.1".parse().unwrap(), "2001:db8::1".parse().unwrap()];
        let service = Service::new("web", 10, 80, 8080)
            .load_balancer(&vips, 30_080)
            .ip_mode("Proxy")
            .external_local()
            .health_check(31_000)
            .affinity(5);
        let spec = &service.object["spec"];
        assert_eq!((&spec["type"], &spec["healthCheckNodePort"]), (&json!("LoadBalancer"), &json!(31_000)));
        assert_eq!(spec["sessionAffinityConfig"], json!({"clientIP": {"timeoutSeconds": 5}}));
        assert_eq!((service.port(), service.target(), service.at_nodes()), (80, 8080, 30_080));
        let ingress = &service.object["status"]["loadBalancer"]["ingress"];
        assert_eq!(ingress[1], json!({"ip": "2001:db8::1", "ipMode": "Proxy"}));
        let read: Value = serde_saphyr::from_str(&service.manifest(None)).unwrap();
        assert_eq!(Service::from_object(read).unwrap(), service);
        assert!(service.manifest(Some("snat")).contains("podnet.io/source-ip: snat"));
    }
}
