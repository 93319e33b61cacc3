//! The XDP program of an uplink: a link pinned by mode and name of the uplink, so that it outlives the daemon.

use std::{
    fmt, fs, io,
    path::{Path, PathBuf},
};

use podnet_cni::datapath::{PinDir, open_pin};
use podnet_common::{addr::IfIndex, layout::Hook};
use thiserror::Error;

pub use super::link::Mode;
use super::{hooks::UplinkHook, link};
use crate::config::Xdp;

/// Drivers for which native XDP costs more than it saves: it switches off the segmentation offload of a veth's peer,
/// and the receive offload that the host of a virtual machine does for it, so that each TCP segment travels alone.
const COSTLY: [&str; 2] = ["veth", "virtio_net"];

/// Errors of the XDP program.
#[derive(Debug, Error)]
#[error(
    "cannot attach the XDP program to {name}: {source}; set `xdp: generic` or `off` if its driver does not support native XDP"
)]
pub struct XdpError {
    name: String,
    source: io::Error,
}

/// State of the XDP program at an uplink.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum State {
    /// Attached.
    Attached(Mode),
    /// Not attached although configured, with the reason.
    Off(String),
}

impl fmt::Display for State {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Attached(mode) => write!(f, "xdp {}", mode.name()),
            Self::Off(reason) => write!(f, "xdp off ({reason})"),
        }
    }
}

fn pin(pins: &PinDir, mode: Mode, name: &str) -> PathBuf {
    pins.links().join(format!("xdp_{}_{}", mode.name(), file_name(name)))
}

/// File name for an interface: names in the BPF file system must not contain dots (`bpf_lookup` in
/// kernel/bpf/inode.c).
fn file_name(interface: &str) -> String {
    interface.replace('.', "%2e")
}

/// Brings the XDP program of an uplink into line with the configuration. A matching link stays untouched.
pub fn settle(pins: &PinDir, uplink: &UplinkHook, wanted: Xdp) -> Result<State, XdpError> {
    let failed = |source: io::Error| XdpError { name: uplink.name.clone(), source };
    let mode = match wanted {
        Xdp::Off => {
            return detach_but(pins, uplink, None).map(|()| State::Off("by configuration".into())).map_err(failed);
        }
        Xdp::Generic => Mode::Generic,
        Xdp::Native => Mode::Native,
        Xdp::Auto => match link::driver(&uplink.name) {
            Ok(driver) if COSTLY.contains(&driver.as_str()) => {
                let reason = format!("with the driver {driver}, XDP costs more than it saves");
                return detach_but(pins, uplink, None).map(|()| State::Off(reason)).map_err(failed);
            }
            // Attaching gives the actual error.
            _ => Mode::Native,
        },
    };
    detach_but(pins, uplink, Some(mode)).map_err(failed)?;
    match attach(pins, uplink, mode) {
        Ok(()) => Ok(State::Attached(mode)),
        Err(error) if wanted == Xdp::Auto => Ok(State::Off(match error.raw_os_error() {
            Some(libc::EOPNOTSUPP) => "no native XDP in the driver".into(),
            _ => format!("rejected by the driver: {error}"),
        })),
        Err(error) => Err(failed(error)),
    }
}

/// Attaches the dispatcher, unless it is attached already.
fn attach(pins: &PinDir, uplink: &UplinkHook, mode: Mode) -> io::Result<()> {
    let path = pin(pins, mode, &uplink.name);
    if path.exists() {
        return Ok(());
    }
    let program = open_pin(&pins.hook(Hook::UplinkXdp)).map_err(io::Error::other)?;
    let link = link::create_xdp(&program, uplink.ifindex, mode)?;
    link::pin(&link, &path)
}

/// Detaches the program from an uplink where it has another mode, or where the interface is a new one of the same
/// name.
fn detach_but(pins: &PinDir, uplink: &UplinkHook, keep: Option<Mode>) -> io::Result<()> {
    for mode in Mode::ALL {
        let path = pin(pins, mode, &uplink.name);
        let stays = keep == Some(mode) && attached_to(&path).is_ok_and(|there| there == uplink.ifindex);
        if !stays && path.exists() {
            detach(&path)?;
        }
    }
    Ok(())
}

/// Detaches the program from all interfaces except those named.
pub fn detach_others(pins: &PinDir, keep: &[&str]) -> io::Result<()> {
    let entries = match fs::read_dir(pins.links()) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        entries => entries?,
    };
    for entry in entries {
        let entry = entry?;
        let file = entry.file_name();
        let Some(pinned) = file.to_str().and_then(|f| f.strip_prefix("xdp_")) else { continue };
        let name = pinned.split_once('_').map_or(pinned, |(_, name)| name);
        if !keep.iter().any(|kept| file_name(kept) == name) {
            detach(&entry.path())?;
        }
    }
    Ok(())
}

/// Ends a link at once. After the removal of a pin alone the kernel may detach later, and until then another mode
/// can't be attached.
fn detach(path: &Path) -> io::Result<()> {
    link::detach(&open_pin(path).map_err(io::Error::other)?)?;
    fs::remove_file(path)
}

/// Interface of a pinned link; 0 once the interface is gone.
fn attached_to(path: &Path) -> io::Result<IfIndex> {
    link::interface(&open_pin(path).map_err(io::Error::other)?)
}
