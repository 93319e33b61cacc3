//! The report of a run: JSON, Markdown and plots.

use std::{
    fmt::Write as _,
    fs, io,
    path::{Path, PathBuf},
};

use anyhow::{Context, Result};

use super::{
    goals::Verdict,
    plot,
    results::{Results, number},
    stats::{ENOUGH_PAIRS, Outcome},
};

impl Results {
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
    use crate::bench::results::Series;

    #[test]
    fn written_files_can_be_read_back() {
        let dir = tempfile::tempdir().unwrap();
        let json = dir.path().join("out.json");
        let mut results = Results::default();
        let series = |name: &str, values: Vec<f64>, baselines: Vec<String>| Series {
            name: name.into(),
            unit: "transactions/s",
            values,
            baselines,
        };
        let direct = "tcp_rr/same_node/direct";
        results.push(series(direct, vec![100.0, 200.0, 100.0], vec![]));
        results.push(series("tcp_rr/same_node/clusterip", vec![90.0, 180.0, 95.0], vec![direct.to_owned()]));
        results.write(&dir.path().join("bench"), Some(&json), &[], "a machine").unwrap();
        let rows: serde_json::Value = serde_json::from_str(&fs::read_to_string(json).unwrap()).unwrap();
        assert_eq!(rows.as_array().unwrap().len(), 2);
        let report = fs::read_to_string(dir.path().join("bench/report.md")).unwrap();
        assert!(report.contains("| tcp_rr/same_node/clusterip | transactions/s | 95.0 | 90.0 | 180 |"), "{report}");
    }
}
