//! The Kubernetes API as the daemon's source: against a server that a test scripts, and, where binaries are given, real
//! ones.

mod cluster;
mod real;
mod source;
