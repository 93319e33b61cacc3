//! The rules that kube-proxy loads for a set of ClusterIP and NodePort services, in its iptables and its nftables mode.
//!
//! Modelled on the expectations in kube-proxy's own tests: the same chains at the same hooks with the same matches, in
//! the same order, with local traffic detected by cluster CIDR. Rules that the services here never use are omitted:
//! load balancer addresses and affinity. Endpoint selection, hairpin marks and masquerade are complete. Like
//! kube-proxy, the iptables rules have no comments from 1,000 endpoints on.
//!
//! One rule is not kube-proxy's: masquerade of pods' traffic to destinations outside the cluster, which is a task of
//! pod networks, in its shortest form.

use std::{fmt::Write as _, net::SocketAddrV4};

use ipnetwork::Ipv4Network;

/// A mode of kube-proxy.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Mode {
    /// iptables-restore, in the variant installed on the system.
    Iptables,
    /// nft.
    Nftables,
}

/// A service port with its endpoints.
#[derive(Clone, Debug)]
pub struct ServicePort {
    /// Namespace, service and port as `namespace/service:port`.
    pub name: String,
    /// `tcp` or `udp`.
    pub protocol: &'static str,
    /// ClusterIP and port.
    pub frontend: SocketAddrV4,
    /// Endpoints of the port.
    pub endpoints: Vec<SocketAddrV4>,
    /// NodePort, if any.
    pub node_port: Option<NodePort>,
}

/// A port of every node.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NodePort {
    /// Its number.
    pub number: u16,
    /// With externalTrafficPolicy: Local.
    pub local: bool,
}

/// Cluster properties on which the rules depend.
#[derive(Clone, Debug)]
pub struct Cluster {
    /// The pods' network: traffic from elsewhere is masqueraded.
    pub pods: &'static str,
    /// The network of ClusterIPs.
    pub services: &'static str,
    /// The node's own address, which accepts NodePorts.
    pub node: String,
    /// The network of the pods on this node.
    pub local_pods: Ipv4Network,
}

impl Cluster {
    /// Indices of the endpoints on this node.
    fn endpoints_here(&self, port: &ServicePort) -> Vec<usize> {
        (0..port.endpoints.len()).filter(|j| self.local_pods.contains(*port.endpoints[*j].ip())).collect()
    }

    /// The NodePort if it has externalTrafficPolicy Local and no endpoint on this node, so that its packets are
    /// dropped.
    fn drops(&self, port: &ServicePort) -> Option<NodePort> {
        port.node_port.filter(|node_port| node_port.local && self.endpoints_here(port).is_empty())
    }
}

/// Number of endpoints from which kube-proxy omits comments in iptables rules.
const LARGE_CLUSTER: usize = 1000;

/// Input for `iptables-restore`.
pub fn iptables(cluster: &Cluster, ports: &[ServicePort]) -> String {
    let large = ports.iter().map(|p| p.endpoints.len()).sum::<usize>() > LARGE_CLUSTER;
    let comment = |text: &str| if large { String::new() } else { format!(" -m comment --comment \"{text}\"") };
    let mut out = String::from(
        "*filter\n:INPUT ACCEPT [0:0]\n:FORWARD ACCEPT [0:0]\n:OUTPUT ACCEPT [0:0]\n\
         :KUBE-NODEPORTS - [0:0]\n:KUBE-SERVICES - [0:0]\n:KUBE-EXTERNAL-SERVICES - [0:0]\n:KUBE-FIREWALL - [0:0]\n\
         :KUBE-FORWARD - [0:0]\n:KUBE-PROXY-FIREWALL - [0:0]\n",
    );
    for (chain, conditions, why, target) in [
        ("INPUT", "-m conntrack --ctstate NEW ", "kubernetes load balancer firewall", "KUBE-PROXY-FIREWALL"),
        ("INPUT", "", "kubernetes health check service ports", "KUBE-NODEPORTS"),
        (
            "INPUT",
            "-m conntrack --ctstate NEW ",
            "kubernetes externally-visible service portals",
            "KUBE-EXTERNAL-SERVICES",
        ),
        ("INPUT", "", "", "KUBE-FIREWALL"),
        ("FORWARD", "-m conntrack --ctstate NEW ", "kubernetes load balancer firewall", "KUBE-PROXY-FIREWALL"),
        ("FORWARD", "", "kubernetes forwarding rules", "KUBE-FORWARD"),
        ("FORWARD", "-m conntrack --ctstate NEW ", "kubernetes service portals", "KUBE-SERVICES"),
        (
            "FORWARD",
            "-m conntrack --ctstate NEW ",
            "kubernetes externally-visible service portals",
            "KUBE-EXTERNAL-SERVICES",
        ),
        ("OUTPUT", "-m conntrack --ctstate NEW ", "kubernetes load balancer firewall", "KUBE-PROXY-FIREWALL"),
        ("OUTPUT", "-m conntrack --ctstate NEW ", "kubernetes service portals", "KUBE-SERVICES"),
        ("OUTPUT", "", "", "KUBE-FIREWALL"),
    ] {
        let comment = if why.is_empty() { String::new() } else { format!("-m comment --comment \"{why}\" ") };
        let _ = writeln!(out, "-A {chain} {conditions}{comment}-j {target}");
    }
    out.push_str(
        "-A KUBE-FIREWALL -m comment --comment \"block incoming localnet connections\" -d 127.0.0.0/8 \
         ! -s 127.0.0.0/8 -m conntrack ! --ctstate RELATED,ESTABLISHED,DNAT -j DROP\n\
         -A KUBE-FORWARD -m conntrack --ctstate INVALID -j DROP\n\
         -A KUBE-FORWARD -m comment --comment \"kubernetes forwarding rules\" -m mark --mark 0x4000/0x4000 -j ACCEPT\n\
         -A KUBE-FORWARD -m comment --comment \"kubernetes forwarding conntrack rule\" -m conntrack \
         --ctstate RELATED,ESTABLISHED -j ACCEPT\n",
    );
    for port in ports {
        if let Some(NodePort { number, .. }) = cluster.drops(port) {
            let why = comment(&format!("{} has no local endpoints", port.name));
            let p = port.protocol;
            let _ = writeln!(
                out,
                "-A KUBE-EXTERNAL-SERVICES{why} -m addrtype --dst-type LOCAL -m {p} -p {p} --dport {number} -j DROP"
            );
        }
    }
    out.push_str(
        "COMMIT\n\
         *nat\n:PREROUTING ACCEPT [0:0]\n:INPUT ACCEPT [0:0]\n:OUTPUT ACCEPT [0:0]\n:POSTROUTING ACCEPT [0:0]\n\
         :KUBE-NODEPORTS - [0:0]\n:KUBE-SERVICES - [0:0]\n:KUBE-MARK-MASQ - [0:0]\n:KUBE-POSTROUTING - [0:0]\n",
    );
    for (i, port) in ports.iter().enumerate() {
        let _ = writeln!(out, ":{} - [0:0]", service_chain(i));
        if let Some(NodePort { local, .. }) = port.node_port {
            let _ = writeln!(out, ":{} - [0:0]", external_chain(i));
            if local {
                let _ = writeln!(out, ":{} - [0:0]", local_chain(i));
            }
        }
        for j in 0..port.endpoints.len() {
            let _ = writeln!(out, ":{} - [0:0]", endpoint_chain(i, j));
        }
    }
    out.push_str(
        "-A PREROUTING -m comment --comment \"kubernetes service portals\" -j KUBE-SERVICES\n\
         -A OUTPUT -m comment --comment \"kubernetes service portals\" -j KUBE-SERVICES\n\
         -A POSTROUTING -m comment --comment \"kubernetes postrouting rules\" -j KUBE-POSTROUTING\n\
         -A KUBE-POSTROUTING -m mark ! --mark 0x4000/0x4000 -j RETURN\n\
         -A KUBE-POSTROUTING -j MARK --xor-mark 0x4000\n\
         -A KUBE-POSTROUTING -m comment --comment \"kubernetes service traffic requiring SNAT\" -j MASQUERADE --random-fully\n\
         -A KUBE-MARK-MASQ -j MARK --or-mark 0x4000\n",
    );
    let _ = writeln!(out, "-A POSTROUTING -s {0} ! -d {0} -j MASQUERADE --random-fully", cluster.pods);
    for (i, port) in ports.iter().enumerate() {
        let ServicePort { name, protocol: p, frontend, endpoints, .. } = port;
        let chain = service_chain(i);
        let cluster_ip = comment(&format!("{name} cluster IP"));
        let matches = format!("-m {p} -p {p} -d {} --dport {}", frontend.ip(), frontend.port());
        let _ = writeln!(out, "-A KUBE-SERVICES{cluster_ip} {matches} -j {chain}");
        let _ = writeln!(out, "-A {chain}{cluster_ip} {matches} ! -s {} -j KUBE-MARK-MASQ", cluster.pods);
        iptables_choice(&mut out, i, &chain, &(0..endpoints.len()).collect::<Vec<_>>(), port, &comment);
        if let Some(node_port) = port.node_port {
            iptables_node_port(&mut out, cluster, i, node_port, port, &comment);
        }
        for (j, endpoint) in endpoints.iter().enumerate() {
            let chain = endpoint_chain(i, j);
            let name = comment(name);
            let _ = writeln!(out, "-A {chain}{name} -s {} -j KUBE-MARK-MASQ", endpoint.ip());
            let _ = writeln!(out, "-A {chain}{name} -m {p} -p {p} -j DNAT --to-destination {endpoint}");
        }
    }
    out.push_str(
        "-A KUBE-SERVICES -m comment --comment \"kubernetes service nodeports; NOTE: this must be the last rule in this \
         chain\" -m addrtype --dst-type LOCAL -j KUBE-NODEPORTS\nCOMMIT\n",
    );
    out
}

/// A chain that selects one of several endpoints with equal probability.
fn iptables_choice(
    out: &mut String,
    service: usize,
    chain: &str,
    endpoints: &[usize],
    port: &ServicePort,
    comment: &dyn Fn(&str) -> String,
) {
    for (n, j) in endpoints.iter().enumerate() {
        let to = comment(&format!("{} -> {}", port.name, port.endpoints[*j]));
        let chance = match endpoints.len() - n {
            1 => String::new(),
            left => format!(" -m statistic --mode random --probability {:.10}", 1.0 / left as f64),
        };
        let _ = writeln!(out, "-A {chain}{to}{chance} -j {}", endpoint_chain(service, *j));
    }
}

/// Chains for external traffic.
fn iptables_node_port(
    out: &mut String,
    cluster: &Cluster,
    service: usize,
    NodePort { number, local }: NodePort,
    port: &ServicePort,
    comment: &dyn Fn(&str) -> String,
) {
    let ServicePort { name, protocol: p, .. } = port;
    let (external, chain, pods) = (external_chain(service), service_chain(service), cluster.pods);
    let _ = writeln!(out, "-A KUBE-NODEPORTS{} -m {p} -p {p} --dport {number} -j {external}", comment(name));
    let traffic = |what: &str| comment(&format!("{what} traffic for {name} external destinations"));
    if !local {
        let _ = writeln!(out, "-A {external}{} -j KUBE-MARK-MASQ", traffic("masquerade"));
        let _ = writeln!(out, "-A {external} -j {chain}");
        return;
    }
    let by_host = "-m addrtype --src-type LOCAL";
    let _ = writeln!(out, "-A {external}{} -s {pods} -j {chain}", traffic("pod"));
    let _ = writeln!(out, "-A {external}{} {by_host} -j KUBE-MARK-MASQ", traffic("masquerade LOCAL"));
    let _ = writeln!(out, "-A {external}{} {by_host} -j {chain}", traffic("route LOCAL"));
    let here = cluster.endpoints_here(port);
    if !here.is_empty() {
        let _ = writeln!(out, "-A {external} -j {}", local_chain(service));
        iptables_choice(out, service, &local_chain(service), &here, port, comment);
    }
}

fn service_chain(service: usize) -> String {
    format!("KUBE-SVC-{service:0>16}")
}

fn external_chain(service: usize) -> String {
    format!("KUBE-EXT-{service:0>16}")
}

fn local_chain(service: usize) -> String {
    format!("KUBE-SVL-{service:0>16}")
}

fn endpoint_chain(service: usize, endpoint: usize) -> String {
    format!("KUBE-SEP-{service:0>11}X{endpoint:0>4}")
}

/// Input for `nft -f`.
pub fn nftables(cluster: &Cluster, ports: &[ServicePort]) -> String {
    let address = "ipv4_addr . inet_proto . inet_service";
    let mut out = format!(
        "add table ip kube-proxy\n\
         add set ip kube-proxy cluster-ips {{ type ipv4_addr ; }}\n\
         add set ip kube-proxy nodeport-ips {{ type ipv4_addr ; }}\n\
         add map ip kube-proxy firewall-ips {{ type {address} : verdict ; }}\n\
         add map ip kube-proxy no-endpoint-nodeports {{ type inet_proto . inet_service : verdict ; }}\n\
         add map ip kube-proxy no-endpoint-services {{ type {address} : verdict ; }}\n\
         add map ip kube-proxy service-ips {{ type {address} : verdict ; }}\n\
         add map ip kube-proxy service-nodeports {{ type inet_proto . inet_service : verdict ; }}\n"
    );
    for chain in [
        "cluster-ips-check",
        "filter-prerouting-pre-dnat { type filter hook prerouting priority -110 ; }",
        "filter-output-pre-dnat { type filter hook output priority -110 ; }",
        "filter-forward { type filter hook forward priority 0 ; }",
        "filter-input { type filter hook input priority 0 ; }",
        "filter-output { type filter hook output priority 0 ; }",
        "firewall-check",
        "mark-for-masquerade",
        "masquerading",
        "nat-output { type nat hook output priority -100 ; }",
        "nat-postrouting { type nat hook postrouting priority 100 ; }",
        "nat-prerouting { type nat hook prerouting priority -100 ; }",
        "nodeport-endpoints-check",
        "reject-chain",
        "services",
        "service-endpoints-check",
    ] {
        let _ = writeln!(out, "add chain ip kube-proxy {chain}");
    }
    let unallocated = format!("cluster-ips-check ip daddr {{ {} }} drop", cluster.services);
    for rule in [
        "cluster-ips-check ip daddr @cluster-ips reject",
        &unallocated,
        "filter-prerouting-pre-dnat ct state new jump firewall-check",
        "filter-forward ct state new jump service-endpoints-check",
        "filter-forward ct state new jump cluster-ips-check",
        "filter-input ct state new jump nodeport-endpoints-check",
        "filter-input ct state new jump service-endpoints-check",
        "filter-output ct state new jump service-endpoints-check",
        "filter-output-pre-dnat ct state new jump firewall-check",
        "filter-output ct state new jump cluster-ips-check",
        "firewall-check ip daddr . meta l4proto . th dport vmap @firewall-ips",
        "mark-for-masquerade mark set mark or 0x4000",
        "masquerading mark and 0x4000 == 0 return",
        "masquerading mark set mark xor 0x4000",
        "masquerading masquerade fully-random",
        "nat-output jump services",
        "nat-postrouting jump masquerading",
        "nat-prerouting jump services",
        "nodeport-endpoints-check ip daddr @nodeport-ips meta l4proto . th dport vmap @no-endpoint-nodeports",
        "reject-chain reject",
        "services ip daddr . meta l4proto . th dport vmap @service-ips",
        "services ip daddr @nodeport-ips meta l4proto . th dport vmap @service-nodeports",
        "service-endpoints-check ip daddr . meta l4proto . th dport vmap @no-endpoint-services",
    ] {
        let _ = writeln!(out, "add rule ip kube-proxy {rule}");
    }
    let _ = writeln!(out, "add element ip kube-proxy nodeport-ips {{ {} }}", cluster.node);
    let _ = write!(
        out,
        "add table ip pod-network\n\
         add chain ip pod-network postrouting {{ type nat hook postrouting priority 101 ; }}\n\
         add rule ip pod-network postrouting ip saddr {0} ip daddr != {0} masquerade fully-random\n",
        cluster.pods
    );
    let (mut frontends, mut node_ports, mut dropped) = (Vec::new(), Vec::new(), Vec::new());
    for (i, port) in ports.iter().enumerate() {
        let ServicePort { name, protocol, frontend, endpoints, node_port } = port;
        // kube-proxy separates the parts of a name with slashes.
        let name = format!("{}/{protocol}", name.replace(':', "/"));
        let (ip, number) = (frontend.ip(), frontend.port());
        let service = format!("service-{i:0>8}-{name}");
        let chain = |j: usize| format!("endpoint-{i:0>4}{j:0>4}-{name}__{}/{}", endpoints[j].ip(), endpoints[j].port());
        for (j, endpoint) in endpoints.iter().enumerate() {
            let chain = chain(j);
            let _ = write!(
                out,
                "add chain ip kube-proxy {chain}\n\
                 add rule ip kube-proxy {chain} ip saddr {} jump mark-for-masquerade\n\
                 add rule ip kube-proxy {chain} meta l4proto {protocol} dnat to {endpoint}\n",
                endpoint.ip()
            );
        }
        let choice = |endpoints: &[usize]| {
            let goto = |(n, j): (usize, &usize)| format!("{n} : goto {}", chain(*j));
            let choices: Vec<String> = endpoints.iter().enumerate().map(goto).collect();
            format!("numgen random mod {} vmap {{ {} }}", endpoints.len(), choices.join(" , "))
        };
        let pods = cluster.pods;
        let _ = write!(
            out,
            "add chain ip kube-proxy {service}\n\
             add rule ip kube-proxy {service} ip daddr {ip} ip saddr != {pods} jump mark-for-masquerade\n\
             add rule ip kube-proxy {service} {}\n",
            choice(&(0..endpoints.len()).collect::<Vec<_>>())
        );
        if let Some(NodePort { number, local }) = *node_port {
            let external = format!("external-{i:0>8}-{name}");
            let mut rules = vec![];
            if local {
                rules.push(format!("ip saddr {pods} goto {service}"));
                rules.push("fib saddr type local jump mark-for-masquerade".to_owned());
                rules.push(format!("fib saddr type local goto {service}"));
                let here = cluster.endpoints_here(port);
                rules.extend((!here.is_empty()).then(|| choice(&here)));
            } else {
                rules.extend(["jump mark-for-masquerade".to_owned(), format!("goto {service}")]);
            }
            let _ = writeln!(out, "add chain ip kube-proxy {external}");
            for rule in rules {
                let _ = writeln!(out, "add rule ip kube-proxy {external} {rule}");
            }
            node_ports.push(format!("{protocol} . {number} : goto {external}"));
            dropped.extend(cluster.drops(port).map(|port| format!("{protocol} . {} : drop", port.number)));
        }
        frontends.push(format!("{ip} . {protocol} . {number} : goto {service}"));
    }
    let mut ips: Vec<_> = ports.iter().map(|p| p.frontend.ip().to_string()).collect();
    ips.dedup();
    // Many elements per command: nft takes much longer for commands with one element each.
    for (set, elements) in [
        ("service-ips", frontends),
        ("cluster-ips", ips),
        ("service-nodeports", node_ports),
        ("no-endpoint-nodeports", dropped),
    ] {
        if !elements.is_empty() {
            let _ = writeln!(out, "add element ip kube-proxy {set} {{ {} }}", elements.join(" , "));
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    fn service(endpoints: &[&str]) -> Vec<ServicePort> {
        vec![ServicePort {
            name: "default/web:http".into(),
            protocol: "tcp",
            frontend: "10.96.0.10:80".parse().unwrap(),
            endpoints: endpoints.iter().map(|e| e.parse().unwrap()).collect(),
            node_port: None,
        }]
    }

    fn cluster() -> Cluster {
        Cluster {
            pods: "10.244.0.0/16",
            services: "10.96.0.0/16",
            node: "172.30.0.1".into(),
            local_pods: "10.244.1.0/24".parse().unwrap(),
        }
    }

    /// Rules of both modes for a NodePort with endpoints at these addresses.
    fn node_port_rules(local: bool, endpoints: &[&str]) -> [String; 2] {
        let mut ports = service(endpoints);
        ports[0].node_port = Some(NodePort { number: 30_080, local });
        [iptables(&cluster(), &ports), nftables(&cluster(), &ports)]
    }

    #[test]
    fn node_ports_masquerade() {
        let [iptables, nftables] = node_port_rules(false, &["10.244.2.2:8080"]);
        for rule in [
            "-A KUBE-NODEPORTS -m comment --comment \"default/web:http\" -m tcp -p tcp --dport 30080 -j KUBE-EXT-0000000000000000",
            "-A KUBE-EXT-0000000000000000 -m comment --comment \"masquerade traffic for default/web:http external \
             destinations\" -j KUBE-MARK-MASQ",
            "-A KUBE-EXT-0000000000000000 -j KUBE-SVC-0000000000000000",
        ] {
            assert!(iptables.lines().any(|line| line == rule), "{rule}");
        }
        for rule in [
            "add rule ip kube-proxy external-00000000-default/web/http/tcp jump mark-for-masquerade",
            "add rule ip kube-proxy external-00000000-default/web/http/tcp goto service-00000000-default/web/http/tcp",
            "add element ip kube-proxy service-nodeports { tcp . 30080 : goto external-00000000-default/web/http/tcp }",
        ] {
            assert!(nftables.lines().any(|line| line == rule), "{rule}");
        }
    }

    #[test]
    fn local_node_ports_use_endpoints_of_the_node_only() {
        let [iptables, nftables] = node_port_rules(true, &["10.244.2.2:8080", "10.244.1.2:8080"]);
        assert!(iptables.contains("-A KUBE-EXT-0000000000000000 -j KUBE-SVL-0000000000000000\n"));
        assert_eq!(iptables.matches("-A KUBE-SVL-").count(), 1);
        assert!(iptables.contains("-> 10.244.1.2:8080\" -j KUBE-SEP-00000000000X0001\n-A KUBE-SEP"), "{iptables}");
        let choice = "external-00000000-default/web/http/tcp numgen random mod 1 vmap { \
                      0 : goto endpoint-00000001-default/web/http/tcp__10.244.1.2/8080 }";
        assert!(nftables.contains(choice), "{nftables}");

        let [iptables, nftables] = node_port_rules(true, &["10.244.2.2:8080"]);
        assert!(iptables.contains("-m addrtype --dst-type LOCAL -m tcp -p tcp --dport 30080 -j DROP\n"));
        assert!(!iptables.contains("-A KUBE-SVL-"));
        assert!(nftables.contains("add element ip kube-proxy no-endpoint-nodeports { tcp . 30080 : drop }\n"));
    }

    #[test]
    fn iptables_select_endpoints_with_equal_probability() {
        let rules = iptables(&cluster(), &service(&["10.244.1.2:8080", "10.244.1.3:8080", "10.244.2.2:8080"]));
        let choice: Vec<&str> = rules
            .lines()
            .filter(|l| l.starts_with("-A KUBE-SVC-") && l.contains("->"))
            .map(|l| l.split_once("8080\" ").unwrap().1)
            .collect();
        assert_eq!(
            choice,
            [
                "-m statistic --mode random --probability 0.3333333333 -j KUBE-SEP-00000000000X0000",
                "-m statistic --mode random --probability 0.5000000000 -j KUBE-SEP-00000000000X0001",
                "-j KUBE-SEP-00000000000X0002",
            ]
        );
        assert!(rules.contains(
            "-A KUBE-SEP-00000000000X0002 -m comment --comment \"default/web:http\" -s 10.244.2.2 -j KUBE-MARK-MASQ"
        ));
    }

    #[test]
    fn large_clusters_have_no_comments_on_services() {
        let many: Vec<String> = (0..1001).map(|i| format!("10.244.{}.{}:80", i / 250, i % 250)).collect();
        let rules = iptables(&cluster(), &service(&many.iter().map(String::as_str).collect::<Vec<_>>()));
        assert!(!rules.contains("default/web"), "names appear in comments only");
    }

    #[test]
    fn nftables_select_endpoints_by_a_verdict_map() {
        let rules = nftables(&cluster(), &service(&["10.244.1.2:8080", "10.244.1.3:8080"]));
        assert!(rules.contains(
            "add rule ip kube-proxy service-00000000-default/web/http/tcp numgen random mod 2 vmap { \
             0 : goto endpoint-00000000-default/web/http/tcp__10.244.1.2/8080 , \
             1 : goto endpoint-00000001-default/web/http/tcp__10.244.1.3/8080 }"
        ));
        assert!(rules.contains(
            "add element ip kube-proxy service-ips { 10.96.0.10 . tcp . 80 : goto service-00000000-default/web/http/tcp }"
        ));
    }
}
