//! Messages for a kernel that rejects the datapath: one line with the required version, never the whole verifier log.

use aya::programs::ProgramError;
use podnet_cni::text::chain;
use podnet_common::OLDEST_KERNEL;

/// The kernel versions required and running.
pub(super) fn needs() -> String {
    let release = nix::sys::utsname::uname().map(|name| name.release().to_string_lossy().into_owned());
    let this = release.map(|release| format!(" (this is {release})")).unwrap_or_default();
    format!(
        "podnet needs Linux {OLDEST_KERNEL} or later{this} with BTF, the BPF JIT switched on, and the capabilities \
         CAP_NET_ADMIN and CAP_SYS_ADMIN"
    )
}

/// Why the kernel rejects a program: the error, and the line of the verifier log that names the cause.
pub(super) fn refusal(error: &ProgramError) -> String {
    match error {
        ProgramError::LoadError { io_error, verifier_log } => {
            let cause = cause(&verifier_log.to_string());
            if cause.is_empty() { io_error.to_string() } else { format!("{cause} ({io_error})") }
        }
        other => chain(other),
    }
}

/// The line of a verifier log that names the cause: the last one before the statistics, which differ from run to run.
fn cause(log: &str) -> String {
    const STATISTICS: [&str; 4] = ["processed ", "verification time", "stack depth", "max_states"];
    let lines = log.lines().map(str::trim).filter(|line| !line.is_empty());
    let cause = lines.rev().find(|line| !STATISTICS.iter().any(|statistic| line.starts_with(statistic)));
    cause.unwrap_or_default().chars().take(200).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_cause_is_the_last_line_before_the_statistics() {
        let log = "0: (bf) r8 = r1\n1: (85) call unknown#187\ninvalid func unknown#187\nverification time 31 usec\n\
                   stack depth 328+0+136\nprocessed 43908 insns (limit 1000000) max_states_per_insn 13\n\n";
        assert_eq!(cause(log), "invalid func unknown#187");
        assert_eq!(cause(""), "");
        assert_eq!(cause(&"x".repeat(5000)).len(), 200);
    }
}
