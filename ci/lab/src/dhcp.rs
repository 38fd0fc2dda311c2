//! DHCP on the switch, for servers that are not told their addresses: each gets that of its port; and
//! what starts them by network.

use std::path::Path;
use std::process::{Command, Stdio};

use anyhow::Result;

use crate::lab::Lab;
use crate::network::{HOST_ADDRESS, Port};
use crate::process::BoundChild;

/// What the README says of network boot.
const NETWORK_BOOT: [&str; 4] = [
    "--enable-tftp",
    "--dhcp-match=set:uefi,option:client-arch,7",
    "--dhcp-boot=tag:uefi,BOOTX64.EFI",
    "--dhcp-boot=tag:!uefi,grub.pxe",
];

/// A running DHCP server; gone when dropped.
pub struct Dhcp {
    _processes: Vec<BoundChild>,
}

impl Dhcp {
    /// With the directory of what is to be started by network, if anything is.
    pub(crate) fn start(lab: &Lab, netboot: Option<&Path>) -> Result<Self> {
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
        let mut commands = vec![command];
        if let Some(directory) = netboot {
            commands[0].args(NETWORK_BOOT);
            commands[0].arg(format!("--tftp-root={}", directory.display()));
            let mut web = Command::new("python3");
            web.args(["-m", "http.server", "--bind", HOST_ADDRESS, "80"]);
            web.stderr(Stdio::null()).current_dir(directory);
            commands.push(web);
        }
        let processes = commands.into_iter().map(|mut command| {
            command.stdin(Stdio::null()).stdout(Stdio::null());
            BoundChild::spawn(command, lab.network().inheritance())
        });
        let processes: Result<_> = processes.collect();
        Ok(Self {
            _processes: processes?,
        })
    }
}
