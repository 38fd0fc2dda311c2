//! An unmodified Debian guest.

use std::time::Instant;

use anyhow::Result;

use super::page::Page;
use crate::artifacts::Flavour;
use crate::lab::Lab;
use crate::network::HOST_ADDRESS;
use pindah_vmm_api::{DiskCache, DiskFormat};

pub(super) fn show(page: &Page, on_host: bool) -> Result<()> {
    page.heading(if on_host {
        "A stock Debian guest on this host"
    } else {
        "A stock Debian guest in an emulated server (times mean nothing here)"
    });
    let start = Instant::now();
    let lab = Lab::new("demo-debian")?;
    lab.artifacts().make_all()?;
    page.step(start, "kernels and disks from Debian's archive are there");

    let start = Instant::now();
    let server = if on_host {
        lab.host()?
    } else {
        let server = lab.server("node").memory_mib(1536).start()?;
        page.step(
            start,
            "server booted: Debian, with SVM emulated and a /dev/kvm",
        );
        server
    };
    let kernel = lab.artifacts().kernel("6.12", Flavour::Generic)?;
    let disk = server.artifact(&lab.artifacts().guest_disk()?);
    server.check("ip tuntap add guest0 mode tap && ip link set dev guest0 master br0 up")?;
    server.check(&format!("cp {} /run/guest.raw", disk.display()))?;

    let start = Instant::now();
    let guest = server.guest("debian").cpus(2).memory_mib(256);
    let guest = guest
        .kernel(lab.artifacts(), &kernel)?
        .cmdline("root=/dev/vda rw");
    let guest = guest.disk("/run/guest.raw", DiskFormat::Raw).net("guest0");
    // The copy lies in memory, where nothing can be read past a cache.
    let guest = guest.configure(|config| config.disks[0].cache = DiskCache::Buffered);
    let mut guest = guest.start()?;
    guest.wait_ready()?;
    page.step(start, "guest booted from its disk");
    page.fact("kernel", &guest.check("uname -srv")?);
    page.fact(
        "sees",
        &guest.check("echo $(nproc) CPUs, $(free -m | awk '/Mem/ {print $2}') MiB")?,
    );
    page.fact(
        "root",
        &guest.check("grep ' / ' /proc/mounts | cut -d' ' -f1-3")?,
    );

    let start = Instant::now();
    guest.check("ip addr add 10.9.0.100/24 dev eth0 && ip link set eth0 up")?;
    guest.check(&format!("ping -c 1 -W 30 {HOST_ADDRESS}"))?;
    lab.network().run("ping -c 1 -W 30 10.9.0.100")?;
    page.step(start, "guest and host have pinged each other");

    let start = Instant::now();
    guest.power_off()?;
    page.step(start, "guest switched itself off; the VMM ended cleanly");
    Ok(())
}
