//! An image of Pindah's that is small, and plans to install it.

use std::fs;
use std::path::PathBuf;

use pindah_installer::answers::Answers;
use pindah_installer::disks;
use pindah_installer::hardware::{Link, Virtualization};
use pindah_installer::install::{InstallError, Live, Plan};

use super::host::run;

pub const GRUB: &str = "load_env\nserial --unit=0\nterminal_output serial\n\
                    echo \"installed: ORDER=$ORDER A_OK=$A_OK B_OK=$B_OK\"\nhalt\n";
const GRUB_EFI: &str = "set prefix=($root)/grub\nconfigfile ($root)/grub/grub.cfg\n";

/// A live system as the image makes it, small.
pub struct Image {
    pub directory: tempfile::TempDir,
    pub squashfs: PathBuf,
}

impl Image {
    pub fn new() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let root = directory.path().join("root");
        let write = |path: &str, content: &[u8]| {
            let path = root.join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, content).unwrap();
        };
        write("boot/vmlinuz", &b"kernel".repeat(300_000));
        write("boot/initrd.img", &b"initramfs".repeat(500_000));
        write("usr/share/pindah/grub.cfg", GRUB.as_bytes());
        write(
            "usr/share/pindah/efi/EFI/debian/grub.cfg",
            GRUB_EFI.as_bytes(),
        );
        write("usr/share/pindah/state/etc/pindah/kept", b"keys");
        write(
            "usr/share/pindah/state/etc/systemd/network/80-dhcp.network",
            b"all",
        );
        write("usr/share/pindah/state/root/.bashrc", b"alias ll='ls -l'");
        write("usr/share/zoneinfo/UTC", b"TZif");
        write("usr/share/zoneinfo/Asia/Jakarta", b"TZif");
        fs::create_dir_all(root.join("usr/share/pindah/bios")).unwrap();
        fs::create_dir_all(root.join("usr/share/pindah/efi/EFI/BOOT")).unwrap();
        let path = |path: &str| root.join(path).to_str().unwrap().to_owned();
        let modules = [
            "part_gpt",
            "fat",
            "normal",
            "configfile",
            "loadenv",
            "test",
            "serial",
            "halt",
            "echo",
            "terminal",
        ];
        let core = path("usr/share/pindah/bios/core.img");
        let bios = [
            "-O",
            "i386-pc",
            "-p",
            "(,gpt2)/grub",
            "-o",
            &core,
            "biosdisk",
        ];
        run("grub-mkimage", &[&bios[..], &modules].concat());
        fs::copy(
            "/usr/lib/grub/i386-pc/boot.img",
            path("usr/share/pindah/bios/boot.img"),
        )
        .unwrap();
        let loader = path("usr/share/pindah/efi/EFI/BOOT/BOOTX64.EFI");
        let early = directory.path().join("early.cfg");
        // As Debian's signed GRUB finds its own.
        fs::write(&early, "configfile ($root)/EFI/debian/grub.cfg\n").unwrap();
        let efi = [
            "-O",
            "x86_64-efi",
            "-p",
            "/EFI/debian",
            "-c",
            early.to_str().unwrap(),
            "-o",
            &loader,
        ];
        run("grub-mkimage", &[&efi[..], &modules].concat());
        let squashfs = directory.path().join("filesystem.squashfs");
        run(
            "mksquashfs",
            &[
                root.to_str().unwrap(),
                squashfs.to_str().unwrap(),
                "-quiet",
                "-no-progress",
            ],
        );
        let hash = run("sha256sum", &[squashfs.to_str().unwrap()]);
        fs::write(directory.path().join("filesystem.squashfs.sha256"), hash).unwrap();
        Self {
            directory,
            squashfs,
        }
    }

    pub fn root(&self) -> PathBuf {
        self.directory.path().join("root")
    }

    /// What `answers` mean for this image and the machine's real disks.
    pub fn plan(&self, answers: &str) -> Result<Plan, InstallError> {
        let root = self.root();
        let answers = Answers::parse(answers, &root.join("usr/share/zoneinfo")).unwrap();
        let link = Link {
            name: "eno1".to_owned(),
            mac: "52:54:00:00:00:01".to_owned(),
            driver: "tg3".to_owned(),
            carrier: true,
            speed_mbit_s: Some(1000),
        };
        let live = Live {
            root: &root,
            squashfs: &self.squashfs,
            disks: &disks::list().unwrap(),
            links: &[link],
            virtualization: &Virtualization::On("VT-x"),
        };
        Plan::new(answers, live)
    }
}
