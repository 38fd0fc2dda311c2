//! The SAN: an iSCSI target with two portals on the lab's switch, and one blank LUN. It is Debian's
//! `tgt`, which needs no kernel's help.

use std::fs::{self, File};
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

use crate::lab::Lab;
use crate::network::HOST_ADDRESS;
use crate::process::BoundChild;

/// The target's name.
pub const TARGET: &str = "iqn.2026-01.org.example:lab";
/// Its portals, each with an address of its own. Servers have routes to both.
pub const PORTALS: [&str; 2] = [HOST_ADDRESS, "10.9.1.254"];
/// Size of the LUN, in bytes; the file is sparse.
const LUN_BYTES: u64 = 2 << 30;
/// What is dropped.
const CHAIN: &str = "add chain ip san cut { type filter hook input priority 0; }";
const START_LIMIT: Duration = Duration::from_secs(60);
const POLL: Duration = Duration::from_millis(100);

/// A running SAN; gone when dropped, with all that was on it.
pub struct San {
    lun: PathBuf,
    log: PathBuf,
    /// What tells its control socket from those of other labs on this host.
    control: String,
    process: Mutex<BoundChild>,
}

impl San {
    pub(crate) fn start(lab: &Lab) -> Result<Self> {
        let lun = lab.directory().join("lun.raw");
        File::create(&lun)?.set_len(LUN_BYTES)?;
        let log = lab.directory().join("san.log");
        let second = PORTALS[1];
        let network = lab.network();
        network.run(&format!("ip addr add {second}/24 dev br0"))?;
        network.run(&format!("nft 'add table ip san; {CHAIN}'"))?;
        // tgtd takes a short.
        let control = (1 + std::process::id() % 30_000).to_string();
        let process = Mutex::new(serve(lab, &control, &log)?);
        let san = Self {
            lun,
            log,
            control,
            process,
        };
        san.configure()?;
        Ok(san)
    }

    /// Its power fails; what has been written is there when it is back.
    pub fn lose_power(&self) {
        self.lock().kill();
    }

    /// Its power comes back.
    ///
    /// # Errors
    /// If tgtd does not start.
    pub fn power_on(&self, lab: &Lab) -> Result<()> {
        *self.lock() = serve(lab, &self.control, &self.log)?;
        self.configure()
    }

    /// Nothing that is sent to that portal arrives any more.
    ///
    /// # Errors
    /// If nftables refuse.
    pub fn cut(&self, lab: &Lab, portal: &str) -> Result<()> {
        let rule = format!("add rule ip san cut ip daddr {portal} tcp dport 3260 drop");
        lab.network().run(&format!("nft '{rule}'")).map(drop)
    }

    /// All portals can be reached again.
    ///
    /// # Errors
    /// If nftables refuse.
    pub fn mend(&self, lab: &Lab) -> Result<()> {
        lab.network().run("nft flush chain ip san cut").map(drop)
    }

    fn lock(&self) -> MutexGuard<'_, BoundChild> {
        self.process.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn configure(&self) -> Result<()> {
        let target = [
            "--op", "new", "--mode", "target", "--tid", "1", "-T", TARGET,
        ];
        let end = Instant::now() + START_LIMIT;
        while let Err(error) = self.admin(&target) {
            if Instant::now() > end {
                return Err(error.context("the SAN does not start"));
            }
            thread::sleep(POLL);
        }
        let lun = self.lun.display().to_string();
        let unit = [
            "--op",
            "new",
            "--mode",
            "logicalunit",
            "--tid",
            "1",
            "--lun",
            "1",
            "-b",
        ];
        self.admin(&[&unit[..], &[&lun]].concat())?;
        // Before this nobody is let in.
        self.admin(&[
            "--op", "bind", "--mode", "target", "--tid", "1", "-I", "ALL",
        ])
    }

    fn admin(&self, arguments: &[&str]) -> Result<()> {
        let output = Command::new("tgtadm")
            .args(["-C", &self.control, "--lld", "iscsi"])
            .args(arguments)
            .stdin(Stdio::null())
            .output()
            .context("starting tgtadm (tgt)")?;
        if !output.status.success() {
            let said = String::from_utf8_lossy(&output.stderr);
            bail!("tgtadm {arguments:?}: {}", said.trim());
        }
        Ok(())
    }
}

impl Drop for San {
    fn drop(&mut self) {
        self.lock().kill();
        let _ = fs::remove_file(&self.lun);
        for end in ["", ".lock"] {
            let _ = fs::remove_file(format!("/var/run/tgtd/socket.{}{end}", self.control));
        }
    }
}

fn serve(lab: &Lab, control: &str, log: &PathBuf) -> Result<BoundChild> {
    let mut command = Command::new("tgtd");
    // On all addresses.
    command.args(["-f", "-C", control]);
    command.stdin(Stdio::null());
    let log = File::options().create(true).append(true).open(log)?;
    command.stdout(log.try_clone()?).stderr(log);
    BoundChild::spawn(command, lab.network().inheritance()).context("starting the SAN (tgt)")
}
