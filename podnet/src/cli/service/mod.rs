//! `podnet service list` and `podnet service show`: the frontends in the kernel's tables, with the names that the
//! daemon has written for their ids.
//!
//! A frontend has an entry in the table for each kind of client, and a single row here. The tables don't distinguish a
//! load balancer's address from an external IP; the objects do, which the daemon knows.

mod detail;
mod kinds;
mod row;
mod show;
#[cfg(test)]
mod tests;
mod text;
mod why;

use serde::Serialize;

pub(super) use kinds::Kinds;
pub(super) use show::{show, tables};

use super::output::{Column, NOTHING, Show, Text, duration, or_nothing};
use crate::compile::ServiceNames;
use crate::datapath::inspect::{View, ViewError};
use row::{FrontendRow, complete, entries, kind_name, order, row, source_name};

/// `podnet service list`.
#[derive(Debug, Serialize)]
#[serde(transparent)]
pub(super) struct ServiceList(Vec<FrontendRow>);

/// Reads all frontends.
pub(super) fn list(view: &dyn View, names: &ServiceNames) -> Result<ServiceList, ViewError> {
    let mut rows = Vec::new();
    for (key, entry) in entries(view, |_| true)? {
        rows.push(row(view, names, &key, &entry)?);
    }
    rows.sort_by(|a, b| order(a).cmp(&order(b)));
    Ok(ServiceList(rows))
}

impl ServiceList {
    /// Whether the kind of some frontends is unknown, because only the objects contain it.
    pub(super) fn lacks_kinds(&self) -> bool {
        self.0.iter().any(|row| row.kind.is_none())
    }

    /// Adds the missing kinds.
    pub(super) fn complete(&mut self, kinds: &Kinds) {
        self.0.iter_mut().for_each(|row| complete(row, |service, ip| kinds.of(service, ip)));
        self.0.sort_by(|a, b| order(a).cmp(&order(b)));
    }
}

/// Restrictions of a frontend, in readable form.
fn policy(row: &FrontendRow) -> String {
    let has = |flag| row.flags.contains(&flag);
    let mut words = Vec::new();
    if has("outsideDiffers") {
        words.push("external Local".to_owned());
    }
    if let Some(seconds) = row.affinity_seconds {
        words.push(format!("affinity {}", duration(seconds.into())));
    }
    if has("sourceRanges") {
        words.push("source ranges".to_owned());
    }
    if words.is_empty() { NOTHING.to_owned() } else { words.join(", ") }
}

impl Show for ServiceList {
    fn text(&self) -> Text {
        let columns = [
            Column::Text("NAMESPACE"),
            Column::Text("NAME"),
            Column::Text("PORT NAME"),
            Column::Text("KIND"),
            Column::Text("ADDRESS"),
            Column::Number("PORT"),
            Column::Text("PROTOCOL"),
            Column::Text("SOURCE"),
            Column::Number("BACKENDS"),
            Column::Number("EXTERNAL"),
            Column::Text("POLICY"),
        ];
        let rows = self.0.iter().map(|row| {
            vec![
                or_nothing(&row.namespace),
                row.name.clone().unwrap_or_else(|| format!("(id {})", row.service_id)),
                or_nothing(&row.port_name),
                kind_name(row.kind).to_owned(),
                row.place.shown_address(),
                row.place.port.to_string(),
                row.protocol.clone(),
                source_name(row.source).to_owned(),
                row.backends.to_string(),
                or_nothing(&row.outside_backends),
                policy(row),
            ]
        });
        Text::of_table(&columns, rows)
    }
}
