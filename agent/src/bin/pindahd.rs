//! The daemon: one a node.

use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use anyhow::Context;
use clap::Parser;
use pindah_agent::config::{CONFIG_FILE, Config, ConfigFile};
use pindah_agent::node::{Next, Node};
use tokio::signal::unix::{SignalKind, signal};
use tracing_subscriber::EnvFilter;

/// How long work that cannot be interrupted may take at the end.
const FAREWELL: Duration = Duration::from_secs(5);

/// The daemon of a node: runs guests, and serves the REST API that `pindah` talks to.
#[derive(Debug, Parser)]
#[command(name = "pindahd", version)]
struct Arguments {
    /// The node's configuration [default: /etc/pindah/pindahd.toml, if it is there].
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// Where to keep everything, in the place of state_dir.
    #[arg(long, value_name = "DIR")]
    state_dir: Option<PathBuf>,
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let filter = EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new("info"));
    tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .with_ansi(std::io::IsTerminal::is_terminal(&std::io::stderr()))
        .with_target(false)
        .init();
    match run(arguments) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("pindahd: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(arguments: Arguments) -> anyhow::Result<()> {
    let config = load(arguments)?;
    loop {
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(2)
            .enable_all()
            .build()
            .context("cannot start")?;
        let next = runtime.block_on(serve(&config))?;
        // All that ran for the node ends here; its guests' processes do not.
        runtime.shutdown_timeout(FAREWELL);
        match next {
            Next::End => return Ok(()),
            Next::BeginAnew => tracing::info!("beginning anew; guests run on"),
        }
    }
}

async fn serve(config: &Config) -> anyhow::Result<Next> {
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    let node = Node::start(config).await?;
    // Who waits for it, if systemd started it (sd_notify(3)).
    if let Err(error) = sd_notify::notify(false, &[sd_notify::NotifyState::Ready]) {
        tracing::warn!("cannot tell systemd that it serves: {error}");
    }
    let end = async {
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
    };
    Ok(node.until(end).await?)
}

fn load(arguments: Arguments) -> anyhow::Result<Config> {
    let mut file = match arguments.config {
        Some(path) => ConfigFile::load(&path)?,
        None if Path::new(CONFIG_FILE).exists() => ConfigFile::load(Path::new(CONFIG_FILE))?,
        None => ConfigFile::default(),
    };
    if arguments.state_dir.is_some() {
        file.state_dir = arguments.state_dir;
    }
    let host_name = rustix::system::uname()
        .nodename()
        .to_string_lossy()
        .into_owned();
    let program = std::env::current_exe().context("cannot find our own program")?;
    Ok(file.validate(&host_name, &program)?)
}
