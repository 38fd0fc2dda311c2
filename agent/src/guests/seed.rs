//! The disk on which cloud-init finds its seed: a small FAT file system with the label CIDATA, made
//! anew at each start.

use std::fs::OpenOptions;
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use fatfs::{FatType, FileSystem, FormatVolumeOptions, FsOptions, format_volume};
use serde_json::json;

use crate::domain::{CloudInit, Guest};

/// Its size in bytes: all that a seed may hold, twice.
const SEED_BYTES: u64 = 2 << 20;
/// What cloud-init looks for.
const LABEL: [u8; 11] = *b"CIDATA     ";

/// Writes the seed of `guest` to `path`.
///
/// # Errors
/// The host refuses.
pub(super) fn write(path: &Path, guest: &Guest, cloud_init: &CloudInit) -> io::Result<()> {
    let mut options = OpenOptions::new();
    let options = options.read(true).write(true).create(true).truncate(true);
    let mut disk = options.mode(0o600).open(path)?;
    disk.set_len(SEED_BYTES)?;
    let format = FormatVolumeOptions::new()
        .volume_label(LABEL)
        .fat_type(FatType::Fat12);
    format_volume(&mut disk, format)?;
    let files = FileSystem::new(&mut disk, FsOptions::new())?;
    let root = files.root_dir();
    let write = |name: &str, text: &str| root.create_file(name)?.write_all(text.as_bytes());
    write("meta-data", &meta_data(guest, cloud_init))?;
    let user_data = cloud_init.user_data.as_deref();
    write("user-data", user_data.unwrap_or("#cloud-config\n"))?;
    if let Some(network_config) = &cloud_init.network_config {
        write("network-config", network_config)?;
    }
    drop(root);
    files.unmount()
}

/// JSON is YAML too.
fn meta_data(guest: &Guest, cloud_init: &CloudInit) -> String {
    json!({
        "instance-id": guest.uuid,
        "local-hostname": guest.name,
        "public-keys": cloud_init.ssh_keys,
    })
    .to_string()
}

#[cfg(test)]
mod tests {
    use std::io::Read;

    use super::*;
    use crate::domain::GuestSpec;

    #[test]
    fn seed_holds_what_cloud_init_reads() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("seed.img");
        let spec = r##"{"name": "web", "memory_mib": 64, "disks": [{"size_mib": 1}],
            "cloud_init": {"user_data": "#cloud-config\n{}\n",
                "ssh_keys": ["ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAA"]}}"##;
        let spec: GuestSpec = serde_json::from_str(spec).unwrap();
        let guest = spec
            .plan(uuid::Uuid::nil(), "n", &crate::domain::PoolName::local(), 0)
            .unwrap()
            .guest;
        let cloud_init = guest.cloud_init.clone().unwrap();
        for _ in 0..2 {
            write(&path, &guest, &cloud_init).unwrap();
        }
        let disk = OpenOptions::new()
            .read(true)
            .write(true)
            .open(&path)
            .unwrap();
        let files = FileSystem::new(disk, FsOptions::new()).unwrap();
        assert_eq!(files.volume_label_as_bytes(), b"CIDATA");
        let read = |name: &str| {
            let mut text = String::new();
            let mut file = files.root_dir().open_file(name).unwrap();
            file.read_to_string(&mut text).unwrap();
            text
        };
        assert_eq!(read("user-data"), "#cloud-config\n{}\n");
        let meta: serde_json::Value = serde_json::from_str(&read("meta-data")).unwrap();
        assert_eq!(meta["local-hostname"], "web");
        assert_eq!(
            meta["public-keys"][0],
            "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAA"
        );
        assert!(files.root_dir().open_file("network-config").is_err());
    }
}
