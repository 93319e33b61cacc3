//! Effects of other programs' packet filters on pod traffic: FORWARD policies that drop (Docker, ufw), rules left by
//! kube-proxy, and bridged packets that pass iptables.
//!
//! They are only reported, since the filters belong to other programs. nftables is read with `nft`, which also shows
//! the rules of iptables-nft; the tables of legacy iptables are read with `iptables-legacy-save`, and only if the
//! kernel has such tables, since reading would create them.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;
use std::process::Command;

use serde::{Deserialize, Serialize};

use super::sysctl::Sysctl;
use super::uplinks::Uplink;

/// A packet filter that may interfere.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Finding {
    /// The filter.
    pub what: String,
    /// Its effect on podnet's traffic, and advice.
    pub advice: String,
}

/// Findings, and checks that were not possible.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Report {
    /// Findings in a stable order.
    pub findings: Vec<Finding>,
    /// Skipped checks, with the reason.
    pub skipped: Vec<String>,
}

/// A chain, reduced to the fields that findings need.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Chain {
    /// The command for changing it, for messages.
    tool: &'static str,
    family: String,
    table: String,
    name: String,
    /// It is attached to the forward hook and drops packets that no rule accepts.
    drops_forwarded: bool,
}

/// Examines the packet filters of the calling thread's network namespace.
pub fn detect(sysctl: &Sysctl, uplinks: &[Uplink]) -> Report {
    let mut report = Report::default();
    let mut chains = BTreeSet::new();
    match run("nft", &["--json", "list", "chains"]) {
        Ok(text) => match parse_nft(&text) {
            Ok(found) => chains.extend(found),
            Err(e) => {
                report.skipped.push(format!("nftables: cannot parse the output of `nft --json list chains`: {e}"))
            }
        },
        Err(reason) => report.skipped.push(format!("nftables: {reason}")),
    }
    for (family, names, tool) in
        [("ip", "ip_tables_names", "iptables-legacy-save"), ("ip6", "ip6_tables_names", "ip6tables-legacy-save")]
    {
        let tables = fs::read_to_string(Path::new("/proc/thread-self/net").join(names)).unwrap_or_default();
        if tables.trim().is_empty() {
            continue;
        }
        match run(tool, &[]) {
            Ok(text) => chains.extend(parse_save(&text, family)),
            Err(reason) => report.skipped.push(format!("legacy iptables ({family}): {reason}")),
        }
    }
    report.findings = findings(&chains);
    for name in ["bridge-nf-call-iptables", "bridge-nf-call-ip6tables"] {
        let on = matches!(sysctl.read(&format!("net/bridge/{name}")), Ok(Some(value)) if value == "1");
        if let Some(uplink) = uplinks.iter().find(|u| u.main && u.bridged).filter(|_| on) {
            report.findings.push(Finding {
                what: format!("net.bridge.{name} is 1 and the uplink {} is bridged", uplink.name),
                advice: format!(
                    "bridged packets pass the host's packet filter too: set it to 0 (`sysctl -w net.bridge.{name}=0`) \
                     unless another program needs it"
                ),
            });
        }
    }
    report
}

/// The findings for these chains.
fn findings(chains: &BTreeSet<Chain>) -> Vec<Finding> {
    let mut findings: Vec<Finding> = chains
        .iter()
        .filter(|c| c.drops_forwarded)
        .map(|c| Finding {
            what: format!("the policy of chain {} ({} {}) is drop", c.name, c.family, c.table),
            advice: format!(
                "packets to and from pods that pass the host's stack are dropped unless a rule accepts them: accept \
                 the cluster's pod CIDRs as source and as destination there, with {} or the program that owns the \
                 chain (Docker: in DOCKER-USER; ufw: `ufw route allow`)",
                c.tool
            ),
        })
        .collect();
    let kube_proxy: BTreeSet<(&str, &str)> =
        chains.iter().filter(|c| left_by_kube_proxy(c)).map(|c| (c.family.as_str(), c.table.as_str())).collect();
    findings.extend(kube_proxy.into_iter().map(|(family, table)| {
        Finding {
            what: format!("table {family} {table} holds service rules of kube-proxy"),
            advice: "services would be translated twice: stop kube-proxy on this node and remove its rules \
                 (`kube-proxy --cleanup`)"
                .to_owned(),
        }
    }));
    findings
}

/// Whether a chain is kube-proxy's. The kubelet's own chains (hint, canary, firewall) don't count.
fn left_by_kube_proxy(chain: &Chain) -> bool {
    chain.table == "kube-proxy" || ["KUBE-SERVICES", "KUBE-NODEPORTS"].contains(&chain.name.as_str())
}

/// Parses the output of `nft --json list chains`.
fn parse_nft(text: &str) -> Result<Vec<Chain>, serde_json::Error> {
    #[derive(Deserialize)]
    struct Output {
        nftables: Vec<Item>,
    }
    #[derive(Deserialize)]
    struct Item {
        chain: Option<Nft>,
    }
    #[derive(Deserialize)]
    struct Nft {
        family: String,
        table: String,
        name: String,
        hook: Option<String>,
        policy: Option<String>,
    }
    let output: Output = serde_json::from_str(text)?;
    let chains = output.nftables.into_iter().filter_map(|item| item.chain);
    Ok(chains
        .map(|c| Chain {
            tool: "nft",
            drops_forwarded: c.hook.as_deref() == Some("forward") && c.policy.as_deref() == Some("drop"),
            family: c.family,
            table: c.table,
            name: c.name,
        })
        .collect())
}

/// Parses the chains of `iptables-save`: lines of the form `*table` and `:CHAIN POLICY [counters]`.
fn parse_save(text: &str, family: &str) -> Vec<Chain> {
    let mut table = "";
    let mut chains = Vec::new();
    for line in text.lines() {
        if let Some(name) = line.strip_prefix('*') {
            table = name;
        } else if let Some((name, rest)) = line.strip_prefix(':').and_then(|l| l.split_once(' ')) {
            chains.push(Chain {
                tool: if family == "ip" { "iptables-legacy" } else { "ip6tables-legacy" },
                family: family.to_owned(),
                table: table.to_owned(),
                name: name.to_owned(),
                drops_forwarded: name == "FORWARD" && rest.starts_with("DROP"),
            });
        }
    }
    chains
}

/// Runs a program and returns its output, or why it failed.
fn run(program: &str, arguments: &[&str]) -> Result<String, String> {
    let output = Command::new(program).args(arguments).output().map_err(|e| match e.kind() {
        std::io::ErrorKind::NotFound => format!("{program} is not installed"),
        _ => format!("cannot start {program}: {e}"),
    })?;
    if output.status.success() {
        Ok(String::from_utf8_lossy(&output.stdout).into_owned())
    } else {
        let complaint = String::from_utf8_lossy(&output.stderr);
        Err(format!("{program} failed ({}): {}", output.status, complaint.lines().next().unwrap_or_default()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// As printed by nftables 1.0.6 after `iptables -P FORWARD DROP`, a chain of kube-proxy and one of the kubelet.
    const NFT: &str = r#"{"nftables": [
        {"metainfo": {"version": "1.0.6", "release_name": "Lester Gooch #5", "json_schema_version": 1}},
        {"chain": {"family": "ip", "table": "filter", "name": "FORWARD", "handle": 1, "type": "filter", "hook": "forward", "prio": 0, "policy": "drop"}},
        {"chain": {"family": "ip", "table": "filter", "name": "INPUT", "handle": 3, "type": "filter", "hook": "input", "prio": 0, "policy": "drop"}},
        {"chain": {"family": "inet", "table": "mine", "name": "fwd", "handle": 3, "type": "filter", "hook": "forward", "prio": 0, "policy": "accept"}},
        {"chain": {"family": "ip", "table": "nat", "name": "KUBE-KUBELET-CANARY", "handle": 2}},
        {"chain": {"family": "ip", "table": "nat", "name": "KUBE-SERVICES", "handle": 1}}]}"#;

    #[test]
    fn forward_policies_and_kube_proxy_are_found_in_nftables() {
        let found = findings(&parse_nft(NFT).unwrap().into_iter().collect());
        let what: Vec<_> = found.iter().map(|f| f.what.as_str()).collect();
        assert_eq!(
            what,
            ["the policy of chain FORWARD (ip filter) is drop", "table ip nat holds service rules of kube-proxy"]
        );
    }

    #[test]
    fn the_kubelets_own_chains_are_no_finding() {
        let chains = parse_nft(&NFT.replace("KUBE-SERVICES", "KUBE-IPTABLES-HINT").replace("\"drop\"", "\"accept\""));
        assert_eq!(findings(&chains.unwrap().into_iter().collect()), []);
    }

    #[test]
    fn legacy_tables_are_read_too() {
        let text = "# Generated\n*nat\n:PREROUTING ACCEPT [0:0]\n:KUBE-NODEPORTS - [0:0]\nCOMMIT\n*filter\n\
                    :INPUT DROP [0:0]\n:FORWARD DROP [12:900]\n-A FORWARD -j ACCEPT\nCOMMIT\n";
        let found = findings(&parse_save(text, "ip6").into_iter().collect());
        let what: Vec<_> = found.iter().map(|f| f.what.as_str()).collect();
        assert_eq!(
            what,
            ["the policy of chain FORWARD (ip6 filter) is drop", "table ip6 nat holds service rules of kube-proxy"]
        );
        assert!(found[0].advice.contains("ip6tables-legacy"));
    }

    #[test]
    fn a_missing_program_is_a_reason_for_skipping_and_no_error() {
        assert_eq!(run("podnet-no-such-program", &[]).unwrap_err(), "podnet-no-such-program is not installed");
    }
}
