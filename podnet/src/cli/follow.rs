//! `podnet drops --follow`: dropped packets, one per line.

use podnet_common::addr::IfIndex;
use serde::Serialize;

use super::output::{Format, NOTHING, Text};
use crate::socket::{Dropped, Report};

/// The column headings.
pub(super) const HEADER: &str = "TIME (UTC)    REASON                HOOK           INTERFACE        LENGTH  PACKET\n";

/// A line of JSON.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
enum Line<'a> {
    Drop {
        #[serde(flatten)]
        dropped: &'a Dropped,
        /// `None` if it no longer exists.
        interface: Option<String>,
    },
    Lost(u64),
}

/// Formats a report as a line, with its newline. `name` looks up the names of interfaces.
///
/// # Errors
/// The report can't be encoded as JSON.
pub(super) fn line(
    report: &Report,
    format: Format,
    name: impl Fn(IfIndex) -> Option<String>,
) -> serde_json::Result<String> {
    let line = match report {
        Report::Drop(dropped) => Line::Drop { dropped, interface: name(IfIndex(dropped.ifindex)) },
        Report::Lost(count) => Line::Lost(*count),
    };
    if format == Format::Json {
        return Ok(serde_json::to_string(&line)? + "\n");
    }
    let mut text = Text::default();
    text.sentence(&match line {
        Line::Drop { dropped, interface } => {
            let interface = interface.unwrap_or_else(|| NOTHING.to_owned());
            let Dropped { time_ms, reason, hook, length, policies, .. } = dropped;
            let policies = if policies.is_empty() { String::new() } else { format!(" by {}", policies.join(", ")) };
            let time = time_of_day(*time_ms);
            format!("{time:<12}  {reason:<20}  {hook:<13}  {interface:<15}  {length:>6}  {dropped}{policies}")
        }
        Line::Lost(count) => format!("{count} dropped packets not shown: this reader is too slow"),
    });
    Ok(text.to_string())
}

/// The time of day (UTC) of a time in milliseconds since 1970.
fn time_of_day(ms: u64) -> String {
    let (seconds, ms) = (ms / 1000 % 86_400, ms % 1000);
    format!("{:02}:{:02}:{:02}.{ms:03}", seconds / 3600, seconds / 60 % 60, seconds % 60)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn dropped() -> Dropped {
        Dropped {
            time_ms: 1_764_495_131_042,
            reason: "no_endpoint".into(),
            hook: "from_pod".into(),
            ifindex: 7,
            length: 74,
            protocol: Some(6),
            source: Some("10.244.1.9".parse().unwrap()),
            source_port: Some(40_000),
            destination: Some("10.96.0.10".parse().unwrap()),
            destination_port: Some(80),
            policies: Vec::new(),
        }
    }

    #[test]
    fn drops_are_shown_in_columns() {
        let shown = |report, name: Option<&str>| line(&report, Format::Table, |_| name.map(str::to_owned)).unwrap();
        assert_eq!(
            [HEADER.to_owned(), shown(Report::Drop(dropped()), Some("podweb0"))].concat(),
            "\
TIME (UTC)    REASON                HOOK           INTERFACE        LENGTH  PACKET
09:32:11.042  no_endpoint           from_pod       podweb0              74  TCP 10.244.1.9:40000 → 10.96.0.10:80
"
        );
        let denied = Dropped { policies: vec!["default/deny".into(), "tenants".into()], ..dropped() };
        assert!(shown(Report::Drop(denied), None).ends_with(" → 10.96.0.10:80 by default/deny, tenants\n"));
        let hostile = shown(Report::Drop(dropped()), Some("x\u{1b}[2J\n"));
        assert!(hostile.lines().count() == 1 && !hostile.contains('\u{1b}'), "{hostile}");
        assert!(shown(Report::Drop(dropped()), None).contains("  -  "));
        let lost = shown(Report::Lost(7), None);
        assert_eq!(lost, "7 dropped packets not shown: this reader is too slow\n");
    }

    #[test]
    fn json_has_one_value_per_line() {
        let shown = |report| line(&report, Format::Json, |_| Some("podweb0".to_owned())).unwrap();
        assert_eq!(shown(Report::Lost(7)), "{\"lost\":7}\n");
        let line = shown(Report::Drop(dropped()));
        let value: serde_json::Value = serde_json::from_str(&line).unwrap();
        assert_eq!((line.lines().count(), &value["drop"]["interface"]), (1, &"podweb0".into()));
        assert_eq!(value["drop"]["destination"], "10.96.0.10");
    }
}
