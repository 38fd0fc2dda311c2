//! Random requests against a plain vector of bytes.

use std::path::Path;

use pindah_vmm_api::{DiskCache, DiskFormat};
use proptest::prelude::*;
use proptest::test_runner::{Config, TestRunner};
use vm_memory::{Bytes, GuestAddress};

use super::raw::{image_options, resources};
use super::rig::*;
use super::tools::qemu_img;
use crate::devices::virtio::block::{ImageOptions, open};
use crate::devices::virtio::testing::{Buffer, readable, writable};

/// Sectors of the disk under test.
const SECTORS: u64 = 2048;

#[derive(Clone, Debug)]
enum Step {
    Write {
        sector: u64,
        cuts: Vec<u32>,
        shift: u64,
        seed: u64,
    },
    Read {
        sector: u64,
        cuts: Vec<u32>,
        shift: u64,
    },
    Zero {
        sector: u64,
        sectors: u32,
        unmap: u32,
    },
    Discard {
        sector: u64,
        sectors: u32,
    },
    Flush,
    /// Pause and go on.
    Park,
}

fn range() -> impl Strategy<Value = (u64, u32)> + Clone {
    (0..SECTORS, 1_u32..200)
        .prop_map(|(sector, sectors)| (sector, sectors.min((SECTORS - sector) as u32)))
}

/// Lengths of buffers that make up so many sectors.
fn cuts(sectors: u32, cut: u32) -> Vec<u32> {
    let bytes = sectors * 512;
    match cut % bytes {
        0 => vec![bytes],
        cut if cut == bytes / 2 => vec![cut, bytes - cut],
        cut => {
            let half = (bytes - cut) / 2;
            let parts = [cut, half, bytes - cut - half];
            parts.into_iter().filter(|&len| len > 0).collect()
        }
    }
}

fn step() -> impl Strategy<Value = Step> {
    let cut = prop_oneof![2 => Just(0), 1 => (1_u32..100).prop_map(|n| n * 512), 1 => 0_u32..60000];
    let shift = prop_oneof![3 => Just(0_u64), 1 => 1_u64..4096];
    let transfer = (range(), cut, shift);
    prop_oneof![
        4 => (transfer.clone(), any::<u64>()).prop_map(|(((sector, count), cut, shift), seed)| {
            Step::Write { sector, cuts: cuts(count, cut), shift, seed }
        }),
        3 => transfer.prop_map(|((sector, count), cut, shift)| {
            Step::Read { sector, cuts: cuts(count, cut), shift }
        }),
        1 => (range(), 0_u32..2).prop_map(|((sector, sectors), unmap)| {
            Step::Zero { sector, sectors, unmap }
        }),
        1 => range().prop_map(|(sector, sectors)| Step::Discard { sector, sectors }),
        1 => Just(Step::Flush),
        1 => Just(Step::Park),
    ]
}

/// Buffers of these lengths, with gaps between them.
fn buffers(cuts: &[u32], shift: u64, make: fn(u64, u32) -> Buffer) -> Vec<Buffer> {
    let mut at = DATA + shift;
    let mut buffers = Vec::new();
    for &len in cuts {
        buffers.push(make(at, len));
        at += u64::from(len).next_multiple_of(4096) + 4096;
    }
    buffers
}

fn span(sector: u64, len: usize) -> std::ops::Range<usize> {
    let start = sector as usize * 512;
    start..start + len
}

fn run(rig: &mut Rig, model: &mut [u8], steps: &[Step]) {
    for step in steps {
        match step {
            Step::Write {
                sector,
                cuts,
                shift,
                seed,
            } => {
                let len: u32 = cuts.iter().sum();
                let bytes = pattern(*seed, len as usize);
                let buffers = buffers(cuts, *shift, readable);
                let mut rest = &bytes[..];
                for buffer in &buffers {
                    let (part, next) = rest.split_at(buffer.len as usize);
                    rig.memory
                        .write_slice(part, GuestAddress(buffer.address))
                        .unwrap();
                    rest = next;
                }
                assert_eq!(rig.request(OUT, *sector, &buffers), (OK, 1));
                model[span(*sector, bytes.len())].copy_from_slice(&bytes);
            }
            Step::Read {
                sector,
                cuts,
                shift,
            } => {
                let buffers = buffers(cuts, *shift, writable);
                let len: u32 = cuts.iter().sum();
                assert_eq!(rig.request(IN, *sector, &buffers), (OK, len + 1));
                let mut read = Vec::new();
                for buffer in &buffers {
                    let mut part = vec![0; buffer.len as usize];
                    rig.memory
                        .read_slice(&mut part, GuestAddress(buffer.address))
                        .unwrap();
                    read.extend(part);
                }
                assert!(read == model[span(*sector, read.len())], "{step:?}");
            }
            Step::Zero {
                sector,
                sectors,
                unmap,
            } => {
                assert_eq!(rig.zero(WRITE_ZEROES, *sector, *sectors, *unmap), OK);
                model[span(*sector, *sectors as usize * 512)].fill(0);
            }
            Step::Discard { sector, sectors } => {
                assert_eq!(rig.zero(DISCARD, *sector, *sectors, 0), OK);
                // What a discarded range reads as is open, but not what lies around it.
                let range = span(*sector, *sectors as usize * 512);
                let read = rig.read(*sector, range.len());
                model[range].copy_from_slice(&read);
            }
            Step::Flush => assert_eq!(rig.request(FLUSH, 0, &[]), (OK, 1)),
            Step::Park => {
                rig.deactivate();
                assert!(rig.positions().iter().all(|(avail, used)| avail == used));
                rig.activate();
            }
        }
    }
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    proptest::collection::vec(step(), 1..40)
}

fn cases(count: u32, test: impl Fn(Vec<Step>)) {
    let config = Config {
        cases: count,
        failure_persistence: None,
        ..Config::default()
    };
    TestRunner::new(config)
        .run(&steps(), |steps| {
            test(steps);
            Ok(())
        })
        .unwrap();
}

#[test]
fn raw_disk_agrees_with_the_model() {
    for cache in [DiskCache::Buffered, DiskCache::Direct] {
        for ring in [true, false] {
            cases(12, |steps| {
                let directory = tempfile::tempdir().unwrap();
                let resources = resources(&directory, cache);
                let mut rig = if ring {
                    Rig::new(resources, &options())
                } else {
                    Rig::blocking(resources, &options())
                };
                let mut model = vec![0; SECTORS as usize * 512];
                run(&mut rig, &mut model, &steps);
                assert!(rig.read(0, model.len()) == model);
                let file = std::fs::read(directory.path().join("image")).unwrap();
                assert!(file[..model.len()] == model);
            });
        }
    }
}

fn qcow2_options(path: &Path, cache: DiskCache) -> ImageOptions {
    ImageOptions {
        format: DiskFormat::Qcow2,
        ..image_options(path, cache)
    }
}

/// The disk's bytes as `qemu-img` sees them; it has checked the image first.
pub fn converted(directory: &Path, image: &Path) -> Vec<u8> {
    let raw = directory.join("converted.raw");
    let image = image.to_str().unwrap();
    assert!(qemu_img(&["check", "-q", image]));
    assert!(qemu_img(&[
        "convert",
        "-O",
        "raw",
        image,
        raw.to_str().unwrap()
    ]));
    std::fs::read(raw).unwrap()
}

#[test]
fn qcow2_disk_agrees_with_the_model_and_with_qemu() {
    if !super::tools::has("qemu-img") {
        return;
    }
    for (compat, cluster, cache) in [
        ("1.1", "65536", DiskCache::Direct),
        ("1.1", "512", DiskCache::Buffered),
        ("0.10", "4096", DiskCache::Direct),
    ] {
        cases(6, |steps| {
            let directory = tempfile::tempdir().unwrap();
            let path = directory.path().join("image");
            let options_text = format!("compat={compat},cluster_size={cluster}");
            let name = path.to_str().unwrap();
            assert!(qemu_img(&[
                "create",
                "-q",
                "-f",
                "qcow2",
                "-o",
                &options_text,
                name,
                "1M"
            ]));
            let mut model = vec![0; SECTORS as usize * 512];
            let mut rig = Rig::new(open(&qcow2_options(&path, cache)).unwrap(), &options());
            run(&mut rig, &mut model, &steps);
            rig.deactivate();
            drop(rig);
            assert!(converted(directory.path(), &path) == model);
        });
    }
}
