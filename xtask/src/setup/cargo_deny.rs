//! cargo-deny, which checks the dependencies.

use super::crate_program::CrateProgram;

pub(super) const CARGO_DENY: CrateProgram = CrateProgram { name: "cargo-deny", version: "0.20.2" };
