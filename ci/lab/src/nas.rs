//! The NAS: a directory of the host's, served by NFS 4 on the lab's switch.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Mutex;
use std::time::Duration;

use anyhow::{Context, Result};

use crate::lab::Lab;
use crate::network::HOST_ADDRESS;
use crate::process::BoundChild;
use crate::server::Server;

/// Where servers mount it.
pub const MOUNT: &str = "/srv/nas";
const MOUNT_LIMIT: Duration = Duration::from_secs(120);

/// A running NAS; gone when dropped, with all that was on it.
pub struct Nas {
    directory: PathBuf,
    _process: Mutex<BoundChild>,
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
        let mut command = Command::new("ganesha.nfsd");
        command.arg("-F");
        command.arg("-f").arg(directory.join("nas.conf"));
        command.arg("-L").arg(lab.directory().join("nas.log"));
        command.arg("-p").arg(directory.join("pid"));
        command.stdin(Stdio::null()).stdout(Stdio::null());
        command.stderr(File::create(directory.join("stderr"))?);
        let process = BoundChild::spawn(command, lab.network().inheritance())
            .context("starting the NAS (nfs-ganesha-vfs)")?;
        Ok(Self {
            directory,
            _process: Mutex::new(process),
        })
    }

    /// Mounts it in `server` at [`MOUNT`].
    ///
    /// # Errors
    /// If the server cannot, within two minutes.
    pub fn mount(&self, server: &Server) -> Result<()> {
        // A name that was looked for in vain is looked for again: another server may have made it.
        let options = "vers=4.2,hard,timeo=50,lookupcache=positive";
        let mount =
            format!("mkdir -p {MOUNT} && mount -t nfs4 -o {options} {HOST_ADDRESS}:/share {MOUNT}");
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

/// Short leases: the locks of a server that has gone are free again within ten seconds. What is
/// remembered of clients lies apart from that of other labs on this host.
fn config(share: &Path, recovery: &Path) -> String {
    format!(
        "NFS_CORE_PARAM {{ Protocols = 4; Bind_addr = {HOST_ADDRESS}; NFS_Port = 2049;\n\
           Enable_NLM = false; Enable_RQUOTA = false; Enable_UDP = false; }}\n\
         NFSv4 {{ Grace_Period = 5; Lease_Lifetime = 10; RecoveryBackend = fs;\n\
           RecoveryRoot = {}; }}\n\
         EXPORT {{ Export_Id = 1; Path = {}; Pseudo = /share; Protocols = 4; Transports = TCP;\n\
           Access_Type = RW; Squash = No_Root_Squash; SecType = sys; FSAL {{ Name = VFS; }} }}\n\
         LOG {{ Default_Log_Level = EVENT; }}\n",
        recovery.display(),
        share.display()
    )
}
