//! Whole installations on disks that are files behind loop devices, looked at with the tools that
//! Debian has for that. Without root or loop devices they say so and end.

mod host;
mod image;

use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use pindah_installer::disks;
use pindah_installer::install::{Observer, Silent, Step};

use host::{DISK_MIB, Loop, MIB, run, usable};
use image::{GRUB, Image};

const KEY: &str =
    "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIJ0tGyXQpMKbRSzu1fCPdSrjkFwGYSIHwTLdvmZFvqfN admin";

fn answers(disk: &str, erase: bool) -> String {
    format!(
        "host_name = 'node7'\ntime_zone = 'Asia/Jakarta'\n[disk]\npath = '{disk}'\n\
         erase = {erase}\n[network]\naddress = '10.0.0.7/24'\ngateway = '10.0.0.1'\n\
         [root]\npassword = 'a long password'\nssh_keys = ['{KEY}']\n[cluster]\nmode = 'new'\n"
    )
}

/// What `debugfs` says of the state's file system.
fn debugfs(state: &Path, command: &str) -> String {
    run("debugfs", &["-R", command, state.to_str().unwrap()])
}

#[test]
fn installation_leaves_a_disk_with_everything_and_a_second_one_asks() {
    if !usable() {
        return;
    }
    let Some(disk) = Loop::new() else { return };
    let image = Image::new();
    let plan = image.plan(&answers(&disk.path, false)).unwrap();
    plan.run(&mut Silent, &|| "said so far\n".to_owned())
        .unwrap();

    partitions_are_named(&disk);
    root_is_the_image(&disk, &image);
    esp_has_boot_loaders_and_kernel(&disk, &image);
    state_has_the_nodes_files(&disk);
    bios_finds_grub(&disk);

    let refused = image
        .plan(&answers(&disk.path, false))
        .unwrap_err()
        .to_string();
    assert!(
        refused.contains("is not blank: partition 1 pindah-bios: 1.0 MiB"),
        "{refused}"
    );
    assert!(
        refused.contains("partition 5 pindah-state: 1.5 GiB"),
        "{refused}"
    );
    let again = image.plan(&answers(&disk.path, true)).unwrap();
    assert!(again.summary()[0].contains("DESTROYING partition 1 pindah-bios"));
    again.run(&mut Silent, &String::new).unwrap();
    partitions_are_named(&disk);
}

fn partitions_are_named(disk: &Loop) {
    let table = run("sfdisk", &["--json", &disk.path]);
    let table: serde_json::Value = serde_json::from_str(&table).unwrap();
    let table = &table["partitiontable"];
    assert_eq!(table["label"], "gpt");
    let partitions = table["partitions"].as_array().unwrap().iter();
    let partitions: Vec<(&str, u64, u64)> = partitions
        .map(|it| {
            let number = |field: &str| it[field].as_u64().unwrap() * 512 / MIB;
            (
                it["name"].as_str().unwrap(),
                number("start"),
                number("size"),
            )
        })
        .collect();
    assert_eq!(
        partitions,
        [
            ("pindah-bios", 1, 1),
            ("pindah-esp", 2, 512),
            ("pindah-root-a", 514, 1024),
            ("pindah-root-b", 1538, 1024),
            ("pindah-state", 2562, DISK_MIB - 1 - 2562),
        ]
    );
    run("sfdisk", &["--verify", &disk.path]);
}

fn root_is_the_image(disk: &Loop, image: &Image) {
    let squashfs = fs::read(&image.squashfs).unwrap();
    assert!(disk.read(514 * MIB, squashfs.len()) == squashfs);
    let slot_b = disk.read(1538 * MIB, MIB as usize);
    assert!(slot_b.iter().all(|byte| *byte == 0));
}

fn esp_has_boot_loaders_and_kernel(disk: &Loop, image: &Image) {
    let esp = disk.part(2, 512);
    let esp_path = esp.path().to_str().unwrap();
    run("fsck.vfat", &["-n", esp_path]);
    let file = fs::OpenOptions::new()
        .read(true)
        .write(true)
        .open(esp.path())
        .unwrap();
    let system = fatfs::FileSystem::new(file, fatfs::FsOptions::new()).unwrap();
    assert_eq!(system.fat_type(), fatfs::FatType::Fat32);
    let read = |path: &str| {
        let mut bytes = Vec::new();
        let mut file = system.root_dir().open_file(path).unwrap();
        std::io::Read::read_to_end(&mut file, &mut bytes).unwrap();
        bytes
    };
    let root = image.root();
    for (there, here) in [
        ("grub/grub.cfg", "usr/share/pindah/grub.cfg"),
        ("slots/a/vmlinuz", "boot/vmlinuz"),
        ("slots/a/initrd.img", "boot/initrd.img"),
        (
            "EFI/BOOT/BOOTX64.EFI",
            "usr/share/pindah/efi/EFI/BOOT/BOOTX64.EFI",
        ),
        (
            "EFI/debian/grub.cfg",
            "usr/share/pindah/efi/EFI/debian/grub.cfg",
        ),
    ] {
        assert!(read(there) == fs::read(root.join(here)).unwrap(), "{there}");
    }
    let environment = tempfile::NamedTempFile::new().unwrap();
    fs::write(environment.path(), read("grub/grubenv")).unwrap();
    let listed = run(
        "grub-editenv",
        &[environment.path().to_str().unwrap(), "list"],
    );
    assert_eq!(listed, "ORDER=A B\nA_OK=1\nA_TRY=0\nB_OK=0\nB_TRY=0\n");
}

fn state_has_the_nodes_files(disk: &Loop) {
    let state = disk.part(2562, DISK_MIB - 1 - 2562);
    run("e2fsck", &["-f", "-n", state.path().to_str().unwrap()]);
    let cat = |path: &str| debugfs(state.path(), &format!("cat {path}"));
    assert_eq!(cat("/etc/hostname"), "node7\n");
    assert!(cat("/etc/hosts").contains("127.0.1.1 node7\n"));
    assert!(cat("/etc/systemd/network/10-pindah.network").contains("Address=10.0.0.7/24\n"));
    assert_eq!(cat("/etc/systemd/network/80-dhcp.network"), "");
    assert_eq!(cat("/etc/pindah/kept"), "keys");
    assert_eq!(
        cat("/etc/pindah/first-boot.toml"),
        "mode = \"new\"\nown_address = \"10.0.0.7\"\n"
    );
    assert!(cat("/etc/shadow").starts_with("root:$6$"));
    assert_eq!(cat("/root/.bashrc"), "alias ll='ls -l'");
    assert_eq!(cat("/root/.ssh/authorized_keys"), format!("{KEY}\n"));
    let log = cat("/var/log/pindah-install.log");
    let expected = "said so far\nnode7 is installed. Take the medium out";
    assert!(log.starts_with(expected), "{log}");
    for (path, mode) in [
        ("/etc", "0755"),
        ("/etc/shadow", "0600"),
        ("/etc/pindah/first-boot.toml", "0600"),
        ("/root", "0700"),
        ("/root/.ssh", "0700"),
        ("/root/.ssh/authorized_keys", "0600"),
        ("/var", "0755"),
    ] {
        let stat = debugfs(state.path(), &format!("stat {path}"));
        assert!(stat.contains(&format!("Mode:  {mode}")), "{path}: {stat}");
        assert!(
            stat.contains("User:     0   Group:     0"),
            "{path}: {stat}"
        );
    }
    let link = debugfs(state.path(), "stat /etc/localtime");
    assert!(
        link.contains("\"/usr/share/zoneinfo/Asia/Jakarta\""),
        "{link}"
    );
}

/// GRUB's own tools see in the disk what a BIOS would run.
fn bios_finds_grub(disk: &Loop) {
    let boot = fs::read("/usr/lib/grub/i386-pc/boot.img").unwrap();
    let sector = disk.read(0, 512);
    assert_eq!(sector[0x90..0x1b8], boot[0x90..0x1b8]);
    assert_eq!(sector[0x5c..0x64], 2048_u64.to_le_bytes());
    let diskboot = fs::read("/usr/lib/grub/i386-pc/diskboot.img").unwrap();
    assert_eq!(disk.read(MIB, 0x1f0), diskboot[..0x1f0]);
    let arguments = [
        disk.file.path().to_str().unwrap(),
        "cat",
        "(loop0,gpt2)/grub/grub.cfg",
    ];
    assert_eq!(run("grub-fstest", &arguments), GRUB);
}

#[test]
fn disk_in_use_is_refused_and_left_alone() {
    if !usable() {
        return;
    }
    let Some(disk) = Loop::new() else { return };
    run("mkfs.ext4", &["-q", "-L", "precious", &disk.path]);
    let image = Image::new();
    let refused = image
        .plan(&answers(&disk.path, false))
        .unwrap_err()
        .to_string();
    assert!(
        refused.contains("is not blank: ext4 \"precious\"; only disk.erase"),
        "{refused}"
    );

    let plan = image.plan(&answers(&disk.path, true)).unwrap();
    let mount = tempfile::tempdir().unwrap();
    let mount = mount.path().to_str().unwrap();
    run("mount", &[&disk.path, mount]);
    let refused = image
        .plan(&answers(&disk.path, true))
        .unwrap_err()
        .to_string();
    // It was free when it was planned, and is not when it is run.
    let raced = plan.run(&mut Silent, &String::new).unwrap_err().to_string();
    run("umount", &[mount]);
    assert!(
        refused.contains(&format!("is mounted at {mount} (umount {mount})")),
        "{refused}"
    );
    assert!(
        raced.contains("something else on this machine uses it"),
        "{raced}"
    );
    run("e2fsck", &["-f", "-n", &disk.path]);
}

/// Pulls the plug: ends at a step, by a panic that nobody catches but the test.
struct PowerCut(Step);

impl Observer for PowerCut {
    fn step(&mut self, step: Step) {
        assert!(step != self.0, "power cut");
    }
    fn bytes(&mut self, _: u64, _: u64) {}
}

#[test]
fn interrupted_installation_leaves_a_blank_disk() {
    if !usable() {
        return;
    }
    let Some(disk) = Loop::new() else { return };
    let image = Image::new();
    let plan = image.plan(&answers(&disk.path, false)).unwrap();
    plan.run(&mut Silent, &String::new).unwrap();
    for step in [Step::Root, Step::Boot, Step::State, Step::Table] {
        let plan = image.plan(&answers(&disk.path, true)).unwrap();
        let cut = std::panic::AssertUnwindSafe(|| plan.run(&mut PowerCut(step), &String::new));
        assert!(std::panic::catch_unwind(cut).is_err());
        let blank = disks::list()
            .unwrap()
            .into_iter()
            .find(|it| it.path == disk.path);
        let blank = blank.unwrap();
        assert!(
            blank.content.is_empty() && !blank.has_pindah(),
            "{step:?}: {blank:?}"
        );
        assert!(disk.read(0, 512).iter().all(|byte| *byte == 0), "{step:?}");
        // It is installed on again without being allowed to destroy anything.
        image.plan(&answers(&disk.path, false)).unwrap();
    }
}

#[test]
fn damaged_image_and_full_slot_are_told() {
    if !usable() {
        return;
    }
    let Some(disk) = Loop::new() else { return };
    let image = Image::new();
    let plan = image.plan(&answers(&disk.path, false)).unwrap();
    let mut squashfs = fs::read(&image.squashfs).unwrap();
    let middle = squashfs.len() / 2;
    squashfs[middle] ^= 0x10;
    fs::write(&image.squashfs, squashfs).unwrap();
    let error = plan.run(&mut Silent, &String::new).unwrap_err().to_string();
    assert!(
        error.contains("is damaged") && error.contains("write the medium again"),
        "{error}"
    );

    let file = fs::OpenOptions::new()
        .write(true)
        .open(&image.squashfs)
        .unwrap();
    file.set_len(1025 * MIB).unwrap();
    let error = plan.run(&mut Silent, &String::new).unwrap_err().to_string();
    assert!(error.contains("has 1.0 GiB, and a slot 1.0 GiB"), "{error}");

    fs::remove_file(image.root().join("boot/initrd.img")).unwrap();
    let error = plan.run(&mut Silent, &String::new).unwrap_err().to_string();
    assert!(
        error.contains("boot/initrd.img: is the medium still there"),
        "{error}"
    );
}

/// A machine that runs until its serial console says something, or too long.
fn starts(disk: &Loop, firmware: &[&str], wanted: &str) {
    let serial = tempfile::NamedTempFile::new().unwrap();
    let output = format!("file:{}", serial.path().display());
    let drive = format!(
        "file={},format=raw,if=ide,snapshot=on",
        disk.file.path().display()
    );
    let fixed = [
        "-accel",
        "tcg",
        "-m",
        "256",
        "-display",
        "none",
        "-no-reboot",
        "-net",
        "none",
    ];
    let mut machine = Command::new("qemu-system-x86_64")
        .args(fixed)
        .args(["-serial", &output, "-drive", &drive])
        .args(firmware)
        .stdin(Stdio::null())
        .spawn()
        .unwrap();
    let end = Instant::now() + Duration::from_secs(180);
    let said = loop {
        let said = String::from_utf8_lossy(&fs::read(serial.path()).unwrap()).into_owned();
        if said.contains(wanted) || Instant::now() > end {
            break said;
        }
        std::thread::sleep(Duration::from_millis(200));
    };
    machine.kill().unwrap();
    machine.wait().unwrap();
    assert!(said.contains(wanted), "{firmware:?}: {said}");
}

#[test]
fn installed_disk_starts_by_bios_and_by_uefi() {
    if !usable() {
        return;
    }
    let Some(disk) = Loop::new() else { return };
    let image = Image::new();
    let plan = image.plan(&answers(&disk.path, false)).unwrap();
    plan.run(&mut Silent, &String::new).unwrap();
    let wanted = "installed: ORDER=A B A_OK=1 B_OK=0";
    starts(&disk, &[], wanted);
    let uefi = ["-bios", "/usr/share/ovmf/OVMF.fd"];
    starts(&disk, &uefi, wanted);
}

/// The program itself, as the console of an installing machine runs it.
#[test]
fn program_installs_by_an_answer_file_and_refuses_a_wrong_one() {
    if !usable() {
        return;
    }
    let Some(disk) = Loop::new() else { return };
    let image = Image::new();
    let directory = image.directory.path();
    let path = |name: &str| directory.join(name).to_str().unwrap().to_owned();
    let (file, log) = (path("node.toml"), path("install.log"));
    let (root, squashfs) = (path("root"), path("filesystem.squashfs"));
    let install = |text: &str| {
        fs::write(&file, text).unwrap();
        let output = Command::new(env!("CARGO_BIN_EXE_pindah-install"))
            .args([
                "--answers",
                &file,
                "--log",
                &log,
                "--root",
                &root,
                "--squashfs",
                &squashfs,
            ])
            .stdin(Stdio::null())
            .output()
            .unwrap();
        let text = [output.stdout, output.stderr].concat();
        (output.status.success(), String::from_utf8(text).unwrap())
    };
    // The machine of the tests has no network card of its own everywhere.
    let good = format!("end = 'shell'\n{}", answers(&disk.path, false));
    let wrong = good.replace("node7", "Node 7");
    let (done, said) = install(&wrong);
    assert!(
        !done && said.contains(&format!("{file}:2:13: host_name = \"Node 7\"")),
        "{said}"
    );
    assert!(
        fs::read_to_string(&log)
            .unwrap()
            .contains("node.toml:2:13: host_name")
    );
    let (done, said) = install(&good);
    if said.contains("no card is seen") {
        println!("skipped: this machine has no network card");
        return;
    }
    assert!(done, "{said}");
    for part in [
        "which is blank",
        "Copying the system",
        "  100 %",
        "node7 is installed",
    ] {
        assert!(said.contains(part), "{part}: {said}");
    }
    assert!(said.contains("answers at https://10.0.0.7:7480"), "{said}");
    partitions_are_named(&disk);
    let state = disk.part(2562, DISK_MIB - 1 - 2562);
    let log = debugfs(state.path(), "cat /var/log/pindah-install.log");
    assert!(log.contains("] Done\n"), "{log}");
    // Another console does not do it once more.
    let (done, said) = install(&good);
    assert!(done && !said.contains("Copying"), "{said}");
}
