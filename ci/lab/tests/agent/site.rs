//! A server with an agent in it, and an outside world for its guests.

use std::fs::{self, File};
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use nix::sys::signal::Signal;
use pindah_lab::guest::Console;
use pindah_lab::network::HOST_ADDRESS;
use pindah_lab::{Lab, Process, Server};
use serde_json::Value;

/// What takes moments on an idle host.
pub const ACTION_LIMIT: Duration = Duration::from_secs(240);
/// A name that only the lab's own server of names knows.
pub const OUTSIDE_NAME: &str = "outside.example.org";
/// What the server behind that name says to whoever connects to [`OUTSIDE_PORT`].
pub const OUTSIDE_WORD: &str = "outside-world";
/// Where it does.
pub const OUTSIDE_PORT: u16 = 80;

const MEMORY_MIB: u32 = 1024;
/// Room for an image and a disk made from it.
const STATE_BYTES: u64 = 4 << 30;
const LOG: &str = "/var/lib/pindah/pindahd.log";

/// A server that keeps its agent's state when it loses its power.
pub struct Site {
    lab: Lab,
    state: PathBuf,
    server: Option<Server>,
    agent: Option<Process>,
    /// Name server and a server that it knows.
    _outside: Outside,
}

struct Outside {
    _services: Vec<Process>,
    _host: Server,
}

impl Site {
    /// With the agent running.
    pub fn new(name: &str) -> Result<Self> {
        let lab = Lab::new(name)?;
        let state = lab.directory().join("state.raw");
        File::create(&state)?.set_len(STATE_BYTES)?;
        let mut site = Self {
            _outside: Outside::new(&lab)?,
            lab,
            state,
            server: None,
            agent: None,
        };
        site.power_on()?;
        site.server().check("mkfs.ext4 -q /dev/vdb")?;
        site.mount()?;
        site.start_agent()?;
        Ok(site)
    }

    /// The lab around it.
    pub fn lab(&self) -> &Lab {
        &self.lab
    }

    /// The server.
    pub fn server(&self) -> &Server {
        self.server.as_ref().expect("it has power")
    }

    /// The power fails and comes back, and the agent starts with the server.
    pub fn lose_power(&mut self) -> Result<()> {
        self.server().kill();
        (self.agent, self.server) = (None, None);
        self.power_on()?;
        self.mount()?;
        self.start_agent()
    }

    fn power_on(&mut self) -> Result<()> {
        let server = self.lab.server("node1").memory_mib(MEMORY_MIB);
        let server = server.kept_disk(&self.state).start()?;
        let names = format!("nameserver {HOST_ADDRESS}\n");
        server.put("/etc/resolv.conf", names.as_bytes())?;
        // What udev does on a server of flesh and blood.
        server.check("modprobe vhost_net")?;
        self.server = Some(server);
        Ok(())
    }

    fn mount(&self) -> Result<()> {
        let mount = "mkdir -p /var/lib/pindah && mount /dev/vdb /var/lib/pindah";
        self.server().check(mount).map(drop)
    }

    /// Starts the agent and waits until it serves.
    pub fn start_agent(&mut self) -> Result<()> {
        let run = format!("exec pindahd >>{LOG} 2>&1");
        self.agent = Some(self.server().spawn(&["sh", "-c", &run])?);
        let listed = self
            .server()
            .wait_until("the agent", ACTION_LIMIT, "pindah guest list");
        self.explain(listed).map(drop)
    }

    /// Ends the agent as nobody would who means well.
    pub fn kill_agent(&mut self) -> Result<()> {
        let agent = self.agent.take().context("the agent runs")?;
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

    /// The guest as `pindah guest show` tells of it.
    pub fn guest(&self, name: &str) -> Result<Value> {
        let shown = self.pindah(&format!("--json guest show {name}"))?;
        serde_json::from_str(&shown).with_context(|| format!("`guest show` prints {shown}"))
    }

    /// Waits until `guest show` says that it does this.
    pub fn wait_state(&self, name: &str, state: &str) -> Result<Value> {
        let what = format!("guest {name} {state}");
        let show = format!("pindah guest show {name} | grep -q '^state *{state}'");
        let waited = self.server().wait_until(&what, ACTION_LIMIT, &show);
        self.explain(waited)?;
        self.guest(name)
    }

    /// Attaches to the guest's serial port by `pindah guest console`.
    pub fn console(&self, name: &str) -> Result<Console> {
        let attach = ["pindah", "guest", "console", name];
        Ok(Console::new(self.server().spawn(&attach)?))
    }

    /// Adds to an error what the agent has said last.
    pub fn explain<T>(&self, result: Result<T>) -> Result<T> {
        result.map_err(|error| {
            let log = self.server().run(&format!("tail -n 30 {LOG}"));
            let log = log.map_or_else(|error| error.to_string(), |log| log.text().into_owned());
            error.context(format!("the agent's log ends with\n{log}"))
        })
    }
}

impl Drop for Site {
    fn drop(&mut self) {
        // The logs stay, an image of some gigabytes need not.
        let _ = fs::remove_file(&self.state);
    }
}

impl Outside {
    fn new(lab: &Lab) -> Result<Self> {
        let host = lab.host()?;
        let names = [
            "dnsmasq",
            "--keep-in-foreground",
            "--conf-file=/dev/null",
            "--no-resolv",
            "--no-hosts",
            "--pid-file=",
            "--user=root",
            "--log-facility=-",
            "--bind-interfaces",
            &format!("--listen-address={HOST_ADDRESS}"),
            &format!("--address=/{OUTSIDE_NAME}/{HOST_ADDRESS}"),
        ];
        let answer = format!("SYSTEM:echo {OUTSIDE_WORD}");
        let listen = format!("TCP-LISTEN:{OUTSIDE_PORT},bind={HOST_ADDRESS},fork,reuseaddr");
        let services = vec![
            host.spawn(&names)?,
            host.spawn(&["socat", &listen, &answer])?,
        ];
        Ok(Self {
            _services: services,
            _host: host,
        })
    }
}
