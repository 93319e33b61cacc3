//! Two TUN devices, and a thread per direction that forwards their packets: an interface without Ethernet between two
//! places, like those of WireGuard and other tunnels.

use std::fs::File;
use std::io::{self, PipeWriter, Read as _, Write as _};
use std::os::fd::{AsFd as _, AsRawFd as _};
use std::thread::{self, JoinHandle};

use anyhow::{Context as _, Result, ensure};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

use super::Place;

/// The devices; they exist until this is dropped.
#[derive(Debug)]
pub struct Tun {
    /// The threads stop when this is closed.
    stop: Option<PipeWriter>,
    threads: Vec<JoinHandle<()>>,
}

impl Tun {
    /// Creates the devices, without addresses, and brings them up.
    pub fn between(place: &Place, ifname: &str, other: &Place, other_ifname: &str) -> Result<Self> {
        let ends = [(place, ifname), (other, other_ifname)];
        let [near, far] = ends.map(|(place, name)| {
            let file = place.netns().run(|| open(name))?;
            file.with_context(|| format!("{}: cannot make the TUN device {name}", place.name()))
        });
        let (near, far) = (near?, far?);
        let (ended, stop) = io::pipe()?;
        let directions = [(near.try_clone()?, far.try_clone()?, ended.try_clone()?), (far, near, ended)];
        let carry = |(from, to, ended): (File, File, io::PipeReader)| thread::spawn(move || carry(from, to, &ended));
        let tun = Self { stop: Some(stop), threads: directions.map(carry).into() };
        for (place, name) in ends {
            place.ip(&format!("link set {name} up\n"))?;
        }
        Ok(tun)
    }
}

impl Drop for Tun {
    fn drop(&mut self) {
        self.stop = None;
        for thread in self.threads.drain(..) {
            // The thread does not panic.
            let _ = thread.join();
        }
    }
}

/// Creates a TUN device in the calling thread's network namespace.
fn open(name: &str) -> Result<File> {
    /// linux/if_tun.h.
    const TUNSETIFF: libc::Ioctl = 0x4004_54ca;
    let file = File::options().read(true).write(true).open("/dev/net/tun").context("/dev/net/tun")?;
    // SAFETY: the structure consists of integers and pointers, for which zero is valid.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    ensure!(name.len() < request.ifr_name.len(), "{name} cannot be the name of an interface");
    for (to, from) in request.ifr_name.iter_mut().zip(name.bytes()) {
        *to = from as libc::c_char;
    }
    request.ifr_ifru.ifru_flags = (libc::IFF_TUN | libc::IFF_NO_PI) as libc::c_short;
    // SAFETY: the request outlives the call, which writes to nothing else.
    let result = unsafe { libc::ioctl(file.as_raw_fd(), TUNSETIFF, &raw mut request) };
    ensure!(result == 0, io::Error::last_os_error());
    Ok(file)
}

/// Forwards packets until the pipe is closed.
fn carry(mut from: File, mut to: File, ended: &io::PipeReader) {
    let mut packet = vec![0; 65_536];
    loop {
        let mut ready = [PollFd::new(from.as_fd(), PollFlags::POLLIN), PollFd::new(ended.as_fd(), PollFlags::POLLIN)];
        let polled = poll(&mut ready, PollTimeout::NONE);
        if polled.is_err() || ready[1].revents().is_some_and(|events| !events.is_empty()) {
            return;
        }
        let Ok(length) = from.read(&mut packet) else { return };
        // A device that is down accepts no packets; they are lost, as on a cable.
        let _ = to.write(&packet[..length]);
    }
}
