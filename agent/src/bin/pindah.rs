//! The command line.

use std::process::ExitCode;

fn main() -> ExitCode {
    pindah_agent::cli::main()
}
