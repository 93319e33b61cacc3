//! Sysctls under /proc/sys/net, of the calling thread's network namespace.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read as _, Write as _};
use std::path::PathBuf;

fn path(key: &[&str]) -> PathBuf {
    let mut path = PathBuf::from("/proc/sys/net");
    path.extend(key);
    path
}

/// The value of a sysctl; `None` if the kernel does not have it.
pub(crate) fn get(key: &[&str]) -> io::Result<Option<String>> {
    // One read of a buffer that is large enough returns the whole value.
    let mut value = [0; 64];
    match File::open(path(key)).and_then(|mut file| file.read(&mut value)) {
        Ok(len) => Ok(Some(String::from_utf8_lossy(&value[..len]).trim().to_owned())),
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(e) => Err(e),
    }
}

/// Writes a sysctl, unless it already has the value: in a container /proc/sys may be read-only with the right values.
pub(crate) fn ensure(key: &[&str], value: &str) -> io::Result<()> {
    replace(key, &get(key)?.unwrap_or_default(), value)
}

/// As [`ensure`], but no error if the sysctl does not exist, such as one of IPv6 in a kernel without it.
pub(crate) fn ensure_if_there(key: &[&str], value: &str) -> io::Result<()> {
    get(key)?.map_or(Ok(()), |there| replace(key, &there, value))
}

fn replace(key: &[&str], there: &str, value: &str) -> io::Result<()> {
    if there == value {
        return Ok(());
    }
    OpenOptions::new().write(true).open(path(key))?.write_all(value.as_bytes())
}

/// Lets an interface accept packets whose return path leads through another one: loose reverse-path filtering (RFC
/// 3704) or none. The effective value is the larger of the interface's and that of `all`.
pub(crate) fn loose_rp_filter(ifname: &str) -> io::Result<()> {
    let all = get(&["ipv4", "conf", "all", "rp_filter"])?;
    let own = get(&["ipv4", "conf", ifname, "rp_filter"])?;
    match all.max(own).as_deref() {
        Some("1") => ensure(&["ipv4", "conf", ifname, "rp_filter"], "2"),
        _ => Ok(()),
    }
}

/// Enables forwarding for a family. With IPv6 forwarding the kernel stops accepting router advertisements, so
/// interfaces that depend on them are set to accept them nevertheless (accept_ra=2).
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
