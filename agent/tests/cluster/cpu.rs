//! Unlike processors in one cluster.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::process::Command;

use serde_json::Value;

use super::harness::{Site, host_can};
use super::programs::programs;

/// CPUID leaf 1, EDX: CLFLUSH.
const CLFLUSH: u64 = 1 << 19;

#[test]
fn guest_moves_only_where_it_has_what_it_may_see() {
    if !host_can() {
        return;
    }
    let mut site = Site::new("cp", 2);
    let poorer = poorer_vmm(&site);
    site.kill_agent(2);
    site.replace_vmm(2, &poorer);
    site.start(2);
    site.form();
    site.wait(1, "not both have told their processors", || {
        site.json(1, &["cluster", "cpu"])["nodes"]
            .as_array()
            .is_some_and(|nodes| nodes.len() == 2)
    });
    let shown = site.must(1, &["cluster", "show"]);
    assert!(
        shown.contains("node2 lacks CPU features") && shown.contains("clflush"),
        "{shown}"
    );
    let view = site.json(2, &["cluster", "cpu"]);
    assert_eq!(
        view["nodes"][1]["lacks"],
        serde_json::json!(["clflush"]),
        "{view}"
    );

    create(&site, "old");
    assert_eq!(
        site.json(1, &["guest", "show", "old"])["cluster_baseline"],
        true
    );
    // Its kernel is there, too.
    let probe = programs().join("pindah-probe");
    site.must(2, &["image", "upload", probe.to_str().unwrap()]);
    let error = site.pindah(1, &["guest", "migrate", "old"]).unwrap_err();
    assert!(
        error.contains("old may see CPU features that node node2 lacks: clflush"),
        "{error}"
    );

    // From now on new ones see what both have.
    let view: Value = site.json(1, &["cluster", "cpu", "--adopt"]);
    assert_eq!(view["nodes"][1]["lacks"], serde_json::json!([]), "{view}");
    assert_eq!(
        view["nodes"][0]["unused"],
        serde_json::json!(["clflush"]),
        "{view}"
    );
    create(&site, "new");
    let uuid = site.json(1, &["guest", "show", "new"])["uuid"].clone();
    let uuid = uuid.as_str().unwrap().to_owned();
    site.must(1, &["guest", "migrate", "new", "--to", "node2"]);
    site.wait_state(1, "new", "running");
    assert_eq!(site.runs_on(&uuid), ["node2"]);
    assert!(site.pindah(1, &["guest", "migrate", "old"]).is_err());
    for guest in ["old", "new"] {
        site.must(1, &["guest", "delete", guest, "--force", "--yes"]);
    }
    site.assert_clean();
}

/// Without a disk nothing else holds a guest where it is.
fn create(site: &Site, name: &str) {
    let probe = programs().join("pindah-probe");
    let guest = ["guest", "create", name, "--memory", "64M", "--no-network"];
    let rest = [
        "--kernel",
        probe.to_str().unwrap(),
        "--cmdline",
        "ws_mib=4",
        "--start",
    ];
    site.must(1, &[&guest[..], &rest].concat());
}

/// A VMM as on a host whose processor has no CLFLUSH, as far as it says.
fn poorer_vmm(site: &Site) -> std::path::PathBuf {
    let vmm = programs().join("pindah-vmm");
    let check = Command::new(&vmm)
        .args(["check", "--json"])
        .output()
        .unwrap();
    let mut check: Value = serde_json::from_slice(&check.stdout).unwrap();
    let leaves = check["cpu_features"]["leaves"].as_array_mut().unwrap();
    let leaf = leaves.iter_mut().find(|leaf| leaf["leaf"] == 1).unwrap();
    let edx = leaf["edx"].as_u64().unwrap();
    assert_ne!(edx & CLFLUSH, 0, "this host has no CLFLUSH");
    leaf["edx"] = (edx & !CLFLUSH).into();
    let said = site.path("check.json");
    fs::write(&said, check.to_string()).unwrap();
    let script = format!(
        "#!/bin/sh\nif [ \"$1\" = check ]; then exec cat '{}'; fi\nexec '{}' \"$@\"\n",
        said.display(),
        vmm.display()
    );
    let path = site.path("poorer-vmm");
    fs::write(&path, script).unwrap();
    fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
    path
}
