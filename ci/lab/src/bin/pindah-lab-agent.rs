//! Runs in a lab server: starts the commands that the harness asks for and
//! sends back what they print and how they end ([`pindah_lab::wire`]).
//!
//! With the argument `-` it serves its standard input, a socket, instead of the
//! virtio-serial port: so the host itself can be a server.

use std::collections::HashMap;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::fd::AsFd;
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::Path;
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::mpsc::{Sender, channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;

use anyhow::{Context, Result, bail};
use nix::sys::signal::{Signal, killpg};
use nix::unistd::Pid;
use pindah_lab::wire::{self, Kind, MAX_PAYLOAD, Start};

type Port = Arc<Mutex<File>>;
type Commands = Arc<Mutex<HashMap<u32, Running>>>;

/// What the harness can still do to a command.
struct Running {
    group: Pid,
    stdin: Option<Sender<Vec<u8>>>,
}

fn main() -> Result<()> {
    let mut reader = match std::env::args().nth(1).as_deref() {
        Some("-") => File::from(io::stdin().as_fd().try_clone_to_owned()?),
        _ => open_port()?,
    };
    let port: Port = Arc::new(Mutex::new(reader.try_clone()?));
    send(&port, 0, Kind::Hello, &[]);
    let commands = Commands::default();
    loop {
        let frame = wire::read(&mut reader).context("reading from the harness")?;
        match frame.kind {
            Kind::Start => start(&port, &commands, frame.id, &frame.payload),
            Kind::Stdin => {
                if let Some(Some(stdin)) = lock(&commands).get(&frame.id).map(|c| &c.stdin) {
                    // A command that has closed its input is its own business.
                    let _ = stdin.send(frame.payload);
                }
            }
            Kind::CloseStdin => {
                if let Some(command) = lock(&commands).get_mut(&frame.id) {
                    command.stdin = None;
                }
            }
            Kind::Signal => signal(&commands, frame.id, &frame.payload)?,
            other => bail!("the harness sent {other:?}"),
        }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The port's device, found by its name: there is no udev here.
fn open_port() -> Result<File> {
    for entry in fs::read_dir("/sys/class/virtio-ports").context("no virtio-serial")? {
        let entry = entry?;
        let name = fs::read_to_string(entry.path().join("name")).unwrap_or_default();
        if name.trim() == wire::PORT {
            let path = Path::new("/dev").join(entry.file_name());
            let port = OpenOptions::new().read(true).write(true).open(&path);
            return port.with_context(|| format!("opening {}", path.display()));
        }
    }
    bail!("no virtio-serial port is named {}", wire::PORT)
}

fn send(port: &Port, id: u32, kind: Kind, payload: &[u8]) {
    if let Err(error) = wire::write(&mut *lock(port), id, kind, payload) {
        eprintln!("pindah-lab-agent: the harness is gone: {error}");
        std::process::exit(1);
    }
}

fn start(port: &Port, commands: &Commands, id: u32, payload: &[u8]) {
    match spawn(payload) {
        Ok(child) => serve(port, commands, id, child),
        Err(error) => send(port, id, Kind::Failed, format!("{error:#}").as_bytes()),
    }
}

fn spawn(payload: &[u8]) -> Result<Child> {
    let start: Start = serde_json::from_slice(payload)?;
    let (program, arguments) = start.argv.split_first().context("no program")?;
    Command::new(program)
        .args(arguments)
        .process_group(0)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .with_context(|| format!("starting {program}"))
}

fn serve(port: &Port, commands: &Commands, id: u32, mut child: Child) {
    let stdin = child.stdin.take().map(feed);
    let group = Pid::from_raw(child.id() as i32);
    lock(commands).insert(id, Running { group, stdin });
    let readers = [
        child
            .stdout
            .take()
            .map(|from| forward(port, id, Kind::Stdout, from)),
        child
            .stderr
            .take()
            .map(|from| forward(port, id, Kind::Stderr, from)),
    ];
    let (port, commands) = (port.clone(), commands.clone());
    thread::spawn(move || {
        for reader in readers.into_iter().flatten() {
            let _ = reader.join();
        }
        let status = child.wait();
        lock(&commands).remove(&id);
        match status {
            Ok(status) => {
                let code = status.code().or(status.signal().map(|signal| 128 + signal));
                send(&port, id, Kind::Exited, &code.unwrap_or(255).to_le_bytes());
            }
            Err(error) => send(&port, id, Kind::Failed, error.to_string().as_bytes()),
        }
    });
}

/// Writes to a command's standard input on a thread of its own, so that a
/// command that does not read holds up nobody else.
fn feed(mut stdin: ChildStdin) -> Sender<Vec<u8>> {
    let (sender, receiver) = channel::<Vec<u8>>();
    thread::spawn(move || {
        for bytes in receiver {
            if stdin.write_all(&bytes).is_err() {
                break;
            }
        }
    });
    sender
}

fn forward(
    port: &Port,
    id: u32,
    kind: Kind,
    mut from: impl Read + Send + 'static,
) -> thread::JoinHandle<()> {
    let port = port.clone();
    thread::spawn(move || {
        let mut buffer = vec![0; MAX_PAYLOAD];
        loop {
            match from.read(&mut buffer) {
                Ok(0) => break,
                Ok(length) => send(&port, id, kind, &buffer[..length]),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(_) => break,
            }
        }
    })
}

fn signal(commands: &Commands, id: u32, payload: &[u8]) -> Result<()> {
    let number = i32::from_le_bytes(payload.try_into().context("signal of a wrong size")?);
    let signal = Signal::try_from(number)?;
    if let Some(command) = lock(commands).get(&id) {
        // It may have ended just now.
        let _ = killpg(command.group, signal);
    }
    Ok(())
}
