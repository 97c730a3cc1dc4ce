//! The `updraft` binary; all of it is in the library.

use std::process::ExitCode;

fn main() -> ExitCode {
    updraft_server::cli::main()
}
