//! Boots a guest in QEMU and follows what it says.
//!
//! Without KVM, so that it runs anywhere. The guest's clock counts instructions (`-icount`): one takes a nanosecond and
//! idling takes no time at all, so time-outs and measurements in the guest don't depend on how busy this machine is.

use std::fs;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{self, RecvTimeoutError};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};

/// The machine. AVX is new in QEMU 7.2, and 5-level page tables slow down emulation; neither is what is tested.
const MACHINE: [&str; 18] = [
    "-accel",
    "tcg,thread=single",
    "-icount",
    "shift=0,sleep=off",
    "-cpu",
    "max,la57=off,avx=off,avx2=off,fma=off,f16c=off",
    // Older kernels wait for ever for a second processor, on a clock that stands still meanwhile.
    "-smp",
    "1",
    "-m",
    "2G",
    "-nodefaults",
    "-display",
    "none",
    "-net",
    "none",
    "-no-reboot",
    "-rtc",
    "base=utc",
];
const COMMAND_LINE: &str = "console=ttyS0 loglevel=5 panic=1 oops=panic no_timer_check mitigations=off";
/// What the kernel says when it is about to end.
const FATAL: [&str; 3] = ["Kernel panic", "BUG: ", "Oops"];

/// A guest to be booted.
pub(super) struct Guest<'a> {
    pub(super) image: &'a Path,
    pub(super) initramfs: &'a Path,
    /// Gets the kernel's messages.
    pub(super) console: PathBuf,
    /// How long it may take, on this machine's clock.
    pub(super) limit: Duration,
}

/// What became of a guest.
pub(super) struct End {
    /// What went wrong, beside what the guest itself says.
    pub(super) problem: Option<String>,
    /// The processor's time that QEMU took until the guest's last line.
    pub(super) processor: Duration,
}

/// QEMU, which ends with this.
struct Machine(Child);

impl Machine {
    /// The processor's time that it has taken so far: proc_pid_stat(5), in the hundredths of a second that all
    /// machines of this kind count.
    fn processor(&self) -> Option<Duration> {
        let stat = fs::read_to_string(format!("/proc/{}/stat", self.0.id())).ok()?;
        // The name, which may hold anything, is in parentheses; user and system time are the 12th and 13th fields behind it.
        let mut fields = stat.rsplit_once(')')?.1.split_whitespace().skip(11);
        let mut hundredths = || fields.next()?.parse::<u64>().ok();
        Some(Duration::from_millis(10 * (hundredths()? + hundredths()?)))
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        // An error means that it has ended already.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

impl Guest<'_> {
    /// Boots it and calls `line` with each line that it says, until it switches itself off.
    ///
    /// # Errors
    /// QEMU can't be started, or `line` fails.
    pub(super) fn run(&self, mut line: impl FnMut(&str) -> Result<()>) -> Result<End> {
        let mut machine = self.start()?;
        let output = machine.0.stdout.take().context("QEMU has no output")?;
        let (sender, lines) = mpsc::channel();
        thread::spawn(move || {
            for bytes in BufReader::new(output).split(b'\n').map_while(Result::ok) {
                let text = String::from_utf8_lossy(&bytes);
                if sender.send(text.trim_end_matches('\r').to_owned()).is_err() {
                    return;
                }
            }
        });
        let deadline = Instant::now() + self.limit;
        let mut processor = Duration::ZERO;
        loop {
            match lines.recv_timeout(deadline.saturating_duration_since(Instant::now())) {
                Ok(text) => {
                    processor = machine.processor().unwrap_or(processor);
                    line(&text)?;
                }
                Err(RecvTimeoutError::Timeout) => {
                    let problem = Some(format!("the guest is still running after {} s", self.limit.as_secs()));
                    return Ok(End { problem, processor: machine.processor().unwrap_or(processor) });
                }
                Err(RecvTimeoutError::Disconnected) => break,
            }
        }
        let status = machine.0.wait()?;
        let console = fs::read(&self.console).unwrap_or_default();
        let fatal = fatal_line(&String::from_utf8_lossy(&console)).map(str::to_owned);
        let problem = fatal.or_else(|| (!status.success()).then(|| format!("QEMU failed ({status})")));
        Ok(End { problem, processor })
    }

    fn start(&self) -> Result<Machine> {
        let mut command = Command::new("qemu-system-x86_64");
        command.args(MACHINE).arg("-kernel").arg(self.image).arg("-initrd").arg(self.initramfs);
        command.args(["-append", COMMAND_LINE, "-serial"]).arg(format!("file:{}", self.console.display()));
        command.args(["-serial", "stdio"]).stdin(Stdio::null()).stdout(Stdio::piped());
        Ok(Machine(command.spawn().context("cannot start qemu-system-x86_64")?))
    }
}

/// The first of the kernel's messages that says that it can't go on.
fn fatal_line(console: &str) -> Option<&str> {
    console.lines().find(|line| FATAL.iter().any(|word| line.contains(word))).map(str::trim)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_panic_is_seen() {
        let console = "[    0.1] Linux version 6.1\n[    2.0] Kernel panic - not syncing: Attempted to kill init!\r\n";
        assert_eq!(fatal_line(console), Some("[    2.0] Kernel panic - not syncing: Attempted to kill init!"));
        assert_eq!(fatal_line("[    0.1] Linux version 6.1\n"), None);
    }
}
