//! The NAS: a directory of the host's, served by NFS 4 on the lab's switch.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use anyhow::{Context, Result};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::lab::Lab;
use crate::network::HOST_ADDRESS;
use crate::process::BoundChild;
use crate::server::Server;

/// What it exports.
pub const EXPORT: &str = "/share";
/// Where servers mount it.
pub const MOUNT: &str = "/srv/nas";
const MOUNT_LIMIT: Duration = Duration::from_secs(120);

/// A running NAS; gone when dropped, with all that was on it.
pub struct Nas {
    directory: PathBuf,
    log: PathBuf,
    process: Mutex<BoundChild>,
}

impl Nas {
    pub(crate) fn start(lab: &Lab) -> Result<Self> {
        let directory = lab.directory().join("nas");
        let share = directory.join("share");
        let recovery = directory.join("recovery");
        for directory in [&share, &recovery] {
            fs::create_dir_all(directory)?;
        }
        fs::write(directory.join("nas.conf"), config(&share, &recovery))?;
        let log = lab.directory().join("nas.log");
        let process = Mutex::new(serve(lab, &directory, &log)?);
        Ok(Self {
            directory,
            log,
            process,
        })
    }

    /// It stands still: it keeps its connections, and answers nothing.
    ///
    /// # Errors
    /// If it has ended.
    pub fn stall(&self) -> Result<()> {
        self.signal(Signal::SIGSTOP)
    }

    /// It goes on after [`Self::stall`].
    ///
    /// # Errors
    /// If it has ended.
    pub fn go_on(&self) -> Result<()> {
        self.signal(Signal::SIGCONT)
    }

    /// Its power fails; what has been written is there when it is back.
    pub fn lose_power(&self) {
        self.lock().kill();
    }

    /// Its power comes back.
    ///
    /// # Errors
    /// If nfs-ganesha does not start.
    pub fn power_on(&self, lab: &Lab) -> Result<()> {
        *self.lock() = serve(lab, &self.directory, &self.log)?;
        Ok(())
    }

    fn signal(&self, signal: Signal) -> Result<()> {
        let id = self.lock().id().try_into().context("a process id")?;
        kill(Pid::from_raw(id), signal).context("the NAS has ended")
    }

    fn lock(&self) -> MutexGuard<'_, BoundChild> {
        self.process.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Mounts it in `server` at [`MOUNT`].
    ///
    /// # Errors
    /// If the server cannot, within two minutes.
    pub fn mount(&self, server: &Server) -> Result<()> {
        // A name that was looked for in vain is looked for again: another server may have made it.
        let options = "vers=4.2,hard,timeo=50,lookupcache=positive";
        let mount = format!(
            "mkdir -p {MOUNT} && mount -t nfs4 -o {options} {HOST_ADDRESS}:{EXPORT} {MOUNT}"
        );
        server.wait_until("the NAS mounted", MOUNT_LIMIT, &mount)?;
        Ok(())
    }

    /// Copies a file of the host's to it, as `name`; where servers see it.
    ///
    /// # Errors
    /// If the host's disk is full, say.
    pub fn put(&self, from: &Path, name: &str) -> Result<String> {
        let to = self.directory.join("share").join(name);
        fs::copy(from, &to).with_context(|| format!("copying {}", from.display()))?;
        Ok(format!("{MOUNT}/{name}"))
    }
}

impl Drop for Nas {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(self.directory.join("share"));
    }
}

fn serve(lab: &Lab, directory: &Path, log: &Path) -> Result<BoundChild> {
    let mut command = Command::new("ganesha.nfsd");
    command.arg("-F");
    command.arg("-f").arg(directory.join("nas.conf"));
    command.arg("-L").arg(log);
    command.arg("-p").arg(directory.join("pid"));
    command.stdin(Stdio::null()).stdout(Stdio::null());
    command.stderr(File::create(directory.join("stderr"))?);
    BoundChild::spawn(command, lab.network().inheritance())
        .context("starting the NAS (nfs-ganesha-vfs)")
}

/// Short leases: the locks of a server that has gone are free again within ten seconds. What is
/// remembered of clients lies apart from that of other labs on this host.
fn config(share: &Path, recovery: &Path) -> String {
    format!(
        "NFS_CORE_PARAM {{ Protocols = 4; Bind_addr = {HOST_ADDRESS}; NFS_Port = 2049;\n\
           Enable_NLM = false; Enable_RQUOTA = false; Enable_UDP = false; }}\n\
         NFSv4 {{ Grace_Period = 5; Lease_Lifetime = 10; RecoveryBackend = fs;\n\
           RecoveryRoot = {}; }}\n\
         EXPORT {{ Export_Id = 1; Path = {}; Pseudo = {EXPORT}; Protocols = 4; Transports = TCP;\n\
           Access_Type = RW; Squash = No_Root_Squash; SecType = sys; FSAL {{ Name = VFS; }} }}\n\
         LOG {{ Default_Log_Level = EVENT; }}\n",
        recovery.display(),
        share.display()
    )
}
