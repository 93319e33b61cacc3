//! Pods.

use super::field::{Checked, address, at_most, port_number, protocol, usable};
use crate::model::{LeftOut, NamedPort, Pod, limits, raw};

/// Validates a Pod. Invalid addresses and ports are left out.
pub(super) fn check(raw: raw::Manifest) -> Checked<Pod> {
    let raw::Manifest { metadata, spec, status, .. } = raw;
    let mut left_out = LeftOut::default();
    // Its addresses are its node's, which no policy takes from here.
    let ips = if spec.host_network { Vec::new() } else { ips(&status, &mut left_out) };
    Ok(Pod {
        uid: metadata.uid.unwrap_or_default().into_boxed_str(),
        static_uid: metadata.annotations.config_hash.unwrap_or_default().into_boxed_str(),
        created: metadata.creation_timestamp.unwrap_or_default().into_boxed_str(),
        labels: metadata.labels.complete(),
        ips,
        ports: ports(&spec, &mut left_out),
        node: spec.node_name.into_boxed_str(),
        host_network: spec.host_network,
        ended: matches!(status.phase.as_str(), "Succeeded" | "Failed"),
        left_out,
    })
}

fn ips(status: &raw::Status, left_out: &mut LeftOut) -> Vec<std::net::IpAddr> {
    let listed = status.pod_ips.iter().enumerate().map(|(i, one)| (format!("status.podIPs[{i}].ip"), &one.ip));
    let single = Some(("status.podIP".to_owned(), &status.pod_ip)).filter(|_| status.pod_ips.is_empty());
    let given = listed.chain(single).filter(|(_, text)| !text.is_empty());
    let mut ips: Vec<_> = given.filter_map(|(field, text)| usable(address(|| field, text), left_out)).collect();
    ips.sort_unstable();
    ips.dedup();
    at_most(limits::POD_ADDRESSES, "status.podIPs", ips, left_out)
}

/// The named ports of containers that run as long as the pod: all, and init containers that are sidecars (KEP-753).
/// Several containers may use one name, with different numbers.
fn ports(spec: &raw::Spec, left_out: &mut LeftOut) -> Vec<NamedPort> {
    let containers = spec.containers.iter().enumerate().map(|(i, one)| (format!("spec.containers[{i}]"), one));
    let sidecars = spec.init_containers.iter().enumerate().filter(|(_, one)| one.restart_policy == "Always");
    let sidecars = sidecars.map(|(i, one)| (format!("spec.initContainers[{i}]"), one));
    let mut ports: Vec<NamedPort> = Vec::new();
    for (field, container) in containers.chain(sidecars) {
        for (i, port) in container.ports.iter().enumerate().filter(|(_, port)| !port.name.is_empty()) {
            let field = format!("{field}.ports[{i}]");
            let checked = protocol(&field, &port.protocol).and_then(|protocol| {
                let number = port.container_port.unwrap_or_default();
                let port = port_number(|| format!("{field}.containerPort"), number)?;
                Ok((protocol, port))
            });
            let Some((protocol, number)) = usable(checked, left_out) else { continue };
            ports.push(NamedPort { name: port.name.as_str().into(), protocol, port: number });
        }
    }
    ports.sort_unstable();
    ports.dedup();
    at_most(limits::POD_PORTS, "spec.containers: named ports", ports, left_out)
}

#[cfg(test)]
mod tests {
    use super::super::tests::parse;
    use crate::model::{Object, Pod};

    fn pod(rest: &str) -> std::sync::Arc<Pod> {
        let (key, object) = parse(&format!(
            "{{apiVersion: v1, kind: Pod, metadata: {{name: p, namespace: x, labels: {{b: '1', a: z}}}}, {rest}}}"
        ))
        .unwrap();
        assert_eq!(key.to_string(), "Pod x/p");
        let Object::Pod(pod) = object else { panic!() };
        pod
    }

    #[test]
    fn addresses_and_state() {
        let running = pod(
            "spec: {nodeName: n1}, status: {phase: Running, podIP: 10.0.0.1, podIPs: [{ip: 10.0.0.1}, {ip: 'fd00::1'}]}",
        );
        assert_eq!((running.ips.len(), &*running.node, running.ended, running.host_network), (2, "n1", false, false));
        assert_eq!(running.labels.iter().collect::<Vec<_>>(), [("a", "z"), ("b", "1")]);
        assert_eq!(pod("status: {podIP: 10.0.0.1}").ips, ["10.0.0.1".parse::<std::net::IpAddr>().unwrap()]);
        assert!(pod("status: {phase: Succeeded}").ended && pod("status: {phase: Failed}").ended);
        assert!(pod("status: null").ips.is_empty());
        let host = pod("spec: {hostNetwork: true}, status: {podIP: 172.30.0.1}");
        assert!(host.host_network && host.ips.is_empty());
        let wrong = pod("status: {podIPs: [{ip: x}, {ip: 10.0.0.2}]}");
        assert_eq!((wrong.ips.len(), wrong.left_out.lines().count()), (1, 1));
    }

    #[test]
    fn named_ports_of_containers_and_sidecars() {
        let pod = pod("spec: {containers: [{ports: [{name: http, containerPort: 80}, {containerPort: 81}]}, \
             {ports: [{name: http, containerPort: 8080}, {name: http, containerPort: 82, protocol: UDP}]}], \
             initContainers: [{ports: [{name: init, containerPort: 83}]}, \
             {restartPolicy: Always, ports: [{name: side, containerPort: 84, protocol: SCTP}, {name: x, containerPort: 0}]}]}");
        let shown: Vec<_> = pod.ports.iter().map(|one| format!("{} {} {}", one.name, one.protocol, one.port)).collect();
        assert_eq!(shown, ["http TCP 80", "http TCP 8080", "http UDP 82", "side SCTP 84"]);
        let named: Vec<_> = pod.left_out.lines().collect();
        assert!(
            named.len() == 1 && named[0].starts_with("spec.initContainers[1].ports[1].containerPort: "),
            "{named:?}"
        );
    }
}
