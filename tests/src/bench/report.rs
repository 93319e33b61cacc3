//! Results of a run: rows, JSON, and the Markdown report.
//!
//! Measurements are kept as aligned series (sample `i` of every series of a suite is from round `i`), so that ratios
//! are computed within rounds; rows are derived from them at the end.

use std::{
    fmt::Write as _,
    fs, io,
    path::{Path, PathBuf},
};

use anyhow::{Context, Result};
use serde::Serialize;

use super::{
    goals::Verdict,
    plot,
    stats::{self, ENOUGH_PAIRS, Outcome},
};

/// A measured series.
#[derive(Clone, Debug)]
pub struct Series {
    /// Its row's name.
    pub name: String,
    /// The unit of its values.
    pub unit: &'static str,
    /// One value per round.
    pub values: Vec<f64>,
    /// Names of the baseline series; the first is the principal one.
    pub baselines: Vec<String>,
}

/// A row of the JSON results. A series with several baselines has a row for each.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Row {
    /// Name of the series.
    pub name: String,
    /// The unit of `value`, `min` and `max`.
    pub unit: &'static str,
    /// The median.
    pub value: f64,
    /// Smallest sample.
    pub min: f64,
    /// Largest sample.
    pub max: f64,
    /// Baseline of the ratio.
    pub baseline: Option<String>,
    /// Median of the pairs' quotients.
    pub ratio: Option<f64>,
    /// Lower end of its 95 % interval.
    pub ratio_low: Option<f64>,
    /// Upper end of its 95 % interval.
    pub ratio_high: Option<f64>,
}

/// All results of a run, in the order of measurement.
#[derive(Debug, Default)]
pub struct Results {
    series: Vec<Series>,
    notes: Vec<String>,
}

impl Results {
    /// Adds a series, unless it has no samples.
    pub fn push(&mut self, series: Series) {
        if !series.values.is_empty() {
            self.series.push(series);
        }
    }

    /// Adds a sentence about the run to the report.
    pub fn note(&mut self, text: impl Into<String>) {
        self.notes.push(text.into());
    }

    /// The series with this name.
    pub fn get(&self, name: &str) -> Option<&Series> {
        self.series.iter().find(|s| s.name == name)
    }

    /// Same, mutable.
    pub fn get_mut(&mut self, name: &str) -> Option<&mut Series> {
        self.series.iter_mut().find(|s| s.name == name)
    }

    /// Whether nothing was measured.
    pub fn is_empty(&self) -> bool {
        self.series.is_empty()
    }

    /// The ratio of one series to another, if both were measured.
    pub fn ratio(&self, name: &str, baseline: &str) -> Option<stats::Estimate> {
        stats::ratio(&self.get(name)?.values, &self.get(baseline)?.values)
    }

    /// All rows.
    pub fn rows(&self) -> Vec<Row> {
        let mut rows = Vec::new();
        for series in &self.series {
            let Some(value) = stats::median(&series.values) else { continue };
            let row = |baseline: Option<&String>| {
                let ratio = baseline.and_then(|b| self.ratio(&series.name, b));
                Row {
                    name: series.name.clone(),
                    unit: series.unit,
                    value,
                    min: series.values.iter().copied().fold(f64::INFINITY, f64::min),
                    max: series.values.iter().copied().fold(f64::NEG_INFINITY, f64::max),
                    baseline: ratio.and(baseline.cloned()),
                    ratio: ratio.map(|r| r.median),
                    ratio_low: ratio.map(|r| r.low),
                    ratio_high: ratio.map(|r| r.high),
                }
            };
            let measured: Vec<&String> = series.baselines.iter().filter(|b| self.get(b).is_some()).collect();
            if measured.is_empty() {
                rows.push(row(None));
            }
            rows.extend(measured.into_iter().map(|b| row(Some(b))));
        }
        rows
    }

    /// The Markdown report.
    pub fn markdown(&self, verdicts: &[Verdict], machine: &str, plots: &[PathBuf]) -> String {
        let mut out = format!("# Benchmarks\n\n{machine}\n");
        for note in &self.notes {
            let _ = write!(out, "\n{note}\n");
        }
        if !verdicts.is_empty() {
            out.push_str(
                "\n## Goals\n\n| goal | measured | 95 % interval | pairs | outcome |\n|---|---|---|---|---|\n",
            );
            for v in verdicts {
                let e = &v.estimate;
                let few =
                    if v.outcome == Outcome::Inconclusive && e.samples < v.enough { " (too few samples)" } else { "" };
                let _ = writeln!(
                    out,
                    "| {} | {} | {} – {} | {} | {}{few} |",
                    v.goal,
                    number(e.median),
                    number(e.low),
                    number(e.high),
                    e.samples,
                    outcome_word(v.outcome)
                );
            }
        }
        out.push_str("\n## Measurements\n\n| what | unit | median | min | max | against | ratio | 95 % interval |\n");
        out.push_str("|---|---|---|---|---|---|---|---|\n");
        for r in self.rows() {
            let optional = |v: Option<f64>| v.map(number).unwrap_or_default();
            let interval = match (r.ratio_low, r.ratio_high) {
                (Some(low), Some(high)) => format!("{} – {}", number(low), number(high)),
                _ => String::new(),
            };
            let _ = writeln!(
                out,
                "| {} | {} | {} | {} | {} | {} | {} | {interval} |",
                r.name,
                r.unit,
                number(r.value),
                number(r.min),
                number(r.max),
                r.baseline.as_deref().unwrap_or(""),
                optional(r.ratio)
            );
        }
        for plot in plots {
            let file = plot.file_name().unwrap_or_default().to_string_lossy();
            let _ = write!(out, "\n![{file}]({file})\n");
        }
        out
    }

    /// Writes `results.json`, `report.md` and the plots to `directory`, and the JSON also to `json`. New files are
    /// given to the owner of the directory's parent, so that a run under sudo leaves no files of root in a user's tree.
    pub fn write(&self, directory: &Path, json: Option<&Path>, verdicts: &[Verdict], machine: &str) -> Result<()> {
        fs::create_dir_all(directory).with_context(|| format!("cannot create {}", directory.display()))?;
        let text = serde_json::to_string_pretty(&self.rows())? + "\n";
        let mut written = vec![directory.join("results.json"), directory.join("report.md")];
        save(&written[0], &text)?;
        if let Some(file) = json {
            save(file, &text)?;
            written.push(file.to_owned());
        }
        let plots = plot::draw_all(self, verdicts, directory)?;
        save(&written[1], &self.markdown(verdicts, machine, &plots))?;
        written.extend(plots);
        written.push(directory.to_owned());
        for path in &written {
            // Best effort: a file system without owners is no reason to lose the results.
            let _ = give_to_owner_of_parent(path);
        }
        Ok(())
    }
}

fn save(path: &Path, text: &str) -> Result<()> {
    fs::write(path, text).with_context(|| format!("cannot write {}: is its directory writable?", path.display()))
}

fn give_to_owner_of_parent(path: &Path) -> io::Result<()> {
    use std::os::unix::fs::{MetadataExt, chown};
    let absolute = path.canonicalize()?;
    let mut owner = fs::metadata(absolute.parent().unwrap_or(Path::new("/")))?;
    // The directory was created by this run; its own parent belongs to the user.
    if owner.uid() == 0
        && let Some(grandparent) = absolute.parent().and_then(Path::parent)
    {
        owner = fs::metadata(grandparent)?;
    }
    chown(&absolute, Some(owner.uid()), Some(owner.gid()))
}

/// Name of an outcome.
pub fn outcome_word(outcome: Outcome) -> &'static str {
    match outcome {
        Outcome::Reached => "reached",
        Outcome::Missed => "**missed**",
        Outcome::Inconclusive => "inconclusive",
    }
}

/// Formats with about three significant digits.
pub fn number(v: f64) -> String {
    match v.abs() {
        0.0 => "0".to_owned(),
        a if a >= 100.0 => format!("{v:.0}"),
        a if a >= 10.0 => format!("{v:.1}"),
        a if a >= 0.1 => format!("{v:.3}"),
        _ => format!("{v:.5}"),
    }
}

/// Describes the machine: processor, cores, memory, kernel.
pub fn machine() -> String {
    let read = |path: &str| fs::read_to_string(path).unwrap_or_default();
    let field = |text: &str, key: &str| -> String {
        text.lines()
            .find(|l| l.starts_with(key))
            .and_then(|l| l.split_once(':'))
            .map_or_else(|| "unknown".to_owned(), |(_, v)| v.trim().to_owned())
    };
    let cpu = read("/proc/cpuinfo");
    let cores = cpu.lines().filter(|l| l.starts_with("processor")).count();
    let kib: u64 = field(&read("/proc/meminfo"), "MemTotal").trim_end_matches(" kB").parse().unwrap_or(0);
    format!(
        "{}, {cores} cores, {} GiB, Linux {}. Ratios are medians over interleaved pairs (at least {ENOUGH_PAIRS} for a \
         verdict) with their 95 % intervals.",
        field(&cpu, "model name"),
        kib >> 20,
        read("/proc/sys/kernel/osrelease").trim()
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    fn results() -> Results {
        let mut r = Results::default();
        let series = |name: &str, values: Vec<f64>, baselines: &[&str]| Series {
            name: name.into(),
            unit: "transactions/s",
            values,
            baselines: baselines.iter().map(|s| s.to_string()).collect(),
        };
        r.push(series("tcp_rr/same_node/direct", vec![100.0, 200.0, 100.0], &["not/measured"]));
        r.push(series("tcp_rr/same_node/clusterip", vec![90.0, 180.0, 95.0], &["tcp_rr/same_node/direct"]));
        r.push(series("empty", vec![], &[]));
        r
    }

    #[test]
    fn json_rows_have_the_documented_fields() {
        let json = serde_json::to_value(results().rows()).unwrap();
        assert_eq!(
            json,
            serde_json::json!([
                {"name": "tcp_rr/same_node/direct", "unit": "transactions/s", "value": 100.0, "min": 100.0, "max": 200.0,
                 "baseline": null, "ratio": null, "ratio_low": null, "ratio_high": null},
                {"name": "tcp_rr/same_node/clusterip", "unit": "transactions/s", "value": 95.0, "min": 90.0, "max": 180.0,
                 "baseline": "tcp_rr/same_node/direct", "ratio": 0.9, "ratio_low": 0.9, "ratio_high": 0.95},
            ])
        );
    }

    #[test]
    fn several_baselines_make_several_rows() {
        let mut r = results();
        r.push(Series {
            name: "tcp_rr/same_node/clusterip@nftables-1".into(),
            unit: "transactions/s",
            values: vec![80.0, 160.0, 80.0],
            baselines: vec!["tcp_rr/same_node/clusterip".into(), "tcp_rr/same_node/direct".into()],
        });
        let against: Vec<_> = r.rows().into_iter().skip(2).map(|row| (row.baseline, row.ratio)).collect();
        assert_eq!(against[1], (Some("tcp_rr/same_node/direct".into()), Some(0.8)));
        assert_eq!(against.len(), 2);
    }

    #[test]
    fn written_files_can_be_read_back() {
        let dir = tempfile::tempdir().unwrap();
        let json = dir.path().join("out.json");
        results().write(&dir.path().join("bench"), Some(&json), &[], "a machine").unwrap();
        let rows: serde_json::Value = serde_json::from_str(&fs::read_to_string(json).unwrap()).unwrap();
        assert_eq!(rows.as_array().unwrap().len(), 2);
        let report = fs::read_to_string(dir.path().join("bench/report.md")).unwrap();
        assert!(report.contains("| tcp_rr/same_node/clusterip | transactions/s | 95.0 | 90.0 | 180 |"), "{report}");
    }
}
