//! Progress messages of set-up.

/// Prints the current step; the tools that it calls print their own progress below.
pub(super) fn announce(step: &str) {
    eprintln!("==> set-up: {step}");
}
