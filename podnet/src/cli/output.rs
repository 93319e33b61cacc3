//! How commands print: a table without borders for people, or JSON of the same typed value.

use std::fmt::Write as _;
use std::io::{self, Write as _};
use std::net::SocketAddr;

use clap::ValueEnum;
use comfy_table::{CellAlignment, presets};
use podnet_common::addr::{Addr, Port, Proto};
use serde::Serialize;

/// The form of a command's output.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum Format {
    /// For people.
    #[default]
    Table,
    /// For programs.
    Json,
}

/// Something that can be shown to people; programs get it as JSON.
pub(super) trait Show: Serialize {
    /// The text, lines ended by newlines.
    fn text(&self) -> String;
}

/// Prints a value on standard output.
pub(super) fn print(value: &impl Show, format: Format) -> io::Result<()> {
    let text = match format {
        Format::Table => value.text(),
        Format::Json => serde_json::to_string_pretty(value)? + "\n",
    };
    match io::stdout().write_all(text.as_bytes()) {
        // The reader has seen enough (`podnet … | head`).
        Err(e) if e.kind() == io::ErrorKind::BrokenPipe => Ok(()),
        other => other,
    }
}

/// Width of the labels of [`line`].
const LABEL: usize = 11;

/// Adds a line with a label.
pub(super) fn line(text: &mut String, label: &str, content: &str) {
    // Writing to a String can't fail.
    let _ = writeln!(text, "{label:<LABEL$}{content}");
}

/// A column: its title, and whether it holds numbers, which are aligned to the right.
pub(super) enum Column {
    Text(&'static str),
    Number(&'static str),
}

/// Lays out rows in columns. Without rows there is the header alone.
pub(super) fn table(columns: &[Column], rows: impl IntoIterator<Item = Vec<String>>) -> String {
    let mut table = comfy_table::Table::new();
    table.load_style(presets::NOTHING);
    table.set_header(columns.iter().map(|column| match column {
        Column::Text(title) | Column::Number(title) => *title,
    }));
    table.add_rows(rows);
    for (index, column) in columns.iter().enumerate() {
        if let Some(shown) = table.column_mut(index) {
            shown.set_padding((0, 2));
            if matches!(column, Column::Number(_)) {
                shown.set_cell_alignment(CellAlignment::Right);
            }
        }
    }
    table.trim_fmt() + "\n"
}

/// What stands in a cell that has nothing to say.
pub(super) const NOTHING: &str = "-";

/// A value, or [`NOTHING`].
pub(super) fn or_nothing(value: &Option<impl ToString>) -> String {
    value.as_ref().map_or_else(|| NOTHING.to_owned(), ToString::to_string)
}

/// A duration in its two largest units.
pub(super) fn duration(seconds: u64) -> String {
    let (minutes, hours, days) = (seconds / 60, seconds / 3600, seconds / 86_400);
    match seconds {
        0..60 => format!("{seconds}s"),
        60..3600 => format!("{minutes}m{}s", seconds % 60),
        3600..86_400 => format!("{hours}h{}m", minutes % 60),
        _ => format!("{days}d{}h", hours % 24),
    }
}

/// A share of a whole, in per cent, rounded down.
pub(super) fn percent(part: u64, whole: u64) -> String {
    format!("{} %", (part * 100).checked_div(whole).unwrap_or_default())
}

/// The name of a protocol.
pub(super) fn protocol(proto: Proto) -> String {
    match proto {
        Proto::TCP => "TCP".to_owned(),
        Proto::UDP => "UDP".to_owned(),
        Proto::SCTP => "SCTP".to_owned(),
        Proto::ICMP => "ICMP".to_owned(),
        Proto::ICMPV6 => "ICMPv6".to_owned(),
        Proto(number) => number.to_string(),
    }
}

/// An address with its port as tables hold them.
pub(super) fn socket(addr: Addr, port: Port) -> SocketAddr {
    SocketAddr::new(addr.into(), port.get())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_are_aligned_and_lines_have_no_trailing_blanks() {
        let rows = vec![vec!["a".to_owned(), "1".to_owned()], vec!["longer".to_owned(), "1000".to_owned()]];
        let text = table(&[Column::Text("NAME"), Column::Number("PACKETS")], rows);
        assert_eq!(text, "NAME    PACKETS\na             1\nlonger     1000\n");
    }

    #[test]
    fn durations_show_two_units() {
        let shown = [0, 59, 60, 3599, 3600, 86_399, 90_000].map(duration);
        assert_eq!(shown, ["0s", "59s", "1m0s", "59m59s", "1h0m", "23h59m", "1d1h"]);
    }
}
