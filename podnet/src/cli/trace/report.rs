//! The report of a trace: typed, printed as JSON or as text.

use std::net::IpAddr;

use serde::Serialize;

use crate::cli::output::{Column, NOTHING, Show, Text};

/// Packets and their outcomes.
#[derive(Debug, Serialize)]
#[serde(transparent)]
pub(in crate::cli) struct Traces(pub(super) Vec<Trace>);

/// The path of a packet through this node.
#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Trace {
    /// The packet in words.
    pub(super) packet: String,
    /// Its sender in words.
    pub(super) from: String,
    /// Its steps, in order.
    pub(super) steps: Vec<Step>,
    /// Its outcome on this node.
    pub(super) outcome: Outcome,
    /// The packet in words as it leaves, or the answer to it.
    pub(super) becomes: Option<String>,
    /// The frame as it leaves, in hexadecimal digits, if requested.
    pub(super) frame: Option<String>,
    /// The next node, and the command to run there.
    pub(super) next: Option<Next>,
}

/// Another node that receives the packet next.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Next {
    /// Its name, or else its address.
    pub(super) node: String,
    /// Command to run there.
    pub(super) command: String,
}

/// A step of a packet's path.
#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "camelCase", tag = "at")]
pub(super) enum Step {
    /// The system call of a process.
    Socket(SocketStep),
    /// A hook of podnet.
    Hook(Box<HookStep>),
    /// The host's network stack.
    Stack {
        /// Its action.
        does: String,
    },
}

/// A socket hook.
#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct SocketStep {
    /// `connect` or `sendmsg`.
    pub(super) call: &'static str,
    pub(super) look_ups: Vec<LookUp>,
    pub(super) backend: Option<Choice>,
    /// Verdict in words.
    pub(super) verdict: String,
}

/// The programs of a hook.
#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct HookStep {
    /// Name of the hook.
    pub(super) hook: &'static str,
    pub(super) interface: String,
    /// Stages after the first one.
    pub(super) stages: Vec<&'static str>,
    pub(super) look_ups: Vec<LookUp>,
    /// The packet's class.
    pub(super) class: Option<String>,
    /// Why the packet was admitted, or not.
    pub(super) admission: String,
    pub(super) backend: Option<Choice>,
    /// How its source is changed; `None` if it isn't.
    pub(super) source: Option<String>,
    /// Its route.
    pub(super) route: Option<Way>,
    /// Verdict in words.
    pub(super) verdict: String,
    /// The frame before and after, in hexadecimal digits, if requested.
    pub(super) before: Option<String>,
    pub(super) after: Option<String>,
}

/// A lookup in a table, or a write, which stays in memory.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct LookUp {
    pub(super) does: Does,
    pub(super) table: &'static str,
    pub(super) key: String,
    /// `None`: there is no such entry.
    pub(super) entry: Option<String>,
}

/// Kind of access to a table.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) enum Does {
    /// Lookup.
    Finds,
    /// A new entry.
    Adds,
    /// New value of an entry.
    Changes,
    /// Removal of an entry.
    Removes,
    /// Incremented count; `entry` names who denies.
    Counts,
}

impl Does {
    const fn name(self) -> &'static str {
        match self {
            Self::Finds => "lookup",
            Self::Adds => "would add",
            Self::Changes => "would change",
            Self::Removes => "would remove",
            Self::Counts => "would count",
        }
    }
}

/// A backend, and the reason for the choice.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Choice {
    pub(super) backend: String,
    pub(super) by: String,
    /// All backends of the frontend, with their shares of clients.
    pub(super) of: Vec<Share>,
    /// Number of further backends that aren't named.
    pub(super) more: usize,
}

/// Share of a backend.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Share {
    pub(super) backend: String,
    /// In per cent.
    pub(super) percent: f64,
}

/// A route out of the node.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Way {
    pub(super) interface: String,
    /// The next hop.
    pub(super) via: IpAddr,
    /// Its MAC; `None` while the neighbour is unknown.
    pub(super) mac: Option<String>,
    /// In bytes.
    pub(super) mtu: u32,
}

/// Outcome of a packet on this node.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase", tag = "kind", rename_all_fields = "camelCase")]
pub(super) enum Outcome {
    /// It leaves on an interface.
    Leaves {
        interface: String,
        /// The router or machine that receives it, if known.
        next_hop: Option<IpAddr>,
    },
    /// A pod receives it.
    Pod {
        interface: String,
        /// `namespace/name`, or its address.
        pod: String,
    },
    /// The host receives it: a process, or the stack, which answers.
    Host,
    /// It is dropped.
    Dropped {
        /// Name of the reason, as in `podnet drops`.
        reason: &'static str,
        explanation: &'static str,
    },
    /// It is answered and goes no further.
    Answered {
        /// Name of the reason; `None` for an echo.
        reason: Option<&'static str>,
        explanation: Option<&'static str>,
        interface: String,
    },
    /// The system call of the process fails.
    Refused { reason: &'static str, explanation: &'static str },
    /// The stack doesn't forward it.
    Stopped { explanation: String },
}

impl Outcome {
    /// In words.
    fn text(&self) -> String {
        match self {
            Self::Leaves { interface, next_hop: Some(next_hop) } => format!("leaves on {interface} to {next_hop}"),
            Self::Leaves { interface, next_hop: None } => format!("leaves on {interface}"),
            Self::Pod { interface, pod } => format!("delivered to the pod {pod} on {interface}"),
            Self::Host => "delivered to this host".to_owned(),
            Self::Dropped { reason, explanation } => format!("dropped: {explanation} ({reason})"),
            Self::Answered { reason: Some(reason), explanation: Some(explanation), interface } => {
                format!("rejected: {explanation} ({reason}); answer sent on {interface}")
            }
            Self::Answered { interface, .. } => format!("answered; answer sent on {interface}"),
            Self::Refused { reason, explanation } => {
                format!("not sent: the call fails with ECONNREFUSED, {explanation} ({reason})")
            }
            Self::Stopped { explanation } => explanation.clone(),
        }
    }
}

impl Show for Traces {
    fn text(&self) -> Text {
        match self.0.as_slice() {
            [one] => one.text(),
            many => {
                let columns =
                    [Column::Number("#"), Column::Text("PACKET"), Column::Text("OUTCOME"), Column::Text("AS")];
                let rows = many.iter().enumerate().map(|(number, trace)| {
                    let becomes = trace.becomes.clone().unwrap_or_else(|| NOTHING.to_owned());
                    vec![(number + 1).to_string(), trace.packet.clone(), trace.outcome.text(), becomes]
                });
                Text::of_table(&columns, rows)
            }
        }
    }
}

impl Trace {
    fn text(&self) -> Text {
        let mut text = Text::default();
        text.line("packet", &self.packet);
        text.line("from", &self.from);
        for step in &self.steps {
            text.gap();
            match step {
                Step::Socket(step) => step.write(&mut text),
                Step::Hook(step) => step.write(&mut text),
                Step::Stack { does } => text.line("stack", does),
            }
        }
        text.gap();
        text.line("outcome", &self.outcome.text());
        if let Some(becomes) = &self.becomes {
            text.line("as", becomes);
        }
        if let Some(frame) = &self.frame {
            dump(&mut text, "frame", frame);
        }
        if let Some(Next { node, command }) = &self.next {
            text.line("next", &format!("goes to {node}, ask there: {command}"));
        }
        text
    }
}

impl SocketStep {
    fn write(&self, text: &mut Text) {
        text.line("socket", &format!("{} hook", self.call));
        look_ups(text, &self.look_ups);
        if let Some(backend) = &self.backend {
            backend.write(text);
        }
        text.line("verdict", &self.verdict);
    }
}

impl HookStep {
    fn write(&self, text: &mut Text) {
        let stages: String = self.stages.iter().map(|stage| format!(" → {stage}")).collect();
        text.line("hook", &format!("{} on {}: enter{stages}", self.hook, self.interface));
        look_ups(text, &self.look_ups);
        if let Some(class) = &self.class {
            text.line("class", class);
        }
        text.line("admission", &self.admission);
        if let Some(backend) = &self.backend {
            backend.write(text);
        }
        if let Some(source) = &self.source {
            text.line("source", source);
        }
        if let Some(Way { interface, via, mac, mtu }) = &self.route {
            let mac = mac.as_ref().map_or_else(|| "lladdr unresolved".to_owned(), |mac| format!("lladdr {mac}"));
            text.line("route", &format!("{interface} via {via}, {mac}, MTU {mtu}"));
        }
        text.line("verdict", &self.verdict);
        for (label, frame) in [("before", &self.before), ("after", &self.after)] {
            if let Some(frame) = frame {
                dump(text, label, frame);
            }
        }
    }
}

impl Choice {
    fn write(&self, text: &mut Text) {
        text.line("backend", &format!("{}: {}", self.backend, self.by));
        if self.of.len() > 1 {
            let shares: Vec<_> =
                self.of.iter().map(|Share { backend, percent }| format!("{backend} {percent:.1} %")).collect();
            let more = if self.more == 0 { String::new() } else { format!(", and {} more", self.more) };
            text.line("shares", &format!("{}{more}", shares.join(", ")));
        }
    }
}

fn look_ups(text: &mut Text, look_ups: &[LookUp]) {
    let columns = [Column::Text(" "), Column::Text("TABLE"), Column::Text("KEY"), Column::Text("ENTRY")];
    if look_ups.is_empty() {
        return;
    }
    text.table(
        &columns,
        look_ups.iter().map(|LookUp { does, table, key, entry }| {
            let entry = entry.clone().unwrap_or_else(|| NOTHING.to_owned());
            vec![does.name().to_owned(), (*table).to_owned(), key.clone(), entry]
        }),
    );
}

/// A hex dump, sixteen bytes per line.
fn dump(text: &mut Text, label: &str, hex: &str) {
    for (line, bytes) in hex.as_bytes().chunks(32).enumerate() {
        let pairs: Vec<_> = bytes.chunks(2).map(String::from_utf8_lossy).collect();
        text.line(if line == 0 { label } else { "" }, &format!("{:04x}  {}", line * 16, pairs.join(" ")));
    }
}
