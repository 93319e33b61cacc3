//! EndpointSlices.

use std::collections::HashSet;

use super::field::{Checked, address, at_most, port_number, protocol, refuse, usable};
use crate::model::{Condition, Endpoint, EndpointSlice, LeftOut, Placement, SlicePort, limits, raw};

/// Validates an EndpointSlice. Invalid ports and endpoints are left out.
pub(super) fn check(raw: raw::Manifest) -> Checked<EndpointSlice> {
    let v4 = match raw.address_type.as_str() {
        "IPv4" => true,
        "IPv6" => false,
        // Host names instead of addresses: proxies don't use them.
        "FQDN" => return Ok(EndpointSlice::default()),
        other => return refuse("addressType", format!("`{other}` is not one of IPv4, IPv6, FQDN")),
    };
    let (labels, uid) = (raw.metadata.labels, raw.metadata.uid);
    // The labels that assign a service to another proxy are copied to its slices.
    let foreign = labels.has(raw::Labels::SERVICE_PROXY_NAME) || labels.has(raw::Labels::HEADLESS);
    let mut left_out = LeftOut::default();
    let (mut ports, mut names) = (Vec::new(), HashSet::new());
    for (i, raw) in at_most(limits::PORTS, "ports", raw.ports, &mut left_out).into_iter().enumerate() {
        ports.extend(usable(port(&format!("ports[{i}]"), raw, &mut names), &mut left_out).flatten());
    }
    let raw = at_most(limits::ENDPOINTS, "endpoints", raw.endpoints, &mut left_out);
    let mut endpoints = Vec::with_capacity(raw.len());
    for (i, raw) in raw.into_iter().enumerate() {
        endpoints.extend(usable(endpoint(i, raw, v4), &mut left_out));
    }
    let service = labels.get(raw::Labels::SERVICE_NAME).filter(|name| !name.is_empty() && !foreign).map(String::from);
    let uid = uid.unwrap_or_default().into_boxed_str();
    Ok(EndpointSlice { uid, service, ports, endpoints, left_out })
}

/// Validates a port. A port without a number stands for all ports, which a proxy can't use.
fn port(field: &str, raw: raw::Port, names: &mut HashSet<String>) -> Checked<Option<SlicePort>> {
    let protocol = protocol(field, &raw.protocol)?;
    if !names.insert(raw.name.clone()) {
        return refuse(format!("{field}.name"), format!("`{}` is already the name of another port", raw.name));
    }
    let Some(number) = raw.port else { return Ok(None) };
    Ok(Some(SlicePort { name: raw.name, port: port_number(|| format!("{field}.port"), number)?, protocol }))
}

fn endpoint(i: usize, raw: raw::Endpoint, v4: bool) -> Checked<Endpoint> {
    let Some(text) = raw.addresses.first() else {
        return refuse(format!("endpoints[{i}].addresses"), "is empty: an endpoint needs an address");
    };
    let field = || format!("endpoints[{i}].addresses[0]");
    let addr = address(field, text)?;
    if addr.is_ipv4() != v4 {
        return refuse(field(), format!("{addr} is not of the slice's addressType {}", type_name(v4)));
    }
    Ok(Endpoint { addr, condition: condition(&raw.conditions), placement: placement(raw).share() })
}

const fn type_name(v4: bool) -> &'static str {
    if v4 { "IPv4" } else { "IPv6" }
}

/// KEP-1672: missing conditions mean ready, serving and not terminating.
fn condition(raw: &raw::Conditions) -> Condition {
    if raw.ready.unwrap_or(true) {
        Condition::Ready
    } else if raw.serving.unwrap_or(true) && raw.terminating.unwrap_or(false) {
        Condition::ServingTerminating
    } else {
        Condition::Unusable
    }
}

fn placement(raw: raw::Endpoint) -> Placement {
    let name = |text: String| (!text.is_empty()).then(|| text.into_boxed_str());
    let names = |list: Vec<raw::Named>| list.into_iter().filter_map(|named| name(named.name)).collect();
    Placement {
        node: name(raw.node_name),
        zone: name(raw.zone),
        for_zones: names(raw.hints.for_zones),
        for_nodes: names(raw.hints.for_nodes),
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::parse;
    use super::*;
    use crate::model::{Invalid, Object};
    use std::sync::Arc;

    fn slice(rest: &str) -> Result<EndpointSlice, Invalid> {
        let metadata = "{name: web-1, labels: {kubernetes.io/service-name: web}}";
        let yaml = format!("{{apiVersion: discovery.k8s.io/v1, kind: EndpointSlice, metadata: {metadata}, {rest}}}");
        parse(&yaml).map(|(_, object)| match object {
            Object::EndpointSlice(slice) => Arc::unwrap_or_clone(slice),
            other => panic!("{other:?}"),
        })
    }

    #[test]
    fn conditions_of_endpoints() {
        // KEP-1672: the meaning of missing conditions, and publishNotReadyAddresses, which is published as ready.
        for (conditions, expected) in [
            ("{}", Condition::Ready),
            ("{ready: null}", Condition::Ready),
            ("{ready: true, serving: false, terminating: true}", Condition::Ready),
            ("{ready: false}", Condition::Unusable),
            ("{ready: false, serving: true, terminating: false}", Condition::Unusable),
            ("{ready: false, serving: true, terminating: true}", Condition::ServingTerminating),
            ("{ready: false, terminating: true}", Condition::ServingTerminating),
            ("{ready: false, serving: false, terminating: true}", Condition::Unusable),
        ] {
            let rest = format!("addressType: IPv4, endpoints: [{{addresses: [10.0.0.1], conditions: {conditions}}}]");
            assert_eq!(slice(&rest).unwrap().endpoints[0].condition, expected, "{conditions}");
        }
    }

    #[test]
    fn placements_of_endpoints() {
        let rest = "addressType: IPv4, endpoints: [{addresses: [10.0.0.1], nodeName: n1, zone: a, hints: {forZones: \
                    [{name: a}, {name: b}], forNodes: [{name: n1}]}}, {addresses: [10.0.0.2]}, {addresses: [10.0.0.3], \
                    nodeName: null, hints: {forZones: null}}]";
        let endpoints = slice(rest).unwrap().endpoints;
        let expected = Placement {
            node: Some("n1".into()),
            zone: Some("a".into()),
            for_zones: ["a".into(), "b".into()].into(),
            for_nodes: ["n1".into()].into(),
        };
        assert_eq!(*endpoints[0].placement, expected);
        assert_eq!(*endpoints[1].placement, Placement::default());
        assert!(Arc::ptr_eq(&endpoints[1].placement, &endpoints[2].placement));
    }

    #[test]
    fn slices() {
        let ports = "ports: [{port: 80}, {name: a, port: 81, protocol: UDP}, {name: all}]";
        let slice1 = slice(&format!("addressType: IPv6, {ports}, endpoints: null")).unwrap();
        assert_eq!((slice1.service.as_deref(), slice1.ports.len(), slice1.endpoints.len()), (Some("web"), 2, 0));
        let names = slice("addressType: FQDN, endpoints: [{addresses: [a.example]}]").unwrap();
        assert_eq!(names, EndpointSlice::default());
        let error = slice("endpoints: []").unwrap_err();
        assert_eq!((error.object.as_str(), error.field.as_str()), ("EndpointSlice default/web-1", "addressType"));
    }

    #[test]
    fn invalid_elements_are_left_out_and_the_rest_is_in_effect() {
        let both =
            "endpoints: [{addresses: [127.0.0.1]}, {addresses: [10.0.0.1]}], ports: [{port: 80}, {name: b, port: 81}]";
        let slice1 = slice(&format!("addressType: IPv4, {both}")).unwrap();
        assert_eq!((slice1.endpoints.len(), slice1.ports.len(), slice1.left_out.lines().count()), (1, 2, 1));
        for (rest, named) in [
            (
                "endpoints: [{addresses: ['fd00::1']}, {addresses: [10.0.0.1]}]",
                "endpoints[0].addresses[0]: fd00::1 is not of",
            ),
            ("endpoints: [{addresses: [10.0.0.1]}, {addresses: [x]}]", "endpoints[1].addresses[0]: `x`"),
            ("endpoints: [{addresses: []}, {addresses: [10.0.0.1]}]", "endpoints[0].addresses: is empty"),
            ("ports: [{port: 80}, {port: 2}], endpoints: [{addresses: [10.0.0.1]}]", "ports[1].name: ``"),
            ("ports: [{name: a, port: -1}, {port: 80}], endpoints: [{addresses: [10.0.0.1]}]", "ports[0].port: -1"),
            ("ports: [{name: a, protocol: tcp}], endpoints: [{addresses: [10.0.0.1]}]", "ports[0].protocol: `tcp`"),
        ] {
            let slice = slice(&format!("addressType: IPv4, {rest}")).expect(rest);
            let lines: Vec<_> = slice.left_out.lines().collect();
            assert!(lines.len() == 1 && lines[0].starts_with(named), "{rest}: {lines:?}");
            assert_eq!((slice.service.as_deref(), slice.endpoints.len()), (Some("web"), 1), "{rest}");
            assert!(slice.ports.iter().all(|port| port.port == 80), "{rest}");
        }
        // KEP-4858: parsed as by kube-proxy.
        let zeros = slice("addressType: IPv4, endpoints: [{addresses: [010.000.0.001]}]").unwrap();
        assert_eq!(zeros.endpoints[0].addr.to_string(), "10.0.0.1");
        for address in ["127.0.0.1", "169.254.1.2", "224.0.0.1", "0.0.0.0", "255.255.255.255", "'::ffff:10.0.0.1'"] {
            let slice = slice(&format!("addressType: IPv4, endpoints: [{{addresses: [{address}]}}]")).unwrap();
            assert!(slice.endpoints.is_empty() && !slice.left_out.is_empty(), "{address}");
        }
        for address in ["::1", "fe80::1", "ff02::1", "::", "::ffff:10.0.0.1"] {
            let slice = slice(&format!("addressType: IPv6, endpoints: [{{addresses: ['{address}']}}]")).unwrap();
            assert!(slice.endpoints.is_empty() && !slice.left_out.is_empty(), "{address}");
        }
    }
}
