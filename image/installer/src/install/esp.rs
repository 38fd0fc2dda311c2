//! The ESP: boot loaders and kernels, for BIOS too.

use std::collections::BTreeSet;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use super::layout::{MIB, Partition};
use super::target::Target;
use super::{InstallError, Meter, grub};
use crate::program::{self, ProgramError};

const LABEL: &str = "PINDAH-ESP";
/// Heads and sectors a track, which only make a MiB of 512-byte sectors here.
const GEOMETRY: [&str; 4] = ["-h", "64", "-s", "32"];
/// A hard disk.
const MEDIA: [&str; 2] = ["-m", "248"];

/// What lies on the ESP: each file's path there and where it comes from.
pub(super) fn files(live: &Path) -> Result<Vec<(PathBuf, PathBuf)>, InstallError> {
    let pindah = live.join("usr/share/pindah");
    let mut files = vec![
        ("grub/grub.cfg".into(), pindah.join("grub.cfg")),
        ("slots/a/vmlinuz".into(), live.join("boot/vmlinuz")),
        ("slots/a/initrd.img".into(), live.join("boot/initrd.img")),
    ];
    let efi = pindah.join("efi");
    tree(&efi, Path::new(""), &mut files)
        .map_err(|source| InstallError::Read { path: efi, source })?;
    Ok(files)
}

fn tree(from: &Path, to: &Path, files: &mut Vec<(PathBuf, PathBuf)>) -> io::Result<()> {
    let mut entries: Vec<_> = fs::read_dir(from)?.collect::<Result<_, _>>()?;
    entries.sort_by_key(fs::DirEntry::file_name);
    for entry in entries {
        let (path, to) = (entry.path(), to.join(entry.file_name()));
        if path.is_dir() {
            tree(&path, &to, files)?;
        } else {
            files.push((to, path));
        }
    }
    Ok(())
}

/// Makes the file system in `partition` and copies `files` to it. By mtools: nothing is mounted.
pub(super) fn write(
    target: &Target,
    partition: &Partition,
    sector_bytes: u16,
    files: &[(PathBuf, PathBuf)],
    meter: &mut Meter<'_>,
) -> Result<(), InstallError> {
    let volume = Volume(format!(
        "{}@@{}M",
        target.path().display(),
        partition.range.start / MIB
    ));
    let sectors = (partition.size() / u64::from(sector_bytes)).to_string();
    // 2 is 512 bytes.
    let size_code = (sector_bytes.ilog2() - 7).to_string();
    let format = ["-F", "-T", &sectors, "-S", &size_code, "-v", LABEL, "::"];
    volume.run("mformat", &[&GEOMETRY[..], &MEDIA, &format].concat(), b"")?;
    let names: Vec<String> = files.iter().map(|(to, _)| name(to)).collect();
    let directories: BTreeSet<String> = names.iter().flat_map(|to| parents(to)).collect();
    let directories: Vec<&str> = directories.iter().map(|path| &**path).collect();
    volume.run("mmd", &directories, b"")?;
    for ((_, from), to) in files.iter().zip(&names) {
        let text = from.to_string_lossy();
        volume.run("mcopy", &["-o", &text, to], b"")?;
        meter.add(fs::metadata(from).map_or(0, |it| it.len()));
    }
    let environment = grub::environment();
    volume.run("mcopy", &["-o", "-", "::/grub/grubenv"], &environment)?;
    Ok(())
}

/// A file system as mtools name it: a device, and where on it.
struct Volume(String);

impl Volume {
    fn run(&self, program: &str, arguments: &[&str], input: &[u8]) -> Result<(), ProgramError> {
        // Whether geometry and size agree is nobody's business on a disk of today.
        let fixed = ["MTOOLS_SKIP_CHECK=1", program, "-i", &self.0];
        program::run("env", &[&fixed, arguments].concat(), input)?;
        Ok(())
    }
}

fn name(path: &Path) -> String {
    format!("::/{}", path.display())
}

/// The directories that a file is in, outermost first.
fn parents(name: &str) -> Vec<String> {
    let ends = name.match_indices('/').skip(1).map(|(end, _)| end);
    ends.map(|end| name[..end].to_owned()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn directories_are_made_from_the_outermost_on() {
        let name = name(Path::new("EFI/BOOT/BOOTX64.EFI"));
        assert_eq!(name, "::/EFI/BOOT/BOOTX64.EFI");
        assert_eq!(parents(&name), ["::/EFI", "::/EFI/BOOT"]);
        assert!(parents("::/x").is_empty());
    }
}
