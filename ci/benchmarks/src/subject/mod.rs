//! The VMMs that are compared.
//!
//! A further one is a file here with an implementor of [`Subject`], and a line in [`all`].

mod pindah;
mod qemu;

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;

use anyhow::{Result, bail};

use crate::artifacts::Artifacts;
use crate::bench::Bench;
use crate::disk::DiskImage;
use crate::migration::Migrates;
use crate::network::Network;
use crate::process;

/// The subject that is ours.
pub const PINDAH: &str = "pindah";

/// What a subject is to build: one guest.
#[derive(Clone)]
pub struct Machine {
    /// Guest RAM. Anonymous memory in one piece, so below 3 GiB.
    pub memory_mib: u64,
    /// vCPUs.
    pub cpus: u8,
    /// The probe: an ELF image with a PVH note.
    pub kernel: PathBuf,
    /// Its command line.
    pub command_line: String,
    /// A virtio-blk disk.
    pub disk: Option<Arc<DiskImage>>,
    /// A virtio-net card on [`crate::network::TAP`] with [`crate::network::GUEST_MAC`]; the VMM
    /// is started inside the namespace.
    pub network: Option<Arc<Network>>,
}

/// A VMM.
pub trait Subject {
    /// What it is called in the figures.
    fn name(&self) -> &str;

    /// What is measured exactly, for the heading; it is also how we see whether it is there.
    ///
    /// # Errors
    /// If it is not installed.
    fn version(&self) -> Result<String>;

    /// Whether `bench` is about what it does.
    fn takes_part(&self, bench: &Bench) -> bool;

    /// How it moves guests, if it does.
    fn migrates(&self) -> Option<&dyn Migrates> {
        None
    }

    /// The ways in which it can be set up for such a machine, if it takes measuring to know the
    /// best: the best of them counts, case by case. Never empty; a quick run takes the first.
    fn tunings(&self, machine: &Machine) -> Vec<&'static str> {
        let _ = machine;
        vec![""]
    }

    /// The command that starts `machine`, set up in the way of `tuning`. Its standard input and
    /// output are the guest's serial port, and nothing else is written there. It ends when it is
    /// killed. `directory` is for its configuration files.
    ///
    /// # Errors
    /// If such a machine is more than it can do.
    fn command(&self, machine: &Machine, tuning: &str, directory: &Path) -> Result<Command>;

    /// The processes that belong to it, once the guest runs.
    fn processes(&self, leader: u32) -> Vec<u32> {
        process::family(leader)
    }
}

fn all(artifacts: &Artifacts, base: Option<&Path>) -> Vec<Box<dyn Subject>> {
    use pindah::{Pindah, Way};
    use qemu::{Board, Mode, MovingQemu, Qemu};

    let ours =
        |name, program, way| -> Box<dyn Subject> { Box::new(Pindah::new(name, program, way)) };
    let mut subjects = vec![ours(PINDAH, &artifacts.vmm, Way::Default)];
    if let Some(base) = base {
        subjects.push(ours("pindah-base", base, Way::Default));
    }
    subjects.push(ours("pindah-plaintext", &artifacts.vmm, Way::Plaintext));
    subjects.push(ours("pindah-hybrid", &artifacts.vmm, Way::Hybrid));
    for board in [Board::Microvm, Board::Q35] {
        subjects.push(Box::new(Qemu(board)));
    }
    for mode in [
        Mode::Plain,
        Mode::Multifd,
        Mode::MultifdZstd,
        Mode::Postcopy,
    ] {
        subjects.push(Box::new(MovingQemu(mode)));
    }
    subjects
}

/// The subjects called `names`, or all, of those that take part in one of `benches`.
///
/// # Errors
/// If there is none of such a name.
pub fn select(
    artifacts: &Artifacts,
    base: Option<&Path>,
    names: &[String],
    benches: &[&Bench],
) -> Result<Vec<Box<dyn Subject>>> {
    let mut subjects = all(artifacts, base);
    subjects.retain(|subject| benches.iter().any(|bench| subject.takes_part(bench)));
    for name in names {
        if !subjects.iter().any(|subject| subject.name() == name) {
            let known: Vec<&str> = subjects.iter().map(|subject| subject.name()).collect();
            bail!("no subject {name} for this: there are {}", known.join(", "));
        }
    }
    subjects.retain(|subject| names.is_empty() || names.iter().any(|name| name == subject.name()));
    Ok(subjects)
}
