//! Metrics of the process, with the names used by Prometheus client libraries.

use std::fmt;
use std::fs;

use nix::unistd::{SysconfVar, sysconf};
use prometheus_client::{
    collector::Collector,
    encoding::{DescriptorEncoder, EncodeMetric},
    metrics::{counter::ConstCounter, gauge::ConstGauge},
};

/// Reads `/proc/self` at each scrape.
#[derive(Debug, Default)]
pub(super) struct Process;

/// Usage of resources, from `/proc`.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Usage {
    cpu_seconds: f64,
    /// Since 1970, as far as the clock was right at boot.
    start_seconds: f64,
    virtual_bytes: u64,
    resident_bytes: u64,
}

impl Collector for Process {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> Result<(), fmt::Error> {
        let mut one = |name, help, metric: &dyn EncodeMetric| {
            metric.encode(encoder.encode_descriptor(name, help, None, metric.metric_type())?)
        };
        if let Some(usage) = usage() {
            let cpu = ConstCounter::new(usage.cpu_seconds);
            one("process_cpu_seconds", "Total user and system CPU time spent in seconds.", &cpu)?;
            let start = ConstGauge::new(usage.start_seconds);
            one("process_start_time_seconds", "Start time of the process since the Unix epoch in seconds.", &start)?;
            let resident = ConstGauge::new(usage.resident_bytes);
            one("process_resident_memory_bytes", "Resident memory size in bytes, without the BPF tables.", &resident)?;
            let size = ConstGauge::new(usage.virtual_bytes);
            one("process_virtual_memory_bytes", "Virtual memory size in bytes.", &size)?;
        }
        // Excludes the descriptor that reads the directory.
        if let Ok(open) = fs::read_dir("/proc/self/fd") {
            let open = ConstGauge::new(open.count().saturating_sub(1) as u64);
            one("process_open_fds", "Number of open file descriptors.", &open)?;
        }
        if let Some(most) = fs::read_to_string("/proc/self/limits").ok().as_deref().and_then(descriptors) {
            one("process_max_fds", "Maximum number of open file descriptors.", &ConstGauge::new(most))?;
        }
        Ok(())
    }
}

fn usage() -> Option<Usage> {
    let variable = |variable| sysconf(variable).ok().flatten().and_then(|value| u64::try_from(value).ok());
    let stat = fs::read_to_string("/proc/self/stat").ok()?;
    let kernel = fs::read_to_string("/proc/stat").ok()?;
    parse(&stat, &kernel, variable(SysconfVar::CLK_TCK)?, variable(SysconfVar::PAGE_SIZE)?)
}

/// Parses `proc_pid_stat(5)` and the line `btime` of `proc_stat(5)`.
fn parse(stat: &str, kernel: &str, ticks_a_second: u64, page_size: u64) -> Option<Usage> {
    // The second field, the program's name, may contain spaces and parentheses; fields are counted from 1.
    let fields: Vec<u64> =
        stat.rsplit_once(')')?.1.split_whitespace().map(|field| field.parse().unwrap_or_default()).collect();
    let field = |number: usize| fields.get(number - 3).copied();
    let boot: u64 = kernel.lines().find_map(|line| line.strip_prefix("btime "))?.trim().parse().ok()?;
    let seconds = |ticks: u64| ticks as f64 / ticks_a_second as f64;
    Some(Usage {
        cpu_seconds: seconds(field(14)? + field(15)?),
        start_seconds: boot as f64 + seconds(field(22)?),
        virtual_bytes: field(23)?,
        resident_bytes: field(24)? * page_size,
    })
}

/// The soft limit, from `/proc/self/limits`.
fn descriptors(limits: &str) -> Option<u64> {
    let line = limits.lines().find_map(|line| line.strip_prefix("Max open files"))?;
    line.split_whitespace().next()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parses_proc_for_any_program_name() {
        let stat = "7 (a) b (c) S 1 7 7 0 -1 4194560 100 0 0 0 150 50 0 0 20 0 3 0 12345 4096000 250 184467 1 1";
        let parsed = parse(stat, "cpu 1 2\nbtime 1700000000\nprocesses 5\n", 100, 4096).unwrap();
        assert_eq!((parsed.cpu_seconds, parsed.start_seconds), (2.0, 1_700_000_123.45));
        assert_eq!((parsed.virtual_bytes, parsed.resident_bytes), (4_096_000, 250 * 4096));
        assert_eq!(parse("7 (a) S 1", "btime 1\n", 100, 4096), None);
        assert_eq!(descriptors("Limit  Soft\nMax open files            1024    524288    files\n"), Some(1024));
        assert_eq!(descriptors("Max open files unlimited unlimited files\n"), None);
        assert!(usage().is_some_and(|usage| usage.resident_bytes > 0), "this process can be read");
    }
}
