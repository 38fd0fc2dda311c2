//! iSCSI pools. The LUN is a loop device and its metadata are made by the real `lvm`; what needs the
//! kernel is played: the session by a program in the place of iscsiadm, and an active volume by a
//! loop device over its extents, as no device-mapper is asked for.

use std::fs::{self, File};
use std::net::TcpListener;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use pindah_agent::domain::TaskState;
use pindah_agent::guests::GuestState;
use reqwest::Method;
use serde_json::{Value, json};

use super::harness::{Agent, DEADLINE, answer, is_root, kvm_opens};

const TARGET: &str = "iqn.2026-01.org.example:vm";
const LUN_BYTES: usize = 128 << 20;

const ISCSIADM: &str = r#"
echo "$*" >> $HERE/asked
nothing() { echo "iscsiadm: $1" >&2; exit 21; }
case "$*" in
    "-m session -P 3")
        [ -e $HERE/session ] || nothing "No active sessions."
        echo "Target: iqn.2026-01.org.example:vm (non-flash)"
        echo "	Persistent Portal: $(cat $HERE/session),1"
        echo "		SID: 1"
        echo "		iSCSI Session State: LOGGED_IN"
        echo "		scsi2 Channel 00 Id 0 Lun: 0"
        echo "		scsi2 Channel 00 Id 0 Lun: 1"
        echo "			Attached scsi disk $(cat $HERE/disk)		State: running" ;;
    *--login)
        if [ -e $HERE/refusal ]; then
            echo "iscsiadm: Could not login to [iface: default]." >&2
            echo "iscsiadm: initiator reported error (24 - iSCSI login failed due to authorization failure)" >&2
            exit 24
        fi
        echo "$6" > $HERE/session ;;
    *--logout) rm $HERE/session 2>/dev/null || nothing "No matching sessions found" ;;
    *"-o delete") rm $HERE/node ;;
    *"-o new") touch $HERE/node ;;
    *) [ -e $HERE/node ] || nothing "No records found" ;;
esac
"#;

/// There is no daemon to talk to.
const MULTIPATHD: &str = "exit 1";

/// Called as `lvm COMMAND --devices DEVICE --config CONFIG …`.
const LVM: &str = r#"
command=$1; device=$3; config=$(echo "$5" | sed 's/global {/global { activation=0/'); shift 5
echo "$command $*" >> $HERE/changes
for last; do :; done
real() { name=$1; shift; /usr/sbin/lvm "$name" --devices $device --config "$config" "$@"; }
of() { real lvs --noheadings --units b --nosuffix -o $1 $last | tr -d ' '; }
loop=$(readlink /dev/$last)
case "$command $1" in
    "lvchange -ay")
        [ -n "$loop" ] && exit
        extents=$(of seg_pe_ranges); [ -n "$extents" ] || exit 5
        first=${extents#*:}; first=${first%-*}
        size=$(of lv_size)
        mkdir -p /dev/${last%/*}
        loop=$(losetup --show -f -o $((1048576 + first * 4194304)) --sizelimit $size $device) || exit
        ln -s $loop /dev/$last ;;
    "lvchange -an")
        [ -z "$loop" ] && exit
        if ls -l /proc/[0-9]*/fd 2>/dev/null | grep -q " $loop$"; then
            echo "  Logical volume $last in use." >&2; exit 5
        fi
        losetup -d $loop; rm /dev/$last; rmdir --ignore-fail-on-non-empty /dev/${last%/*} ;;
    *) real $command "$@" ;;
esac
"#;

/// An agent, and a LUN that is detached from everything when the test ends.
struct San {
    agent: Agent,
    /// Takes connections, and no more.
    portal: TcpListener,
    device: PathBuf,
    group: String,
}

impl San {
    /// The LUN is full of what somebody has left on it, and no program would find anything there.
    async fn start(tag: &str) -> Self {
        let agent = Agent::start_with_programs(&[
            ("iscsiadm", ISCSIADM),
            ("multipathd", MULTIPATHD),
            ("lvm", LVM),
        ])
        .await;
        fs::write(agent.path("lun"), vec![0xAA; LUN_BYTES]).unwrap();
        let attached = Command::new("losetup")
            .args(["--show", "-f"])
            .arg(agent.path("lun"))
            .output()
            .unwrap();
        assert!(attached.status.success(), "{attached:?}");
        let device = String::from_utf8(attached.stdout).unwrap();
        let device = PathBuf::from(device.trim());
        let name = device.file_name().unwrap().to_str().unwrap();
        fs::write(agent.path("disk"), name).unwrap();
        Self {
            agent,
            portal: TcpListener::bind("127.0.0.1:0").unwrap(),
            device,
            group: format!("pindah-test-{tag}-{}", std::process::id()),
        }
    }

    fn portal(&self) -> String {
        self.portal.local_addr().unwrap().to_string()
    }

    async fn create(&self, extra: Value) -> (u16, Value) {
        let mut spec = json!({ "name": "san", "kind": "iscsi", "portals": [self.portal()],
            "target": TARGET, "volume_group": self.group });
        for (key, value) in extra.as_object().unwrap() {
            spec[key] = value.clone();
        }
        self.agent
            .request(Method::POST, "/pools", Some(&spec))
            .await
    }

    /// The volumes that are active.
    fn active(&self) -> Vec<String> {
        let entries = fs::read_dir(Path::new("/dev").join(&self.group));
        let entries = entries.into_iter().flatten().flatten();
        let names = entries.map(|entry| entry.file_name().into_string().unwrap());
        names.collect()
    }

    async fn wait_active(&self, expected: &[&str]) {
        let end = Instant::now() + DEADLINE;
        while self.active() != expected {
            assert!(
                Instant::now() < end,
                "{:?}, not {expected:?}\n{}",
                self.active(),
                self.agent.log()
            );
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }

    fn said(&self, file: &str) -> String {
        fs::read_to_string(self.agent.path(file)).unwrap_or_default()
    }

    async fn move_disk(&self, to: &str) {
        let path = "/guests/web/disks/disk0/move";
        let body = json!({ "pool": to });
        let task = self.agent.begin(Method::POST, path, Some(&body)).await;
        assert_eq!(
            task.state,
            TaskState::Done,
            "{task:?}\n{}",
            self.agent.log()
        );
    }

    fn lvm(&self, arguments: &[&str]) {
        let status = Command::new("/usr/sbin/lvm")
            .args(arguments)
            .arg("--devices")
            .arg(&self.device)
            .args(["--config", "global { activation=0 }"])
            .env("LVM_SUPPRESS_FD_WARNINGS", "1")
            .status();
        assert!(status.unwrap().success(), "{arguments:?}");
    }
}

impl Drop for San {
    fn drop(&mut self) {
        self.agent.kill();
        self.agent.end_guests();
        let directory = Path::new("/dev").join(&self.group);
        for name in self.active() {
            let link = directory.join(name);
            if let Ok(device) = fs::read_link(&link) {
                detach(&device);
            }
            let _ = fs::remove_file(link);
        }
        let _ = fs::remove_dir(directory);
        detach(&self.device);
    }
}

fn detach(device: &Path) {
    let _ = Command::new("losetup").arg("-d").arg(device).status();
}

/// Whether this host can play a LUN; says so if not.
fn host_can() -> bool {
    let missing = if !is_root() {
        return false;
    } else if !Path::new("/usr/sbin/lvm").exists() {
        "lvm2 is not installed"
    } else if File::open("/dev/loop-control").is_err() {
        "there are no loop devices"
    } else {
        return true;
    };
    eprintln!("skipped: {missing}");
    false
}

#[tokio::test]
async fn guest_s_disk_is_a_volume_that_is_active_while_it_runs() {
    if !kvm_opens() || !host_can() {
        return;
    }
    let mut san = San::start("life").await;
    let (status, body) = san.create(json!({})).await;
    assert_eq!(status, 201, "{body}\n{}", san.agent.log());
    assert_eq!(body["data"]["lun"], 1, "{body}");
    let asked = san.said("asked");
    for setting in [
        "-n node.session.timeo.replacement_timeout -v -1",
        "-n node.startup -v manual",
    ] {
        assert!(asked.contains(setting), "{asked}");
    }
    let here = &body["data"]["nodes"][0];
    assert_eq!(here["state"], "ready", "{body}");
    assert_eq!(here["total_mib"], here["free_mib"], "{body}");

    // Images go elsewhere, and there is none here to find.
    let put = san
        .agent
        .client()
        .request(Method::PUT, "/images/a?pool=san");
    let (status, body) = answer(put.body("x")).await;
    assert_eq!(status, 422, "{body}");
    let message = body["error"]["message"].as_str().unwrap();
    assert!(message.contains("pool san holds disks only"), "{message}");
    let images: Vec<Value> = san.agent.client().list("/images?pool=san").await.unwrap();
    assert_eq!(images.len(), 0);

    san.agent.upload_probe().await;
    let bytes: Vec<u8> = (0..3u32 << 20).map(|n| (n ^ (n >> 11)) as u8).collect();
    assert_eq!(san.agent.upload("a", bytes.clone()).await.0, 201);
    let disks = json!([{ "image": "a", "size_mib": 8, "pool": "san" }]);
    let verify = "blk=1 blk_op=seqread blk_s=0 blk_iops=50";
    let extra = json!({ "disks": disks });
    let guest = san.agent.create_probe("web", verify, extra).await;
    let volume = format!("{}.disk0.raw", guest.uuid.simple());
    assert_eq!(san.active(), [volume.as_str()]);
    let listed: Vec<Value> = san.agent.client().list("/pools/san/volumes").await.unwrap();
    assert_eq!(listed.len(), 1, "{listed:?}");
    assert_eq!(listed[0]["name"], "web");
    assert_eq!(listed[0]["file_bytes"], 8 << 20);

    // An agent that ends leaves it to its guest, and one that starts does too.
    san.agent.kill();
    san.agent.spawn().await;
    san.agent.wait_state("web", GuestState::Running).await;
    tokio::time::sleep(Duration::from_secs(1)).await;
    assert_eq!(san.active(), [volume.as_str()]);
    let task = san
        .agent
        .begin(Method::POST, "/guests/web/stop", None)
        .await;
    assert_eq!(task.state, TaskState::Done, "{task:?}");
    san.wait_active(&[]).await;

    // To a file and back: what the image had, and zeroes where others left something.
    san.move_disk("local").await;
    let mut expected = bytes;
    expected.resize(8 << 20, 0);
    let file = san.agent.path("state/pool/volumes");
    let file = file.join(guest.uuid.to_string()).join("disk0.raw");
    assert!(
        fs::read(&file).unwrap() == expected,
        "it is not what it was"
    );
    let listed: Vec<Value> = san.agent.client().list("/pools/san/volumes").await.unwrap();
    assert!(listed.is_empty(), "{listed:?}");
    san.move_disk("san").await;
    assert!(!file.exists());
    san.move_disk("local").await;
    assert!(
        fs::read(&file).unwrap() == expected,
        "it is not what it was"
    );
    san.wait_active(&[]).await;
    san.move_disk("san").await;

    // It grows by whole extents, and shows nothing of what is left there.
    let said = san
        .agent
        .must(&["guest", "disk", "resize", "web", "disk0", "9M"]);
    expected.resize(12 << 20, 0);
    assert_eq!(san.agent.guest("web").await.disks[0].size_mib, 12, "{said}");
    let exported = san.agent.path("exported");
    let to = exported.to_str().unwrap();
    san.agent.must(&["guest", "export", "web", to]);
    assert!(
        fs::read(&exported).unwrap() == expected,
        "it is not all there"
    );
    san.wait_active(&[]).await;
    let changes = san.said("changes");
    for change in ["--addtag pindah.from.8", "--deltag pindah.from.8"] {
        assert!(changes.contains(change), "{changes}");
    }

    // What comes from elsewhere has the size that it takes here.
    let spec = json!({ "name": "odd", "memory_mib": 64, "interfaces": [],
        "disks": [{ "size_mib": 5, "format": "raw" }] });
    let task = san.agent.begin(Method::POST, "/guests", Some(&spec)).await;
    assert_eq!(task.state, TaskState::Done, "{task:?}");
    san.agent
        .must(&["guest", "disk", "move", "odd", "disk0", "--pool", "san"]);
    assert_eq!(san.agent.guest("odd").await.disks[0].size_mib, 8);
    san.agent.must(&["guest", "delete", "odd", "--yes"]);

    // Larger than all that is left.
    let spec = json!({ "name": "db", "memory_mib": 64, "interfaces": [],
        "disks": [{ "size_mib": 200, "pool": "san" }] });
    let (status, body) = san
        .agent
        .request(Method::POST, "/guests", Some(&spec))
        .await;
    assert_eq!(status, 409, "{body}");
    assert_eq!(body["error"]["code"], "no_space", "{body}");
    let spec = json!({ "name": "db", "memory_mib": 64, "interfaces": [],
        "disks": [{ "size_mib": 4, "pool": "san", "format": "qcow2" }] });
    let (status, body) = san
        .agent
        .request(Method::POST, "/guests", Some(&spec))
        .await;
    assert_eq!(status, 422, "{body}");

    let task = san
        .agent
        .begin(Method::POST, "/guests/web/start", None)
        .await;
    assert_eq!(task.state, TaskState::Done, "{task:?}");
    let path = "/guests/web?force=true";
    let task = san.agent.begin(Method::DELETE, path, None).await;
    assert_eq!(task.state, TaskState::Done, "{task:?}\n{}", san.agent.log());
    assert!(san.active().is_empty());
    let (status, body) = san.agent.request(Method::DELETE, "/pools/san", None).await;
    assert_eq!(status, 204, "{body}");
    assert!(!san.agent.path("session").exists());
    assert!(!san.agent.path("node").exists());
}

#[tokio::test]
async fn lun_is_taken_if_it_is_blank_or_was_a_pool() {
    if !host_can() {
        return;
    }
    let mut san = San::start("take").await;
    let assert_refused = |(status, body): (u16, Value), expected: (u16, &str)| {
        assert_eq!(status, expected.0, "{body}");
        let message = body["error"]["message"].as_str().unwrap();
        assert!(message.contains(expected.1), "{message}");
    };
    fs::write(san.agent.path("refusal"), "").unwrap();
    assert_refused(
        san.create(json!({})).await,
        (503, "login failed due to authorization failure"),
    );
    fs::remove_file(san.agent.path("refusal")).unwrap();
    let other = json!({ "lun": 7 });
    assert_refused(san.create(other).await, (503, "has no LUN 7; it has 1"));

    // The magic number of ext4, and whatever is around it.
    let lun = File::options().write(true).open(&san.device).unwrap();
    let formatted = Command::new("mkfs.ext4")
        .args(["-q", "-F"])
        .arg(&san.device)
        .status();
    assert!(formatted.unwrap().success());
    assert_refused(
        san.create(json!({})).await,
        (
            422,
            "it is not blank: ext4 is on it; if nobody needs that, wipefs",
        ),
    );
    lun.write_all_at(&[0; 4096], 0).unwrap();
    lun.sync_all().unwrap();
    san.lvm(&["vgcreate", "mine", san.device.clone().to_str().unwrap()]);
    assert_refused(
        san.create(json!({})).await,
        (422, "the volume group mine is on it, which is not Pindah's"),
    );
    assert!(!san.agent.path("session").exists(), "somebody is logged in");
    san.lvm(&["vgremove", "mine"]);
    san.lvm(&["pvremove", san.device.clone().to_str().unwrap()]);

    let chap = json!({ "chap_user": "node", "chap_password": "swordfish" });
    let (status, body) = san.create(chap).await;
    assert_eq!(status, 201, "{body}");
    assert!(san.said("asked").contains("-v swordfish"));
    let (_, shown) = san.agent.request(Method::GET, "/pools/san", None).await;
    assert!(!shown.to_string().contains("swordfish"), "{shown}");
    assert!(!san.agent.log().contains("swordfish"));

    // As another cluster would find it.
    san.agent.kill();
    fs::remove_file(san.agent.path("state/private/store.db")).unwrap();
    san.agent.spawn().await;
    assert!(!san.agent.path("session").exists(), "nobody needs it");
    assert_refused(
        san.create(json!({})).await,
        (422, "it is pool san of this or another cluster"),
    );
    let tags = Command::new("/usr/sbin/lvm")
        .args(["vgs", "--noheadings", "-o", "vg_tags", "--devices"])
        .arg(&san.device)
        .output()
        .unwrap();
    let tags = String::from_utf8(tags.stdout).unwrap();
    let tag = tags.trim().split(',').find(|tag| tag.contains(".san."));
    san.lvm(&["vgchange", "--deltag", tag.unwrap(), &san.group.clone()]);
    let wrong = json!({ "volume_group": "other" });
    let hint = format!("say --volume-group {}", san.group);
    assert_refused(san.create(wrong).await, (422, &hint));
    let (status, body) = san.create(json!({})).await;
    assert_eq!(status, 201, "{body}");
    assert!(!san.said("changes").contains("vgremove"));
}

#[tokio::test]
async fn portal_that_is_down_is_passed_over() {
    if !host_can() {
        return;
    }
    let san = San::start("portals").await;
    let closed = json!({ "portals": ["127.0.0.1:1", "127.0.0.1:2"] });
    let (status, body) = san.create(closed).await;
    assert_eq!(status, 503, "{body}");
    let message = body["error"]["message"].as_str().unwrap();
    for portal in ["127.0.0.1:1", "127.0.0.1:2"] {
        let expected = format!("{portal} cannot be reached: Connection refused");
        assert!(message.contains(&expected), "{message}");
    }
    let (status, body) = san
        .create(json!({ "portals": ["127.0.0.1:1", san.portal()] }))
        .await;
    assert_eq!(status, 201, "{body}\n{}", san.agent.log());
    assert_eq!(san.said("session").trim(), san.portal());
    let here = &body["data"]["nodes"][0];
    assert_eq!(here["state"], "ready", "{body}");
    let reason = here["reason"].as_str().unwrap();
    assert!(
        reason.contains("one of its 2 portals is used: multipathd does not run"),
        "{reason}"
    );
}
