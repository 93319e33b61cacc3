//! Results of the demonstration: printed as they arrive, written as JSON at the end.

use std::fs;
use std::net::IpAddr;
use std::path::Path;
use std::time::Instant;

use anyhow::{Context, Result};
use comfy_table::Table;
use comfy_table::presets::UTF8_BORDERS_ONLY;
use serde::Serialize;

/// All results, in the structure of the JSON file.
#[derive(Debug, Serialize)]
pub(super) struct Report {
    pub(super) checks: Vec<Check>,
    pub(super) pods: Vec<PodRow>,
    pub(super) source_ip: Vec<SourceRow>,
    pub(super) throughput: Vec<ThroughputRow>,
    #[serde(skip)]
    start: Instant,
}

/// A statement about the cluster, and whether it holds.
#[derive(Debug, Serialize)]
pub(super) struct Check {
    pub(super) name: String,
    pub(super) pass: bool,
    pub(super) detail: String,
}

/// One pod.
#[derive(Clone, Debug, Serialize)]
pub(super) struct PodRow {
    pub(super) name: String,
    pub(super) node: String,
    pub(super) ips: Vec<IpAddr>,
}

/// Source address that a backend saw.
#[derive(Clone, Debug, Serialize)]
pub(super) struct SourceRow {
    pub(super) client: String,
    pub(super) frontend: String,
    pub(super) mode: String,
    pub(super) family: String,
    pub(super) protocol: String,
    pub(super) backend: String,
    pub(super) expected: String,
    pub(super) seen: String,
    pub(super) pass: bool,
}

/// A measurement of throughput.
#[derive(Clone, Debug, Serialize)]
pub(super) struct ThroughputRow {
    pub(super) path: String,
    pub(super) gbps: f64,
    pub(super) ratio_to_direct: f64,
}

impl Report {
    pub(super) fn new() -> Self {
        let (checks, pods, source_ip, throughput) = Default::default();
        Self { checks, pods, source_ip, throughput, start: Instant::now() }
    }

    /// Prints the heading of the next part.
    pub(super) fn heading(&self, title: &str) {
        println!("\n── {title} ({:.0} s) ──", self.start.elapsed().as_secs_f64());
    }

    /// Records and prints a check; `Ok` contains the observation, an error the failure.
    pub(super) fn check(&mut self, name: impl Into<String>, found: Result<String>) {
        let (name, pass) = (name.into(), found.is_ok());
        let detail = found.unwrap_or_else(|error| format!("{error:#}"));
        println!("{} {name}: {detail}", mark(pass));
        self.checks.push(Check { name, pass, detail });
    }

    /// The failed checks.
    pub(super) fn failures(&self) -> impl Iterator<Item = &Check> {
        self.checks.iter().filter(|check| !check.pass)
    }

    /// Prints the summary.
    pub(super) fn summarise(&self) {
        let failed = self.failures().count();
        let seconds = self.start.elapsed().as_secs_f64();
        self.heading("Summary");
        for check in self.failures() {
            println!("✗ {}: {}", check.name, check.detail);
        }
        let passed = self.checks.len() - failed;
        println!("{} {passed} of {} checks passed in {seconds:.0} s", mark(failed == 0), self.checks.len());
    }

    /// Writes the JSON file.
    pub(super) fn write(&self, path: &Path) -> Result<()> {
        let text = serde_json::to_string_pretty(self)? + "\n";
        fs::write(path, text).with_context(|| format!("cannot write {}", path.display()))
    }
}

/// ✓ or ✗.
pub(super) fn mark(pass: bool) -> &'static str {
    if pass { "✓" } else { "✗" }
}

/// Prints a table.
pub(super) fn table(header: &[&str], rows: impl IntoIterator<Item = Vec<String>>) {
    let mut table = Table::new();
    table.load_style(UTF8_BORDERS_ONLY).set_header(header.to_vec()).add_rows(rows);
    println!("{table}");
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn json_has_the_documented_form() {
        let mut report = Report::new();
        report.check("a", Ok("fine".into()));
        report.check("b", Err(anyhow::anyhow!("inner").context("outer")));
        report.pods.push(PodRow { name: "p".into(), node: "n".into(), ips: vec!["fd00::1".parse().unwrap()] });
        report.throughput.push(ThroughputRow { path: "x".into(), gbps: 1.5, ratio_to_direct: 1.0 });
        assert_eq!(
            serde_json::to_value(&report).unwrap(),
            serde_json::json!({
                "checks": [
                    {"name": "a", "pass": true, "detail": "fine"},
                    {"name": "b", "pass": false, "detail": "outer: inner"},
                ],
                "pods": [{"name": "p", "node": "n", "ips": ["fd00::1"]}],
                "source_ip": [],
                "throughput": [{"path": "x", "gbps": 1.5, "ratio_to_direct": 1.0}],
            })
        );
        assert_eq!(report.failures().map(|check| &check.name[..]).collect::<Vec<_>>(), ["b"]);
    }
}
