//! Policies as text.

use super::super::output::{Column, NOTHING, Show, Text};
use super::PolicyList;
use crate::socket::{
    PeerView, PodPolicies, PodRules, PolicyDetail, PolicyProblems, PolicySummary, PortView, RuleView, TierView,
};

const INGRESS: &str = "ingress";
const EGRESS: &str = "egress";
/// Shown for an empty list of rules, peers or ports.
const NONE: &str = "(none)";
/// What rules of NetworkPolicies do.
const ACCEPT: &str = "Accept";

impl Show for PolicyList {
    fn text(&self) -> Text {
        let columns = [
            Column::Text("NAMESPACE"),
            Column::Text("NAME"),
            Column::Text("TIER"),
            Column::Text("DIRECTIONS"),
            Column::Number("SUBJECTS"),
            Column::Number("PEERS"),
            Column::Number("DENIED"),
            Column::Number("PROBLEMS"),
        ];
        let row = |policy: &PolicySummary| {
            vec![
                if policy.namespace.is_empty() { NOTHING.to_owned() } else { policy.namespace.clone() },
                policy.name.clone(),
                policy.tier.as_ref().map_or_else(|| NOTHING.to_owned(), tier),
                directions(policy.ingress, policy.egress),
                policy.subjects.to_string(),
                policy.peers.to_string(),
                (policy.denied.ingress + policy.denied.egress).to_string(),
                policy.problems.to_string(),
            ]
        };
        Text::of_table(&columns, self.0.iter().map(row))
    }
}

impl Show for PolicyDetail {
    fn text(&self) -> Text {
        let mut text = Text::default();
        let directions = directions(self.ingress.is_some(), self.egress.is_some());
        match &self.tier {
            None => {
                text.line("policy", &format!("{}/{}", self.namespace, self.name));
                text.line("pods", if self.pods.is_empty() { "all of the namespace" } else { &self.pods });
                text.line("isolates", &directions);
            }
            Some(tier) => {
                text.line("policy", &self.name);
                text.line("tier", &self::tier(tier));
                text.line(
                    "pods",
                    &peer(&PeerView::Pods { namespaces: self.namespaces.clone(), pods: self.pods.clone() }),
                );
                text.line("rules for", &directions);
            }
        }
        for subject in &self.subjects {
            text.line("subject", subject);
        }
        if self.subjects.is_empty() {
            text.line("subject", "none on this node");
        }
        text.line("peers", &format!("selectors find {} on all nodes", pods(self.peers)));
        for problem in &self.problems {
            text.line("problem", problem);
        }
        let mut rows = Vec::new();
        for (direction, rules) in [(INGRESS, &self.ingress), (EGRESS, &self.egress)] {
            let Some(rules) = rules else { continue };
            rows.extend(rules.iter().map(|rule| [vec![direction.to_owned()], cells(rule)].concat()));
            if rules.is_empty() {
                rows.push([direction, ACCEPT, NONE, NONE].map(str::to_owned).to_vec());
            }
        }
        if !rows.is_empty() {
            text.gap();
            text.table(&["DIRECTION", "ACTION", "PEERS", "PORTS"].map(Column::Text), rows);
        }
        text
    }
}

impl Show for PodPolicies {
    fn text(&self) -> Text {
        let mut text = Text::default();
        text.line("pod", &format!("{}/{}", self.namespace, self.name));
        text.line("node", if self.local { "this" } else { "other: its policies are enforced there" });
        let directions = [(INGRESS, &self.ingress), (EGRESS, &self.egress)];
        let mut rows = Vec::new();
        for (direction, applied) in directions {
            match applied {
                None => text.line(direction, "not isolated"),
                Some(applied) => {
                    let isolated = if applied.isolated { "isolated by" } else { "not isolated, subject to" };
                    text.line(direction, &format!("{isolated} {}", applied.policies.join(", ")));
                    rows.extend(of_each(direction, applied));
                }
            }
        }
        if self.ingress.is_none() && self.egress.is_none() {
            text.line("policies", "none applies to it");
        }
        for PolicyProblems { policy, count } in &self.problems {
            let elements = if *count == 1 { "element" } else { "elements" };
            text.line(
                "problem",
                &format!("{policy} has {count} invalid {elements}: see `podnet policy show {policy}`"),
            );
        }
        if !rows.is_empty() {
            let columns = ["DIRECTION", "POLICY", "ACTION", "PEERS", "PORTS"].map(Column::Text);
            text.gap();
            text.table(&columns, rows);
        }
        text
    }
}

/// Rows for the rules of each policy.
fn of_each(direction: &str, applied: &PodRules) -> Vec<Vec<String>> {
    let mut rows = Vec::new();
    for policy in &applied.policies {
        let start = vec![direction.to_owned(), policy.clone()];
        let before = rows.len();
        let rules = applied.rules.iter().filter(|rule| rule.policy == *policy);
        rows.extend(rules.map(|rule| [start.clone(), cells(&rule.rule)].concat()));
        if rows.len() == before {
            rows.push([start, [ACCEPT, NONE, NONE].map(str::to_owned).to_vec()].concat());
        }
    }
    rows
}

fn directions(ingress: bool, egress: bool) -> String {
    match (ingress, egress) {
        (true, true) => format!("{INGRESS}, {EGRESS}"),
        (true, false) => INGRESS.to_owned(),
        (false, true) => EGRESS.to_owned(),
        (false, false) => NOTHING.to_owned(),
    }
}

fn pods(count: usize) -> String {
    if count == 1 { "1 pod".to_owned() } else { format!("{count} pods") }
}

fn tier(tier: &TierView) -> String {
    format!("{} {}", tier.name, tier.priority)
}

/// Action, peers and ports of a rule.
fn cells(rule: &RuleView) -> Vec<String> {
    let action = rule.action.clone().unwrap_or_else(|| ACCEPT.to_owned());
    let peers = rule.peers.as_ref().map(|peers| list(peers, "; ", peer));
    let ports = rule.ports.as_ref().map(|ports| list(ports, ", ", port));
    vec![action, peers.unwrap_or_else(|| "all addresses".to_owned()), ports.unwrap_or_else(|| "all".to_owned())]
}

fn list<T>(elements: &[T], separator: &str, shown: impl Fn(&T) -> String) -> String {
    match elements {
        [] => NONE.to_owned(),
        elements => elements.iter().map(shown).collect::<Vec<_>>().join(separator),
    }
}

fn peer(peer: &PeerView) -> String {
    match peer {
        PeerView::Pods { namespaces, pods } => {
            let pods = if pods.is_empty() { "all pods".to_owned() } else { format!("pods {pods}") };
            match namespaces.as_deref() {
                None => pods,
                Some("") => format!("{pods} of all namespaces"),
                Some(namespaces) => format!("{pods} of namespaces {namespaces}"),
            }
        }
        PeerView::Nodes(nodes) if nodes.is_empty() => "all nodes".to_owned(),
        PeerView::Nodes(nodes) => format!("nodes {nodes}"),
        PeerView::Block { cidr, except } if except.is_empty() => cidr.to_string(),
        PeerView::Block { cidr, except } => format!("{cidr} except {}", list(except, ", ", ToString::to_string)),
    }
}

fn port(port: &PortView) -> String {
    let protocol = port.protocol;
    match (&port.name, port.first, port.last) {
        (Some(name), _, _) => format!("{protocol} {name}"),
        (None, Some(first), Some(last)) if first != last => format!("{protocol} {first}-{last}"),
        (None, Some(first), _) => format!("{protocol} {first}"),
        (None, None, _) => protocol.to_string(),
    }
}
