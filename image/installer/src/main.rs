//! `pindah-install`: what runs on the consoles of a machine that was started from Pindah's medium.

use std::io::{IsTerminal as _, StdinLock, Stdout, Write as _};
use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Context as _, bail};
use clap::{Parser, Subcommand};
use pindah_installer::first_boot::{self, FirstBoot};
use pindah_installer::log::{self, Log};
use pindah_installer::machine::Machine;
use pindah_installer::menu::{self, Dialog, password};
use pindah_installer::turn::{self, Taken, Turn};
use pindah_installer::unattended::{self, Source};
use pindah_installer::{end, screens};

/// Where the kernel has its command line.
const COMMAND_LINE: &str = "/proc/cmdline";

/// Installs Pindah on this machine: by an answer file if there is one, otherwise it asks.
#[derive(Debug, Parser)]
#[command(name = "pindah-install", version)]
struct Arguments {
    /// The answer file [default: what `pindah.answer=` on the kernel's command line says, or
    /// pindah.toml on a file system with the label PINDAH].
    #[arg(long, value_name = "FILE|URL")]
    answers: Option<String>,
    /// The image [default: that of the medium].
    #[arg(long, value_name = "FILE")]
    squashfs: Option<PathBuf>,
    /// Root of the live system: kernel, boot loader and defaults are taken from there.
    #[arg(long, value_name = "DIR", default_value = "/")]
    root: PathBuf,
    /// Where the log is kept until it is on the disk.
    #[arg(long, value_name = "FILE", default_value = log::FILE)]
    log: PathBuf,
    #[command(subcommand)]
    command: Option<Command>,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Look at the machine, and write nothing.
    Hardware,
    /// Begin or join the cluster that the installer was told; on the installed system.
    FirstBoot,
    /// Change network and password, look at logs, restart; on the installed system's console.
    Menu,
    /// Change the password of root; on the installed system.
    Password,
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let result = match arguments.command {
        Some(Command::Hardware) => hardware(&arguments),
        Some(Command::FirstBoot) => FirstBoot::run(first_boot::FILE.as_ref(), "pindah"),
        Some(Command::Menu) => menu::run(&mut on_terminal()),
        Some(Command::Password) => {
            password::change(&mut on_terminal(), &password::Places::default())
        }
        None => install(&arguments),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("pindah-install: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn on_terminal() -> Dialog<StdinLock<'static>, Stdout> {
    Dialog::new(std::io::stdin().lock(), std::io::stdout())
}

fn hardware(arguments: &Arguments) -> anyhow::Result<()> {
    let machine = look(arguments)?;
    println!("{}", machine.hardware.machine);
    for finding in &machine.hardware.findings {
        println!("{finding}");
    }
    Ok(())
}

fn look(arguments: &Arguments) -> anyhow::Result<Machine> {
    Machine::look(&arguments.root, arguments.squashfs.as_deref())
}

fn install(arguments: &Arguments) -> anyhow::Result<()> {
    let log = Log::open(&arguments.log)
        .with_context(|| format!("cannot write {}", arguments.log.display()))?;
    let installed = by_answers(arguments, &log).or_else(|error| {
        stopped(&log, &error)?;
        Ok::<_, anyhow::Error>(false)
    });
    if installed? {
        return Ok(());
    }
    by_hand(arguments, &log).or_else(|error| {
        stopped(&log, &error)?;
        end::shell()
    })
}

/// False if there is no answer file.
fn by_answers(arguments: &Arguments, log: &Log) -> anyhow::Result<bool> {
    let source = match &arguments.answers {
        Some(named) => Some(Source::parse(named)),
        None => Source::find(COMMAND_LINE.as_ref())?,
    };
    let Some(source) = source else {
        return Ok(false);
    };
    let mut console = std::io::stdout();
    write!(console, "Answers from {source}\r\n")?;
    let turn = match Turn::take(&arguments.log)? {
        Taken::Ours(turn) => turn,
        Taken::Done => return already_done(),
        Taken::Theirs => match turn::follow(&arguments.log, &mut console)? {
            Taken::Done => return already_done(),
            _ => bail!("the installation on another console has stopped, see above"),
        },
    };
    log.say(&format!("answers from {source}"));
    let Some(text) = source.read()? else {
        return Ok(false);
    };
    let answers = unattended::parse(&source, &text)?;
    let plan = unattended::install(&look(arguments)?, answers, &mut console, log)?;
    turn.done()?;
    end::carry_out(plan.answers.end)?;
    Ok(true)
}

fn by_hand(arguments: &Arguments, log: &Log) -> anyhow::Result<()> {
    screens::run(look(arguments)?, log, &arguments.log)
}

/// The machine is installed already: it is not done once more.
fn already_done() -> anyhow::Result<bool> {
    println!("This machine is installed: start it again, without the medium.\r");
    if std::io::stdin().is_terminal() {
        wait_for_enter("Press Enter for a shell: ")?;
        end::shell()?;
    }
    Ok(true)
}

/// Shows what went wrong until somebody has read it: a machine that starts again by itself would
/// only do the same again.
fn stopped(log: &Log, error: &anyhow::Error) -> anyhow::Result<()> {
    let text = format!("{error:#}");
    log.say(&text);
    if !std::io::stdin().is_terminal() {
        bail!("{text}");
    }
    let text = text.replace('\n', "\r\n");
    println!("\r\nTHE INSTALLATION HAS STOPPED\r\n\r\n{text}\r\n\r");
    wait_for_enter("Press Enter to go on by hand: ")
}

fn wait_for_enter(prompt: &str) -> anyhow::Result<()> {
    print!("{prompt}");
    std::io::stdout().flush()?;
    std::io::stdin().read_line(&mut String::new())?;
    Ok(())
}
