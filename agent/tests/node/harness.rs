//! Starts `pindahd`, talks to it, and leaves nothing behind.

use std::ffi::OsStr;
use std::fs::{self, File};
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

use pindah_agent::api::{GuestView, NodeView};
use pindah_agent::client::{Client, Context};
use pindah_agent::domain::{Task, TaskState};
use pindah_agent::guests::GuestState;
use pindah_agent::supervisor::{Direct, Identity};
use reqwest::Method;
use serde_json::{Value, json};

use super::programs::{pindah, pindahd, programs};

/// How long a condition may take on the slowest host before the test has failed.
pub const DEADLINE: Duration = Duration::from_secs(60);
const POLL: Duration = Duration::from_millis(20);

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

/// Whether namespaces can be made; says so if not.
pub fn is_root() -> bool {
    let root = rustix::process::geteuid().is_root();
    if !root {
        eprintln!("skipped: network namespaces need root");
    }
    root
}

/// What a program prints where the agent lives.
pub fn stdout(agent: &Agent, program: &str, arguments: &[&str]) -> String {
    let output = agent.run(program, arguments);
    String::from_utf8_lossy(&output.stdout).into_owned()
}

/// An agent.
pub struct Agent {
    directory: tempfile::TempDir,
    process: Option<Child>,
    /// The network namespace that it lives in, if it has one of its own.
    namespace: Option<String>,
    /// Programs that it finds before the host's.
    programs: Option<PathBuf>,
    client: Client,
}

impl Agent {
    /// An agent without a network for guests.
    pub async fn start() -> Self {
        Self::start_with("network.enabled = false", None).await
    }

    /// An agent that finds the program `name` as this shell script; `$HERE` is the test's directory.
    pub async fn start_with_program(name: &str, script: &str) -> Self {
        Self::start_with_programs(&[(name, script)]).await
    }

    /// The same for several programs.
    pub async fn start_with_programs(scripts: &[(&str, &str)]) -> Self {
        let mut agent = Self::make("network.enabled = false", None);
        agent.put_programs(scripts);
        agent.spawn().await;
        agent
    }

    /// An agent without a network for guests, with more in its configuration.
    pub async fn start_configured(config: &str) -> Self {
        Self::start_with(&format!("network.enabled = false\n{config}"), None).await
    }

    /// An agent with these programs whose state directory is a file system of this size, which the
    /// caller unmounts.
    pub async fn start_on_small_state(size_mib: u64, scripts: &[(&str, &str)]) -> Self {
        let mut agent = Self::make("network.enabled = false", None);
        agent.put_programs(scripts);
        let state = agent.path("state");
        fs::create_dir(&state).expect("a directory");
        let size = format!("size={size_mib}m");
        let mut mount = Command::new("mount");
        run(mount.args(["-t", "tmpfs", "-o", &size, "small"]).arg(state));
        agent.spawn().await;
        agent
    }

    fn put_programs(&mut self, scripts: &[(&str, &str)]) {
        let programs = self.path("programs");
        fs::create_dir(&programs).expect("a directory");
        let here = self.path("").display().to_string();
        for (name, script) in scripts {
            let path = programs.join(name);
            let script = format!("#!/bin/sh\nHERE={here}\n{script}\n");
            fs::write(&path, script).expect("a script");
            fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).expect("a script");
        }
        self.programs = Some(programs);
    }

    /// An agent that measures twice a second.
    pub async fn start_measuring() -> Self {
        let config = "network.enabled = false\nmetrics_interval_ms = 500";
        Self::start_with(config, None).await
    }

    /// An agent in a network namespace of its own, which measures twice a second; `name` is unique
    /// among the tests.
    pub async fn start_in_namespace(name: &str) -> Self {
        let name = format!("pindah-{name}-{}", std::process::id());
        run(Command::new("ip").args(["netns", "add", &name]));
        run(Command::new("ip").args(["-n", &name, "link", "set", "lo", "up"]));
        Self::start_with("metrics_interval_ms = 500", Some(name)).await
    }

    async fn start_with(config: &str, namespace: Option<String>) -> Self {
        let mut agent = Self::make(config, namespace);
        agent.spawn().await;
        agent
    }

    fn make(config: &str, namespace: Option<String>) -> Self {
        let directory = tempfile::Builder::new()
            .prefix("pindah-")
            .tempdir_in("/tmp")
            .expect("a temporary directory");
        let config = format!(
            "node = 'node1'\nlisten = '127.0.0.1:0'\nstop_deadline_s = 1\nvmm = '{}'\n{config}\n",
            programs().join("pindah-vmm").display(),
        );
        fs::write(directory.path().join("pindahd.toml"), config).expect("a configuration");
        let context = Context {
            server: "https://127.0.0.1:1".to_owned(),
            authority: String::new(),
            token: String::new(),
        };
        Self {
            client: Client::new(context).expect("an empty context"),
            directory,
            process: None,
            namespace,
            programs: None,
        }
    }

    /// Starts the process and waits until it answers.
    pub async fn spawn(&mut self) {
        let log = File::options()
            .append(true)
            .create(true)
            .open(self.path("log"));
        let mut command = self.command(pindahd());
        command
            .arg("--config")
            .arg(self.path("pindahd.toml"))
            .arg("--state-dir")
            .arg(self.path("state"))
            .stdin(Stdio::null())
            .stderr(log.expect("a log file"));
        if let Some(programs) = &self.programs {
            let path = std::env::var("PATH").unwrap_or_default();
            command.env("PATH", format!("{}:{path}", programs.display()));
        }
        let before = fs::metadata(self.context())
            .and_then(|metadata| metadata.modified())
            .ok();
        self.process = Some(command.spawn().expect("pindahd starts"));
        let end = Instant::now() + DEADLINE;
        loop {
            let now = fs::metadata(self.context())
                .and_then(|metadata| metadata.modified())
                .ok();
            if now != before
                && let Ok(context) = Context::load(&self.context())
            {
                self.client = Client::new(context).expect("a context that pindahd wrote");
                break;
            }
            assert!(
                Instant::now() < end,
                "pindahd does not serve:\n{}",
                self.log()
            );
            tokio::time::sleep(POLL).await;
        }
    }

    /// SIGKILL, in the middle of whatever it does.
    pub fn kill(&mut self) {
        if let Some(mut process) = self.process.take() {
            let _ = process.kill();
            let _ = process.wait();
        }
    }

    /// SIGTERM, and waits until it has ended.
    pub fn terminate(&mut self) {
        if let Some(mut process) = self.process.take() {
            let pid = rustix::process::Pid::from_child(&process);
            rustix::process::kill_process(pid, rustix::process::Signal::TERM).expect("a signal");
            let status = process.wait().expect("it ends");
            assert!(status.success(), "{status}: {}", self.log());
        }
    }

    fn command(&self, program: impl AsRef<OsStr>) -> Command {
        match &self.namespace {
            None => Command::new(program),
            Some(namespace) => {
                let mut command = Command::new("ip");
                command.args(["netns", "exec", namespace]).arg(program);
                command
            }
        }
    }

    /// Runs a program where the agent lives.
    pub fn run(&self, program: &str, arguments: &[&str]) -> Output {
        let output = self.command(program).args(arguments).output();
        output.expect("the program starts")
    }

    /// The network namespace that it lives in.
    pub fn namespace(&self) -> &str {
        self.namespace.as_deref().expect("a namespace")
    }

    /// Runs `pindah`, which must do what it is asked to; what it printed.
    pub fn must(&self, arguments: &[&str]) -> String {
        let (ok, said, error) = self.pindah(arguments);
        assert!(ok, "{arguments:?}: {error}\n{}", self.log());
        said
    }

    /// Runs `pindah`, which must refuse; why.
    pub fn must_refuse(&self, arguments: &[&str]) -> String {
        let (ok, said, error) = self.pindah(arguments);
        assert!(!ok, "{arguments:?}: {said}");
        error
    }

    /// Runs `pindah`, and returns its exit status and what it printed.
    pub fn pindah(&self, arguments: &[&str]) -> (bool, String, String) {
        let output = self
            .command(pindah())
            .args(arguments)
            .env("PINDAH_CONTEXT", self.context())
            .stdin(Stdio::null())
            .output()
            .expect("pindah starts");
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        (
            output.status.success(),
            text(&output.stdout),
            text(&output.stderr),
        )
    }

    /// The file that says where the agent is.
    pub fn context(&self) -> PathBuf {
        self.path("state/admin.json")
    }

    /// A path in the test's own directory.
    pub fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    /// Its API; only without a namespace.
    pub fn client(&self) -> &Client {
        &self.client
    }

    /// What the agent has logged.
    pub fn log(&self) -> String {
        fs::read_to_string(self.path("log")).unwrap_or_default()
    }

    /// Status and body of a request; the body is null if it is no JSON.
    pub async fn request(&self, method: Method, path: &str, body: Option<&Value>) -> (u16, Value) {
        let mut request = self.client.request(method, path);
        if let Some(body) = body {
            request = request.json(body);
        }
        answer(request).await
    }

    /// Uploads bytes as an image.
    pub async fn upload(&self, name: &str, bytes: Vec<u8>) -> (u16, Value) {
        let path = format!("/images/{name}");
        answer(self.client.request(Method::PUT, &path).body(bytes)).await
    }

    /// Uploads the probe as the kernel `probe`.
    pub async fn upload_probe(&self) {
        let probe = fs::read(programs().join("pindah-probe")).expect("the probe");
        let (status, body) = self.upload("probe", probe).await;
        assert_eq!(status, 201, "{body}");
    }

    /// Creates and starts a guest with the probe, changed by `extra`.
    pub async fn create_probe(&self, name: &str, cmdline: &str, extra: Value) -> GuestView {
        let mut body = probe_spec(name, cmdline);
        for (key, value) in extra.as_object().expect("an object") {
            body[key] = value.clone();
        }
        let task = self.begin(Method::POST, "/guests", Some(&body)).await;
        assert_eq!(task.state, TaskState::Done, "{task:?}\n{}", self.log());
        self.guest(name).await
    }

    /// Begins a task and waits for its end.
    pub async fn begin(&self, method: Method, path: &str, body: Option<&Value>) -> Task {
        let (status, answer) = self.request(method, path, body).await;
        assert_eq!(status, 202, "{path}: {answer}");
        let task: Task = serde_json::from_value(answer["task"].clone()).expect("a task");
        self.wait_task(&task.id.to_string()).await
    }

    /// Waits for a task's end.
    pub async fn wait_task(&self, id: &str) -> Task {
        let task: Task = self
            .client
            .get(&format!("/tasks/{id}?wait_s=60"))
            .await
            .expect("a task");
        assert_ne!(task.state, TaskState::Running, "{task:?}\n{}", self.log());
        task
    }

    /// A guest.
    pub async fn guest(&self, name: &str) -> GuestView {
        self.client
            .get(&format!("/guests/{name}"))
            .await
            .expect("a guest")
    }

    /// A guest, when `wanted` accepts it.
    pub async fn wait_guest(&self, name: &str, wanted: impl Fn(&GuestView) -> bool) -> GuestView {
        let end = Instant::now() + DEADLINE;
        loop {
            let guest = self.guest(name).await;
            if wanted(&guest) {
                return guest;
            }
            assert!(Instant::now() < end, "{guest:?}\n{}", self.log());
            tokio::time::sleep(POLL).await;
        }
    }

    /// A guest, when it does this.
    pub async fn wait_state(&self, name: &str, state: GuestState) -> GuestView {
        self.wait_guest(name, |guest| guest.state == state).await
    }

    /// The node.
    pub async fn node(&self) -> NodeView {
        self.client.get("/nodes/node1").await.expect("the node")
    }

    /// What the probe has reported of one kind, all of it.
    pub fn reports(&self, guest: &GuestView, event: &str) -> Vec<Value> {
        let path = self.guest_directory(guest).join("console.log");
        let text = fs::read_to_string(path).unwrap_or_default();
        let lines = text.lines().filter_map(|line| {
            // A reset cuts a line short, and the next guest's first one follows it.
            let last = line.rfind("{\"t_us\"").unwrap_or(0);
            serde_json::from_str(&line[last..]).ok()
        });
        lines.filter(|line: &Value| line["ev"] == event).collect()
    }

    /// Waits until the probe has reported this often.
    pub async fn wait_reports(&self, guest: &GuestView, event: &str, count: usize) -> Vec<Value> {
        let end = Instant::now() + DEADLINE;
        loop {
            let reports = self.reports(guest, event);
            if reports.len() >= count {
                return reports;
            }
            assert!(Instant::now() < end, "{} of {count} {event}", reports.len());
            tokio::time::sleep(POLL).await;
        }
    }

    /// Where the guest's process has its files.
    pub fn guest_directory(&self, guest: &GuestView) -> PathBuf {
        self.path("state/guests").join(guest.uuid.to_string())
    }

    /// Fails if anything of a guest is left in the state directory.
    pub fn assert_no_guests_left(&self) {
        for part in ["guests", "pool/volumes", "pool/incoming"] {
            self.assert_no_guests_left_in(part);
        }
    }

    /// Fails if anything is left in this part of the state directory.
    pub fn assert_no_guests_left_in(&self, part: &str) {
        let left: Vec<_> = fs::read_dir(self.path("state").join(part))
            .expect("a part of the state")
            .flatten()
            .map(|entry| entry.file_name())
            .collect();
        assert!(left.is_empty(), "{part} still has {left:?}");
    }

    /// Kills what the agent has started.
    pub fn end_guests(&self) {
        let supervisor = Direct::new(PathBuf::new());
        let guests = fs::read_dir(self.path("state/guests"));
        for directory in guests.into_iter().flatten().flatten() {
            if let Some(process) = supervisor.adopt(&directory.path()) {
                let _ = process.identity().kill();
            }
        }
        let dnsmasq = fs::read(self.path("state/network/dnsmasq.json")).ok();
        let dnsmasq = dnsmasq.and_then(|bytes| serde_json::from_slice::<Identity>(&bytes).ok());
        if let Some(dnsmasq) = dnsmasq {
            let _ = dnsmasq.kill();
        }
    }
}

impl Drop for Agent {
    fn drop(&mut self) {
        self.kill();
        self.end_guests();
        if let Some(namespace) = &self.namespace {
            // With it go its bridge, taps and tables.
            let _ = Command::new("ip")
                .args(["netns", "delete", namespace])
                .status();
        }
    }
}

/// A guest with the probe, without disk and network.
pub fn probe_spec(name: &str, cmdline: &str) -> Value {
    json!({
        "name": name,
        "memory_mib": 64,
        "kernel": { "image": "probe", "cmdline": format!("ws_mib=4 {cmdline}") },
        "interfaces": [],
        "start": true,
    })
}

/// Status and body of a request.
pub async fn answer(request: reqwest::RequestBuilder) -> (u16, Value) {
    let response = request.send().await.expect("an answer");
    let status = response.status().as_u16();
    let body = response.bytes().await.expect("a body");
    (status, serde_json::from_slice(&body).unwrap_or(Value::Null))
}

fn run(command: &mut Command) {
    let status = command.status().expect("the program starts");
    assert!(status.success(), "{command:?}: {status}");
}
