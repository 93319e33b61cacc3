//! The Kubernetes API as the daemon's source: against a server that a test scripts, and, where binaries are given, real
//! ones. And pods as a container runtime makes them.

mod cluster;
mod cri;
mod events;
mod kubelets;
mod pods;
mod real;
mod source;
