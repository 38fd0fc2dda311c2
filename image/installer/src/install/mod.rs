//! From answers to a disk that boots.
//!
//! The disk is written as a whole and nothing on it is mounted, in this order:
//!
//! ```text
//! both ends cleared ─> root A ─> ESP ─> state ─> GRUB's core ─> partition table ─> boot code
//! ```
//!
//! An installation that ends before the partition table leaves a blank disk: it boots nothing, and
//! can be installed on without asking.
//!
//! What it takes from the live system, whose root is the image's own:
//! - the squashfs, for root A, and beside it `….sha256`, if it is to be checked;
//! - `/boot/vmlinuz` and `/boot/initrd.img`, for slot A;
//! - `/usr/share/pindah/`: `grub.cfg`, `bios/boot.img` and `bios/core.img` (whose prefix is
//!   `(,gpt2)/grub`), `efi/` as the ESP's root, `state/` with the defaults of the state partition;
//! - `/usr/share/zoneinfo`.

mod error;
mod esp;
mod grub;
mod layout;
mod neighbours;
mod network;
mod observer;
mod root;
mod state;
mod target;

use std::net::IpAddr;
use std::path::{Path, PathBuf};

pub use error::InstallError;
pub use layout::{Layout, Partition};
pub use network::choose as choose_link;
pub(crate) use network::files as network_files;
pub(crate) use observer::Meter;
pub use observer::{Observer, Silent, Step};

use crate::answers::{Answers, zone_is_in};
use crate::disks::{self, Disk};
use crate::first_boot::FirstBoot;
use crate::hardware::{Link, Virtualization};
use crate::program;
use target::Target;

/// What is done, all decided.
#[derive(Clone, Debug)]
pub struct Plan {
    /// The root of the live system.
    pub live: PathBuf,
    /// The image.
    pub squashfs: PathBuf,
    /// What the node is to be.
    pub answers: Answers,
    /// The disk.
    pub disk: Disk,
    /// The interface by which it is reached.
    pub link: Link,
    /// What it does when it first starts.
    pub first_boot: Option<FirstBoot>,
}

/// The live system and its machine.
#[derive(Clone, Copy, Debug)]
pub struct Live<'a> {
    /// The live system's root.
    pub root: &'a Path,
    /// The image.
    pub squashfs: &'a Path,
    /// The machine's disks.
    pub disks: &'a [Disk],
    /// Its network interfaces.
    pub links: &'a [Link],
    /// Whether it runs guests.
    pub virtualization: &'a Virtualization,
}

impl Plan {
    /// What `answers` mean on this machine. Nothing is written.
    ///
    /// # Errors
    /// [`InstallError`]: something that they name is not there or not free.
    pub fn new(answers: Answers, live: Live<'_>) -> Result<Self, InstallError> {
        if !zone_is_in(&live.root.join("usr/share/zoneinfo"), &answers.time_zone) {
            return Err(InstallError::Zone(answers.time_zone));
        }
        let disk = disks::choose(&answers.disk, live.disks)?.clone();
        let link = network::choose(&answers.network.nic, live.links);
        Ok(Self {
            live: live.root.to_owned(),
            squashfs: live.squashfs.to_owned(),
            disk,
            link: link.map_err(InstallError::Link)?.clone(),
            first_boot: FirstBoot::of(&answers, live.virtualization.runs_guests()),
            answers,
        })
    }

    /// What is going to be done, one line a thing.
    pub fn summary(&self) -> Vec<String> {
        let answers = &self.answers;
        let content = match &*self.disk.content {
            [] => "which is blank".to_owned(),
            content => format!("DESTROYING {}", content.join(", ")),
        };
        let network = match answers.own_address() {
            Some(address) => address.to_string(),
            None => "an address by DHCP".to_owned(),
        };
        let vlan = answers.network.vlan;
        let vlan = vlan.map(|vlan| format!(" in VLAN {vlan}"));
        let cluster = match &self.first_boot {
            None => "a node for itself".to_owned(),
            Some(FirstBoot::New { .. }) => "the first node of a new cluster".to_owned(),
            Some(FirstBoot::Join {
                address,
                witness: false,
                ..
            }) => format!("joins the cluster of {address}"),
            Some(FirstBoot::Join { address, .. }) => {
                format!("joins the cluster of {address} as a witness, without guests")
            }
        };
        vec![
            format!("disk: {}, {content}", self.disk.title()),
            format!(
                "network: {network}{} on {}",
                vlan.unwrap_or_default(),
                self.link.title()
            ),
            format!(
                "host name: {}, time zone: {}",
                answers.host_name, answers.time_zone
            ),
            format!("cluster: {cluster}"),
        ]
    }

    /// What may be wrong with the network, one line a thing. It asks on the network, for seconds.
    pub fn warnings(&self) -> Vec<String> {
        let gateway = neighbours::missing_gateway(&self.answers.network, &self.link);
        gateway.into_iter().collect()
    }

    /// What to know when it is done.
    pub fn farewell(&self) -> String {
        let place = match self.answers.own_address() {
            Some(IpAddr::V6(address)) => format!("https://[{address}]:7480"),
            Some(address) => format!("https://{address}:7480"),
            None => "https://ADDRESS:7480, with the address that its console shows".to_owned(),
        };
        format!(
            "{} is installed. Take the medium out; when it has started it answers at {place}",
            self.answers.host_name
        )
    }

    /// Does it. `log` is what to leave on the disk of all that was said until now.
    ///
    /// # Errors
    /// [`InstallError`]: the disk boots nothing.
    pub fn run(
        &self,
        observer: &mut dyn Observer,
        log: &dyn Fn() -> String,
    ) -> Result<(), InstallError> {
        neighbours::check_free(&self.answers.network, &self.link)?;
        let layout = Layout::of(self.disk.size_bytes);
        let files = esp::files(&self.live)?;
        let total = self.bytes(&files)?;
        let target = Target::open(Path::new(&self.disk.path))?;

        observer.step(Step::Clear);
        target.clear_ends(&(0..self.disk.size_bytes))?;
        for partition in layout.partitions() {
            target.clear_ends(&partition.range)?;
        }
        target.sync()?;
        self.tell_kernel();
        observer.step(Step::Root);
        let mut meter = Meter::new(observer, total);
        root::copy(&target, &layout.root_a, &self.squashfs, &mut meter)?;
        meter.step(Step::Boot);
        let sector_bytes = self.disk.sector_bytes;
        esp::write(&target, &layout.esp, sector_bytes, &files, &mut meter)?;
        observer.step(Step::State);
        state::write(&target, &layout.state, self, &log())?;
        observer.step(Step::Table);
        // What a BIOS starts from has sectors of 512 bytes.
        let bios = (sector_bytes == 512).then(|| self.live.join("usr/share/pindah/bios"));
        if let Some(bios) = &bios {
            grub::write_core(&target, &layout.bios, bios)?;
        }
        target.sync()?;
        let fixed = [
            "--quiet",
            "--wipe=never",
            "--wipe-partitions=never",
            // Whether anybody uses the disk is known, and udev may look at it just now.
            "--no-reread",
            "--no-tell-kernel",
        ];
        let arguments = [&fixed[..], &[&self.disk.path]].concat();
        program::run("sfdisk", &arguments, layout.script().as_bytes())?;
        if let Some(bios) = &bios {
            grub::write_boot_code(&target, &layout.bios, bios)?;
        }
        target.sync()?;
        self.tell_kernel();
        observer.step(Step::Done);
        let text = format!("{}{}\n", log(), self.farewell());
        state::complete_log(&target, &layout.state, &text);
        Ok(())
    }

    /// Bytes that are copied: the squashfs twice, since it is read back.
    fn bytes(&self, files: &[(PathBuf, PathBuf)]) -> Result<u64, InstallError> {
        let size = |path: &PathBuf| {
            let metadata = std::fs::metadata(path);
            metadata
                .map(|it| it.len())
                .map_err(|source| InstallError::Read {
                    path: path.clone(),
                    source,
                })
        };
        let files = files.iter().map(|(_, from)| size(from));
        let files: u64 = files.sum::<Result<u64, _>>()?;
        Ok(2 * size(&self.squashfs)? + files)
    }

    /// Has the kernel look at the partition table again. It is of use for who looks at the disk
    /// before the machine starts anew, and of no use for what is done here.
    fn tell_kernel(&self) {
        let _ = program::run("blockdev", &["--rereadpt", &self.disk.path], b"");
    }
}
