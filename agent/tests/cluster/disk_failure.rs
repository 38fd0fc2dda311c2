//! A guest stands because its disk failed, and its place changes before it can go on.

use std::fs::{self, File};
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;

use pindah_agent::domain::{Guest, Wanted};
use pindah_agent::store::{Collection, EtcdAccess, EtcdStore};
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};
use serde_json::Value;

use super::harness::{Site, host_can};
use super::traveller::Traveller;

/// Failures in a row after which the next try is 8 s away: a move is quicker.
const FAILURES: usize = 5;

/// A file that nobody may write, through a descriptor that is open either, until this is dropped.
struct Immutable(PathBuf);

impl Immutable {
    /// `None`: its file system has no such thing.
    fn make(path: &Path) -> Option<Self> {
        chattr("+i", path).then(|| Self(path.to_owned()))
    }
}

impl Drop for Immutable {
    fn drop(&mut self) {
        chattr("-i", &self.0);
    }
}

fn chattr(change: &str, path: &Path) -> bool {
    let changed = Command::new("chattr").arg(change).arg(path).status();
    changed.is_ok_and(|status| status.success())
}

/// Changes a guest's record, as the recovery of a cluster from an older backup may.
fn change_record(site: &Site, number: usize, uuid: &str, change: fn(&mut Guest)) {
    let read = |name: &str| fs::read_to_string(site.state(number, "etcd").join(name)).unwrap();
    let access = EtcdAccess {
        endpoint: "https://127.0.0.1:7482".to_owned(),
        authority: read("ca.pem"),
        certificate: read("cert.pem"),
        key: read("key.pem"),
    };
    let namespace = File::open(format!("/run/netns/{}", site.namespace(number)));
    let (namespace, uuid) = (namespace.unwrap(), uuid.to_owned());
    let changed = std::thread::spawn(move || {
        let kind = Some(LinkNameSpaceType::Network);
        move_into_link_name_space(namespace.as_fd(), kind).expect("we are root");
        let mut runtime = tokio::runtime::Builder::new_current_thread();
        let runtime = runtime.enable_all().build().unwrap();
        runtime.block_on(async {
            let store = EtcdStore::connect(&access, "pindah/").await.unwrap();
            let guests = Collection::<Guest>::new(Arc::new(store));
            guests.update(&uuid, change).await.unwrap().unwrap();
        });
    });
    changed.join().unwrap();
}

/// A guest that writes to its disk all the time, on the first node.
struct Writer {
    traveller: Traveller,
    uuid: String,
    disk: PathBuf,
}

impl Writer {
    fn new(tag: &str) -> Self {
        let traveller = Traveller::new(tag, 2, 4);
        let words = "beat_ms=50 blk=1 blk_op=seqwrite blk_bs=65536 blk_s=0 blk_iops=100";
        let create = ["guest", "create", "db", "--memory", "64M", "--no-network"];
        let from = [
            "--kernel",
            "nas/pindah-probe",
            "--cmdline",
            words,
            "--start",
        ];
        let disk = ["--disk", "64M", "--pool", "nas", "--node", "node1"];
        let site = &traveller.site;
        site.must(1, &[&create[..], &from, &disk].concat());
        let uuid = site.json(1, &["guest", "show", "db"])["uuid"].clone();
        let uuid = uuid.as_str().unwrap().to_owned();
        let disk = site.path("nas/volumes").join(&uuid).join("disk0.qcow2");
        let writer = Self {
            traveller,
            uuid,
            disk,
        };
        writer.wait_until_it_writes(1);
        writer
    }

    fn show(&self) -> Value {
        self.traveller.site.json(1, &["guest", "show", "db"])
    }

    fn beats(&self, pid: &Value) -> usize {
        let log = self.traveller.site.pindah(1, &["guest", "log", "db"]);
        let log = log.unwrap_or_default();
        let lines = log
            .lines()
            .filter_map(|line| serde_json::from_str::<Value>(line).ok());
        lines
            .filter(|line| line["ev"] == "beat" && line["runner"] == *pid)
            .count()
    }

    fn wait_until_it_writes(&self, on: usize) {
        let site = &self.traveller.site;
        site.wait(on, "db does not run there", || {
            let guest = self.show();
            let node = format!("node{on}");
            guest["state"] == "running"
                && site.runs_on(&self.uuid) == [node]
                && self.beats(&guest["pid"]) > 10
        });
    }

    /// Waits until its disk has failed it so often, each time anew.
    fn wait_until_it_stands(&self, failures: usize) {
        let mut times = std::collections::BTreeSet::new();
        self.traveller.site.wait(1, "db does not stand", || {
            let guest = self.show();
            let reason = guest["reason"].as_str().unwrap_or_default();
            if guest["state"] == "paused" && reason.contains("goes on when its storage answers") {
                times.insert(guest["since_unix_ms"].as_u64().unwrap());
            }
            times.len() >= failures
        });
    }
}

#[test]
fn guest_that_stands_for_its_disk_goes_on_where_it_moves_and_ends_where_it_is_not() {
    if !host_can() {
        return;
    }
    let writer = Writer::new("ds");
    let site = &writer.traveller.site;
    let Some(immutable) = Immutable::make(&writer.disk) else {
        eprintln!("skipped: no immutable files here");
        return;
    };
    // It moves as it stands, and goes on by itself where it is now.
    writer.wait_until_it_stands(FAILURES);
    drop(immutable);
    site.must(1, &["guest", "migrate", "db", "--to", "node2"]);
    writer.wait_until_it_writes(2);
    let went_on = "guest db goes on: its storage answers";
    assert!(site.log(2).contains(went_on), "{}", site.log(2));

    // Its record says another node by the time that its disk is well again.
    let immutable = Immutable::make(&writer.disk).unwrap();
    writer.wait_until_it_stands(1);
    change_record(site, 2, &writer.uuid, |guest| {
        "node1".clone_into(&mut guest.node);
        guest.epoch += 1;
        guest.wanted = Wanted::Stopped;
    });
    drop(immutable);
    site.wait(2, "what is there does not end", || {
        site.runs_on(&writer.uuid).is_empty()
    });
    let ends = "guest db ends here: guest db belongs to node node1";
    assert!(site.log(2).contains(ends), "{}", site.log(2));
    site.wait(2, "what is there does not go", || {
        !site.state(2, "guests").join(&writer.uuid).exists()
    });
    site.must(1, &["guest", "start", "db"]);
    writer.wait_until_it_writes(1);
    site.must(1, &["guest", "delete", "db", "--force", "--yes"]);
    writer.traveller.delete(1);
}
