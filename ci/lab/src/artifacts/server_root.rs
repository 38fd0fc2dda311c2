//! The root disk of a server: Debian 13's tools under Debian 12's kernel.

use std::fs;
use std::path::PathBuf;

use anyhow::Result;

use super::cache::{Cache, run, text};
use super::debian::{Kernel, MIRROR, bootstrap};
use super::disks::{make_ext4, write_program};

const INIT: &str = include_str!("../../assets/server-init");
/// What systemd is to start, and what it is not.
const AGENT_UNIT: &str = include_str!("../../assets/lab-agent.service");
const MASKED: [&str; 2] = ["etcd.service", "serial-getty@ttyS0.service"];

const PACKAGES: &str = "busybox-static,curl,dbus,dnsmasq-base,e2fsprogs,etcd-server,iproute2,\
                        iputils-ping,kmod,lvm2,multipath-tools,nfs-common,nftables,\
                        open-iscsi,procps,qemu-utils,seabios,socat,systemd-sysv,udev";

/// Room for what tests write; the file is sparse.
const SIZE_MIB: u64 = 6144;

pub(super) fn make(cache: &Cache, kernel: &Kernel) -> Result<PathBuf> {
    let inputs = (
        PACKAGES,
        INIT,
        (AGENT_UNIT, MASKED),
        kernel,
        SIZE_MIB,
        MIRROR,
    );
    let directory = cache.get("server-root", &inputs, |path| {
        let root = path.join("root");
        bootstrap("trixie", "minbase", PACKAGES, &root, &[])?;
        for directory in ["lab/bin", "lab/artifacts"] {
            fs::create_dir_all(root.join(directory))?;
        }
        write_program(&root.join("lab/init"), INIT)?;
        let unit = root.join("etc/systemd/system/lab-agent.service");
        fs::write(unit, AGENT_UNIT)?;
        let systemctl = |action: &str, units: &[&str]| {
            let arguments = [&[text(&root), "systemctl", action], units].concat();
            run("chroot", &arguments)
        };
        systemctl("enable", &["lab-agent.service"])?;
        systemctl("mask", &MASKED)?;
        let modules = root.join("usr/lib/modules");
        fs::create_dir_all(&modules)?;
        run("cp", &["-a", text(&kernel.modules), text(&modules)])?;
        let disk = path.join("root.ext4");
        make_ext4(&root, &disk, "server-root", 0, SIZE_MIB)?;
        Ok(fs::remove_dir_all(&root)?)
    })?;
    Ok(directory.join("root.ext4"))
}
