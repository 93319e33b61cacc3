//! Installs the plugin for the container runtime, once pods can start, and removes it.
//!
//! Runtimes take the first plugin list by name, and containerd's watcher ignores new files and changes of mode: so a
//! file is written under another extension, renamed, and then written once more.

use std::ffi::OsStr;
use std::fs::{self, OpenOptions};
use std::io::{self, Write as _};
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};

use podnet_cni::config::{RUN_DIR, STATE_DIR};
use podnet_cni::files;
use serde_json::{Map, Value, json};
use thiserror::Error;
use tracing::info;

use crate::config::{Config, Install};

/// The plugin's program, in the directory of the daemon's.
const PROGRAM: &str = "podnet-cni";
/// Maximum size of the program, in bytes.
const PROGRAM_MAX: u64 = 1 << 30;
/// The plugin list. Runtimes sort by name, so this comes before most.
pub const LIST: &str = "05-podnet.conflist";
/// Extensions of files that runtimes read.
const ENDINGS: [&str; 3] = ["conf", "conflist", "json"];

/// A failed step of the installation or removal.
#[derive(Debug, Error)]
#[error(
    "CNI plugin: cannot {what} {path}: {source}; check that podnet-cni is in the directory of the daemon's binary, and \
     that binDir and confDir are writable",
    path = path.display()
)]
pub struct InstallError {
    what: &'static str,
    path: PathBuf,
    source: io::Error,
}

/// Installs program and list where they differ. Returns another list that a runtime would take instead, if there is
/// one.
///
/// # Errors
/// [`InstallError`]; the list isn't installed without the program.
pub fn install(config: &Config, install: &Install) -> Result<Option<PathBuf>, InstallError> {
    let source = std::env::current_exe().map(|daemon| daemon.with_file_name(PROGRAM));
    let source = source.map_err(failed("find", Path::new(PROGRAM)))?;
    let program = files::read(&source, PROGRAM_MAX).map_err(failed("read", &source))?;
    place(&install.bin_dir.join(PROGRAM), &program, 0o755)?;
    let list = install.conf_dir.join(LIST);
    if place(&list, list_text(config).as_bytes(), 0o644)? {
        let again = || files::open(&list, OpenOptions::new().write(true))?.write_all(list_text(config).as_bytes());
        again().map_err(failed("write", &list))?;
    }
    let first = lists(&install.conf_dir).map_err(failed("list", &install.conf_dir))?.into_iter().min();
    Ok(first.filter(|first| *first != list))
}

/// Whether a list chains another plugin of this type with podnet's.
pub fn chains(list: &Path, plugin: &str) -> bool {
    let parsed = files::read(list, files::OWN_MAX).ok().and_then(|bytes| serde_json::from_slice::<Value>(&bytes).ok());
    let plugins = parsed.as_ref().and_then(|list| list["plugins"].as_array()).map(Vec::as_slice).unwrap_or_default();
    [PROGRAM, plugin].iter().all(|wanted| plugins.iter().any(|plugin| plugin["type"] == **wanted))
}

/// Removes both. Returns what was removed.
///
/// # Errors
/// [`InstallError`] for the first that can't be removed.
pub fn remove(install: &Install) -> Result<Vec<PathBuf>, InstallError> {
    let mut removed = Vec::new();
    for path in [install.conf_dir.join(LIST), install.bin_dir.join(PROGRAM)] {
        match fs::remove_file(&path) {
            Ok(()) => removed.push(path),
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(failed("remove", &path)(error)),
        }
    }
    Ok(removed)
}

/// Content of the list; settings with the plugin's default are omitted.
fn list_text(config: &Config) -> String {
    let mut plugin = Map::new();
    plugin.insert("type".into(), PROGRAM.into());
    let capabilities =
        ["portMappings", "bandwidth", "ips", "mac", "ipRanges", "dns"].map(|name| (name.to_owned(), true.into()));
    plugin.insert("capabilities".into(), Value::Object(capabilities.into_iter().collect()));
    for (key, value, default) in [("stateDir", &config.state_dir, STATE_DIR), ("runDir", &config.run_dir, RUN_DIR)] {
        if value != Path::new(default) {
            plugin.insert(key.into(), value.display().to_string().into());
        }
    }
    // Runtimes that support `cniVersions` take the newest that they support; older ones reject an unknown `cniVersion`.
    let versions = ["1.0.0", "1.1.0"];
    let list = json!({ "cniVersion": versions[0], "cniVersions": versions, "name": "podnet", "plugins": [plugin] });
    format!("{list:#}\n")
}

/// Replaces the content of a file by renaming a complete one. Returns whether it had a different content.
fn place(path: &Path, content: &[u8], mode: u32) -> Result<bool, InstallError> {
    if files::read(path, PROGRAM_MAX).is_ok_and(|there| there == content) {
        return Ok(false);
    }
    let directory = path.parent().unwrap_or(Path::new("/"));
    let written = (|| {
        fs::create_dir_all(directory)?;
        let mut file = tempfile::Builder::new().prefix(".podnet-").suffix(".new").tempfile_in(directory)?;
        file.write_all(content)?;
        file.as_file().set_permissions(fs::Permissions::from_mode(mode))?;
        file.as_file().sync_all()?;
        file.persist(path).map_err(|error| error.error)?;
        Ok(())
    })();
    written.map_err(failed("write", path))?;
    info!(path = %path.display(), "installed");
    Ok(true)
}

/// The plugin lists in a directory.
fn lists(directory: &Path) -> io::Result<Vec<PathBuf>> {
    let paths = fs::read_dir(directory)?.map(|entry| Ok(entry?.path())).collect::<io::Result<Vec<_>>>()?;
    let read = |path: &PathBuf| path.extension().and_then(OsStr::to_str).is_some_and(|end| ENDINGS.contains(&end));
    Ok(paths.into_iter().filter(read).collect())
}

fn failed(what: &'static str, path: &Path) -> impl Fn(io::Error) -> InstallError {
    move |source| InstallError { what, path: path.to_owned(), source }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn list_omits_defaults() {
        let list = |rest: &str| {
            let config = Config::parse(&format!("node: n\nmanifests: /m\n{rest}")).unwrap();
            serde_json::from_str::<Value>(&list_text(&config)).unwrap()
        };
        let plain = list("");
        assert_eq!((&plain["name"], &plain["cniVersion"]), (&json!("podnet"), &json!("1.0.0")));
        assert_eq!(plain["plugins"][0]["type"], "podnet-cni");
        assert_eq!(plain["plugins"][0].get("stateDir"), None);
        assert_eq!(list("stateDir: /s\n")["plugins"][0]["stateDir"], "/s");
    }

    #[test]
    fn files_are_replaced_only_if_they_differ_and_atomically() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("new/05-podnet.conflist");
        assert!(place(&path, b"one", 0o644).unwrap() && !place(&path, b"one", 0o644).unwrap());
        let held = fs::File::open(&path).unwrap();
        assert!(place(&path, b"two", 0o755).unwrap());
        assert_eq!(io::read_to_string(held).unwrap(), "one", "who reads it has the old one whole");
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o755);
        assert_eq!(fs::read_dir(path.parent().unwrap()).unwrap().count(), 1, "nothing else is left");
        let error = place(Path::new("/proc/nothing/x"), b"", 0o644).unwrap_err().to_string();
        assert!(error.starts_with("CNI plugin: cannot write /proc/nothing/x: "), "{error}");
    }

    #[test]
    fn earlier_list_is_reported_and_survives_removal() {
        let directory = tempfile::tempdir().unwrap();
        let install_at = Install { bin_dir: directory.path().join("bin"), conf_dir: directory.path().join("conf") };
        fs::create_dir(&install_at.conf_dir).unwrap();
        for name in ["00-loopback.conf", "README", "x.conflist.bak"] {
            fs::write(install_at.conf_dir.join(name), "").unwrap();
        }
        place(&install_at.conf_dir.join(LIST), b"", 0o644).unwrap();
        assert_eq!(lists(&install_at.conf_dir).unwrap().len(), 2);
        assert_eq!(remove(&install_at).unwrap(), [install_at.conf_dir.join(LIST)]);
        assert!(remove(&install_at).unwrap().is_empty());
        assert_eq!(fs::read_dir(&install_at.conf_dir).unwrap().count(), 3);
    }
}
