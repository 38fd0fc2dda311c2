//! A pool that all nodes share.

use std::fs;
use std::process::Stdio;

use super::harness::{Site, host_can};

#[test]
fn shared_pool_is_one_for_all_nodes_and_its_guest_is_not_local() {
    if !host_can() {
        return;
    }
    let mut site = Site::new("po", 3);
    site.form();
    let nas = site.path("nas");
    fs::create_dir(&nas).unwrap();
    let path = nas.to_str().unwrap();
    let create = ["pool", "create", "nas", "--path", path, "--shared"];
    // Of several nodes that make it at once one wins, and the others hear whose it is.
    let creations: Vec<_> = (1..=3)
        .map(|number| {
            let mut command = site.command(number, &create);
            command.stdout(Stdio::null()).stderr(Stdio::piped());
            command.spawn().unwrap()
        })
        .collect();
    let mut won = 0;
    for creation in creations {
        let output = creation.wait_with_output().unwrap();
        let error = String::from_utf8_lossy(&output.stderr);
        let told = ["a pool nas already", "it is pool nas"];
        let told = told.iter().any(|words| error.contains(words));
        won += u32::from(output.status.success());
        assert!(output.status.success() || told, "{error}");
    }
    assert_eq!(won, 1);
    let error = site.pindah(2, &create).unwrap_err();
    assert!(error.contains("there is a pool nas already"), "{error}");
    site.wait(3, "not all nodes have the pool", || {
        let nodes = site.json(3, &["pool", "show", "nas"])["nodes"].clone();
        let nodes = nodes.as_array().cloned().unwrap_or_default();
        nodes.len() == 3 && nodes.iter().all(|node| node["state"] == "ready")
    });

    let probe = super::programs::programs().join("pindah-probe");
    let upload = ["image", "upload", probe.to_str().unwrap(), "--pool", "nas"];
    site.must(3, &upload);
    // What one node has put there, another one uses.
    let guest = ["guest", "create", "web", "--memory", "64M", "--no-network"];
    let from = ["--kernel", "nas/pindah-probe", "--cmdline", "ws_mib=4"];
    let disk = [
        "--disk", "8M", "--pool", "nas", "--node", "node2", "--start",
    ];
    site.must(1, &[&guest[..], &from, &disk].concat());
    site.wait_state(3, "web", "running");
    let uuid = site.json(1, &["guest", "show", "web"])["uuid"].clone();
    let uuid = uuid.as_str().unwrap();
    assert_eq!(site.runs_on(uuid), ["node2"]);
    assert!(nas.join("volumes").join(uuid).join("disk0.qcow2").is_file());
    let error = site.pindah(3, &["pool", "delete", "nas", "--force"]);
    assert!(error.unwrap_err().contains("running guests: web"));
    let delete = ["image", "delete", "pindah-probe", "--pool", "nas"];
    let error = site.pindah(3, &delete).unwrap_err();
    assert!(
        error.contains("guest web boots image nas/pindah-probe"),
        "{error}"
    );

    // Without a majority nobody can know who has its disk: it is not started.
    site.must(2, &["guest", "stop", "web", "--force"]);
    site.cut(2);
    site.wait_majority(2, false);
    let error = site.pindah(2, &["guest", "start", "web"]).unwrap_err();
    assert!(error.contains("most of the cluster's nodes"), "{error}");
    assert_eq!(site.runs_on(uuid), [""; 0]);
    site.heal(2);
    site.wait_majority(2, true);
    site.must(2, &["guest", "start", "web"]);

    site.kill_agent(2);
    site.start(2);
    site.wait_state(2, "web", "running");
    site.must(1, &["guest", "delete", "web", "--force", "--yes"]);
    site.must(1, &delete);
    site.must(1, &["pool", "delete", "nas"]);
    assert_eq!(fs::read_dir(nas.join("volumes")).unwrap().count(), 0);
    site.assert_clean();
}
