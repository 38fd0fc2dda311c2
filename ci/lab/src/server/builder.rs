//! What a server is made of, and its start.

use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::Duration;

use anyhow::Result;

use super::qemu::{Disk, Machine};
use super::{Places, Server, explain, wait_for_agent};
use crate::channel::Channel;
use crate::lab::Lab;
use crate::network::Port;
use crate::process::BoundChild;

/// A server boots in 5 s; a loaded host may need much longer.
const BOOT_LIMIT: Duration = Duration::from_secs(180);

/// A server before its start.
#[must_use = "a server runs after start()"]
pub struct ServerBuilder<'a> {
    lab: &'a Lab,
    name: String,
    memory_mib: u32,
    cpu_model: String,
    systemd: bool,
    disks: Vec<Disk>,
    port: Option<Port>,
}

impl<'a> ServerBuilder<'a> {
    pub(crate) fn new(lab: &'a Lab, name: &str) -> Self {
        Self {
            lab,
            name: name.to_string(),
            memory_mib: 1024,
            cpu_model: "max".to_string(),
            systemd: false,
            disks: Vec::new(),
            port: None,
        }
    }

    /// Memory; 1024 MiB unless set.
    pub fn memory_mib(mut self, memory_mib: u32) -> Self {
        self.memory_mib = memory_mib;
        self
    }

    /// QEMU's CPU model; `max` unless set. It must have SVM and nested paging
    /// (`EPYC,+svm,+npt`) for `/dev/kvm` to work.
    pub fn cpu_model(mut self, model: &str) -> Self {
        self.cpu_model = model.to_string();
        self
    }

    /// systemd starts it, with udev and D-Bus, as an installed Debian has them; unless this is said
    /// it starts in a few seconds, with the agent and nothing else.
    pub fn systemd(mut self) -> Self {
        self.systemd = true;
        self
    }

    /// Its place on the switch, so its address too, is that of a server that was there and is gone;
    /// a free one unless set.
    pub fn port(mut self, port: Port) -> Self {
        self.port = Some(port);
        self
    }

    /// Adds a raw disk after the root's (`/dev/vdb`, …). What is written to it
    /// is lost with the server.
    pub fn disk(self, path: impl AsRef<Path>) -> Self {
        self.add_disk(path.as_ref(), false)
    }

    /// The same, but what is written stays, for a server that is started after
    /// this one.
    pub fn kept_disk(self, path: impl AsRef<Path>) -> Self {
        self.add_disk(path.as_ref(), true)
    }

    fn add_disk(mut self, path: &Path, kept: bool) -> Self {
        self.disks.push(Disk {
            path: path.to_path_buf(),
            kept,
        });
        self
    }

    /// Starts it and waits until its agent answers.
    ///
    /// # Errors
    /// If its disks cannot be made, QEMU does not start, or the agent does not
    /// answer within three minutes; the message carries the console's tail.
    pub fn start(self) -> Result<Server> {
        let artifacts = self.lab.artifacts();
        let kernel = artifacts.server_kernel()?;
        let port = match self.port {
            Some(port) => port,
            None => self.lab.network().add_port()?,
        };
        let log = self.lab.directory().join(format!("{}.log", self.name));
        let (ours, theirs) = UnixStream::pair()?;
        let agent = OwnedFd::from(theirs);
        let machine = Machine {
            name: &self.name,
            memory_mib: self.memory_mib,
            cpu_model: &self.cpu_model,
            systemd: self.systemd,
            kernel: &kernel.image,
            initrd: &artifacts.server_initramfs()?,
            root: &artifacts.server_root()?,
            disks: &self.disks,
            programs: &self.lab.programs(),
            artifacts: artifacts.directory(),
            port: &port,
            agent: &agent,
            log: &log,
        };
        let command = machine.command();
        let mut inheritance = self.lab.network().inheritance();
        inheritance.descriptors.push(agent);
        let (channel, hello) = Channel::new(ours)?;
        let mut child = BoundChild::spawn(command, inheritance)?;
        wait_for_agent(&mut child, &hello, BOOT_LIMIT)
            .map_err(|error| explain(&self.name, &log, error))?;
        Ok(Server {
            name: self.name,
            machine: Mutex::new(child),
            channel: Arc::new(channel),
            port,
            log,
            places: Places {
                cache: artifacts.directory().to_path_buf(),
                artifacts: "/lab/artifacts".into(),
                programs: "/lab/bin".into(),
            },
        })
    }
}

/// Starts several servers at once: faster than one after the other.
///
/// # Errors
/// The first server's that does not start; the others are gone then.
pub fn start_all<const N: usize>(servers: [ServerBuilder<'_>; N]) -> Result<[Server; N]> {
    let started: Result<Vec<Server>> = thread::scope(|scope| {
        let starts = servers.map(|server| scope.spawn(|| server.start()));
        let join = |start: thread::ScopedJoinHandle<'_, Result<Server>>| {
            start
                .join()
                .unwrap_or_else(|panic| std::panic::resume_unwind(panic))
        };
        starts.into_iter().map(join).collect()
    });
    let started = started?.try_into();
    Ok(started.unwrap_or_else(|_| unreachable!("as many servers as builders")))
}
