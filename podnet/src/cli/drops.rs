//! `podnet drops`: dropped packets by reason.

use podnet_common::verdict::{COUNTERS_BASE, Reason};
use serde::Serialize;

use super::output::{Column, Show, Text};
use crate::datapath::inspect::{View, ViewError};

/// A reason, with its count since the datapath was set up.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct DropRow {
    pub(super) reason: &'static str,
    pub(super) packets: u64,
    pub(super) explanation: &'static str,
}

/// `podnet drops`.
#[derive(Debug, Serialize)]
#[serde(transparent)]
pub(super) struct Drops(pub(super) Vec<DropRow>);

/// Reads the counters of all reasons, in the order of the reasons.
pub(super) fn read(view: &dyn View) -> Result<Drops, ViewError> {
    let counters = view.counters()?;
    let count = |reason: Reason| counters.get((COUNTERS_BASE + reason as u32) as usize).copied().unwrap_or_default();
    let rows = Reason::ALL.iter().map(|reason| DropRow {
        reason: reason.name(),
        packets: count(*reason),
        explanation: reason.explanation(),
    });
    Ok(Drops(rows.collect()))
}

impl Drops {
    /// Total number of dropped packets.
    pub(super) fn total(&self) -> u64 {
        self.0.iter().map(|row| row.packets).sum()
    }

    /// Reasons that have occurred, most frequent first.
    pub(super) fn occurred(&self) -> Vec<&DropRow> {
        let mut rows: Vec<_> = self.0.iter().filter(|row| row.packets > 0).collect();
        rows.sort_by_key(|row| std::cmp::Reverse(row.packets));
        rows
    }
}

impl Show for Drops {
    fn text(&self) -> Text {
        let (rows, mut text) = (self.occurred(), Text::default());
        if rows.is_empty() {
            text.sentence("no packets have been dropped");
            return text;
        }
        let columns = [Column::Text("REASON"), Column::Number("PACKETS"), Column::Text("EXPLANATION")];
        let cells = |row: &&DropRow| vec![row.reason.to_owned(), row.packets.to_string(), row.explanation.to_owned()];
        text.table(&columns, rows.iter().map(cells));
        text
    }
}

#[cfg(test)]
mod tests {
    use podnet_common::verdict::Counter;

    use super::*;
    use crate::datapath::memory::MemoryTables;

    #[test]
    fn text_has_reasons_that_occurred_and_json_has_all() {
        let mut view = MemoryTables::default();
        assert_eq!(read(&view).unwrap().text(), "no packets have been dropped\n");
        view.drops.get_mut().insert(Reason::SpoofedSource, 7);
        view.drops.get_mut().insert(Reason::NoEndpoint, 1200);
        view.counters.get_mut().insert(Counter::ALL[0], 99);
        let drops = read(&view).unwrap();
        assert_eq!(
            drops.text(),
            "REASON          PACKETS  EXPLANATION
no_endpoint        1200  service has no ready \
             endpoints
spoofed_source        7  source IP or MAC is not the sending pod's own
"
        );
        assert_eq!(drops.total(), 1207, "counters that aren't drops don't count");
        assert_eq!(serde_json::to_value(&drops).unwrap().as_array().unwrap().len(), Reason::ALL.len());
    }
}
