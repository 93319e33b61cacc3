//! The text form of the status.

use std::fmt::Write as _;

use super::super::output::{Column, Show, Text, percent};
use super::report::{Daemon, Datapath, Sockets, Status, since};
use crate::status::{DaemonStatus, HookStatus, UplinkStatus};
use podnet_common::layout::Hook;

impl Show for Status {
    fn text(&self) -> Text {
        let mut text = Text::default();
        // The reason for an unknown datapath is also the command's error message.
        let on_stderr = usize::from(self.no_datapath().is_some());
        for warning in self.warnings.iter().skip(on_stderr) {
            text.line("warning", warning);
        }
        if self.warnings.is_empty() {
            text.line("health", "no problems found");
        }
        text.gap();
        daemon(self, &self.daemon, &mut text);
        if let Some(datapath) = &self.datapath {
            self.datapath(datapath, &mut text);
        }
        for skipped in &self.firewall.skipped {
            text.line("unchecked", skipped);
        }
        text
    }
}

fn daemon(status: &Status, daemon: &Daemon, text: &mut Text) {
    let report = daemon.report.as_ref();
    let state = match (daemon.running, daemon.pid, report) {
        (true, pid, report) => {
            let mut state = "running".to_owned();
            if let Some(pid) = pid {
                let _ = write!(state, " as process {pid}");
            }
            if let Some(report) = report {
                let _ = write!(state, " for {}, version {}", since(report.started, status.now), report.version);
                if report.adopted {
                    state.push_str(", adopted the existing datapath");
                }
            }
            state
        }
        (false, _, Some(_)) => "not running; its last report:".to_owned(),
        (false, _, None) => "not running".to_owned(),
    };
    text.line("daemon", &state);
    if let Some(report) = report {
        status.report(report, text);
    }
}

impl Status {
    fn report(&self, report: &DaemonStatus, text: &mut Text) {
        text.line("node", &report.node);
        for source in &report.sources {
            let unread = if source.synced { "" } else { ", not read completely yet" };
            let counts = [
                count(source.services, "service"),
                count(source.endpoint_slices, "endpoint slice"),
                count(source.nodes, "node"),
            ]
            .join(", ");
            let errors = match source.errors.len() {
                0 => String::new(),
                errors => format!(", {}", count(errors, "error")),
            };
            text.line("source", &format!("{}: {counts}{unread}{errors}", source.name));
        }
        for uplink in &report.uplinks {
            let hooks = self.uplink_hooks(uplink);
            text.line("uplink", &format!("{} (mtu {}): {hooks}", uplink.name, uplink.mtu));
        }
        if let Some(tunnel) = &report.tunnel {
            let hooks = self.uplink_hooks(tunnel);
            text.line("tunnel", &format!("{} (mtu {}): {hooks}", tunnel.name, tunnel.mtu));
        }
        if !report.nodes.is_empty() {
            let reached = report.nodes.iter().filter(|node| node.problem.is_none()).count();
            let through = match report.nodes.iter().filter(|node| node.tunnel).count() {
                0 => String::new(),
                through => format!(", {through} through the tunnel"),
            };
            text.line("routes", &format!("to {reached} of {} pod CIDRs of other nodes{through}", report.nodes.len()));
        }
        if !report.repairs.is_empty() {
            let times: u64 = report.repairs.iter().map(|repair| repair.times).sum();
            let pods = count(report.repairs.len(), "pod");
            text.line("repairs", &format!("{} of the links of {pods}", count(times as usize, "repair")));
        }
        let checks = match report.health.node_ports {
            0 => String::new(),
            ports => format!(", {} of services", count(ports, "healthCheckNodePort")),
        };
        let address = report.health.address.as_deref().map_or_else(|| "off".to_owned(), |a| format!("at {a}"));
        text.line("health", &format!("{address}{checks}"));
    }

    /// How the hooks of an uplink are attached, according to the daemon, unless the kernel knows that one is missing.
    fn uplink_hooks(&self, uplink: &UplinkStatus) -> String {
        let rows = self.datapath.iter().flat_map(|datapath| &datapath.hooks);
        let of_uplink: Vec<_> = rows.filter(|row| row.ifindex == uplink.ifindex).collect();
        let missing = |hook: &str| of_uplink.iter().any(|row| row.hook == hook && !row.attached);
        let shown = |hook: &HookStatus| match hook.attached.as_deref() {
            Some(how) if how.starts_with("xdp off") => how.to_owned(),
            Some(_) | None if missing(&hook.hook) => format!("{} not attached", hook.hook),
            // Needs no explanation.
            Some(how) if how.starts_with("xdp") => how.to_owned(),
            Some(how) => format!("{} {how}", hook.hook),
            None => format!("{} not attached", hook.hook),
        };
        uplink.hooks.iter().map(shown).collect::<Vec<_>>().join(", ")
    }

    fn datapath(&self, datapath: &Datapath, text: &mut Text) {
        text.line("datapath", &format!("program generation {}", datapath.generation));
        text.line("host", &host(datapath));
        let mut services = count(datapath.frontends, "frontend");
        if datapath.host_ports > 0 {
            services.push_str(&format!(", {} among them", count(datapath.host_ports, "host port")));
        }
        if !datapath.node_port_addresses.is_empty() {
            let addresses: Vec<_> = datapath.node_port_addresses.iter().map(ToString::to_string).collect();
            services.push_str(&format!("; NodePorts at {}", addresses.join(", ")));
        }
        text.line("services", &services);
        text.line("nat", &nat(datapath));
        text.line("endpoints", &format!("{} of this node's pods", count(datapath.endpoints, "address")));
        let settings = match self.settings.len() {
            0 => "all as required".to_owned(),
            count => format!("{count} not as required"),
        };
        text.line("settings", &settings);
        let drops = match &datapath.drops[..] {
            [] => "no packets".to_owned(),
            reasons => {
                let first: Vec<_> =
                    reasons.iter().take(3).map(|row| format!("{} {}", row.packets, row.reason)).collect();
                let rest = if reasons.len() > 3 { ", …" } else { "" };
                format!("{} ({}{rest}); see `podnet drops`", count(datapath.dropped, "packet"), first.join(", "))
            }
        };
        text.line("dropped", &drops);
        text.gap();
        let columns =
            [Column::Text("TABLE"), Column::Number("ENTRIES"), Column::Number("CAPACITY"), Column::Number("FULL")];
        let rows = datapath.tables.iter().filter(|fill| fill.entries > 0).map(|fill| {
            vec![
                fill.table.name().to_owned(),
                fill.entries.to_string(),
                fill.capacity.to_string(),
                percent(fill.entries, fill.capacity),
            ]
        });
        text.table(&columns, rows);
    }
}

/// A count with its noun.
fn count(number: impl TryInto<u64>, what: &str) -> String {
    match number.try_into().unwrap_or(u64::MAX) {
        1 => format!("1 {what}"),
        number if what.ends_with('s') => format!("{number} {what}es"),
        number => format!("{number} {what}s"),
    }
}

/// How host processes reach services.
fn host(datapath: &Datapath) -> String {
    let sockets = match datapath.sockets {
        Sockets::Off => "socket load balancing off",
        Sockets::Host => "socket load balancing for host processes",
        Sockets::All => "socket load balancing for host processes and pods",
    };
    let names = [Hook::FromHost, Hook::FromLoopback].map(Hook::name);
    let rows = datapath.hooks.iter().filter(|row| names.contains(&row.hook));
    let hooks = rows.map(|row| format!("{} {}, ", row.hook, if row.attached { "tc" } else { "not attached" }));
    hooks.chain([sockets.to_owned()]).collect()
}

fn nat(datapath: &Datapath) -> String {
    let masquerade = if datapath.masquerade { "on" } else { "off" };
    let ports = count(datapath.snat_ports, "source port");
    let most = datapath.snat_most.as_ref().map(|most| {
        let share = percent(most.used as u64, most.ports as u64);
        format!(", at most {share} in use ({} to {})", most.protocol, most.destination)
    });
    format!("masquerade {masquerade}, {ports} per destination{}", most.unwrap_or_default())
}
