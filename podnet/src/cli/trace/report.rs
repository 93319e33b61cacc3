//! What a trace tells: typed, so that programs get it as JSON and people as lines.

use std::net::IpAddr;

use serde::Serialize;

use crate::cli::output::{Column, NOTHING, Show, Text};

/// Packets and what becomes of them.
#[derive(Debug, Serialize)]
#[serde(transparent)]
pub(in crate::cli) struct Traces(pub(super) Vec<Trace>);

/// A packet's way through this node.
#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Trace {
    /// The packet in words.
    pub(super) packet: String,
    /// Its sender in words.
    pub(super) from: String,
    /// What happens to it, in order.
    pub(super) steps: Vec<Step>,
    /// What becomes of it here.
    pub(super) outcome: Outcome,
    /// The packet in words as it leaves, or the answer to it.
    pub(super) becomes: Option<String>,
    /// The frame as it leaves in hexadecimal digits, if that was asked for.
    pub(super) frame: Option<String>,
    /// What another node is to be asked, and which.
    pub(super) next: Option<Next>,
}

/// Another node, which has the packet next.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Next {
    /// Its name, or its address.
    pub(super) node: String,
    /// What to ask it.
    pub(super) command: String,
}

/// Something that happens to a packet.
#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "camelCase", tag = "at")]
pub(super) enum Step {
    /// The process's system call.
    Socket(SocketStep),
    /// A hook of podnet's.
    Hook(Box<HookStep>),
    /// The host's network stack.
    Stack {
        /// What it does.
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
    /// In words.
    pub(super) verdict: String,
}

/// The programs of a hook.
#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct HookStep {
    /// Its name.
    pub(super) hook: &'static str,
    pub(super) interface: String,
    /// The stages behind the first.
    pub(super) stages: Vec<&'static str>,
    pub(super) look_ups: Vec<LookUp>,
    /// What the packet is to the pipeline.
    pub(super) class: Option<String>,
    /// Why it may go on, or may not.
    pub(super) admission: String,
    pub(super) backend: Option<Choice>,
    /// What becomes of its source; none if it stays.
    pub(super) source: Option<String>,
    /// Its way out.
    pub(super) route: Option<Way>,
    /// In words.
    pub(super) verdict: String,
    /// The frame before and after, in hexadecimal digits, if that was asked for.
    pub(super) before: Option<String>,
    pub(super) after: Option<String>,
}

/// A look-up in a table, or a write, which stays in memory.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct LookUp {
    pub(super) does: Does,
    pub(super) table: &'static str,
    pub(super) key: String,
    /// None: there is no such entry.
    pub(super) entry: Option<String>,
}

/// What is done to a table.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) enum Does {
    /// A look-up.
    Finds,
    /// A new entry.
    Adds,
    /// Another value.
    Changes,
    /// A removal.
    Removes,
}

impl Does {
    const fn name(self) -> &'static str {
        match self {
            Self::Finds => "lookup",
            Self::Adds => "would add",
            Self::Changes => "would change",
            Self::Removes => "would remove",
        }
    }
}

/// A backend, and why this one.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Choice {
    pub(super) backend: String,
    pub(super) by: String,
    /// All of the frontend's, with their shares of the clients.
    pub(super) of: Vec<Share>,
    /// How many more there are than are named here.
    pub(super) more: usize,
}

/// A backend's part.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Share {
    pub(super) backend: String,
    /// In per cent.
    pub(super) percent: f64,
}

/// A way out of the node.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Way {
    pub(super) interface: String,
    /// The next hop.
    pub(super) via: IpAddr,
    /// Its MAC; none while the neighbour is unknown.
    pub(super) mac: Option<String>,
    /// In bytes.
    pub(super) mtu: u32,
}

/// What becomes of a packet on this node.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase", tag = "kind", rename_all_fields = "camelCase")]
pub(super) enum Outcome {
    /// It leaves by an interface.
    Leaves {
        interface: String,
        /// The router or machine that gets it, if that is known.
        next_hop: Option<IpAddr>,
    },
    /// A pod gets it.
    Pod {
        interface: String,
        /// `namespace/name`, or its address.
        pod: String,
    },
    /// The host gets it: a process, or the stack, which answers.
    Host,
    /// It is dropped.
    Dropped {
        /// The reason's name, as `podnet drops` has it.
        reason: &'static str,
        explanation: &'static str,
    },
    /// It is answered, and goes no further.
    Answered {
        /// The reason's name; none for an echo.
        reason: Option<&'static str>,
        explanation: Option<&'static str>,
        interface: String,
    },
    /// The process's call fails.
    Refused { reason: &'static str, explanation: &'static str },
    /// The stack doesn't send it on.
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
                let mut text = Text::default();
                text.table(&columns, rows);
                text
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

/// A frame as lines of sixteen bytes.
fn dump(text: &mut Text, label: &str, hex: &str) {
    for (line, bytes) in hex.as_bytes().chunks(32).enumerate() {
        let pairs: Vec<_> = bytes.chunks(2).map(String::from_utf8_lossy).collect();
        text.line(if line == 0 { label } else { "" }, &format!("{:04x}  {}", line * 16, pairs.join(" ")));
    }
}
