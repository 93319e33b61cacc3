//! Objects of a large cluster as an API server sends them, including all fields that podnet does not use.
//!
//! Of 50 services, one has 200 endpoints, in two slices, nine have 20 with hints for their own zones, and forty have
//! three. Pods are spread over all nodes, and nodes over three zones.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};

use serde_json::{Value, json};

/// Number of Services.
pub const SERVICES: usize = 10_000;
/// Total number of endpoints.
pub const ENDPOINTS: usize = 100_000;
/// Number of Nodes besides the one under test.
pub const NODES: usize = 5_000;
/// The zone of the node under test.
pub const ZONE: &str = ZONES[0];

const ZONES: [&str; 3] = ["eu-central-1a", "eu-central-1b", "eu-central-1c"];
const PORT: u16 = 80;
const TARGET: u16 = 8080;
/// Endpoints per slice: the maximum in Kubernetes.
const SLICE: usize = 100;
/// Number of services after which the sizes repeat, and the number of their endpoints.
const CYCLE: (usize, usize) = (50, 500);
/// Number of replacements after which a pod has its first address again.
const VERSIONS: u8 = 7;

/// A pod of a service, by its number in the service.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Member {
    /// Number of times it has been replaced.
    version: u8,
    /// The pod that it replaced is still terminating.
    replacing: bool,
}

/// The state of the cluster that can change: the pods of each service.
#[derive(Debug)]
pub struct Cluster {
    members: Vec<Vec<Member>>,
}

impl Cluster {
    /// A cluster without replaced pods.
    pub fn new() -> Self {
        let fresh = Member { version: 0, replacing: false };
        Self { members: (0..SERVICES).map(|service| vec![fresh; size(service)]).collect() }
    }

    /// The slices of a service.
    pub fn slices(&self, service: usize) -> impl Iterator<Item = Value> {
        let count = size(service).div_ceil(SLICE);
        (0..count).map(move |slice| self.slice(service, slice))
    }

    /// Replaces a pod that the node under test uses in one step, and returns the changed slice.
    pub fn replace_one(&mut self, service: usize, choice: usize) -> Value {
        let used: Vec<usize> = (0..size(service)).filter(|member| is_used(service, *member)).collect();
        let member = used[choice % used.len()];
        let changed = &mut self.members[service][member];
        changed.version = (changed.version + 1) % VERSIONS;
        self.slice(service, member / SLICE)
    }

    /// Continues a rolling update by a quarter (0 to 3) of the service's pods: new ones are ready, the old ones are
    /// terminating. Returns the changed slices; none if the quarter has no pods.
    pub fn roll(&mut self, service: usize, quarter: usize) -> Vec<Value> {
        let bound = |quarter: usize| (size(service) * quarter).div_ceil(4);
        let members = bound(quarter)..bound(quarter + 1);
        for member in &mut self.members[service][members.clone()] {
            *member = Member { version: (member.version + 1) % VERSIONS, replacing: true };
        }
        self.slices_of(service, members)
    }

    /// Removes the terminating pods and returns the changed slices.
    pub fn settle(&mut self, service: usize) -> Vec<Value> {
        let members = &mut self.members[service];
        let first = members.iter().position(|member| member.replacing).unwrap_or(members.len());
        let last = members.iter().rposition(|member| member.replacing).map_or(first, |last| last + 1);
        members.iter_mut().for_each(|member| member.replacing = false);
        self.slices_of(service, first..last)
    }

    fn slices_of(&self, service: usize, members: std::ops::Range<usize>) -> Vec<Value> {
        let slices = members.start / SLICE..members.end.div_ceil(SLICE);
        if members.is_empty() { Vec::new() } else { slices.map(|slice| self.slice(service, slice)).collect() }
    }

    /// Backends to which the node under test sends a service's clients.
    pub fn backends(&self, service: usize) -> impl Iterator<Item = IpAddr> {
        let members = self.members[service].iter().enumerate().filter(move |(member, _)| is_used(service, *member));
        members.map(move |(member, state)| address(pod(service, member), state.version))
    }

    fn slice(&self, service: usize, slice: usize) -> Value {
        let name = name(service);
        let mut endpoints = Vec::new();
        let members = self.members[service].iter().enumerate().skip(slice * SLICE).take(SLICE);
        for (member, &Member { version, replacing }) in members {
            let pod = pod(service, member);
            endpoints.push(endpoint(service, pod, version, true));
            if replacing {
                endpoints.push(endpoint(service, pod, (version + VERSIONS - 1) % VERSIONS, false));
            }
        }
        json!({
            "apiVersion": "discovery.k8s.io/v1",
            "kind": "EndpointSlice",
            "metadata": {
                "name": format!("{name}-{slice:05x}"),
                "generateName": format!("{name}-"),
                "namespace": "production",
                "uid": uid(4, service * 8 + slice),
                "generation": 17,
                "creationTimestamp": "2026-05-04T08:15:30Z",
                "labels": {
                    "app.kubernetes.io/instance": name,
                    "app.kubernetes.io/managed-by": "Helm",
                    "app.kubernetes.io/name": name,
                    "endpointslice.kubernetes.io/managed-by": "endpointslice-controller.k8s.io",
                    "helm.sh/chart": format!("{name}-1.17.3"),
                    "kubernetes.io/service-name": name,
                },
                "annotations": {"endpoints.kubernetes.io/last-change-trigger-time": "2026-11-21T12:00:00.123456Z"},
                "ownerReferences": [{
                    "apiVersion": "v1", "kind": "Service", "name": name, "uid": uid(3, service), "controller": true,
                    "blockOwnerDeletion": true,
                }],
                "managedFields": [managed("kube-controller-manager", &[
                    "f:addressType", "f:endpoints", "f:metadata", "f:annotations", "f:labels", "f:generateName",
                    "f:ownerReferences", "f:ports", "f:endpoints.kubernetes.io/last-change-trigger-time",
                    "f:endpointslice.kubernetes.io/managed-by", "f:kubernetes.io/service-name",
                    "k:{\"uid\":\"5b1f3c1e-7d2a-4a57-9e7e-d3a1a3c5e001\"}",
                ])],
            },
            "addressType": "IPv4",
            "ports": [{"name": "http", "protocol": "TCP", "port": TARGET}],
            "endpoints": endpoints,
        })
    }
}

/// Number of endpoints of a service.
fn size(service: usize) -> usize {
    match service % CYCLE.0 {
        0 => 200,
        1..10 => 20,
        _ => 3,
    }
}

fn is_hinted(service: usize) -> bool {
    size(service) == 20
}

/// Whether the node under test uses a member of a service.
fn is_used(service: usize, member: usize) -> bool {
    !is_hinted(service) || zone_of(node_of(pod(service, member))) == ZONE
}

/// Number of a service's pod among all pods.
fn pod(service: usize, member: usize) -> usize {
    let before: usize = (0..service % CYCLE.0).map(size).sum();
    service / CYCLE.0 * CYCLE.1 + before + member
}

const fn node_of(pod: usize) -> usize {
    pod % NODES
}

const fn zone_of(node: usize) -> &'static str {
    ZONES[node % ZONES.len()]
}

/// Address of a pod that has not been replaced.
pub fn address_of(pod: usize) -> IpAddr {
    address(pod, 0)
}

/// Address of a pod, by the number of its replacements.
fn address(pod: usize, version: u8) -> IpAddr {
    address_on(node_of(pod), 2 + (pod / NODES) as u8 + 32 * version)
}

/// An address in a node's pod CIDR.
pub fn address_on(node: usize, last: u8) -> IpAddr {
    let [high, low] = (node as u16).to_be_bytes();
    Ipv4Addr::new(10, 128 + high, low, last).into()
}

/// Address of a node. All nodes are on one link.
pub fn node_address(node: usize) -> IpAddr {
    Ipv4Addr::new(10, 100, (node / 250) as u8, 1 + (node % 250) as u8).into()
}

/// Address and port of a service.
pub fn frontend(service: usize) -> SocketAddr {
    let [high, low] = (service as u16).to_be_bytes();
    (Ipv4Addr::new(10, 96, high, low), PORT).into()
}

fn name(service: usize) -> String {
    format!("checkout-backend-{service:05}")
}

/// Name of a node.
pub fn node_name(node: usize) -> String {
    format!("ip-10-100-{}-{}.eu-central-1.compute.internal", node / 250, 1 + node % 250)
}

/// A uid of an object of a kind.
pub fn uid(kind: usize, number: usize) -> String {
    format!("{number:08x}-7d2a-4{kind:03x}-9e7e-{:012x}", (number + 1) * 2_654_435_761 % (1 << 48))
}

fn endpoint(service: usize, pod: usize, version: u8, ready: bool) -> Value {
    let node = node_of(pod);
    let zone = zone_of(node);
    let name = format!("{}-6f7d9c8b5{version}-{:05x}", name(service), pod);
    let mut endpoint = json!({
        "addresses": [address(pod, version)],
        "conditions": {"ready": ready, "serving": true, "terminating": !ready},
        "nodeName": node_name(node),
        "targetRef": {"kind": "Pod", "namespace": "production", "name": name, "uid": uid(5, pod)},
        "zone": zone,
    });
    if is_hinted(service) {
        endpoint["hints"] = json!({"forZones": [{"name": zone}]});
    }
    endpoint
}

/// A Service.
pub fn service(service: usize) -> Value {
    let (name, addr) = (name(service), frontend(service).ip());
    json!({
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {
            "name": name,
            "namespace": "production",
            "uid": uid(3, service),
            "creationTimestamp": "2026-05-04T08:15:30Z",
            "labels": {
                "app.kubernetes.io/instance": name,
                "app.kubernetes.io/managed-by": "Helm",
                "app.kubernetes.io/name": name,
                "helm.sh/chart": format!("{name}-1.17.3"),
            },
            "annotations": {
                "meta.helm.sh/release-name": name,
                "meta.helm.sh/release-namespace": "production",
                "prometheus.io/port": "9090",
                "prometheus.io/scrape": "true",
            },
            "managedFields": [managed("helm", &[
                "f:metadata", "f:annotations", "f:meta.helm.sh/release-name", "f:meta.helm.sh/release-namespace",
                "f:prometheus.io/port", "f:prometheus.io/scrape", "f:labels", "f:app.kubernetes.io/instance",
                "f:app.kubernetes.io/managed-by", "f:app.kubernetes.io/name", "f:helm.sh/chart", "f:spec",
                "f:internalTrafficPolicy", "f:ports", "k:{\"port\":80,\"protocol\":\"TCP\"}", "f:selector",
                "f:sessionAffinity", "f:type",
            ])],
        },
        "spec": {
            "type": "ClusterIP",
            "clusterIP": addr,
            "clusterIPs": [addr],
            "internalTrafficPolicy": "Cluster",
            "ipFamilies": ["IPv4"],
            "ipFamilyPolicy": "SingleStack",
            "ports": [{"name": "http", "protocol": "TCP", "port": PORT, "targetPort": "http"}],
            "selector": {"app.kubernetes.io/instance": name, "app.kubernetes.io/name": name},
            "sessionAffinity": "None",
        },
        "status": {"loadBalancer": {}},
    })
}

/// A Node as written by its kubelet, at heartbeat number `beat`.
pub fn node(node: usize, beat: usize) -> Value {
    let (name, address) = (node_name(node), node_address(node));
    let cidr = format!("{}/24", address_on(node, 0));
    let time = format!("2026-11-21T{:02}:{:02}:{:02}Z", beat / 3600 % 24, beat / 60 % 60, beat % 60);
    let condition = |kind: &str, status: &str, reason: &str, message: &str| {
        json!({
            "type": kind, "status": status, "reason": reason, "message": message, "lastHeartbeatTime": time,
            "lastTransitionTime": "2026-05-04T08:15:30Z",
        })
    };
    // The kubelet reports up to 50.
    let images: Vec<Value> = (0..50)
        .map(|image| {
            let repository = format!("registry.example.com/platform/team-{}/service-{image}", image % 7);
            let digest =
                format!("{:064x}", (image as u128 + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15_f39c_c060_5ced_c835));
            json!({
                "names": [format!("{repository}@sha256:{digest}"), format!("{repository}:v1.{image}.{}", node % 10)],
                "sizeBytes": 20_000_000 + image * 1_234_567,
            })
        })
        .collect();
    let resources = json!({
        "attachable-volumes-aws-ebs": "25", "cpu": "15890m", "ephemeral-storage": "95551679124", "hugepages-1Gi": "0",
        "hugepages-2Mi": "0", "memory": "63210Mi", "pods": "110",
    });
    json!({
        "apiVersion": "v1",
        "kind": "Node",
        "metadata": {
            "name": name,
            "uid": uid(2, node),
            "creationTimestamp": "2026-05-04T08:15:30Z",
            "labels": {
                "beta.kubernetes.io/arch": "amd64",
                "beta.kubernetes.io/instance-type": "m6i.4xlarge",
                "beta.kubernetes.io/os": "linux",
                "failure-domain.beta.kubernetes.io/region": "eu-central-1",
                "failure-domain.beta.kubernetes.io/zone": zone_of(node),
                "kubernetes.io/arch": "amd64",
                "kubernetes.io/hostname": name,
                "kubernetes.io/os": "linux",
                "node.kubernetes.io/instance-type": "m6i.4xlarge",
                "topology.ebs.csi.aws.com/zone": zone_of(node),
                "topology.kubernetes.io/region": "eu-central-1",
                "topology.kubernetes.io/zone": zone_of(node),
            },
            "annotations": {
                "alpha.kubernetes.io/provided-node-ip": address,
                "csi.volume.kubernetes.io/nodeid": format!("{{\"ebs.csi.aws.com\":\"i-{node:017x}\"}}"),
                "node.alpha.kubernetes.io/ttl": "300",
                "volumes.kubernetes.io/controller-managed-attach-detach": "true",
            },
            "managedFields": [
                managed("kubelet", &[
                    "f:metadata", "f:annotations", "f:csi.volume.kubernetes.io/nodeid", "f:labels", "f:status",
                    "f:allocatable", "f:capacity", "f:conditions", "k:{\"type\":\"DiskPressure\"}",
                    "f:lastHeartbeatTime", "k:{\"type\":\"MemoryPressure\"}", "k:{\"type\":\"PIDPressure\"}",
                    "k:{\"type\":\"Ready\"}", "f:lastTransitionTime", "f:message", "f:reason", "f:status", "f:images",
                ]),
                managed("kube-controller-manager", &["f:metadata", "f:annotations", "f:spec", "f:podCIDR", "f:podCIDRs"]),
            ],
        },
        "spec": {"podCIDR": cidr, "podCIDRs": [cidr], "providerID": format!("aws:///{}/i-{node:017x}", zone_of(node))},
        "status": {
            "addresses": [
                {"type": "InternalIP", "address": address},
                {"type": "InternalDNS", "address": name},
                {"type": "Hostname", "address": name},
            ],
            "allocatable": resources,
            "capacity": resources,
            "conditions": [
                condition("MemoryPressure", "False", "KubeletHasSufficientMemory", "kubelet has sufficient memory available"),
                condition("DiskPressure", "False", "KubeletHasNoDiskPressure", "kubelet has no disk pressure"),
                condition("PIDPressure", "False", "KubeletHasSufficientPID", "kubelet has sufficient PID available"),
                condition("Ready", "True", "KubeletReady", "kubelet is posting ready status"),
            ],
            "daemonEndpoints": {"kubeletEndpoint": {"Port": 10250}},
            "images": images,
            "nodeInfo": {
                "architecture": "amd64", "bootID": uid(6, node), "containerRuntimeVersion": "containerd://2.1.4",
                "kernelVersion": "6.12.41+deb13-cloud-amd64", "kubeProxyVersion": "", "kubeletVersion": "v1.36.1",
                "machineID": format!("{:032x}", node + 1), "operatingSystem": "linux",
                "osImage": "Debian GNU/Linux 13 (trixie)", "systemUUID": uid(7, node), "swap": {"capacity": 0},
            },
            "runtimeHandlers": [{"name": "", "features": {"recursiveReadOnlyMounts": true, "userNamespaces": true}}],
        },
    })
}

/// `managedFields`, which API servers keep for every object.
pub fn managed(manager: &str, fields: &[&str]) -> Value {
    let fields: serde_json::Map<String, Value> =
        fields.iter().map(|field| (field.to_string(), json!({".": {}, "f:value": {}}))).collect();
    json!({
        "manager": manager, "operation": "Update", "apiVersion": "v1", "time": "2026-11-21T12:00:00Z",
        "fieldsType": "FieldsV1", "fieldsV1": fields,
    })
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn cluster_has_the_stated_size() {
        assert_eq!((0..SERVICES).map(size).sum::<usize>(), ENDPOINTS);
        assert_eq!(pod(SERVICES - 1, size(SERVICES - 1) - 1), ENDPOINTS - 1);
        let addresses: BTreeSet<_> = (0..ENDPOINTS).map(|pod| address(pod, VERSIONS - 1)).collect();
        assert_eq!(addresses.len(), ENDPOINTS, "pods have addresses of their own");
        assert!((0..SERVICES).all(|service| (0..size(service)).any(|member| is_used(service, member))));
        let kib = |value: &Value| value.to_string().len() / 1024;
        assert!((10..40).contains(&kib(&node(7, 1))), "{} KiB", kib(&node(7, 1)));
    }

    #[test]
    fn rolling_update_replaces_every_pod_once() {
        let mut cluster = Cluster::new();
        for service in [0, 1, 10] {
            let before: BTreeSet<_> = cluster.backends(service).collect();
            for quarter in 0..4 {
                let rolled = cluster.roll(service, quarter);
                let settled = cluster.settle(service);
                assert_eq!(rolled.len(), settled.len());
                let count = |slices: &[Value]| {
                    slices.iter().map(|slice| slice["endpoints"].as_array().unwrap().len()).sum::<usize>()
                };
                assert!(rolled.is_empty() || count(&rolled) > count(&settled), "some are on their way out");
            }
            assert!(cluster.backends(service).all(|after| !before.contains(&after)));
            assert!(cluster.members[service].iter().all(|member| *member == Member { version: 1, replacing: false }));
        }
    }
}
