//! The commands of the specification, and their common parts.

mod add;
mod check;
mod del;
mod gc;
mod node;
mod status;

use std::ffi::OsString;
use std::io::Read;
use std::path::PathBuf;
use std::time::Instant;

use serde_json::{Value, json};
use tracing::{Span, info_span};

use crate::call_log::{Call, CallLog, CommandName};
use crate::config::{self, Config, Needs};
use crate::env::{self, Attachment, Command};
use crate::error::{CniError, Code};
use crate::version::Version;

/// What is known of a call when it fails.
struct Told {
    version: Version,
    run_dir: PathBuf,
    span: Span,
}

/// Runs the command in the environment with the configuration on standard input. Returns the text for standard output:
/// a result, or an error.
pub fn run(var: impl Fn(&str) -> Option<OsString>, input: impl Read) -> Result<String, String> {
    let started = Instant::now();
    let mut told = Told { version: Version::LATEST, run_dir: config::default_run_dir(), span: Span::none() };
    let command = CommandName::of(&var("CNI_COMMAND").unwrap_or_default().to_string_lossy());
    let result = dispatch(var, input, &mut told);
    let code = result.as_ref().err().map_or(0, |error| error.code as u32);
    CallLog::new(&told.run_dir).append(Call { command, code, duration: started.elapsed() });
    result.map_err(|error| {
        let _in = told.span.enter();
        tracing::error!(code = error.code as u32, details = error.details, "{}", error.msg);
        error.to_json(told.version)
    })
}

fn dispatch(var: impl Fn(&str) -> Option<OsString>, input: impl Read, told: &mut Told) -> Result<String, CniError> {
    let command = env::parse(var)?;
    told.span = span(&command);
    let _in = told.span.clone().entered();
    let bytes = config::read(input)?;
    if let Some(run_dir) = config::run_dir(&bytes) {
        told.run_dir = run_dir;
    }
    if command == Command::Version {
        return Ok(supported_versions(&bytes)?.to_string());
    }
    told.version = config::version(&bytes)?;
    let needs = match command {
        Command::Del(_) => Needs::Removing,
        Command::Gc => Needs::Collecting,
        _ => Needs::Everything,
    };
    let config = Config::parse(&bytes, needs)?;
    require_version(&command, config.version)?;
    let printed = match command {
        Command::Add(attachment) => Some(add::add(&config, &attachment)?),
        Command::Del(attachment) => del::del(&config, &attachment).map(|()| None)?,
        Command::Check(attachment) => check::check(&config, &attachment).map(|()| None)?,
        Command::Status => status::status(&config).map(|()| None)?,
        Command::Gc => gc::gc(&config).map(|()| None)?,
        Command::Version => None,
    };
    Ok(printed.map(|result| result.to_json(config.version).to_string()).unwrap_or_default())
}

/// The span of a call's log lines.
fn span(command: &Command) -> Span {
    macro_rules! of_attachment {
        ($name:literal, $attachment:expr) => {{
            let Attachment { id, pod, .. } = $attachment;
            info_span!(
                $name,
                attachment = %id,
                pod.namespace = pod.as_ref().map(|pod| pod.namespace.as_str()),
                pod.name = pod.as_ref().map(|pod| pod.name.as_str()),
            )
        }};
    }
    match command {
        Command::Add(attachment) => of_attachment!("cni.add", attachment),
        Command::Del(attachment) => of_attachment!("cni.del", attachment),
        Command::Check(attachment) => of_attachment!("cni.check", attachment),
        Command::Status => info_span!("cni.status"),
        Command::Gc => info_span!("cni.gc"),
        Command::Version => info_span!("cni.version"),
    }
}

/// VERSION: echoes the caller's version, supported or not.
fn supported_versions(bytes: &[u8]) -> Result<Value, CniError> {
    let given = match bytes.iter().all(u8::is_ascii_whitespace) {
        true => Value::Null,
        false => serde_json::from_slice(bytes)
            .map_err(|e| CniError::new(Code::Decode, format!("standard input is not JSON: {e}")))?,
    };
    let echoed = given["cniVersion"].as_str().unwrap_or(Version::LATEST.as_str());
    Ok(json!({"cniVersion": echoed, "supportedVersions": Version::ALL.map(Version::as_str)}))
}

/// CHECK was added in 0.4.0, STATUS and GC in 1.1.0.
fn require_version(command: &Command, version: Version) -> Result<(), CniError> {
    let (name, first) = match command {
        Command::Check(_) => ("CHECK", Version::V0_4_0),
        Command::Status => ("STATUS", Version::V1_1_0),
        Command::Gc => ("GC", Version::V1_1_0),
        _ => return Ok(()),
    };
    if version >= first {
        return Ok(());
    }
    let msg = format!("cniVersion {} does not support {name}", version.as_str());
    Err(CniError::new(Code::IncompatibleVersion, msg).details(format!("introduced in {}", first.as_str())))
}
