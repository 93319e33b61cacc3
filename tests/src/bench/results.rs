//! Results of a run: measured series, and the rows that are derived from them.
//!
//! Measurements are kept as aligned series (sample `i` of every series of a suite is from round `i`), so that ratios
//! are computed within rounds; rows are derived from them at the end.

use serde::Serialize;

use super::stats;

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
    pub(super) notes: Vec<String>,
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
}
