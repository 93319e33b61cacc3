//! Log output goes to standard error, since standard output is for results.

use std::env;
use std::io::{self, IsTerminal as _};

use podnet_cni::text::LogFields;
use tracing_subscriber::EnvFilter;
use tracing_subscriber::filter::LevelFilter;

use crate::config::LogFormat;

/// Starts logging. `RUST_LOG` sets the filter; without it, messages of level `default` and above are logged.
pub(super) fn start(format: LogFormat, default: LevelFilter) {
    let filter = match env::var_os(EnvFilter::DEFAULT_ENV) {
        Some(_) => EnvFilter::builder().with_default_directive(default.into()).from_env_lossy(),
        // The client logs each failed request without saying which. The daemon reports those that matter.
        None => EnvFilter::new(format!("{default},kube_client::client::builder=off")),
    };
    let builder = tracing_subscriber::fmt()
        .fmt_fields(LogFields)
        .with_env_filter(filter)
        .with_writer(io::stderr)
        .with_ansi(io::stderr().is_terminal());
    match format {
        LogFormat::Text => builder.init(),
        LogFormat::Json => builder.json().init(),
    }
}
