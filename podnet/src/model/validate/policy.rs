//! NetworkPolicies.
//!
//! Read value by value, since a field that podnet doesn't know must be noticed: it may narrow what its rule allows.

use ipnetwork::IpNetwork;
use serde_json::Value;

use super::field::{Checked, at_most, cidr, protocol, refuse};
use super::policy_parts::{elements, number, object, port_name, selector, text, understood, unknown};
use crate::model::{LeftOut, NetworkPolicy, PolicyPeer, PolicyPort, PolicyRule, PortMatch, limits, raw};

/// Validates a NetworkPolicy. Nothing that can't be understood widens what is allowed: the rule that it is in allows
/// nothing; a requirement of `podSelector` is dropped, so that more pods are isolated, and then no rule allows
/// anything.
pub(super) fn check(raw: raw::Manifest) -> Checked<NetworkPolicy> {
    let raw::Manifest { metadata, spec, .. } = raw;
    let mut left_out = LeftOut::default();
    let pods = selector("spec.podSelector", spec.pod_selector.as_ref());
    let of_cluster_policies = [("tier", &spec.tier), ("priority", &spec.priority), ("subject", &spec.subject)];
    let foreign = of_cluster_policies.into_iter().filter(|(_, value)| value.is_some()).map(|(field, _)| field);
    let others: Vec<&str> = spec.others.iter().map(String::as_str).chain(foreign).collect();
    let unknown = others.iter().map(|field| unknown::<()>("spec", field));
    let wrong: Vec<_> = unknown.filter_map(Result::err).chain(pods.wrong).collect();
    wrong.iter().for_each(|wrong| left_out.add(|| format!("{wrong}: no rule of this policy allows anything")));
    let types = types(spec.policy_types.as_ref(), &mut left_out);
    // Without policyTypes the other fields decide, and an unknown one of them might be a direction.
    let types = types.or_else(|| (!others.is_empty()).then_some((true, true)));
    let has_egress = spec.egress.as_ref().is_some_and(|rules| rules.as_array().is_none_or(|rules| !rules.is_empty()));
    let (ingress, egress) = types.unwrap_or((true, has_egress));
    let mut rules = |isolates: bool, field: &str, peers: &str, list: Option<&Value>| {
        isolates.then(|| if wrong.is_empty() { rules(field, peers, list, &mut left_out) } else { Vec::new() })
    };
    Ok(NetworkPolicy {
        uid: metadata.uid.unwrap_or_default().into_boxed_str(),
        ingress: rules(ingress, "spec.ingress", "from", spec.ingress.as_ref()),
        egress: rules(egress, "spec.egress", "to", spec.egress.as_ref()),
        pods: pods.selector,
        left_out,
    })
}

/// Whether the policy isolates for ingress and for egress, if it says so. An unknown type may mean either.
fn types(list: Option<&Value>, left_out: &mut LeftOut) -> Option<(bool, bool)> {
    let list = match elements("spec.policyTypes", list) {
        Ok([]) => return None,
        Ok(list) => list,
        Err(wrong) => {
            left_out.add(|| format!("{wrong}: pods are isolated in both directions"));
            return Some((true, true));
        }
    };
    let (mut ingress, mut egress) = (false, false);
    for (i, one) in list.iter().enumerate() {
        match one.as_str() {
            Some("Ingress") => ingress = true,
            Some("Egress") => egress = true,
            _ => {
                (ingress, egress) = (true, true);
                left_out.add(|| {
                    let field = format!("spec.policyTypes[{i}]");
                    format!("{field}: {one} is not one of Ingress, Egress: pods are isolated in both directions")
                });
            }
        }
    }
    Some((ingress, egress))
}

/// The rules of a direction, without those that can't be understood.
fn rules(field: &str, peers: &str, list: Option<&Value>, left_out: &mut LeftOut) -> Vec<PolicyRule> {
    let list = match elements(field, list) {
        Ok(list) => list,
        Err(wrong) => {
            left_out.add(|| format!("{wrong}: none of its rules allows anything"));
            return Vec::new();
        }
    };
    let mut understood = Vec::new();
    for (i, one) in list.iter().enumerate() {
        match rule(&format!("{field}[{i}]"), peers, one) {
            Ok(rule) => understood.push(rule),
            Err(wrong) => left_out.add(|| format!("{wrong}: this rule allows nothing")),
        }
    }
    at_most(limits::POLICY_RULES, field, understood, left_out)
}

fn rule(field: &str, peers: &str, value: &Value) -> Checked<PolicyRule> {
    let rule = object(field, value, &[peers, "ports"])?;
    let list = |name: &str| -> Checked<(String, &[Value])> {
        let field = format!("{field}.{name}");
        let list = elements(&field, rule.get(name))?;
        if list.len() > limits::POLICY_ELEMENTS {
            let (most, there) = (limits::POLICY_ELEMENTS, list.len());
            return refuse(field, format!("has {there} elements: at most {most} are allowed"));
        }
        Ok((field, list))
    };
    let ((peers, all_peers), (ports, all_ports)) = (list(peers)?, list("ports")?);
    let each = |field: String, i: usize| format!("{field}[{i}]");
    let peers = all_peers.iter().enumerate().map(|(i, one)| peer(&each(peers.clone(), i), one));
    let ports = all_ports.iter().enumerate().map(|(i, one)| port(&each(ports.clone(), i), one));
    // An empty list means all, so no element is left out: the list might become empty.
    Ok(PolicyRule {
        peers: (!all_peers.is_empty()).then(|| peers.collect::<Checked<_>>()).transpose()?,
        ports: (!all_ports.is_empty()).then(|| ports.collect::<Checked<_>>()).transpose()?,
    })
}

fn peer(field: &str, value: &Value) -> Checked<PolicyPeer> {
    let peer = object(field, value, &["podSelector", "namespaceSelector", "ipBlock"])?;
    let given = |name| peer.get(name).filter(|value| !value.is_null());
    match (given("podSelector"), given("namespaceSelector"), given("ipBlock")) {
        (None, None, None) => refuse(field, "names no peers: give podSelector, namespaceSelector or ipBlock"),
        (None, None, Some(one)) => block(&format!("{field}.ipBlock"), one),
        (_, _, Some(_)) => refuse(field, "has an ipBlock beside a selector: make them two elements"),
        (pods, namespaces, None) => Ok(PolicyPeer::Pods {
            namespaces: namespaces
                .map(|selector| understood(&format!("{field}.namespaceSelector"), Some(selector)))
                .transpose()?,
            pods: understood(&format!("{field}.podSelector"), pods)?,
        }),
    }
}

fn block(field: &str, value: &Value) -> Checked<PolicyPeer> {
    let block = object(field, value, &["cidr", "except"])?;
    let range = |field: String, value: Option<&Value>| -> Checked<IpNetwork> {
        let text = text(&field, value)?;
        cidr(|| field, text)
    };
    let whole = range(format!("{field}.cidr"), block.get("cidr"))?;
    let mut except = Vec::new();
    for (i, one) in elements(&format!("{field}.except"), block.get("except"))?.iter().enumerate() {
        let field = format!("{field}.except[{i}]");
        let part = range(field.clone(), Some(one))?;
        if part.prefix() < whole.prefix() || !whole.contains(part.network()) {
            return refuse(field, format!("{part} is not in {whole}"));
        }
        except.push(part);
    }
    except.sort_unstable();
    Ok(PolicyPeer::Block { cidr: whole, except })
}

fn port(field: &str, value: &Value) -> Checked<PolicyPort> {
    let port = object(field, value, &["protocol", "port", "endPort"])?;
    let given = |name| port.get(name).filter(|value| !value.is_null());
    let protocol = match given("protocol") {
        None => protocol(field, "")?,
        Some(value) => protocol(field, text(&format!("{field}.protocol"), Some(value))?)?,
    };
    let number = |name: &str, value: &Value| number(&format!("{field}.{name}"), value);
    let ports = match (given("port"), given("endPort")) {
        (None, None) => PortMatch::All,
        (Some(Value::String(name)), None) => PortMatch::Name(port_name(&format!("{field}.port"), name)?),
        (Some(first), None) => number("port", first).map(|port| PortMatch::Range(port, port))?,
        (Some(first @ Value::Number(_)), Some(last)) => {
            let (first, last) = (number("port", first)?, number("endPort", last)?);
            if last < first {
                return refuse(format!("{field}.endPort"), format!("{last} is less than the port {first}"));
            }
            PortMatch::Range(first, last)
        }
        (_, Some(_)) => return refuse(format!("{field}.endPort"), "needs a port with a number"),
    };
    Ok(PolicyPort { protocol, ports })
}

#[cfg(test)]
mod tests;
