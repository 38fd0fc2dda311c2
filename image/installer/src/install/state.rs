//! The state partition: what is this node's and survives updates.

use std::fs::{self, File, OpenOptions, Permissions};
use std::io::{self, Write as _};
use std::os::unix::fs::{OpenOptionsExt as _, PermissionsExt as _, symlink};
use std::path::{Path, PathBuf};

use super::layout::{MIB, Partition};
use super::target::Target;
use super::{InstallError, Plan, network};
use crate::program;

const LABEL: &str = "pindah-state";
/// What was said, on the partition.
const LOG: &str = "var/log/pindah-install.log";
/// Directories of the image's defaults to which something is added. (The image gives a fresh node
/// its defaults for what is missing, but adds nothing to a directory that is there.)
const EXTENDED: [&str; 2] = ["etc/pindah", "root"];

/// A directory that becomes the file system.
struct Tree(tempfile::TempDir);

impl Tree {
    fn new() -> io::Result<Self> {
        let directory = tempfile::Builder::new().prefix("pindah-state").tempdir()?;
        fs::set_permissions(directory.path(), Permissions::from_mode(0o755))?;
        Ok(Self(directory))
    }

    fn path(&self, path: &str) -> PathBuf {
        self.0.path().join(path)
    }

    fn directory(&self, path: &str, mode: u32) -> io::Result<()> {
        fs::create_dir_all(self.path(path))?;
        fs::set_permissions(self.path(path), Permissions::from_mode(mode))
    }

    fn file(&self, path: &str, mode: u32, content: &str) -> io::Result<()> {
        let path = self.path(path);
        if let Some(parent) = path.parent() {
            fs::create_dir_all(parent)?;
        }
        let mut options = OpenOptions::new();
        let options = options.write(true).create(true).truncate(true).mode(mode);
        let mut file: File = options.open(&path)?;
        file.write_all(content.as_bytes())?;
        // Whatever the umask is, and the file's mode was.
        fs::set_permissions(path, Permissions::from_mode(mode))
    }

    fn fill(&self, plan: &Plan, log: &str) -> io::Result<()> {
        for path in EXTENDED {
            let defaults = plan.live.join("usr/share/pindah/state").join(path);
            if defaults.is_dir() {
                copy_tree(&defaults, &self.path(path))?;
            }
        }
        let answers = &plan.answers;
        let name = &answers.host_name;
        self.file("etc/hostname", 0o644, &format!("{name}\n"))?;
        self.file("etc/hosts", 0o644, &hosts(name))?;
        let zone = Path::new(crate::answers::ZONES).join(&answers.time_zone);
        symlink(zone, self.path("etc/localtime"))?;
        for (name, text) in network::files(&answers.network, &plan.link) {
            self.file(&format!("etc/systemd/network/{name}"), 0o644, &text)?;
        }
        if let Some(hash) = &answers.root.password_hash {
            // Root's line alone: the initramfs puts it into the image's (shadow(5)).
            self.file("etc/shadow", 0o600, &format!("root:{hash}:::::::\n"))?;
        }
        self.directory("root", 0o700)?;
        if !answers.root.ssh_keys.is_empty() {
            self.directory("root/.ssh", 0o700)?;
            let keys = answers.root.ssh_keys.join("\n") + "\n";
            self.file("root/.ssh/authorized_keys", 0o600, &keys)?;
        }
        if let Some(wish) = &plan.first_boot {
            let text = toml::to_string(wish).map_err(io::Error::other)?;
            self.file("etc/pindah/first-boot.toml", 0o600, &text)?;
        }
        self.file(LOG, 0o600, log)?;
        // Of all that was made on the way.
        self.directory("var", 0o755)?;
        self.directory("var/log", 0o755)
    }
}

fn hosts(name: &str) -> String {
    format!(
        "127.0.0.1 localhost\n127.0.1.1 {name}\n::1 localhost ip6-localhost ip6-loopback\n\
         ff02::1 ip6-allnodes\nff02::2 ip6-allrouters\n"
    )
}

/// Copies files, links and modes.
fn copy_tree(from: &Path, to: &Path) -> io::Result<()> {
    fs::create_dir_all(to)?;
    fs::set_permissions(to, fs::metadata(from)?.permissions())?;
    for entry in fs::read_dir(from)? {
        let entry = entry?;
        let (from, to) = (entry.path(), to.join(entry.file_name()));
        let kind = fs::symlink_metadata(&from)?.file_type();
        if kind.is_symlink() {
            symlink(fs::read_link(&from)?, to)?;
        } else if kind.is_dir() {
            copy_tree(&from, &to)?;
        } else {
            fs::copy(&from, &to)?;
        }
    }
    Ok(())
}

/// Makes the file system in `partition`, with `log` in it.
pub(super) fn write(
    target: &Target,
    partition: &Partition,
    plan: &Plan,
    log: &str,
) -> Result<(), InstallError> {
    let prepared = Tree::new().and_then(|tree| tree.fill(plan, log).map(|()| tree));
    let tree = prepared.map_err(InstallError::Prepare)?;
    let extended = format!("offset={},nodiscard,root_owner=0:0", partition.range.start);
    let (disk, size) = (target.path(), format!("{}k", partition.size() / MIB * 1024));
    let fixed = ["-q", "-F", "-m", "1", "-L", LABEL, "-E", &extended, "-d"];
    let mut arguments: Vec<&std::ffi::OsStr> = fixed.iter().map(AsRef::as_ref).collect();
    arguments.extend([tree.0.path().as_os_str(), disk.as_os_str(), size.as_ref()]);
    program::run("mkfs.ext4", &arguments, b"")?;
    Ok(())
}

/// Writes what was said since into the file system in `partition`. The node starts without it, too.
pub(super) fn complete_log(target: &Target, partition: &Partition, log: &str) {
    let written = Tree::new().and_then(|tree| {
        tree.file("log", 0o600, log)?;
        let script = format!("rm /{LOG}\nwrite {} /{LOG}\n", tree.path("log").display());
        tree.file("script", 0o600, &script)?;
        Ok(tree)
    });
    let Ok(tree) = written else { return };
    let place = format!(
        "{}?offset={}",
        target.path().display(),
        partition.range.start
    );
    let script = tree.path("script");
    let arguments = [
        "-w".as_ref(),
        "-f".as_ref(),
        script.as_os_str(),
        place.as_ref(),
    ];
    let _ = program::run("debugfs", &arguments, b"");
    let _ = target.sync();
}
