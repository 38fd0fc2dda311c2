//! The host itself as a server, where it can run guests by its own means.
//!
//! Its commands live in the lab's network namespace and in process and mount
//! namespaces of their own, so that nothing of them can stay behind.

use std::fs::File;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::process::{Command, Stdio};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use anyhow::Result;

use super::{Places, Server, explain, wait_for_agent};
use crate::channel::Channel;
use crate::lab::Lab;
use crate::network::{HOST_ADDRESS, Port};
use crate::paths;
use crate::process::BoundChild;

/// Starts an agent on the host.
pub(crate) fn start(lab: &Lab) -> Result<Server> {
    let log = lab.directory().join("host.log");
    let (ours, theirs) = UnixStream::pair()?;
    let mut command = Command::new("unshare");
    command.args(["--mount", "--pid", "--fork", "--kill-child", "--mount-proc"]);
    command.arg(lab.programs().join(paths::AGENT)).arg("-");
    command.stdin(OwnedFd::from(theirs)).stdout(Stdio::null());
    command.stderr(File::options().create(true).append(true).open(&log)?);
    let (channel, hello) = Channel::new(ours)?;
    let mut machine = BoundChild::spawn(command, lab.network().inheritance())?;
    wait_for_agent(&mut machine, &hello, Duration::from_secs(60))
        .map_err(|error| explain("host", &log, error))?;
    let artifacts = lab.artifacts().directory().to_path_buf();
    Ok(Server {
        name: "host".to_string(),
        machine: Mutex::new(machine),
        channel: Arc::new(channel),
        port: Port {
            tap: String::new(),
            mac: String::new(),
            address: HOST_ADDRESS.to_string(),
        },
        log,
        places: Places {
            cache: artifacts.clone(),
            artifacts,
            programs: lab.programs(),
        },
    })
}
