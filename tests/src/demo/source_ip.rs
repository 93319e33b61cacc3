//! Source addresses that a backend sees, for each mode, family, protocol and kind of client.

use std::net::IpAddr;

use anyhow::Result;

use super::cluster::Cluster;
use super::report::{SourceRow, mark, table};
use crate::lab::{Place, Service, eventually};
use crate::traffic::{Family, Transport};

/// A client, and the expected source address of its packets.
struct Case<'a> {
    client: String,
    place: &'a Place,
    expected: IpAddr,
}

/// Sends requests in every combination.
pub(super) fn observe(cluster: &Cluster) -> Result<Vec<SourceRow>> {
    let mut rows = Vec::new();
    for (mode, service) in &cluster.services.modes {
        for family in Family::ALL {
            for transport in Transport::ALL {
                for case in cases(cluster, mode, family)? {
                    rows.push(ask(&case, service, mode, family, transport));
                }
            }
        }
    }
    Ok(rows)
}

/// Clients of the single backend, web-0 on node1.
fn cases<'a>(cluster: &'a Cluster, mode: &str, family: Family) -> Result<Vec<Case<'a>>> {
    let mut cases = Vec::new();
    for (name, what) in [("client-1", "pod, same node"), ("client-2", "pod, other node")] {
        let pod = cluster.pod(name)?;
        let expected = if mode == "snat" { pod.node().ip(family) } else { pod.ip(family) };
        cases.push(Case { client: format!("{name} ({what})"), place: &pod.place, expected });
    }
    let backend = cluster.pod("web-0")?;
    let range: ipnetwork::IpNetwork = backend.node().pod_cidrs()[family as usize].parse()?;
    // The address after the network address is reserved for hairpin connections.
    let hairpin = range.iter().nth(1).expect("a pod CIDR has more than one address");
    cases.push(Case { client: "web-0 (the backend itself)".into(), place: &backend.place, expected: hairpin });
    for (node, what) in cluster.lab.nodes().iter().zip(["same node", "other node"]) {
        let client = format!("{} (host process, {what})", node.name());
        cases.push(Case { client, place: &node.place, expected: node.ip(family) });
    }
    Ok(cases)
}

fn ask(case: &Case<'_>, service: &Service, mode: &str, family: Family, transport: Transport) -> SourceRow {
    let frontend = service.addr(family);
    // The daemon may not have read the manifest yet.
    let answer = eventually("an answer", || Ok(case.place.ask(transport, frontend)?));
    let (seen, backend, pass) = match answer {
        Ok(answer) => (answer.seen.ip().to_string(), answer.server, answer.seen.ip() == case.expected),
        Err(error) => (format!("{error:#}"), "none".to_owned(), false),
    };
    SourceRow {
        client: case.client.clone(),
        frontend: frontend.to_string(),
        mode: mode.to_owned(),
        family: family.name().to_owned(),
        protocol: transport.name().to_owned(),
        backend,
        expected: case.expected.to_string(),
        seen,
        pass,
    }
}

/// Prints the table; the two protocols share a line where they agree.
pub(super) fn print(rows: &[SourceRow]) {
    let mut lines: Vec<(Vec<String>, Vec<&str>)> = Vec::new();
    for row in rows {
        let line = vec![
            row.client.clone(),
            row.frontend.clone(),
            row.mode.clone(),
            row.backend.clone(),
            row.seen.clone(),
            if row.pass { mark(true).to_owned() } else { format!("{} expected {}", mark(false), row.expected) },
        ];
        match lines.iter_mut().find(|(other, _)| *other == line) {
            Some((_, protocols)) => protocols.push(&row.protocol),
            None => lines.push((line, vec![&row.protocol])),
        }
    }
    let rows = lines.into_iter().map(|(mut line, protocols)| {
        line.insert(3, protocols.join(", "));
        line
    });
    table(&["client", "frontend", "mode", "protocol", "backend", "source seen", "as expected"], rows);
}
