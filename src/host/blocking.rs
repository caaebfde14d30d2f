//! Work that blocks, away from the threads of async code.

/// Runs `work`, which may block, where it blocks no async thread.
pub async fn run<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> T {
    match tokio::task::spawn_blocking(work).await {
        Ok(value) => value,
        Err(error) if error.is_panic() => std::panic::resume_unwind(error.into_panic()),
        // The runtime is going down, and this future with it.
        Err(_) => std::future::pending().await,
    }
}
