//! `podnet service list` and `podnet service show`: the frontends in the kernel's tables, with the names that the
//! daemon has written for their ids.
//!
//! A frontend has an entry in the table for each kind of client, and a single row here. The tables don't distinguish a
//! load balancer's address from an external IP; the manifests do, if they can be read.

mod detail;
mod row;
mod show;
#[cfg(test)]
mod tests;
mod text;
mod why;

use serde::Serialize;

pub(super) use show::show;

use super::output::{Column, NOTHING, Show, Text, duration, or_nothing};
use super::wanted::Wanted;
use crate::compile::ServiceNames;
use crate::datapath::inspect::{View, ViewError};
use row::{FrontendRow, complete, entries, kind_name, order, row, source_name};

/// `podnet service list`.
#[derive(Debug, Serialize)]
#[serde(transparent)]
pub(super) struct ServiceList(Vec<FrontendRow>);

/// Reads all frontends. `wanted` returns the manifests, if they are needed and can be read.
pub(super) fn list(
    view: &dyn View,
    names: &ServiceNames,
    wanted: impl FnOnce() -> Option<Wanted>,
) -> Result<ServiceList, ViewError> {
    let mut rows = Vec::new();
    for (key, entry) in entries(view, |_| true)? {
        rows.push(row(view, names, &key, &entry)?);
    }
    if rows.iter().any(|row| row.kind.is_none())
        && let Some(wanted) = wanted()
    {
        rows.iter_mut().for_each(|row| complete(row, names, &wanted));
    }
    rows.sort_by(|a, b| order(a).cmp(&order(b)));
    Ok(ServiceList(rows))
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
        let mut text = Text::default();
        text.table(&columns, rows);
        text
    }
}
