//! Network policies: from the objects of the cluster to the tables of this node. Pure: nothing is read or written.
//!
//! ```text
//! policies ─┐                       ┌→ sets: what the policies of each pod of this node allow
//! namespaces├→ Policies (the index) ├→ address classes, from selectors and blocks   ─→ Desired
//! pods ─────┘                       └→ port classes, from ranges and named ports
//! ```
//! Only policies that select a pod of this node count. Of these, each distinct peer is an *atom*, and the addresses
//! that belong to exactly the same atoms are a class; ports are divided by the rules' ranges in the same way. Ids are
//! given to contents: a class id stands for the same atoms, a set id for the same rules, and a port class id for the
//! same ranges for as long as it exists. So whatever changes, an entry of `policy_rules` never changes its meaning,
//! and tables can be written one after another: new rules, then ports, addresses and blocks, then subjects, and
//! removals last.
//!
//! Left to the datapath: a node and its own pods always reach each other, a pod reaches itself, and answers pass.

mod adopt;
mod atoms;
mod classes;
mod compile;
mod denial;
mod index;
mod intern;
mod owners;
mod pods;
mod ports;
mod selector;
mod tables;

pub use atoms::{DeniedBy, Direction};
pub use compile::Desired;
pub use denial::Denial;
pub use index::{AnyPolicy, Policies};
pub use owners::Owners;

#[cfg(test)]
mod tests;
