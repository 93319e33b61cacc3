//! ClusterNetworkPolicies.
//!
//! Read value by value, since a field that podnet doesn't know must be noticed: it may narrow what its rule matches.

use serde_json::{Map, Value};

use super::field::{Checked, cidr, refuse};
use super::policy_parts::{elements, number, object, port_name, text, understood};
use crate::model::{
    Action, ClusterNetworkPolicy, ClusterRule, LeftOut, PolicyPeer, PolicyPort, PolicyRule, PortMatch, Protocol,
    Selector, Tier, limits, raw,
};

/// Greatest priority, which is evaluated last.
const PRIORITY_MAX: u16 = 1000;
/// Maximum length of a rule's name.
const NAME_MAX: usize = 100;

/// Validates a ClusterNetworkPolicy. Without tier, priority and subject it can't have any effect. A rule that can't be
/// understood matches nothing if it accepts, and denies everything otherwise, as the API demands.
pub(super) fn check(raw: raw::Manifest) -> Checked<ClusterNetworkPolicy> {
    let raw::Manifest { metadata, spec, .. } = raw;
    let mut left_out = LeftOut::default();
    let tier = match spec.tier.as_ref().and_then(Value::as_str) {
        Some("Admin") => Tier::Admin,
        Some("Baseline") => Tier::Baseline,
        _ => return refuse("spec.tier", "is not one of Admin, Baseline"),
    };
    let priority = spec.priority.as_ref().and_then(Value::as_u64).and_then(|number| u16::try_from(number).ok());
    let Some(priority) = priority.filter(|number| *number <= PRIORITY_MAX) else {
        return refuse("spec.priority", format!("is not a number between 0 and {PRIORITY_MAX}"));
    };
    let (namespaces, pods) = subject(spec.subject.as_ref())?;
    let foreign =
        spec.pod_selector.iter().map(|_| "podSelector").chain(spec.policy_types.iter().map(|_| "policyTypes"));
    let unknown: Vec<_> = spec.others.iter().map(String::as_str).chain(foreign).collect();
    for field in &unknown {
        left_out.add(|| format!("spec.{field}: is unknown to podnet: {CLOSED}"));
    }
    let mut rules = |field: &str, peers: &str, list: Option<&Value>| {
        let list = elements(field, list)?;
        let (most, there) = (limits::POLICY_RULES, list.len());
        if there > most {
            return refuse(field, format!("has {there} rules: at most {most} are allowed"));
        }
        let rules = list
            .iter()
            .enumerate()
            .map(|(i, one)| rule(&format!("{field}[{i}]"), peers, one, unknown.is_empty(), &mut left_out));
        rules.collect::<Checked<Vec<_>>>().map(|rules| rules.into_iter().flatten().collect())
    };
    Ok(ClusterNetworkPolicy {
        uid: metadata.uid.unwrap_or_default().into_boxed_str(),
        tier,
        priority,
        ingress: rules("spec.ingress", "from", spec.ingress.as_ref())?,
        egress: rules("spec.egress", "to", spec.egress.as_ref())?,
        namespaces,
        pods,
        left_out,
    })
}

/// What becomes of the rules of a policy with unknown fields.
const CLOSED: &str = "rules with action Accept match nothing, others deny everything";

/// The namespaces and the pods in them.
fn subject(value: Option<&Value>) -> Checked<(Selector, Selector)> {
    let field = "spec.subject";
    let Some(value) = value else { return refuse(field, "is missing") };
    let subject = object(field, value, &["namespaces", "pods"])?;
    match (given(subject, "namespaces"), given(subject, "pods")) {
        (Some(one), None) => Ok((understood("spec.subject.namespaces", Some(one))?, Selector::default())),
        (None, Some(one)) => pods("spec.subject.pods", one),
        _ => refuse(field, "must have namespaces or pods"),
    }
}

fn given<'a>(object: &'a Map<String, Value>, name: &str) -> Option<&'a Value> {
    object.get(name).filter(|value| !value.is_null())
}

/// Both selectors are required; an empty one selects everything.
fn pods(field: &str, value: &Value) -> Checked<(Selector, Selector)> {
    let parts = object(field, value, &["namespaceSelector", "podSelector"])?;
    let part = |name: &str| match given(parts, name) {
        Some(selector) => understood(&format!("{field}.{name}"), Some(selector)),
        None => refuse(format!("{field}.{name}"), "is missing"),
    };
    Ok((part("namespaceSelector")?, part("podSelector")?))
}

/// A rule; `None` if it matches nothing. `known`: the policy has no unknown fields outside its rules.
fn rule(field: &str, peers: &str, value: &Value, known: bool, left_out: &mut LeftOut) -> Checked<Option<ClusterRule>> {
    let action = match value.get("action").and_then(Value::as_str) {
        Some("Accept") => Action::Accept,
        Some("Deny") => Action::Deny,
        Some("Pass") => Action::Pass,
        // Without a valid action it is unknown whether the rule was meant to accept.
        _ => {
            left_out.add(|| format!("{field}.action: is not one of Accept, Deny, Pass: this rule denies everything"));
            return Ok(Some(denies_all(value)));
        }
    };
    match matches(field, peers, value) {
        Ok(matches) if known => Ok(Some(ClusterRule { name: name(value), action, matches })),
        result => {
            let accepts = action == Action::Accept;
            let then = if accepts { "this rule matches nothing" } else { "this rule denies everything" };
            result.err().iter().for_each(|wrong| left_out.add(|| format!("{wrong}: {then}")));
            Ok((!accepts).then(|| denies_all(value)))
        }
    }
}

fn denies_all(value: &Value) -> ClusterRule {
    ClusterRule { name: name(value), action: Action::Deny, matches: PolicyRule::default() }
}

/// The name of a rule, which is for display only.
fn name(rule: &Value) -> Box<str> {
    rule.get("name").and_then(Value::as_str).filter(|name| name.len() <= NAME_MAX).unwrap_or_default().into()
}

fn matches(field: &str, peers: &str, value: &Value) -> Checked<PolicyRule> {
    let rule = object(field, value, &["name", "action", peers, "protocols"])?;
    let list = |name: &str| -> Checked<(String, &[Value])> {
        let at = format!("{field}.{name}");
        let list = elements(&at, rule.get(name))?;
        let (most, there) = (limits::POLICY_ELEMENTS, list.len());
        if there > most {
            return refuse(at, format!("has {there} elements: at most {most} are allowed"));
        }
        Ok((at, list))
    };
    let ((at, ends), (protocols_at, protocols)) = (list(peers)?, list("protocols")?);
    if ends.is_empty() {
        return refuse(at, "is missing or empty: name at least one peer");
    }
    let (mut all_peers, mut all_ports) = (Vec::new(), Vec::new());
    for (i, one) in ends.iter().enumerate() {
        peer(&format!("{at}[{i}]"), one, peers == "to", &mut all_peers)?;
    }
    for (i, one) in protocols.iter().enumerate() {
        protocol(&format!("{protocols_at}[{i}]"), one, &mut all_ports)?;
    }
    Ok(PolicyRule { peers: Some(all_peers), ports: (!protocols.is_empty()).then_some(all_ports) })
}

fn peer(field: &str, value: &Value, egress: bool, all: &mut Vec<PolicyPeer>) -> Checked<()> {
    let known: &[&str] =
        if egress { &["namespaces", "pods", "nodes", "networks", "domainNames"] } else { &["namespaces", "pods"] };
    let peer = object(field, value, known)?;
    let mut parts = known.iter().filter_map(|name| Some((*name, given(peer, name)?)));
    let (Some((name, part)), None) = (parts.next(), parts.next()) else {
        return refuse(field, format!("must have one of {}", known.join(", ")));
    };
    let at = format!("{field}.{name}");
    match name {
        "namespaces" => {
            let namespaces = Some(understood(&at, Some(part))?);
            all.push(PolicyPeer::Pods { namespaces, pods: Selector::default() });
        }
        "pods" => {
            let (namespaces, pods) = pods(&at, part)?;
            all.push(PolicyPeer::Pods { namespaces: Some(namespaces), pods });
        }
        "nodes" => all.push(PolicyPeer::Nodes(understood(&at, Some(part))?)),
        "networks" => {
            let networks = elements(&at, Some(part))?;
            if networks.is_empty() {
                return refuse(at, "is empty: name at least one network");
            }
            for (i, one) in networks.iter().enumerate() {
                let at = format!("{at}[{i}]");
                let cidr = cidr(|| at.clone(), text(&at, Some(one))?)?;
                all.push(PolicyPeer::Block { cidr, except: Vec::new() });
            }
        }
        _ => return refuse(at, "domain names are not supported: use networks"),
    }
    Ok(())
}

fn protocol(field: &str, value: &Value, all: &mut Vec<PolicyPort>) -> Checked<()> {
    const NAMED: &str = "destinationNamedPort";
    const PROTOCOLS: [(&str, Protocol); 3] = [("tcp", Protocol::Tcp), ("udp", Protocol::Udp), ("sctp", Protocol::Sctp)];
    let known = ["tcp", "udp", "sctp", NAMED];
    let parts = object(field, value, &known)?;
    let mut there = known.iter().filter_map(|name| Some((*name, given(parts, name)?)));
    let (Some((name, part)), None) = (there.next(), there.next()) else {
        return refuse(field, format!("must have one of {}", known.join(", ")));
    };
    let at = format!("{field}.{name}");
    if name == NAMED {
        let port = port_name(&at, text(&at, Some(part))?)?;
        // The name comes without a protocol: ports with this name match, of whatever protocol.
        let named = |(_, protocol)| PolicyPort { protocol, ports: PortMatch::Name(port.clone()) };
        all.extend(PROTOCOLS.map(named));
        return Ok(());
    }
    // An empty one may have had a field that the API server has dropped as unknown.
    let Some(port) = given(object(&at, part, &["destinationPort"])?, "destinationPort") else {
        return refuse(at, "has no destinationPort");
    };
    let at = format!("{at}.destinationPort");
    let port = object(&at, port, &["number", "range"])?;
    let ports = match (given(port, "number"), given(port, "range")) {
        (Some(one), None) => number(&format!("{at}.number"), one).map(|port| PortMatch::Range(port, port))?,
        (None, Some(range)) => {
            let at = format!("{at}.range");
            let range = object(&at, range, &["start", "end"])?;
            let end = |name: &str| match range.get(name) {
                Some(value) => number(&format!("{at}.{name}"), value),
                None => refuse(format!("{at}.{name}"), "is missing"),
            };
            let (first, last) = (end("start")?, end("end")?);
            if last < first {
                return refuse(at, format!("its end {last} is less than its start {first}"));
            }
            PortMatch::Range(first, last)
        }
        _ => return refuse(at, "must have number or range"),
    };
    all.extend(
        PROTOCOLS
            .iter()
            .filter(|(own, _)| *own == name)
            .map(|(_, protocol)| PolicyPort { protocol: *protocol, ports: ports.clone() }),
    );
    Ok(())
}

#[cfg(test)]
mod tests;
