//! An unmodified Debian guest.

use std::time::{Duration, Instant};

use anyhow::{Result, bail};

use super::page::Page;
use crate::artifacts::Flavour;
use crate::guest::{Guest, GuestBuilder};
use crate::lab::Lab;
use crate::nas::Nas;
use crate::network::HOST_ADDRESS;
use crate::server::{Server, start_all};
use pindah_vmm_api::{DiskCache, DiskFormat};

const TAP: &str = "guest0";
const PORT: u16 = 4444;
const KEYS: &str = "/srv/nas/keys";
const MOVE_LIMIT: Duration = Duration::from_secs(300);
const TWO_MORE_ROUNDS: &str = "cd /tmp/work; n=$(($(cat round) + 2)); \
                               while [ $(cat round) -lt $n ]; do sleep 1; done";
const WORKLOAD: &str = include_str!("../../assets/guest-workload");

/// Where the guest lives.
struct Place {
    servers: Vec<Server>,
    /// What servers share, where there are two.
    nas: Option<Nas>,
}

impl Place {
    /// This host.
    fn host(lab: &Lab) -> Result<Self> {
        Ok(Self {
            servers: vec![lab.host()?],
            nas: None,
        })
    }

    /// Two servers and a NAS.
    fn site(lab: &Lab) -> Result<Self> {
        let nas = lab.nas()?;
        let server = |name| lab.server(name).memory_mib(1024);
        let servers = Vec::from(start_all([server("one"), server("two")])?);
        for server in &servers {
            nas.mount(server)?;
        }
        Ok(Self {
            servers,
            nas: Some(nas),
        })
    }

    /// Makes taps for the guest, and a copy of its disk.
    fn disk(&self, lab: &Lab) -> Result<String> {
        for server in &self.servers {
            let tap = format!("{TAP} mode tap && ip link set dev {TAP} master br0 up");
            server.check(&format!("ip tuntap add {tap}"))?;
        }
        let original = lab.artifacts().guest_disk()?;
        if let Some(nas) = &self.nas {
            return nas.put(&original, "guest.raw");
        }
        let server = &self.servers[0];
        let from = server.artifact(&original);
        server.check(&format!("cp {} /run/guest.raw", from.display()))?;
        Ok("/run/guest.raw".to_string())
    }
}

/// Moves it to the other server while it verifies memory and disk.
fn move_at_work<'a>(
    page: &Page,
    mut guest: Guest<'a>,
    there: GuestBuilder<'a>,
    [one, two]: [&Server; 2],
) -> Result<Guest<'a>> {
    guest.check("mkdir -p /disk")?;
    guest.check(WORKLOAD)?;
    let vmm = one.program("pindah-vmm");
    let (here, there_address) = (one.address(), two.address());
    one.check(&format!("{vmm} keys {KEYS} {here} {there_address}"))?;

    let start = Instant::now();
    let mut arrived = there.receive(&format!("0.0.0.0:{PORT}"), KEYS)?;
    let client = guest.send(&format!("{there_address}:{PORT}"), KEYS)?;
    let output = client.wait(MOVE_LIMIT)?.ok()?;
    page.step(
        start,
        "guest moved to the other server while it verified memory and disk",
    );
    if let Some(summary) = output
        .text()
        .lines()
        .find(|line| line.starts_with("Migrated"))
    {
        page.line(summary);
    }
    drop(guest);
    arrived.check(TWO_MORE_ROUNDS)?;
    let bad = arrived.check("cat /tmp/work/bad 2>/dev/null || true")?;
    if !bad.is_empty() {
        bail!("the guest's work went wrong: {bad}");
    }
    page.fact("verified", "two more rounds over there, nothing wrong");
    Ok(arrived)
}

pub(super) fn show(page: &Page, on_host: bool) -> Result<()> {
    page.heading(if on_host {
        "A stock Debian guest on this host"
    } else {
        "A stock Debian guest in emulated servers (times mean nothing here)"
    });
    let start = Instant::now();
    let lab = Lab::new("demo-debian")?;
    lab.artifacts().make_all()?;
    page.step(start, "kernels and disks from Debian's archive are there");

    let start = Instant::now();
    let place = if on_host {
        Place::host(&lab)?
    } else {
        let place = Place::site(&lab)?;
        page.step(
            start,
            "two servers booted: Debian, with SVM emulated and a /dev/kvm; a NAS between them",
        );
        place
    };
    let server = &place.servers[0];
    let kernel = lab.artifacts().kernel("6.12", Flavour::Generic)?;
    let disk = place.disk(&lab)?;
    let build = |server| -> Result<GuestBuilder<'_>> {
        let guest = Server::guest(server, "debian").cpus(2).memory_mib(256);
        let guest = guest
            .kernel(lab.artifacts(), &kernel)?
            .cmdline("root=/dev/vda rw");
        let guest = guest.disk(&disk, DiskFormat::Raw).net(TAP);
        // On this host the copy lies in memory, where nothing can be read past a cache.
        Ok(guest.configure(|config| {
            if on_host {
                config.disks[0].cache = DiskCache::Buffered;
            }
        }))
    };

    let start = Instant::now();
    let mut guest = build(server)?.start()?;
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

    if let [one, two] = place.servers.as_slice() {
        guest = move_at_work(page, guest, build(two)?, [one, two])?;
    }

    let start = Instant::now();
    guest.power_off()?;
    page.step(start, "guest switched itself off; the VMM ended cleanly");
    Ok(())
}
