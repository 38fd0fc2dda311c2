//! Starts `pindah-vmm` with the probe, reads what the probe reports, and leaves nothing behind.

use std::collections::VecDeque;
use std::fmt::Write as _;
use std::fs::{self, File};
use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::OnceLock;
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::time::{Duration, Instant};

use serde_json::Value;

/// How long a condition may take on the slowest host before the test has failed.
pub const DEADLINE: Duration = Duration::from_secs(60);

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
        let mut command = Command::new(env!("CARGO_BIN_EXE_pindah-vmm"));
        command.arg("run").arg("--config").arg(file);
        Guest::spawn(command, self.directory)
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
    pub fn spawn(mut command: Command, directory: tempfile::TempDir) -> Self {
        let log = File::create(directory.path().join("log")).expect("a log file");
        let process = command
            .arg("--api")
            .arg(directory.path().join("api"))
            .arg("--seccomp")
            .arg("on")
            .stdin(Stdio::null())
            .stdout(Stdio::null())
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

    fn connect_serial(&mut self) {
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

    /// What the VMM has logged.
    pub fn log(&self) -> String {
        fs::read_to_string(self.path("log")).unwrap_or_default()
    }

    /// The next of the probe's lines that `wanted` accepts.
    pub fn wait_for(&mut self, what: &str, wanted: impl Fn(&Value) -> bool) -> Value {
        let end = Instant::now() + DEADLINE;
        loop {
            let left = end.saturating_duration_since(Instant::now());
            let line = match self.lines.recv_timeout(left) {
                Ok(line) => line,
                Err(RecvTimeoutError::Timeout) => self.fail(&format!("no {what} in time")),
                Err(RecvTimeoutError::Disconnected) => self.fail(&format!("ended before {what}")),
            };
            // A reset cuts a line short, and the next guest's first one follows it.
            let last = line.rfind("{\"t_us\"").unwrap_or(0);
            let value = serde_json::from_str(&line[last..]).unwrap_or(Value::Null);
            self.seen.push_back(line);
            self.seen.truncate(400);
            if wanted(&value) {
                return value;
            }
        }
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

    fn fail(&self, why: &str) -> ! {
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
