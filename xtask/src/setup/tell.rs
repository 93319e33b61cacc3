//! What set-up says while it works.

/// Tells what set-up does now; the tools it calls print their own progress below.
pub(super) fn announce(step: &str) {
    eprintln!("==> set-up: {step}");
}
