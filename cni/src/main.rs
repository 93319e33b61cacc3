//! `podnet-cni`, executed by the container runtime; see docs/cni.md.

use std::io::{self, Write as _};
use std::process::ExitCode;

use podnet_cni::text::LogFields;
use podnet_cni::version::Version;

fn main() -> ExitCode {
    // Called by hand, with or without arguments: print version information, as the plugins of the CNI project do.
    if std::env::var_os("CNI_COMMAND").is_none_or(|command| command.is_empty()) {
        eprintln!("CNI podnet-cni plugin v{}", env!("CARGO_PKG_VERSION"));
        eprintln!("CNI protocol versions supported: {}", Version::ALL.map(Version::as_str).join(", "));
        return ExitCode::SUCCESS;
    }
    // Standard output is reserved for the result.
    tracing_subscriber::fmt()
        .fmt_fields(LogFields)
        .with_writer(io::stderr)
        .with_ansi(false)
        .with_max_level(tracing::Level::INFO)
        .init();
    let output = podnet_cni::commands::run(|name| std::env::var_os(name), io::stdin().lock());
    let (text, code) = match &output {
        Ok(text) => (text, ExitCode::SUCCESS),
        Err(text) => (text, ExitCode::FAILURE),
    };
    let written = match text.is_empty() {
        true => Ok(()),
        false => writeln!(io::stdout().lock(), "{text}"),
    };
    match written {
        Ok(()) => code,
        Err(e) => {
            tracing::error!("cannot write the result: {e}");
            ExitCode::FAILURE
        }
    }
}
