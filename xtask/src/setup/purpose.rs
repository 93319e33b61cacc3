//! Purposes of the tools.

/// What the tools are needed for. Each purpose includes those before it.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Purpose {
    /// Compile the eBPF object and the programs.
    Build,
    /// Run the lab.
    Lab,
    /// Boot other kernels in virtual machines.
    Kernel,
    /// Run the tests.
    Test,
    /// Benchmark podnet beside its peers.
    Bench,
}
