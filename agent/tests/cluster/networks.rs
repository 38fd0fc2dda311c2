//! Networks are the same on every node.

use std::process::Command;

use super::harness::{Site, host_can};
use super::programs::programs;

#[test]
fn network_is_on_every_node_and_goes_from_all_when_nobody_uses_it() {
    if !host_can() {
        return;
    }
    let mut site = Site::new("nw", 2);
    site.form();
    let has = |site: &Site, number: usize, link: &str| {
        let mut show = Command::new("ip");
        show.args([
            "netns",
            "exec",
            site.namespace(number),
            "ip",
            "link",
            "show",
            link,
        ]);
        show.output().expect("ip starts").status.success()
    };
    let uplink = ["--uplink", "node2=none0", "--notes", "for all"];
    site.must(1, &[&["network", "create", "lan"], &uplink[..]].concat());
    assert!(has(&site, 1, "pn-lan"));
    // Its own uplink is missing: that node says so.
    site.wait(1, "node2 does not say what is the matter", || {
        let lan = site.json(1, &["network", "show", "lan"]);
        let problem = lan["nodes"]["node2"]["problem"]
            .as_str()
            .unwrap_or_default();
        problem.contains("cannot use none0 on node node2: there is no such interface")
    });
    site.must(1, &["network", "edit", "lan", "--no-uplink", "node2"]);
    site.wait(1, "lan is not on node2", || {
        let lan = site.json(1, &["network", "show", "lan"]);
        lan["nodes"]["node2"]["state"] == "ready"
    });
    site.must(2, &["network", "create", "dmz"]);
    site.wait(2, "dmz is not on node1", || has(&site, 1, "pn-dmz"));

    // A guest of node1 uses it; node2 knows, and was not there when it went.
    let probe = programs().join("pindah-probe");
    let probe = ["--kernel", probe.to_str().unwrap(), "--cmdline", "ws_mib=4"];
    let web = [
        "guest",
        "create",
        "web",
        "--memory",
        "64M",
        "--network",
        "dmz",
        "--start",
    ];
    site.must(1, &[&web[..], &probe].concat());
    let error = site.pindah(2, &["network", "delete", "dmz"]).unwrap_err();
    assert!(error.contains("network dmz has guests: web"), "{error}");
    site.must(1, &["guest", "delete", "web", "--force", "--yes"]);
    site.kill_agent(2);
    site.must(1, &["network", "delete", "dmz"]);
    assert!(!has(&site, 1, "pn-dmz"));
    assert!(has(&site, 2, "pn-dmz"));
    site.start(2);
    site.wait(1, "dmz is still on node2", || !has(&site, 2, "pn-dmz"));
    site.must(1, &["network", "delete", "lan"]);
    site.assert_clean();
}
