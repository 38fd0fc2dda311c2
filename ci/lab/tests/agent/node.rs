//! A server with an agent in it.

use std::fs::{self, File};
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use nix::sys::signal::Signal;
use pindah_lab::guest::Console;
use pindah_lab::network::{HOST_ADDRESS, Port};
use pindah_lab::{Lab, Process, Server, repository};
use serde_json::Value;

/// What takes moments on an idle host.
pub const ACTION_LIMIT: Duration = Duration::from_secs(240);

const MEMORY_MIB: u32 = 1024;
/// Room for an image and a disk made from it.
const STATE_BYTES: u64 = 4 << 30;
const LOG: &str = "/var/lib/pindah/pindahd.log";
/// What the image has beside the programs, in `image/extra`.
const UNIT: [&str; 2] = [
    "/usr/lib/systemd/system/pindahd.service",
    "/usr/lib/sysusers.d/pindah.conf",
];
/// What puts the rest of it where the image has it.
const INSTALL: &str = "cp /lab/bin/pindahd /lab/bin/pindah /lab/bin/pindah-vmm /usr/bin/ && \
                       systemd-sysusers && systemctl daemon-reload";
/// What the agent's answer to a request costs: its status, and how long it took, in seconds.
const ASK: &str = "token=$(sed -n 's/.*\"token\": *\"\\([^\"]*\\)\".*/\\1/p' /var/lib/pindah/admin.json); \
                   curl -sSk --max-time 60 -o /dev/null -w '%{http_code} %{time_total}' \
                   -H \"Authorization: Bearer $token\" https://127.0.0.1:7480/api/v1";

/// A server that keeps its agent's state when it loses its power.
pub struct Node {
    name: String,
    state: PathBuf,
    port: Option<Port>,
    server: Option<Server>,
    agent: Agent,
}

/// Who starts the agent.
enum Agent {
    /// The harness; absent: it does not run.
    Ours(Option<Process>),
    /// systemd, by the image's unit.
    Unit,
}

impl Node {
    /// With the agent running. Its clock is ahead by as many seconds.
    pub fn new(lab: &Lab, name: &str, clock_ahead_s: u32) -> Result<Self> {
        Self::start(lab, name, Agent::Ours(None), clock_ahead_s)
    }

    /// Started by systemd, as is the agent.
    pub fn with_systemd(lab: &Lab, name: &str) -> Result<Self> {
        Self::start(lab, name, Agent::Unit, 0)
    }

    fn start(lab: &Lab, name: &str, agent: Agent, clock_ahead_s: u32) -> Result<Self> {
        let state = lab.directory().join(format!("{name}.raw"));
        File::create(&state)?.set_len(STATE_BYTES)?;
        let mut node = Self {
            name: name.to_owned(),
            state,
            port: None,
            server: None,
            agent,
        };
        node.boot(lab)?;
        let server = node.server();
        server.check(&format!("date -s '{clock_ahead_s} seconds'"))?;
        server.check("mkfs.ext4 -q /dev/vdb")?;
        node.mount()?;
        node.start_agent()?;
        Ok(node)
    }

    /// Its name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The server.
    pub fn server(&self) -> &Server {
        self.server.as_ref().expect("it has power")
    }

    /// The power fails.
    pub fn lose_power(&mut self) {
        self.server().kill();
        self.is_off();
    }

    /// Somebody switches it off who has the right to, and waits for that.
    pub fn shut_down(&mut self) -> Result<()> {
        self.server().check("systemctl poweroff --no-block")?;
        self.server().wait_off(ACTION_LIMIT)?;
        self.is_off();
        Ok(())
    }

    fn is_off(&mut self) {
        self.server = None;
        if let Agent::Ours(agent) = &mut self.agent {
            *agent = None;
        }
    }

    /// The power comes back, and the agent starts with the server.
    pub fn power_on(&mut self, lab: &Lab) -> Result<()> {
        self.boot(lab)?;
        self.mount()?;
        self.start_agent()
    }

    fn boot(&mut self, lab: &Lab) -> Result<()> {
        let mut server = lab.server(&self.name).memory_mib(MEMORY_MIB);
        if let Some(port) = &self.port {
            server = server.port(port.clone());
        }
        if matches!(self.agent, Agent::Unit) {
            server = server.systemd();
        }
        let server = server.kept_disk(&self.state).start()?;
        self.port = Some(server.port().clone());
        let names = format!("nameserver {HOST_ADDRESS}\n");
        server.put("/etc/resolv.conf", names.as_bytes())?;
        match self.agent {
            // What udev does on a server of flesh and blood.
            Agent::Ours(_) => server.check("modprobe vhost_net").map(drop)?,
            Agent::Unit => install(&server)?,
        }
        self.server = Some(server);
        Ok(())
    }

    fn mount(&self) -> Result<()> {
        let mount = "mkdir -p /var/lib/pindah && mount /dev/vdb /var/lib/pindah";
        self.server().check(mount).map(drop)
    }

    /// Starts the agent and waits until it serves.
    pub fn start_agent(&mut self) -> Result<()> {
        if matches!(self.agent, Agent::Unit) {
            // It serves when its unit has started.
            self.systemctl("start pindahd")?;
            return self.pindah("guest list").map(drop);
        }
        let run = format!("exec pindahd >>{LOG} 2>&1");
        self.agent = Agent::Ours(Some(self.server().spawn(&["sh", "-c", &run])?));
        let listed = self
            .server()
            .wait_until("the agent", ACTION_LIMIT, "pindah guest list");
        self.explain(listed).map(drop)
    }

    /// `systemctl` with these arguments, which must succeed; what it printed.
    pub fn systemctl(&self, arguments: &str) -> Result<String> {
        let command = format!("systemctl {arguments}");
        let output = self.server().run_within(ACTION_LIMIT, &command);
        let text = output.and_then(|output| Ok(output.ok()?.text().trim().to_owned()));
        self.explain(text)
    }

    /// Ends the agent as nobody would who means well.
    pub fn kill_agent(&mut self) -> Result<()> {
        let Agent::Ours(agent) = &mut self.agent else {
            return self
                .systemctl("kill --kill-whom main --signal KILL pindahd")
                .map(drop);
        };
        let agent = agent.take().context("the agent runs")?;
        agent.signal(Signal::SIGKILL)?;
        let ended = agent.wait(ACTION_LIMIT)?;
        ensure!(ended.status == 128 + 9, "it ended with {}", ended.status);
        Ok(())
    }

    /// `pindah` with these arguments, which must succeed; what it printed.
    pub fn pindah(&self, arguments: &str) -> Result<String> {
        let command = format!("pindah {arguments}");
        let output = self.server().run_within(ACTION_LIMIT, &command);
        let text = output.and_then(|output| Ok(output.ok()?.text().into_owned()));
        self.explain(text)
    }

    /// The same, for programs.
    pub fn json(&self, arguments: &str) -> Result<Value> {
        let printed = self.pindah(&format!("--json {arguments}"))?;
        serde_json::from_str(&printed).with_context(|| format!("`{arguments}` prints {printed}"))
    }

    /// The guest as `pindah guest show` tells of it.
    pub fn guest(&self, name: &str) -> Result<Value> {
        self.json(&format!("guest show {name}"))
    }

    /// Waits until `pindah` with these arguments prints a line that matches.
    pub fn wait_line(&self, arguments: &str, pattern: &str) -> Result<()> {
        let what = format!("“{pattern}” in `pindah {arguments}`");
        let look = format!(
            "pindah {arguments} 2>&1 | tee /tmp/look | grep -q '{pattern}' || {{ cat /tmp/look; false; }}"
        );
        let waited = self.server().wait_until(&what, ACTION_LIMIT, &look);
        self.explain(waited).map(drop)
    }

    /// Waits until `guest show` says that it does this.
    pub fn wait_state(&self, name: &str, state: &str) -> Result<Value> {
        self.wait_line(&format!("guest show {name}"), &format!("^state *{state}"))?;
        self.guest(name)
    }

    /// Attaches to the guest's serial port by `pindah guest console`.
    pub fn console(&self, name: &str) -> Result<Console> {
        let attach = ["pindah", "guest", "console", name];
        Ok(Console::new(self.server().spawn(&attach)?))
    }

    /// How long the API takes to answer a GET of `path`, in seconds.
    pub fn answer_s(&self, path: &str) -> Result<f64> {
        let asked = self.server().check(&format!("{ASK}{path}"));
        let answer = self.explain(asked)?;
        let (status, seconds) = answer.split_once(' ').context("a status and a time")?;
        ensure!(status == "200", "GET {path} is answered with {status}");
        Ok(seconds.parse()?)
    }

    /// Adds to an error what the agent has said last.
    pub fn explain<T>(&self, result: Result<T>) -> Result<T> {
        result.map_err(|error| {
            let log = match self.agent {
                Agent::Ours(_) => format!("tail -n 30 {LOG}"),
                Agent::Unit => "journalctl -b -n 60 --no-pager".to_owned(),
            };
            let log = self.server().run(&log);
            let log = log.map_or_else(|error| error.to_string(), |log| log.text().into_owned());
            error.context(format!("the agent's log on {} ends with\n{log}", self.name))
        })
    }
}

/// As the image has it.
fn install(server: &Server) -> Result<()> {
    for path in UNIT {
        let from = repository().join("image/extra").join(&path[1..]);
        let file = fs::read(&from).with_context(|| format!("reading {}", from.display()))?;
        server.check(&format!("mkdir -p $(dirname {path})"))?;
        server.put(path, &file)?;
    }
    server.check(INSTALL).map(drop)
}

impl Drop for Node {
    fn drop(&mut self) {
        let log = match self.agent {
            Agent::Ours(_) => format!("cat {LOG}"),
            Agent::Unit => "journalctl -b --no-pager".to_owned(),
        };
        if let Some(server) = &self.server
            && let Ok(log) = server.run(&log)
        {
            let _ = fs::write(self.state.with_extension("agent.log"), log.stdout);
        }
        // The logs stay, an image of some gigabytes need not.
        let _ = fs::remove_file(&self.state);
    }
}
