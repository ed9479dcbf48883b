//! The `seedbed` command.

use std::process::ExitCode;

/// A seed allocates a lot, in short-lived threads.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    workloads::cli::main()
}
