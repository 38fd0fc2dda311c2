//! Bundles of the image that `image/build` has made, on an installed server.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context as _, bail};
use pindah_lab::bare::{BareServer, Bus, Firmware};
use pindah_lab::network::Port;
use pindah_lab::{Lab, product, repository};

use crate::{ANSWERS, blank_disk, log_in, no_unit_has_failed, wait_until_installed, with_dvd};

/// A bundle is written in a minute, and the machine is off some seconds later.
const UPDATE_LIMIT: Duration = Duration::from_secs(1800);
/// Where the image ends a slot on trial, and after how long.
const TRIAL_TIMER: &str = "usr/lib/systemd/system/pindah-trial.timer";

fn built(name: &str) -> PathBuf {
    let path = repository().join("image/out").join(name);
    assert!(path.exists(), "{}: run image/build first", path.display());
    path
}

fn must(command: &mut Command) {
    let output = command.output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{command:?}: {said}");
}

/// Makes bundles on the host, as `image/build` does.
struct Bundler {
    directory: PathBuf,
    key: PathBuf,
}

impl Bundler {
    fn new(lab: &Lab) -> Self {
        let directory = lab.directory().join("bundles");
        fs::create_dir(&directory).unwrap();
        let home = std::env::var("HOME").unwrap();
        let key = Path::new(&home).join(".config/pindah/signing-key");
        Self { directory, key }
    }

    /// Of a squashfs or of whatever else, signed by the image's key.
    fn bundle(&self, content: &Path, version: &str, name: &str) -> PathBuf {
        self.sign(content, version, name, &self.key)
    }

    fn sign(&self, content: &Path, version: &str, name: &str, key: &Path) -> PathBuf {
        let bundle = self.directory.join(format!("{name}.raucb"));
        let mut make = Command::new(repository().join("image/lib/bundle"));
        make.arg(content).arg(version);
        make.arg(key.join("key.pem")).arg(key.join("cert.pem"));
        must(make.arg(&bundle));
        bundle
    }

    /// By a key that nobody knows.
    fn foreign(&self, content: &Path, version: &str) -> PathBuf {
        let key = self.directory.join("foreign");
        fs::create_dir(&key).unwrap();
        let mut make = Command::new("openssl");
        make.args("req -x509 -newkey rsa:2048 -nodes -subj /CN=somebody -days 999".split(' '));
        make.arg("-keyout").arg(key.join("key.pem"));
        must(make.arg("-out").arg(key.join("cert.pem")));
        self.sign(content, version, "foreign", &key)
    }

    /// Of the image's own root, changed a little, as another version.
    fn changed(&self, version: &str, name: &str, change: impl FnOnce(&Path)) -> PathBuf {
        let root = self.directory.join(format!("{name}.root"));
        let mut unpack = Command::new("unsquashfs");
        unpack.args(["-quiet", "-no-progress", "-dest"]).arg(&root);
        must(unpack.arg(built("netboot/filesystem.squashfs")));
        let os_release = root.join("usr/lib/os-release");
        let text = fs::read_to_string(&os_release).unwrap();
        let lines = text.lines().map(|line| match line.split_once('=') {
            Some(("IMAGE_VERSION", _)) => format!("IMAGE_VERSION={version}\n"),
            _ => format!("{line}\n"),
        });
        let text: String = lines.collect();
        fs::write(&os_release, text).unwrap();
        change(&root);
        let squashfs = self.directory.join(format!("{name}.squashfs"));
        let mut pack = Command::new("mksquashfs");
        pack.arg(&root).arg(&squashfs);
        must(pack.args("-comp zstd -Xcompression-level 3 -b 256K -quiet -no-progress".split(' ')));
        fs::remove_dir_all(&root).unwrap();
        let bundle = self.bundle(&squashfs, version, name);
        fs::remove_file(&squashfs).unwrap();
        bundle
    }
}

/// The node, as somebody sees it who updates it from another machine.
struct Node<'a> {
    lab: &'a Lab,
    disk: &'a Path,
    port: Port,
    starts: u32,
}

impl Node<'_> {
    fn switch_on(&mut self) -> BareServer {
        self.starts += 1;
        let name = format!("node1-{}", self.starts);
        let server = self.lab.bare_server(&name, Firmware::Bios);
        let server = server.disk(Bus::Sata, self.disk).port(&self.port);
        server.start().unwrap()
    }

    /// Logs in, when its agent has said that the slot works.
    fn start(&mut self) -> BareServer {
        let mut server = self.switch_on();
        log_in(&mut server);
        let good =
            "until pindah node show node1 2>/dev/null | grep -q 'runs, good'; do sleep 1; done";
        server.run(good).unwrap();
        server
    }

    /// `pindah` on the switch, as the node's root.
    fn pindah(&self, server: &mut BareServer, arguments: &[&str]) -> anyhow::Result<String> {
        let context = server.run("cat /var/lib/pindah/admin.json")?;
        let (_, rest) = context.split_once("https://").context("an address")?;
        let (host, _) = rest.split_once(':').context("a port")?;
        let ours = format!("https://{}:", server.port().address);
        let context = context.replace(&format!("https://{host}:"), &ours);
        let path = self.lab.directory().join("context.json");
        fs::write(&path, context)?;
        let output = self.lab.network().enter(|| {
            let mut command = Command::new(product("pindah")?);
            Ok(command
                .args(arguments)
                .env("PINDAH_CONTEXT", &path)
                .output()?)
        })?;
        if output.status.success() {
            return Ok(String::from_utf8_lossy(&output.stdout).into_owned());
        }
        bail!("{}", String::from_utf8_lossy(&output.stderr))
    }

    fn update(&self, server: &mut BareServer, bundle: &Path) -> anyhow::Result<String> {
        let bundle = bundle.to_str().context("a path")?;
        self.pindah(server, &["node", "update", "node1", bundle, "--no-wait"])
    }

    /// Has it write a bundle, and waits until it goes down for that.
    fn update_and_go_down(&self, mut server: BareServer, bundle: &Path) {
        self.update(&mut server, bundle).unwrap();
        server.wait_until_off(UPDATE_LIMIT).unwrap();
    }
}

fn show(server: &mut BareServer) -> String {
    server.run("pindah node show node1").unwrap()
}

/// What became of the last update, when its task has ended.
fn last_task(server: &mut BareServer) -> String {
    let ended = "until ! pindah task list | grep 'update node' | grep -q running; do sleep 1; done";
    server.run(ended).unwrap();
    let tasks = "id=$(pindah task list | grep 'update node' | head -1 | cut -d' ' -f1); \
                 pindah task show $id";
    server.run(tasks).unwrap()
}

#[test]
#[ignore = "lab"]
fn full_node_is_updated_and_goes_back_from_what_does_not_work() {
    let lab = Lab::new("update").unwrap();
    let _dhcp = lab.dhcp().unwrap();
    let bundler = Bundler::new(&lab);
    let disk = blank_disk(&lab, "disk.img");
    let installer = with_dvd(&lab, "installer", Firmware::Bios).disk(Bus::Sata, &disk);
    let installer = installer.answers(ANSWERS).start().unwrap();
    let port = installer.port().clone();
    // Meanwhile:
    let newer = bundler.changed("9.9.1", "newer", |_| {});
    let broken = bundler.changed("9.9.2", "broken", |root| {
        fs::write(root.join("usr/bin/pindahd"), "#!/bin/sh\nexit 1\n").unwrap();
        let timer = fs::read_to_string(root.join(TRIAL_TIMER)).unwrap();
        assert!(timer.contains("OnBootSec=10min"), "{timer}");
        let timer = timer.replace("OnBootSec=10min", "OnBootSec=100s");
        fs::write(root.join(TRIAL_TIMER), timer).unwrap();
    });
    wait_until_installed(installer);

    let (lab, disk) = (&lab, disk.as_path());
    let mut node = Node {
        lab,
        disk,
        port,
        starts: 0,
    };
    let mut server = node.start();
    let shown = show(&mut server);
    assert!(shown.contains("A runs, good; B not good"), "{shown}");
    let cluster = server.run("pindah cluster show").unwrap();
    server.run("echo kept >/root/kept").unwrap();

    // What is refused changes nothing.
    let small = lab.directory().join("small");
    fs::write(&small, vec![7; 8 << 20]).unwrap();
    for (bundle, why) in [
        (
            bundler.foreign(&small, "9.9.9"),
            "was not signed by the key",
        ),
        (
            bundler.bundle(&small, "0.0.1", "older"),
            "0.0.1 is older than",
        ),
    ] {
        let error = node.update(&mut server, &bundle).unwrap_err().to_string();
        assert!(error.contains(why), "{error}");
    }
    let tampered = bundler.bundle(&small, "9.9.9", "tampered");
    let mut bytes = fs::read(&tampered).unwrap();
    bytes[4 << 20] ^= 1;
    fs::write(&tampered, bytes).unwrap();
    node.update(&mut server, &tampered).unwrap();
    let task = last_task(&mut server);
    assert!(
        task.contains("the bundle is refused: it is damaged"),
        "{task}"
    );
    let shown = show(&mut server);
    assert!(shown.contains("A runs, good; B not good"), "{shown}");

    // The other slot starts, and all is there.
    node.update_and_go_down(server, &newer);
    let mut server = node.start();
    let shown = show(&mut server);
    assert!(shown.contains("9.9.1"), "{shown}");
    assert!(shown.contains("B runs, good; A good"), "{shown}");
    let task = last_task(&mut server);
    assert!(task.contains("done"), "{task}");
    server.run("grep -qx kept /root/kept").unwrap();
    let cluster_after = server.run("pindah cluster show").unwrap();
    assert_eq!(cluster_after.lines().next(), cluster.lines().next());
    no_unit_has_failed(&mut server);

    // What comes up without an agent is given up, and what ran before runs again.
    node.update_and_go_down(server, &broken);
    let mut on_trial = node.switch_on();
    on_trial.wait_until_off(UPDATE_LIMIT).unwrap();
    let mut server = node.start();
    let shown = show(&mut server);
    assert!(shown.contains("B runs, good; A not good"), "{shown}");
    assert!(shown.contains("fell back from 9.9.2 to 9.9.1"), "{shown}");
    let task = last_task(&mut server);
    assert!(task.contains("has not come up healthy"), "{task}");
    server.run("grep -qx kept /root/kept").unwrap();
}
