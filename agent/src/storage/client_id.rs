//! By what an NFS server tells this node from all others.
//!
//! Linux tells it the host's name. Two nodes of one name would take each other's locks away, and
//! machines that were copied have one name; so the kernel is given an id of ours beside it
//! (Documentation/filesystems/nfs/client-identifier).

use std::path::Path;
use std::process::Stdio;
use std::time::Duration;

use tokio::process::Command;
use uuid::Uuid;

use crate::files;

/// Of this network namespace.
const IDENTIFIER: &str = "/sys/fs/nfs/net/nfs_client/identifier";
const FILE: &str = "client-id";
/// How long the kernel may take to load NFS.
const LOAD_DEADLINE: Duration = Duration::from_secs(10);

/// Gives the kernel our id, kept in `directory`, unless it has one. Counts for mounts that follow.
pub(super) async fn set(directory: &Path) {
    if !Path::new(IDENTIFIER).exists() {
        load().await;
    }
    // An older kernel has none, and a host without modules may load NFS with the first mount.
    let Ok(before) = std::fs::read_to_string(IDENTIFIER) else {
        return;
    };
    if !is_unset(&before) {
        return;
    }
    let set = own(directory).and_then(|id| std::fs::write(IDENTIFIER, id));
    if let Err(error) = set {
        tracing::warn!("the NFS client gets no id of its own: {error}; see to unique host names");
    }
}

fn is_unset(identifier: &str) -> bool {
    matches!(identifier.trim(), "" | "(null)")
}

fn own(directory: &Path) -> std::io::Result<String> {
    let path = directory.join(FILE);
    match std::fs::read_to_string(&path) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
            let id = format!("pindah-{}", Uuid::new_v4());
            files::replace(&path, id.as_bytes())?;
            Ok(id)
        }
        read => read,
    }
}

async fn load() {
    let mut command = Command::new("modprobe");
    let loaded = command
        .args(["--quiet", "nfsv4"])
        .kill_on_drop(true)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .status();
    // The mount says what is wrong.
    let _ = tokio::time::timeout(LOAD_DEADLINE, loaded).await;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn id_is_made_once_and_an_administrator_s_is_kept() {
        let directory = tempfile::tempdir().unwrap();
        let id = own(directory.path()).unwrap();
        assert!(id.starts_with("pindah-"), "{id}");
        assert_eq!(own(directory.path()).unwrap(), id);
        assert!(is_unset("(null)\n"));
        assert!(is_unset("\n"));
        assert!(!is_unset("rack1\n"));
    }
}
