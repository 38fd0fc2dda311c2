//! DHCP on the switch, for servers that are not told their addresses: each gets that of its port.

use std::process::{Command, Stdio};

use anyhow::Result;

use crate::lab::Lab;
use crate::network::{HOST_ADDRESS, Port};
use crate::process::BoundChild;

/// A running DHCP server; gone when dropped.
pub struct Dhcp {
    _process: BoundChild,
}

impl Dhcp {
    pub(crate) fn start(lab: &Lab) -> Result<Self> {
        let log = lab.directory().join("dhcp.log");
        let mut command = Command::new("dnsmasq");
        command.args(["--keep-in-foreground", "--conf-file=/dev/null", "--port=0"]);
        command.args([
            "--interface=br0",
            "--bind-interfaces",
            "--user=root",
            "--group=root",
        ]);
        command.args([
            "--pid-file=",
            "--no-ping",
            "--leasefile-ro",
            "--dhcp-authoritative",
        ]);
        command.arg("--dhcp-range=10.9.0.0,static,255.255.255.0,1h");
        command.arg(format!("--dhcp-option=option:router,{HOST_ADDRESS}"));
        command.arg(format!("--log-facility={}", log.display()));
        for port in Port::all() {
            command.arg(format!("--dhcp-host={},{}", port.mac, port.address));
        }
        command.stdin(Stdio::null()).stdout(Stdio::null());
        let process = BoundChild::spawn(command, lab.network().inheritance())?;
        Ok(Self { _process: process })
    }
}
