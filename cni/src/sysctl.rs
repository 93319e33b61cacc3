//! Settings under /proc/sys/net, of the calling thread's network namespace.

use std::fs::{self, OpenOptions};
use std::io::{self, Write as _};
use std::path::PathBuf;

fn path(key: &[&str]) -> PathBuf {
    let mut path = PathBuf::from("/proc/sys/net");
    path.extend(key);
    path
}

/// The value of a setting; none where the kernel does not have it.
pub(crate) fn get(key: &[&str]) -> io::Result<Option<String>> {
    match fs::read_to_string(path(key)) {
        Ok(text) => Ok(Some(text.trim().to_owned())),
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(e) => Err(e),
    }
}

/// Writes a setting unless it has the value already: containers may have /proc/sys read-only but right.
pub(crate) fn ensure(key: &[&str], value: &str) -> io::Result<()> {
    if get(key)?.as_deref() == Some(value) {
        return Ok(());
    }
    OpenOptions::new().write(true).open(path(key))?.write_all(value.as_bytes())
}

/// The same where the kernel has the setting: without a family it has none of it.
pub(crate) fn ensure_if_there(key: &[&str], value: &str) -> io::Result<()> {
    if get(key)?.is_some() { ensure(key, value) } else { Ok(()) }
}

/// Has an interface let in what has a way back by another one: RFC 3704's loose filter, or none. Of the interface's value
/// and that of all the larger counts.
pub(crate) fn loose_rp_filter(ifname: &str) -> io::Result<()> {
    let all = get(&["ipv4", "conf", "all", "rp_filter"])?;
    let own = get(&["ipv4", "conf", ifname, "rp_filter"])?;
    match all.max(own).as_deref() {
        Some("1") => ensure(&["ipv4", "conf", ifname, "rp_filter"], "2"),
        _ => Ok(()),
    }
}

/// Lets the node forward packets of a family. The kernel stops to accept router advertisements when IPv6 forwarding is
/// switched on, so interfaces that depend on them are told to go on.
pub(crate) fn forward(ipv6: bool) -> io::Result<()> {
    if !ipv6 {
        return ensure(&["ipv4", "ip_forward"], "1");
    }
    if get(&["ipv6", "conf", "all", "forwarding"])?.as_deref() == Some("1") {
        return Ok(());
    }
    for entry in fs::read_dir(path(&["ipv6", "conf"]))? {
        let name = entry?.file_name();
        let Some(name) = name.to_str().filter(|n| *n != "all" && *n != "default") else { continue };
        if get(&["ipv6", "conf", name, "accept_ra"])?.as_deref() == Some("1") {
            ensure(&["ipv6", "conf", name, "accept_ra"], "2")?;
        }
    }
    ensure(&["ipv6", "conf", "all", "forwarding"], "1")
}
