//! The root: the image's squashfs, copied and read back.

use std::fmt::Write as _;
use std::fs::File;
use std::io::Read as _;
use std::path::Path;

use sha2::{Digest as _, Sha256};

use super::layout::Partition;
use super::target::Target;
use super::{InstallError, Meter};
use crate::size;

const CHUNK: usize = 4 << 20;
const MAGIC: &[u8; 4] = b"hsqs";

/// Copies `squashfs` to `slot`, and proves that it is the one that was published (if a `.sha256` is
/// beside it) and that the disk gives back what it got.
pub(super) fn copy(
    target: &Target,
    slot: &Partition,
    squashfs: &Path,
    meter: &mut Meter<'_>,
) -> Result<(), InstallError> {
    let read = |source| InstallError::Read {
        path: squashfs.to_owned(),
        source,
    };
    let mut file = File::open(squashfs).map_err(read)?;
    let length = file.metadata().map_err(read)?.len();
    if length > slot.size() {
        return Err(InstallError::TooLarge {
            path: squashfs.to_owned(),
            size: size::text(length),
            room: size::text(slot.size()),
        });
    }
    let mut hash = Sha256::new();
    let mut chunk = vec![0; CHUNK];
    let mut offset = 0;
    while offset < length {
        let part = &mut chunk[..CHUNK.min((length - offset) as usize)];
        file.read_exact(part).map_err(read)?;
        if offset == 0 && !part.starts_with(MAGIC) {
            return Err(InstallError::NoSquashfs(squashfs.to_owned()));
        }
        hash.update(&*part);
        target.write(part, slot.range.start + offset)?;
        offset += part.len() as u64;
        meter.add(part.len() as u64);
    }
    let wanted = hex(&hash.finalize());
    check_published(squashfs, &wanted)?;
    target.sync()?;
    read_back(target, slot, length, &wanted, meter)
}

fn check_published(squashfs: &Path, found: &str) -> Result<(), InstallError> {
    let mut path = squashfs.as_os_str().to_owned();
    path.push(".sha256");
    let Ok(text) = std::fs::read_to_string(path) else {
        return Ok(());
    };
    match text.split_whitespace().next() {
        Some(published) if published.eq_ignore_ascii_case(found) => Ok(()),
        _ => Err(InstallError::Damaged(squashfs.to_owned())),
    }
}

fn read_back(
    target: &Target,
    slot: &Partition,
    length: u64,
    wanted: &str,
    meter: &mut Meter<'_>,
) -> Result<(), InstallError> {
    target.forget(&slot.range);
    let mut hash = Sha256::new();
    let mut chunk = vec![0; CHUNK];
    let mut offset = 0;
    while offset < length {
        let part = &mut chunk[..CHUNK.min((length - offset) as usize)];
        target.read(part, slot.range.start + offset)?;
        hash.update(&*part);
        offset += part.len() as u64;
        meter.add(part.len() as u64);
    }
    if hex(&hash.finalize()) == wanted {
        return Ok(());
    }
    Err(InstallError::Forgetful(target.path().to_owned()))
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().fold(String::new(), |mut text, byte| {
        // A string takes it.
        let _ = write!(text, "{byte:02x}");
        text
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::install::Silent;
    use crate::install::layout::Layout;

    fn copied(content: &[u8], published: Option<&str>) -> Result<(), InstallError> {
        let directory = tempfile::tempdir().unwrap();
        let (squashfs, disk) = (directory.path().join("x"), directory.path().join("disk"));
        std::fs::write(&squashfs, content).unwrap();
        if let Some(published) = published {
            std::fs::write(directory.path().join("x.sha256"), published).unwrap();
        }
        File::create(&disk).unwrap().set_len(4 << 30).unwrap();
        let target = Target::open(&disk).unwrap();
        let slot = Layout::of(4 << 30).root_a;
        let total = 2 * content.len() as u64;
        copy(
            &target,
            &slot,
            &squashfs,
            &mut Meter::new(&mut Silent, total),
        )?;
        let mut found = vec![0; content.len()];
        target.read(&mut found, slot.range.start).unwrap();
        assert!(found == content);
        Ok(())
    }

    #[test]
    fn squashfs_is_copied_whole_and_checked() {
        let mut content = b"hsqs".repeat(1_500_000);
        copied(&content, None).unwrap();
        let hash = hex(&Sha256::digest(&content));
        copied(&content, Some(&format!("{hash}  filesystem.squashfs\n"))).unwrap();
        content[5_000_000] ^= 1;
        let error = copied(&content, Some(&hash)).unwrap_err();
        assert!(error.to_string().contains("is damaged"), "{error}");
        assert!(
            copied(b"ISO", None)
                .unwrap_err()
                .to_string()
                .contains("no squashfs")
        );
    }
}
