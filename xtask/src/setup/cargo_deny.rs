//! cargo-deny, which checks the dependencies.

use super::crate_program::CrateProgram;

/// Without optimisations: its release profile optimises all crates as one, which takes far longer than all checks with
/// the quickly built program.
pub(super) const CARGO_DENY: CrateProgram = CrateProgram { name: "cargo-deny", version: "0.20.2", profile: "dev" };
