//! `ci/bench`: `pindah-vmm` beside its peers, on the same guest (`vmm/probe`) in the same run.
//!
//! A *subject* is a VMM ([`subject`]). A *bench* is a list of cases ([`bench`]); a case starts a
//! subject with the probe and measures it. Subjects take turns, run by run, so that what the host
//! does meanwhile hits all alike ([`runner`]); a figure is the median of the runs.
//!
//! Whatever becomes of this program, nothing of it stays behind: the kernel kills its children
//! with it, and its disk image and network namespaces have no name, so they go with its descriptors.
//! Its files are in `target/ci/bench`.

mod artifacts;
mod bench;
mod disk;
mod guest;
mod host;
mod interrupt;
mod migration;
mod network;
mod process;
mod record;
mod runner;
mod smaps;
mod statistics;
mod subject;
mod table;

use std::fs::File;
use std::io::Write;
use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Context, Result};
use clap::Parser;
use clap::builder::PossibleValuesParser;

use crate::artifacts::Artifacts;
use crate::bench::{BENCHES, Bench, Setup};
use crate::record::Record;
use crate::runner::Runner;

/// Measures pindah-vmm beside its peers, on the same guest in the same run.
#[derive(Parser)]
#[command(name = "ci/bench")]
struct Arguments {
    /// What to measure.
    #[arg(value_name = "NAME", required = true, value_parser = names())]
    benches: Vec<String>,
    /// Fewer and shorter runs: each bench ends within two minutes.
    #[arg(long)]
    quick: bool,
    /// Writes the figures to a file, too.
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// Only these subjects.
    #[arg(long, value_name = "NAME", value_delimiter = ',')]
    subjects: Vec<String>,
    /// Only these cases, those too that a quick run leaves out.
    #[arg(long, value_name = "NAME", value_delimiter = ',')]
    cases: Vec<String>,
    /// Runs of each case, instead of the bench's own number.
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=1000))]
    runs: Option<u32>,
    /// Another build of pindah-vmm, which becomes the subject `pindah-base`.
    #[arg(long, value_name = "PROGRAM")]
    base: Option<PathBuf>,
}

fn names() -> PossibleValuesParser {
    PossibleValuesParser::new(BENCHES.iter().map(|bench| bench.name).chain(["all"]))
}

impl Arguments {
    /// The benches asked for, in their own order, each once.
    fn selected(&self) -> Vec<&'static Bench> {
        let wanted = |bench: &&Bench| {
            let named = |name: &String| name == bench.name || name == "all";
            self.benches.iter().any(named)
        };
        BENCHES.iter().filter(wanted).collect()
    }
}

fn main() -> ExitCode {
    match run(&Arguments::parse()) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(_) if interrupt::requested() => {
            eprintln!("interrupted");
            ExitCode::from(130)
        }
        Err(error) => {
            eprintln!("ci/bench: {error:#}");
            ExitCode::FAILURE
        }
    }
}

/// True if every subject could be measured in every case.
fn run(arguments: &Arguments) -> Result<bool> {
    interrupt::install()?;
    // Before the minutes are spent.
    let json = arguments.json.as_deref().map(|path| {
        let file = File::create(path).with_context(|| format!("creating {}", path.display()))?;
        anyhow::Ok((path, file))
    });
    let json = json.transpose()?;
    let artifacts = Artifacts::find()?;
    let subjects = subject::select(
        &artifacts,
        arguments.base.as_deref(),
        &arguments.subjects,
        &arguments.selected(),
    )?;
    host::describe(&artifacts, &subjects)?;
    let setup = Setup {
        quick: arguments.quick,
        artifacts,
    };
    let mut runner = Runner::new(setup, subjects, arguments.runs, &arguments.cases);
    runner.try_out()?;
    let mut records = Vec::new();
    for bench in arguments.selected() {
        let measured = runner.run(bench)?;
        print!("{}", table::format(bench.name, &measured));
        records.extend(measured);
    }
    if let Some((path, file)) = json {
        write_json(file, &records).with_context(|| format!("writing {}", path.display()))?;
    }
    for failure in runner.failures() {
        println!("failed: {failure}");
    }
    Ok(runner.failures().is_empty())
}

fn write_json(mut file: File, records: &[Record]) -> Result<()> {
    serde_json::to_writer_pretty(&mut file, records)?;
    file.write_all(b"\n")?;
    Ok(())
}
