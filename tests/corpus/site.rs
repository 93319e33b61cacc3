//! The attacked cluster, and the conditions that must hold after every attack.

use std::net::SocketAddr;

use anyhow::{Context, Result, ensure};
use podnet_tests::lab::{Lab, Node, Pod, Service, eventually};
use podnet_tests::traffic::{Family, Transport, http_get};

/// Port of the server.
const TARGET: u16 = 8080;
/// Port of the node's health endpoint.
const HEALTH: u16 = 10_256;

pub(super) struct Site {
    pub(super) lab: Lab,
    server: Pod,
    client: Pod,
    service: Service,
}

impl Site {
    pub(super) fn new() -> Result<Self> {
        let lab = Lab::builder().nodes(1).build()?;
        let server = lab.node(0).add_server("server", TARGET)?;
        let client = lab.node(0).add_pod("client")?;
        let service = Service::new("victim", 10, 80, TARGET);
        let site = Self { lab, server, client, service };
        site.clear()?;
        site.holds()?;
        Ok(site)
    }

    pub(super) fn node(&self) -> &Node {
        self.lab.node(0)
    }

    /// Restores the initial state.
    pub(super) fn clear(&self) -> Result<()> {
        if !self.node().daemon_runs()? {
            // If it was started, it has exited.
            let _ = self.node().kill_daemon();
            self.node().start_daemon()?;
        }
        self.lab.clear()?;
        self.service.apply(&self.lab, None)?;
        self.service.set_endpoints(&self.lab, &[&self.server])
    }

    /// Replaces the placeholders in a text.
    pub(super) fn fill_in(&self, text: &str) -> String {
        let mut text = text.replace("$LONG", &"x".repeat(100_000));
        for (family, digit) in [(Family::V4, '4'), (Family::V6, '6')] {
            for (name, ip) in [("SERVER", self.server.ip(family)), ("NODE", self.node().ip(family))] {
                text = text.replace(&format!("${name}{digit}"), &ip.to_string());
            }
        }
        text
    }

    /// Conditions that must hold after each attack.
    pub(super) fn holds(&self) -> Result<()> {
        for (family, transport) in Transport::over_all() {
            let reached = || self.client.place.reaches(transport, self.service.addr(family), &["server"]);
            eventually("the service of others", reached)?;
        }
        let probe = SocketAddr::new(self.node().ip(Family::V4), HEALTH);
        let live = http_get(&self.client.place, probe, "/livez")?;
        ensure!(live.status == 200, "{live:?}");
        for args in
            [&["status"][..], &["service", "list"], &["service", "show", "default/attack"], &["endpoint", "list"]]
        {
            let output = self.node().podnet_output(args)?;
            is_plain(&format!("{args:?}"), &output.stdout)?;
            is_plain(&format!("{args:?}"), &output.stderr)?;
        }
        is_plain("the log", self.node().log().as_bytes())
    }

    /// Waits until each of these texts occurs in a warning.
    pub(super) fn warns(&self, texts: &[String]) -> Result<()> {
        texts.iter().try_for_each(|text| {
            eventually(&format!("a warning of `{text}`"), || {
                let status = self.node().podnet_json(&["status"])?;
                let warnings = status["warnings"].as_array().context("there are no warnings")?;
                let told = warnings.iter().filter_map(|warning| warning.as_str());
                ensure!(told.clone().any(|warning| warning.contains(text)), "{warnings:#?}");
                Ok(())
            })
        })
    }

    /// Waits until each of these texts occurs in the log after byte `from`.
    pub(super) fn logs(&self, from: usize, texts: &[String]) -> Result<()> {
        texts.iter().try_for_each(|text| {
            eventually(&format!("`{text}` in the log"), || {
                let log = self.node().log();
                let since = log.get(from..).unwrap_or_default();
                ensure!(since.contains(text), "{since}");
                Ok(())
            })
        })
    }

    /// Creates and deletes a pod.
    pub(super) fn makes_pods(&self) -> Result<()> {
        self.lab.node(0).add_pod("another")?.delete()
    }

    pub(super) fn client(&self) -> &Pod {
        &self.client
    }
}

/// Requires that output has no terminal control characters and no forged lines.
fn is_plain(what: &str, bytes: &[u8]) -> Result<()> {
    let text = std::str::from_utf8(bytes).with_context(|| format!("{what} is not UTF-8"))?;
    let is_bad = |c: &char| {
        *c != '\n'
            && (c.is_control()
                || matches!(c, '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2066}'..='\u{2069}' | '\u{feff}'))
    };
    let bad = text.chars().find(is_bad);
    ensure!(bad.is_none(), "{what} has {bad:?}: {text:?}");
    ensure!(!text.lines().any(|line| line.starts_with("FORGED")), "{what} has a forged line: {text}");
    Ok(())
}
