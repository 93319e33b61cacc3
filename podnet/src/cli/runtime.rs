//! Waiting for what is asynchronous.

use std::future::Future;

use anyhow::{Context as _, Result};

/// Runs a future on this thread: also the daemon's work is one loop that hardly ever waits for a CPU.
pub(super) fn block_on<T>(future: impl Future<Output = T>) -> Result<T> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    Ok(runtime.context("cannot start the runtime")?.block_on(future))
}
