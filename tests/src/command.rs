//! The `seedbed` command, built where the tests can find it.

fn main() -> std::process::ExitCode {
    workloads::cli::main()
}
