//! podnet's performance goals, and whether a run reached them.

use super::{
    results::Results,
    stats::{self, Bound, ENOUGH_PAIRS, ENOUGH_VALUES, Estimate, Outcome},
};

/// A goal whose rows were measured, and the outcome.
#[derive(Clone, Debug)]
pub struct Verdict {
    /// The goal in words.
    pub goal: String,
    /// Name of the row.
    pub name: String,
    /// The measured value.
    pub estimate: Estimate,
    /// The bound.
    pub bound: Bound,
    /// Samples needed for a verdict.
    pub enough: usize,
    /// Reached or not.
    pub outcome: Outcome,
}

/// A performance goal.
struct Goal {
    name: String,
    /// The row for the ratio; `None` for goals about the value itself.
    baseline: Option<String>,
    bound: Bound,
    /// A more ambitious value.
    aim: Option<f64>,
}

impl Goal {
    fn ratio(name: impl Into<String>, baseline: impl Into<String>, bound: Bound) -> Self {
        Self { name: name.into(), baseline: Some(baseline.into()), bound, aim: None }
    }

    fn value(name: &str, bound: Bound) -> Self {
        Self { name: name.into(), baseline: None, bound, aim: None }
    }

    fn aim(self, aim: f64) -> Self {
        Self { aim: Some(aim), ..self }
    }

    fn evaluate(&self, results: &Results) -> Option<Verdict> {
        let series = results.get(&self.name)?;
        let (estimate, enough) = match &self.baseline {
            Some(baseline) => (results.ratio(&self.name, baseline)?, ENOUGH_PAIRS),
            None => (stats::estimate(&series.values)?, ENOUGH_VALUES),
        };
        let (word, bound) = match self.bound {
            Bound::AtLeast(v) => ("at least", v),
            Bound::AtMost(v) => ("at most", v),
        };
        let mut goal = match &self.baseline {
            Some(baseline) => format!("{} over {baseline}: {word} {bound:.2}", self.name),
            None => format!("{}: {word} {bound} {}", self.name, series.unit),
        };
        if let Some(aim) = self.aim {
            goal.push_str(&format!(" (aim {aim})"));
        }
        let outcome = self.bound.evaluate(&estimate, enough);
        Some(Verdict { goal, name: self.name.clone(), estimate, bound: self.bound, enough, outcome })
    }
}

/// Evaluates every goal whose rows were measured.
pub fn evaluate(results: &Results) -> Vec<Verdict> {
    goals().iter().filter_map(|g| g.evaluate(results)).collect()
}

fn goals() -> Vec<Goal> {
    let mut goals = Vec::new();
    for place in ["same_node", "cross_node"] {
        for (metric, over_direct) in [("tcp_stream", 0.97), ("tcp_rr", 0.97), ("tcp_crr", 0.93)] {
            let row = |variant: &str| format!("{metric}/{place}/{variant}");
            goals.push(Goal::ratio(row("clusterip"), row("direct"), Bound::AtLeast(over_direct)));
            goals.push(Goal::ratio(row("clusterip@podnet-10000"), row("clusterip@podnet-1"), Bound::AtLeast(0.97)));
            if place == "same_node" {
                goals.push(Goal::ratio(row("direct"), row("direct@routed"), Bound::AtLeast(1.0)).aim(1.1));
            }
        }
        for peer in ["nftables", "iptables"] {
            for services in ["1", "10000"] {
                let row = |who: &str| format!("tcp_crr/{place}/clusterip@{who}-{services}");
                goals.push(Goal::ratio(row("podnet"), row(peer), Bound::AtLeast(1.1)).aim(1.3));
            }
        }
    }
    for metric in ["tcp_stream", "tcp_rr", "tcp_crr"] {
        for place in ["same_node", "cross_node"] {
            let row = |way: &str| format!("{metric}/{place}/{way}@socket");
            goals.push(Goal::ratio(row("clusterip"), row("direct"), Bound::AtLeast(0.99)));
        }
    }
    for (metric, over_direct) in [("tcp_stream", 0.97), ("tcp_rr", 0.97), ("tcp_crr", 0.93)] {
        let row = |way: &str| format!("{metric}/cross_node/{way}@vxlan");
        goals.push(Goal::ratio(row("clusterip"), row("direct"), Bound::AtLeast(over_direct)));
    }
    for (metric, kind, least) in [
        ("tcp_stream", "others-policed", 0.98),
        ("tcp_rr", "others-policed", 0.98),
        ("tcp_crr", "others-policed", 0.98),
        ("tcp_crr", "policed", 0.95),
    ] {
        for way in ["same_node/direct", "same_node/clusterip", "cross_node/direct", "cross_node/clusterip"] {
            let row = format!("{metric}/{way}");
            goals.push(Goal::ratio(format!("{row}@{kind}"), format!("{row}@unpoliced"), Bound::AtLeast(least)));
        }
    }
    let outside = |metric: &str, what: &str| format!("{metric}/outside/{what}");
    let stream = |what: &str| outside("tcp_stream", what);
    goals.push(Goal::ratio(stream("nodeport_snat"), stream("far@routed"), Bound::AtLeast(0.9)));
    for peer in ["nftables-1", "iptables-1"] {
        let row = |what: &str| outside("tcp_crr", what);
        let peer = row(&format!("nodeport_snat@{peer}"));
        goals.push(Goal::ratio(row("nodeport_snat"), peer, Bound::AtLeast(1.15)).aim(1.5));
    }
    for metric in ["tcp_stream", "tcp_crr"] {
        let row = |what: &str| outside(metric, what);
        goals.push(Goal::ratio(row("nodeport_dsr"), row("nodeport_snat"), Bound::AtLeast(1.0)));
    }
    let ns = |what: &str| format!("ns_per_packet/{what}");
    goals.push(Goal::ratio(ns("from_pod/established/v4"), ns("yardstick"), Bound::AtMost(2.0)));
    goals.push(Goal::ratio(ns("from_pod/established/v6"), ns("from_pod/established/v4"), Bound::AtMost(1.15)));
    goals.push(Goal::ratio(ns("flows/100_of_100000"), ns("flows/100_of_100"), Bound::AtMost(1.10)));
    goals.push(Goal::ratio(ns("flows/100_of_500000"), ns("flows/100_of_100"), Bound::AtMost(1.10)));
    for family in ["v4", "v6"] {
        let xdp = ns(&format!("uplink_xdp/established/{family}"));
        let tc = ns(&format!("from_uplink/nodeport/established/{family}"));
        goals.push(Goal::ratio(&xdp, ns("yardstick"), Bound::AtMost(2.5)));
        goals.push(Goal::ratio(tc, &xdp, Bound::AtMost(1.7)));
    }
    for row in ["none_over", "all_over"] {
        goals.push(Goal::value(&format!("conntrack/sweep_1000000_s/{row}"), Bound::AtMost(1.0)));
    }
    for row in ["cni_add", "cni_add_dual"] {
        goals.push(Goal::ratio(row, format!("{row}@ptp"), Bound::AtMost(1.0 / 3.0)));
    }
    for row in ["cni_add", "cni_add_dual"] {
        goals.push(Goal::value(row, Bound::AtMost(5.0)));
    }
    goals.push(Goal::value("cni_add_250_errors", Bound::AtMost(0.0)));
    goals.push(Goal::value("cni_add_policed_extra", Bound::AtMost(10.0)));
    goals.push(Goal::value("control/endpoint_change_ms", Bound::AtMost(5.0)));
    goals.push(Goal::value("control/load_10000_services_s", Bound::AtMost(3.0)));
    goals.push(Goal::value("control/tables_10000_services_s", Bound::AtMost(0.2)));
    goals.push(Goal::value("control/tables_50000_services_s", Bound::AtMost(0.6)));
    goals.push(Goal::value("control/endpoint_change_cpu_ms", Bound::AtMost(0.05)));
    for (row, most) in [
        ("change_p99_ms", 50.0),
        ("peer_p99_ms", 10.0),
        ("local_p99_ms", 10.0),
        ("churn_s", 1.0),
        ("rolling_cpu_s", 1.0),
        ("memory_mib", 60.0),
    ] {
        goals.push(Goal::value(&format!("control/policy_{row}"), Bound::AtMost(most)));
    }
    goals.push(Goal::value("control/rss_mib", Bound::AtMost(150.0)));
    goals.push(Goal::value("scale/restart_s", Bound::AtMost(1.0)));
    goals.push(Goal::value("scale/change_ms/p99", Bound::AtMost(3.0)));
    goals.push(Goal::value("scale/policy_ms/p99", Bound::AtMost(50.0)));
    goals.push(Goal::value("scale/policy_peer_ms/p99", Bound::AtMost(10.0)));
    goals.push(Goal::value("scale/policy_local_ms/p99", Bound::AtMost(10.0)));
    for row in ["rss", "rss_peak", "rss_peak_paged"] {
        goals.push(Goal::value(&format!("scale/{row}_mib"), Bound::AtMost(200.0)));
    }
    goals.push(Goal::value("scale/idle_cpu_percent", Bound::AtMost(0.5)));
    goals
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bench::results::Series;

    fn series(name: &str, values: Vec<f64>) -> Series {
        Series { name: name.into(), unit: "ms", values, baselines: Vec::new() }
    }

    #[test]
    fn only_measured_goals_are_evaluated() {
        let mut results = Results::default();
        results.push(series("ns_per_packet/flows/100_of_100000", vec![20.0; 24]));
        assert!(evaluate(&results).is_empty(), "there is no baseline yet");
        results.push(series("ns_per_packet/flows/100_of_100", vec![20.0; 24]));
        let verdicts = evaluate(&results);
        assert_eq!(verdicts.len(), 1);
        assert_eq!(
            verdicts[0].goal,
            "ns_per_packet/flows/100_of_100000 over ns_per_packet/flows/100_of_100: at most 1.10"
        );
        assert_eq!(verdicts[0].outcome, Outcome::Reached);
    }

    #[test]
    fn values_without_baseline_are_evaluated() {
        let mut results = Results::default();
        results.push(series("control/endpoint_change_ms", vec![7.0; 8]));
        let verdicts = evaluate(&results);
        assert_eq!(verdicts[0].goal, "control/endpoint_change_ms: at most 5 ms");
        assert_eq!(verdicts[0].outcome, Outcome::Missed);
    }
}
