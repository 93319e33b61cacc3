//! `podnet-cni`, the binary, through the CNI protocol alone: environment and standard input in, standard output and
//! exit status out; and what it leaves in namespaces, on disk and in BPF maps. `repair` tests what the daemon does with
//! the plugin's library.
//!
//! Each test has namespaces of its own for the node and for the pods, held by open files: they vanish with the test.
//! Nothing is done in the machine's own namespaces. The tests need root and say so.

mod bpf;
mod commands;
mod concurrency;
mod crash;
mod ebpf;
mod failures;
mod protocol;
mod repair;
mod support;
mod wiring;
