//! The `seedbed` command.

use std::process::ExitCode;

fn main() -> ExitCode {
    workloads::cli::main()
}
