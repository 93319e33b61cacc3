//! What to measure, and where to write the results.

use std::path::PathBuf;

/// Options of a run.
#[derive(Clone, Debug)]
pub struct Options {
    /// Fewer rounds: a quick look at the figures, without verdicts.
    pub quick: bool,
    /// Additional file for the JSON results.
    pub json: Option<PathBuf>,
    /// Only rows whose name contains this text, and their baselines.
    pub filter: Option<String>,
    /// Directory for the report, the JSON results and the plots.
    pub out: PathBuf,
    /// Object of another build, whose programs are measured in alternation with this build's.
    pub before: Option<PathBuf>,
}

impl Options {
    /// Whether a row is requested.
    pub fn wants(&self, name: &str) -> bool {
        self.filter.as_ref().is_none_or(|f| name.contains(f.as_str()))
    }
}
