//! A node, and an outside world for its guests.

use std::sync::MutexGuard;

use anyhow::Result;
use pindah_lab::network::HOST_ADDRESS;
use pindah_lab::{Lab, Process, Server};

use crate::node::Node;
use crate::turn;

/// A name that only the lab's own server of names knows.
pub const OUTSIDE_NAME: &str = "outside.example.org";
/// What the server behind that name says to whoever connects to [`OUTSIDE_PORT`].
pub const OUTSIDE_WORD: &str = "outside-world";
/// Where it does.
pub const OUTSIDE_PORT: u16 = 80;

/// A small site.
pub struct Site {
    /// The lab around it.
    pub lab: Lab,
    /// Its node.
    pub node: Node,
    /// Name server and a server that it knows.
    _outside: Outside,
    _turn: MutexGuard<'static, ()>,
}

struct Outside {
    _services: Vec<Process>,
    _host: Server,
}

impl Site {
    /// With the agent running.
    pub fn new(name: &str) -> Result<Self> {
        let turn = turn();
        let lab = Lab::new(name)?;
        Ok(Self {
            _outside: Outside::new(&lab)?,
            node: Node::new(&lab, "node1", 0)?,
            lab,
            _turn: turn,
        })
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
