use std::path::Path;

use pindah_vmm_api::{DiskCache, DiskFormat};

use super::rig::*;
use crate::devices::virtio::block::testing::{readable, writable};
use crate::devices::virtio::block::{ImageOptions, open};
use vm_memory::{Bytes, GuestAddress};

const MIB: u64 = 1 << 20;

fn image_options(path: &Path, cache: DiskCache) -> ImageOptions {
    ImageOptions {
        path: path.to_owned(),
        format: DiskFormat::Raw,
        read_only: false,
        cache,
    }
}

fn rig(directory: &tempfile::TempDir, cache: DiskCache) -> Rig {
    let path = directory.path().join("image");
    make_file(&path, 16 * MIB);
    Rig::new(open(&image_options(&path, cache)).unwrap(), &options())
}

#[test]
fn written_data_is_read_back_and_is_in_the_file() {
    for cache in [DiskCache::Buffered, DiskCache::Direct] {
        let directory = tempfile::tempdir().unwrap();
        let mut rig = rig(&directory, cache);
        let bytes = pattern(1, 256 * 1024);
        assert_eq!(rig.write(8, &bytes), OK);
        assert_eq!(rig.read(8, bytes.len()), bytes);
        let file = std::fs::read(directory.path().join("image")).unwrap();
        assert_eq!(file[4096..4096 + bytes.len()], bytes);
    }
}
