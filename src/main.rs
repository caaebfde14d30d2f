//! The `ocivol` program.

use std::process::ExitCode;

/// musl's allocator has one lock for all threads.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    match ocivol::cli::syntax::parse(std::env::args_os()) {
        Ok(cli) => ocivol::cli::run::run(cli),
        Err(status) => status,
    }
}
