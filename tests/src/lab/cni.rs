//! The runtime's side of the CNI protocol: environment and JSON in, result or error object out.

use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result};
use serde::Deserialize;
use serde_json::Value;

use super::Place;
use crate::place::process;

/// Timeout of a plugin call; a runtime would wait for minutes.
const TIMEOUT: Duration = Duration::from_secs(30);

/// One invocation of a plugin.
#[derive(Clone, Debug)]
pub struct Invocation<'a> {
    /// The plugin binary.
    pub plugin: &'a Path,
    /// ADD, DEL, CHECK, STATUS, GC or VERSION.
    pub command: &'a str,
    /// `CNI_CONTAINERID`.
    pub container_id: &'a str,
    /// `CNI_NETNS`.
    pub netns: &'a str,
    /// `CNI_IFNAME`.
    pub ifname: &'a str,
    /// `CNI_ARGS`.
    pub args: &'a str,
    /// The network configuration.
    pub config: &'a Value,
}

/// The error object of the specification.
#[derive(Clone, Debug, Deserialize, PartialEq, Eq, thiserror::Error)]
#[error("the plugin failed with code {code}: {msg}: {details}")]
pub struct CniError {
    /// Error code.
    pub code: u32,
    /// Short description.
    pub msg: String,
    /// Detailed description.
    #[serde(default)]
    pub details: String,
}

impl Invocation<'_> {
    /// Runs the plugin on the node, in the host's network namespace, and returns its result (`Null` without output).
    ///
    /// # Errors
    /// A [`CniError`] reported by the plugin, or a failure to run it or to parse its output.
    pub fn run(&self, node: &Place) -> Result<Value> {
        let mut command = node.helper(self.plugin)?;
        command
            .env("CNI_COMMAND", self.command)
            .env("CNI_CONTAINERID", self.container_id)
            .env("CNI_NETNS", self.netns)
            .env("CNI_IFNAME", self.ifname)
            .env("CNI_ARGS", self.args)
            .env("CNI_PATH", self.plugin.parent().unwrap_or(Path::new("/")));
        let what = || format!("{} {} on {}", self.command, self.container_id, node.name());
        let output = process::output(command, self.config.to_string().as_bytes(), TIMEOUT).with_context(what)?;
        let stdout = String::from_utf8_lossy(&output.stdout);
        if output.status.success() {
            return match stdout.trim() {
                "" => Ok(Value::Null),
                text => serde_json::from_str(text).with_context(|| format!("{}: not JSON: {text}", what())),
            };
        }
        let error: CniError = serde_json::from_str(&stdout).with_context(|| {
            let stderr = String::from_utf8_lossy(&output.stderr);
            format!("{}: {} without an error object: {stdout}{stderr}", what(), output.status)
        })?;
        Err(anyhow::Error::new(error).context(what()))
    }
}
