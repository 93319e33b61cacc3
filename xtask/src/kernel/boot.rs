//! Boots a guest in QEMU and follows its output.
//!
//! Without KVM, so that it runs anywhere. The guest's clock counts instructions (`-icount`): an instruction takes a
//! nanosecond and idling takes no time, so timeouts and measurements in the guest are independent of the load of this
//! machine.

use std::fs;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{self, RecvTimeoutError};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};

/// The machine. AVX requires QEMU 7.2, and 5-level page tables slow down emulation; neither is under test.
const MACHINE: [&str; 18] = [
    "-accel",
    "tcg,thread=single",
    "-icount",
    "shift=0,sleep=off",
    "-cpu",
    "max,la57=off,avx=off,avx2=off,fma=off,f16c=off",
    // Older kernels would wait for ever for a second processor, on a clock that has stopped.
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
/// Messages of a kernel that cannot continue.
const FATAL: [&str; 3] = ["Kernel panic", "BUG: ", "Oops"];

/// A guest to be booted.
pub(super) struct Guest<'a> {
    pub(super) image: &'a Path,
    pub(super) initramfs: &'a Path,
    /// File for the kernel's messages.
    pub(super) console: PathBuf,
    /// Timeout, on this machine's clock.
    pub(super) limit: Duration,
}

/// Result of a guest.
pub(super) struct End {
    /// A problem other than those in the guest's output.
    pub(super) problem: Option<String>,
    /// CPU time of QEMU until the guest's last line.
    pub(super) processor: Duration,
}

/// QEMU, which is killed when this is dropped.
struct Machine(Child);

impl Machine {
    /// CPU time used so far: proc_pid_stat(5), in hundredths of a second, the unit on all machines of this
    /// architecture.
    fn processor(&self) -> Option<Duration> {
        let stat = fs::read_to_string(format!("/proc/{}/stat", self.0.id())).ok()?;
        // The name, which may contain any character, is in parentheses; user and system time are the 12th and 13th
        // fields behind it.
        let mut fields = stat.rsplit_once(')')?.1.split_whitespace().skip(11);
        let mut hundredths = || fields.next()?.parse::<u64>().ok();
        Some(Duration::from_millis(10 * (hundredths()? + hundredths()?)))
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        // An error means that it has already exited.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

impl Guest<'_> {
    /// Boots the guest and calls `line` with each line of its output, until it powers off.
    ///
    /// # Errors
    /// QEMU cannot be started, or `line` fails.
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
        // Beside tests of this machine, which wait for less than a guest does.
        let mut command = Command::new("nice");
        command
            .args(["-n", "19", "qemu-system-x86_64"])
            .args(MACHINE)
            .arg("-kernel")
            .arg(self.image)
            .arg("-initrd")
            .arg(self.initramfs);
        command.args(["-append", COMMAND_LINE, "-serial"]).arg(format!("file:{}", self.console.display()));
        command.args(["-serial", "stdio"]).stdin(Stdio::null()).stdout(Stdio::piped());
        Ok(Machine(command.spawn().context("cannot start qemu-system-x86_64")?))
    }
}

/// The first message of a kernel that cannot continue.
fn fatal_line(console: &str) -> Option<&str> {
    console.lines().find(|line| FATAL.iter().any(|word| line.contains(word))).map(str::trim)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kernel_panic_is_detected() {
        let console = "[    0.1] Linux version 6.1\n[    2.0] Kernel panic - not syncing: Attempted to kill init!\r\n";
        assert_eq!(fatal_line(console), Some("[    2.0] Kernel panic - not syncing: Attempted to kill init!"));
        assert_eq!(fatal_line("[    0.1] Linux version 6.1\n"), None);
    }
}
