//! The lab (a cluster of network namespaces on one machine) and what runs on it: tests, the demonstration, an
//! interactive shell, benchmarks.

pub mod api;
#[cfg(feature = "bench")]
pub mod bench;
pub mod demo;
pub mod lab;
mod place;
pub mod traffic;
pub mod verifier;
mod wait;
