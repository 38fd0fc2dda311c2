//! `pindah-vmm`: see `pindah-vmm --help`.

mod cli;

use std::process::ExitCode;

fn main() -> ExitCode {
    cli::main()
}
