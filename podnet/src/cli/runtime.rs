//! Runs asynchronous code.

use std::future::Future;

use anyhow::{Context as _, Result};

/// Runs a future on this thread. That suffices even for the daemon, which is a single loop that is rarely short of CPU
/// time.
pub(super) fn block_on<T>(future: impl Future<Output = T>) -> Result<T> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    Ok(runtime.context("cannot start the runtime")?.block_on(future))
}
