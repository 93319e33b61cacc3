//! Results of the tests on one kernel, parsed from the guest's output.

use std::time::{Duration, Instant};

use anyhow::Result;
use serde_json::{Value, json};

use super::boot::End;
use crate::tally::Tally;

/// Result of a phase.
struct Phase {
    name: String,
    /// Exit status; `None` if it has not ended.
    status: Option<i32>,
    tally: Tally,
    summary: Option<String>,
    /// On this machine's clock.
    took: Duration,
    /// On the guest's clock.
    guest_seconds: f64,
}

impl Phase {
    fn passed(&self) -> bool {
        self.status == Some(0) && self.tally.failed == 0
    }
}

/// Results of the tests on a kernel.
pub(super) struct Run {
    kernel: String,
    release: String,
    /// Reason for skipping the kernel.
    left_out: Option<String>,
    /// Problems other than failed tests.
    problems: Vec<String>,
    tc: Option<String>,
    socket_hooks: Option<u64>,
    programs: Vec<Value>,
    phases: Vec<Phase>,
    /// Lines of the current phase.
    lines: Vec<String>,
    since: Instant,
    took: Duration,
    /// CPU time of the run.
    processor: Duration,
}

impl Run {
    /// A run that starts now.
    pub(super) fn new(kernel: &str, release: &str) -> Self {
        Self {
            kernel: kernel.to_owned(),
            release: release.to_owned(),
            left_out: None,
            problems: Vec::new(),
            tc: None,
            socket_hooks: None,
            programs: Vec::new(),
            phases: Vec::new(),
            lines: Vec::new(),
            since: Instant::now(),
            took: Duration::ZERO,
            processor: Duration::ZERO,
        }
    }

    /// A skipped run.
    pub(super) fn left_out(kernel: &str, why: &str) -> Self {
        Self { left_out: Some(why.to_owned()), ..Self::new(kernel, "") }
    }

    /// A run that could not start or continue.
    pub(super) fn failed(kernel: &str, release: &str, problem: &str) -> Self {
        println!("{kernel}: FAILED: {problem}");
        Self { problems: vec![problem.to_owned()], ..Self::new(kernel, release) }
    }

    /// Parses a line of the guest, and prints the start and end of phases.
    pub(super) fn line(&mut self, line: &str) {
        match line.strip_prefix("@@ ").map(|event| event.split(' ').collect::<Vec<_>>()).as_deref() {
            Some(["kernel", release]) => {
                println!("{}: {release} booted in {:.0} s", self.kernel, self.since.elapsed().as_secs_f64());
                if *release != self.release {
                    self.problems.push(format!("it is {release}, not {}", self.release));
                }
            }
            Some(["begin", name]) => self.begin(name),
            Some(["end", _, status, start, end]) => {
                let seconds = |text: &str| text.parse().unwrap_or(f64::NAN);
                self.end_phase(status.parse().ok(), seconds(end) - seconds(start));
            }
            Some(_) => {}
            None => self.fact(line),
        }
    }

    fn begin(&mut self, name: &str) {
        self.lines.clear();
        self.since = Instant::now();
        self.phases.push(Phase {
            name: name.to_owned(),
            status: None,
            tally: Tally::default(),
            summary: None,
            took: Duration::ZERO,
            guest_seconds: 0.0,
        });
    }

    fn end_phase(&mut self, status: Option<i32>, guest_seconds: f64) {
        let Some(phase) = self.phases.last_mut() else { return };
        (phase.status, phase.took, phase.guest_seconds) = (status, self.since.elapsed(), guest_seconds);
        let found = if phase.summary.is_some() {
            phase.tally.to_string()
        } else {
            // Programs are not tests; loading them counts as one test.
            let refused = self.programs.iter().filter(|program| !program["refused"].is_null()).count();
            let fine = u32::from(refused == 0 && status == Some(0));
            phase.tally = Tally { passed: fine, failed: 1 - fine, skipped: 0 };
            format!("{} of {} loaded", self.programs.len() - refused, self.programs.len())
        };
        let took = format!("{:.0} s, {guest_seconds:.0} s on its own clock", phase.took.as_secs_f64());
        println!("{}: {}: {found}; {took}", self.kernel, phase.name);
        if !phase.passed() {
            let status = status.map_or_else(|| "no status".to_owned(), |status| format!("status {status}"));
            println!("{}: {} FAILED ({status}):\n{}", self.kernel, phase.name, self.lines.join("\n"));
        }
    }

    fn fact(&mut self, line: &str) {
        self.lines.push(line.to_owned());
        let Some(phase) = self.phases.last_mut() else { return };
        if let Some(tally) = Tally::from_summary(line) {
            phase.tally += tally;
            phase.summary = Some(line.to_owned());
        // These may follow the name of the test on the same line.
        } else if let Some((_, how)) = line.split_once("TC programs attached by: ") {
            self.tc = Some(how.to_owned());
        } else if let Some((_, count)) = line.split_once("socket hooks attached: ") {
            self.socket_hooks = count.parse().ok();
        } else if phase.name == "programs"
            && let Ok(program @ Value::Object(_)) = serde_json::from_str(line)
        {
            self.programs.push(program);
        }
    }

    /// Ends the run. `phases`: the expected phases, and whether they have a summary.
    pub(super) fn end(&mut self, end: &End, phases: &[(&str, bool)], took: Duration) {
        (self.took, self.processor) = (took, end.processor);
        self.problems.extend(end.problem.clone());
        if let Some(phase) = self.phases.last().filter(|phase| phase.status.is_none()) {
            println!("{}: {} did not end:\n{}", self.kernel, phase.name, self.lines.join("\n"));
        }
        for (name, has_summary) in phases {
            match self.phases.iter().find(|phase| phase.name == *name) {
                None => self.problems.push(format!("{name} did not begin")),
                Some(phase) if phase.status.is_none() => self.problems.push(format!("{name} did not end")),
                Some(phase) if *has_summary && phase.summary.is_none() => {
                    self.problems.push(format!("{name} has no summary"));
                }
                // A test program that fails without a failed test has crashed.
                Some(phase) if phase.status != Some(0) && phase.tally.failed == 0 => {
                    self.problems.push(format!("{name} failed without a failed test"));
                }
                Some(_) => {}
            }
        }
        for problem in &self.problems {
            println!("{}: FAILED: {problem}", self.kernel);
        }
        let [took, processor] = [took, end.processor].map(|time| time.as_secs());
        println!("{}: {} in {took} s, {processor} s of a processor's time", self.kernel, self.tally());
    }

    /// Total. A problem counts as a failed test, a skipped kernel as a skipped test.
    pub(super) fn tally(&self) -> Tally {
        let skipped = u32::from(self.left_out.is_some());
        let mut total = Tally { passed: 0, failed: self.problems.len() as u32, skipped };
        self.phases.iter().for_each(|phase| total += phase.tally.clone());
        total
    }

    /// Summaries printed by the test programs.
    pub(super) fn summaries(&self) -> impl Iterator<Item = String> {
        let left_out = self.left_out.iter().map(|_| format!("kernel {}: SKIPPED", self.kernel));
        let of_phase = |phase: &Phase| {
            let summary = phase.summary.as_ref()?;
            Some(format!("kernel {}, {}\n{summary}", self.kernel, phase.name))
        };
        left_out.chain(self.phases.iter().filter_map(of_phase)).collect::<Vec<_>>().into_iter()
    }

    /// The results as JSON.
    pub(super) fn json(&self) -> Result<String> {
        let phase = |phase: &Phase| {
            json!({
                "name": phase.name, "passed": phase.tally.passed, "failed": phase.tally.failed,
                "skipped": phase.tally.skipped, "seconds": phase.took.as_secs(), "guestSeconds": phase.guest_seconds,
            })
        };
        let total = self.tally();
        let value = json!({
            "kernel": self.kernel, "release": self.release, "leftOut": self.left_out, "problems": self.problems,
            "tc": self.tc, "socketHooks": self.socket_hooks,
            "passed": total.passed, "failed": total.failed, "skipped": total.skipped, "seconds": self.took.as_secs(),
            "processorSeconds": self.processor.as_secs(),
            "phases": self.phases.iter().map(phase).collect::<Vec<_>>(), "programs": self.programs,
        });
        Ok(serde_json::to_string_pretty(&value)? + "\n")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const EXPECTED: [(&str, bool); 2] = [("programs", false), ("packet", true)];

    fn run(lines: &[&str], problem: Option<&str>) -> Run {
        let mut run = Run::new("6.12", "6.12.1-cloud");
        lines.iter().for_each(|line| run.line(line));
        let end = End { problem: problem.map(str::to_owned), processor: Duration::from_secs(60) };
        run.end(&end, &EXPECTED, Duration::from_secs(90));
        run
    }

    const PROGRAMS: [&str; 4] = [
        "@@ kernel 6.12.1-cloud",
        "@@ begin programs",
        r#"{"name":"from_pod","processed":10,"refused":null}"#,
        "@@ end programs 0 1.50 3.25",
    ];

    #[test]
    fn results_are_parsed_from_the_guest_output() {
        let rest = [
            "@@ begin packet",
            "test tour ... TC programs attached by: TCX",
            "socket hooks attached: 8",
            "test result: ok. 60 passed; 0 failed; 1 ignored; 0 measured; 0 filtered out",
            "@@ end packet 0 3.25 9.00",
            "@@ over",
        ];
        let run = run(&[&PROGRAMS[..], &rest].concat(), None);
        assert_eq!(run.tally().to_string(), "61 passed, 0 failed, 1 skipped");
        let value: Value = serde_json::from_str(&run.json().unwrap()).unwrap();
        assert_eq!((&value["tc"], &value["socketHooks"], &value["seconds"]), (&json!("TCX"), &json!(8), &json!(90)));
        assert_eq!(
            (&value["programs"][0]["processed"], &value["phases"][1]["guestSeconds"]),
            (&json!(10), &json!(5.75))
        );
        let summaries: Vec<_> = run.summaries().collect();
        assert_eq!(summaries.len(), 1);
        assert!(summaries[0].starts_with("kernel 6.12, packet\ntest result: ok. 60 passed"), "{summaries:?}");
    }

    #[test]
    fn missing_phases_count_as_failed() {
        let hung = run(&[&PROGRAMS[..], &["@@ begin packet"]].concat(), Some("the guest has not ended"));
        assert_eq!(hung.tally().to_string(), "1 passed, 2 failed, 0 skipped");
        let silent = run(&[&PROGRAMS[..], &["@@ begin packet", "@@ end packet 0 1 2"]].concat(), None);
        assert_eq!(silent.problems, ["packet has no summary"]);
        let never = run(&PROGRAMS, None);
        assert_eq!(never.problems, ["packet did not begin"]);
        let crashed = ["@@ begin packet", "test result: ok. 1 passed; 0 failed; 0 ignored", "@@ end packet 139 1 2"];
        assert_eq!(run(&[&PROGRAMS[..], &crashed].concat(), None).problems, ["packet failed without a failed test"]);
        let other = run(&["@@ kernel 5.0"], None);
        assert!(other.problems[0].contains("5.0"), "{:?}", other.problems);
    }

    #[test]
    fn rejected_program_is_a_failure() {
        let refused = r#"{"name":"from_pod","processed":10,"refused":"Too large"}"#;
        let run = run(&["@@ kernel 6.12.1-cloud", "@@ begin programs", refused, "@@ end programs 1 1 2"], None);
        assert_eq!(run.tally().to_string(), "0 passed, 2 failed, 0 skipped");
    }

    #[test]
    fn unavailable_kernel_is_skipped_and_unbootable_one_has_failed() {
        assert_eq!(Run::failed("5.19", "5.19.0", "it has no bridge").tally().failed, 1);
        let run = Run::left_out("5.19", "it is gone");
        assert_eq!(run.tally(), Tally { passed: 0, failed: 0, skipped: 1 });
        assert!(run.json().unwrap().contains("it is gone"));
    }
}
