//! Output of commands: a table without borders, or JSON of the same typed value.

use std::fmt::{self, Write as _};
use std::io::{self, Write as _};
use std::net::SocketAddr;

use clap::ValueEnum;
use comfy_table::{CellAlignment, presets};
use podnet_cni::text::on_one_line;
use podnet_common::addr::{Addr, Port, Proto};
use serde::Serialize;

/// The form of a command's output.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum Format {
    /// Human-readable text.
    #[default]
    Table,
    /// JSON.
    Json,
}

/// A value with a text form; its JSON form is its serialisation.
pub(super) trait Show: Serialize {
    /// The text form.
    fn text(&self) -> Text;
}

/// Prints a value on standard output.
pub(super) fn print(value: &impl Show, format: Format) -> io::Result<()> {
    let text = match format {
        Format::Table => value.text().to_string(),
        Format::Json => serde_json::to_string_pretty(value)? + "\n",
    };
    write(&text).map(drop)
}

/// Writes to standard output and flushes it. Returns whether the reader is still there.
pub(super) fn write(text: &str) -> io::Result<bool> {
    let mut output = io::stdout().lock();
    match output.write_all(text.as_bytes()).and_then(|()| output.flush()) {
        // The reader has seen enough (`podnet … | head`).
        Err(e) if e.kind() == io::ErrorKind::BrokenPipe => Ok(false),
        written => written.map(|()| true),
    }
}

/// Prints a sentence on standard output.
pub(super) fn say(sentence: &str) {
    println!("{}", on_one_line(sentence, SENTENCE_MAX));
}

/// Prints a message on standard error.
pub(super) fn complain(message: &str) {
    eprintln!("podnet: {}", on_one_line(message, MESSAGE_MAX));
}

/// Maximum lengths in bytes: of a table cell, a sentence, and an error, which may contain the verifier's log.
const CELL_MAX: usize = 1024;
const SENTENCE_MAX: usize = 4096;
const MESSAGE_MAX: usize = 16 << 10;

/// Width of the labels of [`Text::line`].
const LABEL: usize = 11;

/// Text output. All of it is built here, since names and messages in it are untrusted: each stays in its cell or on
/// its line, and control characters don't reach the terminal.
#[derive(Debug, Default)]
pub(super) struct Text(String);

impl Text {
    /// A table alone.
    pub(super) fn of_table(columns: &[Column], rows: impl IntoIterator<Item = Vec<String>>) -> Self {
        let mut text = Self::default();
        text.table(columns, rows);
        text
    }

    /// Adds a line with a label.
    pub(super) fn line(&mut self, label: &str, content: &str) {
        // Writing to a String can't fail.
        let _ = writeln!(self.0, "{label:<LABEL$}{}", on_one_line(content, SENTENCE_MAX));
    }

    /// Adds a line without a label.
    pub(super) fn sentence(&mut self, sentence: &str) {
        self.0.push_str(&on_one_line(sentence, SENTENCE_MAX));
        self.0.push('\n');
    }

    /// Adds an empty line if there are others before it.
    pub(super) fn gap(&mut self) {
        if !self.0.is_empty() {
            self.0.push('\n');
        }
    }

    /// Adds rows in columns; without rows, the header alone.
    pub(super) fn table(&mut self, columns: &[Column], rows: impl IntoIterator<Item = Vec<String>>) {
        let mut table = comfy_table::Table::new();
        table.load_style(presets::NOTHING);
        table.set_header(columns.iter().map(|column| match column {
            Column::Text(title) | Column::Number(title) => *title,
        }));
        let on_one_line = |cell: String| on_one_line(&cell, CELL_MAX).into_owned();
        table.add_rows(rows.into_iter().map(|row| row.into_iter().map(on_one_line).collect::<Vec<_>>()));
        for (index, column) in columns.iter().enumerate() {
            if let Some(shown) = table.column_mut(index) {
                shown.set_padding((0, 2));
                if matches!(column, Column::Number(_)) {
                    shown.set_cell_alignment(CellAlignment::Right);
                }
            }
        }
        self.0.push_str(&table.trim_fmt());
        self.0.push('\n');
    }
}

impl fmt::Display for Text {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

#[cfg(test)]
impl std::ops::Deref for Text {
    type Target = str;

    fn deref(&self) -> &str {
        &self.0
    }
}

#[cfg(test)]
impl PartialEq<&str> for Text {
    fn eq(&self, other: &&str) -> bool {
        self.0 == *other
    }
}

/// A column with its title; columns of numbers are aligned to the right.
pub(super) enum Column {
    Text(&'static str),
    Number(&'static str),
}

/// Content of an empty cell.
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

/// A percentage, rounded down.
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

/// An address and port, from the tables' types.
pub(super) fn socket(addr: Addr, port: Port) -> SocketAddr {
    SocketAddr::new(addr.into(), port.get())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_are_aligned_and_lines_have_no_trailing_blanks() {
        let rows = vec![vec!["a".to_owned(), "1".to_owned()], vec!["longer".to_owned(), "1000".to_owned()]];
        let mut text = Text::default();
        text.table(&[Column::Text("NAME"), Column::Number("PACKETS")], rows);
        assert_eq!(text, "NAME    PACKETS\na             1\nlonger     1000\n");
    }

    #[test]
    fn foreign_text_stays_on_its_line() {
        let hostile = "web\nwarning    forged\u{1b}[2J\r\u{9b}1A\u{202e}\u{200b}";
        let mut text = Text::default();
        text.line("source", hostile);
        text.sentence(hostile);
        text.gap();
        text.table(&[Column::Text("NAME"), Column::Text("POD")], [vec![hostile.into(), "x".repeat(1 << 20)]]);
        assert_eq!(text.lines().count(), 5, "{text}");
        assert!(text.lines().all(|line| !line.starts_with("warning") && line.len() < 8192));
        assert!(text.chars().all(|c| c == '\n' || c == '…' || matches!(c, ' '..='~')), "{text}");
    }

    #[test]
    fn durations_show_two_units() {
        let shown = [0, 59, 60, 3599, 3600, 86_399, 90_000].map(duration);
        assert_eq!(shown, ["0s", "59s", "1m0s", "59m59s", "1h0m", "23h59m", "1d1h"]);
    }
}
