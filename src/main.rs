//! The `ocivol` program.

use std::process::ExitCode;

use clap::Parser as _;

/// musl's allocator has one lock for all threads.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    ocivol::cli::run::run(ocivol::cli::args::Cli::parse())
}
