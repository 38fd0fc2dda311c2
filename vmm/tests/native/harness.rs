//! Starts `pindah-vmm` with the probe, reads what the probe reports, and leaves nothing behind.

use std::collections::VecDeque;
use std::fmt::Write as _;
use std::fs::{self, File};
use std::io::{BufRead, BufReader, Write};
use std::net::{Ipv4Addr, SocketAddr};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::OnceLock;
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::time::{Duration, Instant};

use serde_json::Value;

/// How long a condition may take on the slowest host before the test has failed.
pub const DEADLINE: Duration = Duration::from_secs(60);

/// Lines of the probe's that a failure shows.
const SEEN_MAX: usize = 400;

/// Whether `/dev/kvm` opens; says so if not.
pub fn kvm_opens() -> bool {
    match File::options().read(true).write(true).open("/dev/kvm") {
        Ok(_) => true,
        Err(error) => {
            eprintln!("skipped: /dev/kvm does not open: {error}");
            false
        }
    }
}

/// The probe's ELF image, built once a test run.
pub fn probe() -> &'static Path {
    static PROBE: OnceLock<PathBuf> = OnceLock::new();
    PROBE.get_or_init(|| {
        let vmm = Path::new(env!("CARGO_BIN_EXE_pindah-vmm"));
        let target = vmm.ancestors().nth(2).expect("target/PROFILE/pindah-vmm");
        let built = Command::new(env!("CARGO"))
            .args(["build", "--quiet", "--release", "--package", "pindah-probe"])
            .arg("--target-dir")
            .arg(target)
            .current_dir(env!("CARGO_MANIFEST_DIR"))
            .status()
            .expect("cargo runs");
        assert!(built.success(), "the probe does not build");
        target.join("release/pindah-probe")
    })
}

/// What a guest is made of, in words of the configuration.
pub struct Setup {
    directory: tempfile::TempDir,
    toml: String,
    tables: String,
    memory: String,
    boot: String,
}

impl Setup {
    /// A guest with the probe under `cmdline`.
    pub fn new(cmdline: &str) -> Self {
        Self {
            directory: tempfile::tempdir().expect("a temporary directory"),
            toml: String::new(),
            tables: String::new(),
            memory: "size_mib = 128\n".to_owned(),
            boot: format!("kernel = '{}'\ncmdline = {cmdline:?}\n", probe().display()),
        }
    }

    /// The same guest in a directory of its own.
    pub fn twin(&self) -> Self {
        Self {
            directory: tempfile::tempdir().expect("a temporary directory"),
            toml: self.toml.clone(),
            tables: self.tables.clone(),
            memory: self.memory.clone(),
            boot: self.boot.clone(),
        }
    }

    /// With so much RAM.
    pub fn memory_mib(mut self, mib: u64) -> Self {
        self.memory = format!("size_mib = {mib}\n");
        self
    }

    /// With one more key of `[memory]`.
    pub fn memory_key(mut self, key: &str) -> Self {
        writeln!(self.memory, "{key}").expect("a string takes it");
        self
    }

    /// With one more key of `[boot]`.
    pub fn boot_key(mut self, key: &str, value: &str) -> Self {
        writeln!(self.boot, "{key} = {value:?}").expect("a string takes it");
        self
    }

    /// With more top-level keys of a configuration.
    pub fn config(mut self, toml: &str) -> Self {
        writeln!(self.toml, "{toml}").expect("a string takes it");
        self
    }

    /// With one more table of a configuration.
    pub fn table(mut self, toml: &str) -> Self {
        writeln!(self.tables, "{toml}").expect("a string takes it");
        self
    }

    /// A path in the guest's own directory.
    pub fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    /// Starts it.
    pub fn start(self) -> Guest {
        let mut command = Command::new(env!("CARGO_BIN_EXE_pindah-vmm"));
        command.arg("run").arg("--config").arg(self.write());
        Guest::spawn(command, self.directory)
    }

    /// Starts a machine that waits for its guest at an address of this host, with more arguments
    /// of `receive`. Returns where it listens, too.
    pub fn receive(self, at: Ipv4Addr, arguments: &[String]) -> (Guest, SocketAddr) {
        let mut command = Command::new(env!("CARGO_BIN_EXE_pindah-vmm"));
        command
            .args(["receive", "--listen", &format!("{at}:0"), "--config"])
            .arg(self.write())
            .args(arguments);
        let mut guest = Guest::launch(command, self.directory, Stdio::piped());
        let address = guest.listens_on();
        (guest, address)
    }

    /// Writes its configuration.
    fn write(&self) -> PathBuf {
        let config = format!(
            "serial = {{ socket = '{serial}' }}\n{}\n{}\n[memory]\n{}[boot]\n{}",
            self.toml,
            self.tables,
            self.memory,
            self.boot,
            serial = self.path("serial").display(),
        );
        let file = self.path("guest.toml");
        fs::write(&file, config).expect("a file in a temporary directory");
        file
    }
}

/// A running guest.
pub struct Guest {
    process: Child,
    /// Present until it is handed on.
    directory: Option<tempfile::TempDir>,
    serial: UnixStream,
    lines: Receiver<String>,
    seen: VecDeque<String>,
}

impl Guest {
    /// Runs `command`, whose guest's serial port is the socket `serial` in `directory`, with its
    /// API socket beside it.
    pub fn spawn(command: Command, directory: tempfile::TempDir) -> Self {
        Self::launch(command, directory, Stdio::null())
    }

    fn launch(mut command: Command, directory: tempfile::TempDir, output: Stdio) -> Self {
        let log = File::create(directory.path().join("log")).expect("a log file");
        let process = command
            .arg("--api")
            .arg(directory.path().join("api"))
            .arg("--seccomp")
            .arg("on")
            .stdin(Stdio::null())
            .stdout(output)
            .stderr(log)
            .spawn()
            .expect("pindah-vmm starts");
        let mut guest = Self {
            serial: UnixStream::pair().expect("a pair of sockets").0,
            lines: channel().1,
            seen: VecDeque::new(),
            process,
            directory: Some(directory),
        };
        guest.connect_serial();
        guest
    }

    /// What `receive` says on standard output.
    fn listens_on(&mut self) -> SocketAddr {
        let output = self.process.stdout.take().expect("it is piped");
        let (sender, line) = channel();
        std::thread::spawn(move || {
            let mut line = String::new();
            let _ = BufReader::new(output).read_line(&mut line);
            let _ = sender.send(line);
        });
        let line = line.recv_timeout(DEADLINE).unwrap_or_default();
        let address = line.trim_end().strip_prefix("listening on ");
        match address.and_then(|address| address.parse().ok()) {
            Some(address) => address,
            None => self.fail(&format!("it does not say where it listens: {line:?}")),
        }
    }

    /// Connects to the serial port, or does so anew: its history comes first.
    pub fn connect_serial(&mut self) {
        let path = self.path("serial");
        let end = Instant::now() + DEADLINE;
        self.serial = loop {
            match UnixStream::connect(&path) {
                Ok(stream) => break stream,
                Err(error) => {
                    let ended = self.process.try_wait().expect("a child of ours");
                    assert!(ended.is_none(), "pindah-vmm has ended:\n{}", self.log());
                    assert!(
                        Instant::now() < end,
                        "no serial port: {error}\n{}",
                        self.log()
                    );
                    std::thread::sleep(Duration::from_millis(1));
                }
            }
        };
        let (sender, lines) = channel();
        let stream = self.serial.try_clone().expect("a socket can be cloned");
        std::thread::spawn(move || {
            for line in BufReader::new(stream).split(b'\n').map_while(Result::ok) {
                if sender
                    .send(String::from_utf8_lossy(&line).into_owned())
                    .is_err()
                {
                    break;
                }
            }
        });
        self.lines = lines;
    }

    /// A path in the guest's directory.
    pub fn path(&self, name: &str) -> PathBuf {
        let directory = self.directory.as_ref().expect("only the end takes it");
        directory.path().join(name)
    }

    /// Ends the process, if it has not ended, and hands its directory on.
    pub fn end(mut self) -> tempfile::TempDir {
        let _ = self.process.kill();
        let _ = self.process.wait();
        self.directory.take().expect("only the end takes it")
    }

    /// The process.
    pub fn pid(&self) -> u32 {
        self.process.id()
    }

    /// Whether the process has not ended.
    pub fn is_alive(&mut self) -> bool {
        let ended = self.process.try_wait().expect("a child of ours");
        ended.is_none()
    }

    /// What the VMM has logged.
    pub fn log(&self) -> String {
        fs::read_to_string(self.path("log")).unwrap_or_default()
    }

    /// The next of the probe's lines that `wanted` accepts.
    pub fn wait_for(&mut self, what: &str, mut wanted: impl FnMut(&Value) -> bool) -> Value {
        let end = Instant::now() + DEADLINE;
        loop {
            let value = match self.next_line(end) {
                Ok(value) => value,
                Err(RecvTimeoutError::Timeout) => self.fail(&format!("no {what} in time")),
                Err(RecvTimeoutError::Disconnected) => self.fail(&format!("ended before {what}")),
            };
            if wanted(&value) {
                return value;
            }
        }
    }

    /// The probe's next line; null if it is none.
    pub fn next_line(&mut self, deadline: Instant) -> Result<Value, RecvTimeoutError> {
        let left = deadline.saturating_duration_since(Instant::now());
        let line = self.lines.recv_timeout(left)?;
        // A reset cuts a line short, and the next guest's first one follows it.
        let last = line.rfind("{\"t_us\"").unwrap_or(0);
        let value = serde_json::from_str(&line[last..]).unwrap_or(Value::Null);
        if self.seen.len() == SEEN_MAX {
            self.seen.pop_front();
        }
        self.seen.push_back(line);
        Ok(value)
    }

    /// The next line of the probe's with this `ev`.
    pub fn wait_event(&mut self, event: &str) -> Value {
        self.wait_for(event, |line| line["ev"] == event)
    }

    /// Types a command of the probe's.
    pub fn command(&mut self, line: &str) {
        writeln!(self.serial, "{line}").expect("the serial port takes a line");
    }

    /// Waits for the process to end.
    pub fn wait_exit(&mut self) -> ExitStatus {
        let end = Instant::now() + DEADLINE;
        while Instant::now() < end {
            if let Some(status) = self.process.try_wait().expect("a child of ours") {
                return status;
            }
            std::thread::sleep(Duration::from_millis(5));
        }
        self.fail("pindah-vmm does not end")
    }

    /// Fails the test, and shows what the probe and the VMM said.
    pub fn fail(&self, why: &str) -> ! {
        let seen: Vec<&str> = self.seen.iter().map(String::as_str).collect();
        panic!(
            "{why}\n--- probe\n{}\n--- log\n{}",
            seen.join("\n"),
            self.log()
        )
    }
}

impl Drop for Guest {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}
