//! The lab by hand.
//!
//! ```text
//! pindah-lab demo [--host|--lab|--keep]  show what Pindah does (ci/demo)
//! pindah-lab make                        make all artifacts
//! pindah-lab pictures ISO DIRECTORY      pictures of the installer and the console, for the README
//! pindah-lab shell [--systemd] [MIB]     start a server and read commands for it, a line each
//! ```

use std::io::{BufRead, IsTerminal, Write};
use std::path::Path;
use std::time::Instant;

use anyhow::{Result, bail};
use pindah_lab::demo::{self, Place};
use pindah_lab::{Artifacts, Lab, pictures};

fn main() -> Result<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    match arguments.as_slice() {
        ["demo"] => demo::show(Place::Best, false),
        ["demo", "--keep"] => demo::show(Place::Best, true),
        ["demo", "--host"] => demo::show(Place::Host, false),
        ["demo", "--lab"] => demo::show(Place::Lab, false),
        ["make"] => Artifacts::new()?.make_all(),
        ["pictures", iso, to] => pictures::take(Path::new(iso), Path::new(to)),
        ["shell", rest @ ..] => {
            let (systemd, memory) = match rest {
                ["--systemd", memory @ ..] => (true, memory),
                memory => (false, memory),
            };
            shell(systemd, memory.first().map_or(Ok(2048), |mib| mib.parse())?)
        }
        _ => bail!(
            "usage: pindah-lab demo [--host|--lab|--keep] | make | pictures ISO DIRECTORY | \
             shell [--systemd] [MIB]"
        ),
    }
}

fn shell(systemd: bool, memory_mib: u32) -> Result<()> {
    let lab = Lab::new("shell")?;
    let start = Instant::now();
    let mut server = lab.server("a").memory_mib(memory_mib);
    if systemd {
        server = server.systemd();
    }
    let server = server.start()?;
    eprintln!(
        "server a is up after {:.1} s",
        start.elapsed().as_secs_f64()
    );
    let prompt = || {
        if std::io::stdin().is_terminal() {
            eprint!("a# ");
        }
    };
    prompt();
    for line in std::io::stdin().lock().lines() {
        let output = server.run(&line?)?;
        std::io::stdout().write_all(&output.stdout)?;
        std::io::stderr().write_all(&output.stderr)?;
        if output.status != 0 {
            eprintln!("[{}]", output.status);
        }
        prompt();
    }
    Ok(())
}
