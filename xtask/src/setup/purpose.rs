//! What commands need the tools for.

/// What the tools are for. Each purpose needs what those before it need.
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
    /// Measure podnet beside its peers.
    Bench,
}
