//! The majority is lost for good.

use super::harness::{Site, host_can};

#[test]
fn last_node_recovers_the_cluster_and_others_join_it_again() {
    if !host_can() {
        return;
    }
    let mut site = Site::new("re", 3);
    site.form();
    site.create(1, 1, "one");
    let three = site.create(1, 3, "three");
    let backup = site.state(1, "backup.json");
    let backup = backup.to_str().unwrap();
    site.must(1, &["cluster", "backup", backup]);
    let error = site
        .pindah(3, &["cluster", "recover", "--yes"])
        .unwrap_err();
    assert!(error.contains("nothing to recover"), "{error}");

    site.power_off(2);
    site.kill_agent(1);
    site.kill_etcd(1);
    site.wait_majority(3, false);
    let pid = site.json(3, &["guest", "show", "three"])["pid"].clone();
    site.must(3, &["cluster", "recover", "--yes"]);
    site.wait_majority(3, true);
    assert_eq!(site.json(3, &["guest", "show", "three"])["pid"], pid);
    site.wait_state(3, "one", "unknown");

    // The node that lives joins again, with its guest; the dead one is removed.
    site.start(1);
    site.wait_majority(1, false);
    site.join(1, 3);
    site.wait_state(3, "one", "running");
    site.must(1, &["node", "remove", "node2", "--force"]);
    let nodes = site.json(3, &["node", "list"]);
    assert_eq!(nodes.as_array().unwrap().len(), 2, "{nodes}");
    for guest in ["one", "three"] {
        site.must(1, &["guest", "delete", guest, "--force", "--yes"]);
    }
    assert!(site.runs_on(&three).is_empty());
    site.assert_clean();
}

#[test]
fn backup_makes_a_fresh_node_the_cluster() {
    if !host_can() {
        return;
    }
    let mut site = Site::new("ba", 2);
    site.wait_until_it_serves(1);
    site.wait_until_it_serves(2);
    site.must(1, &["cluster", "init"]);
    site.must(1, &["token", "create", "ci"]);
    let backup = site.state(1, "backup.json");
    let backup = backup.to_str().unwrap();
    site.must(1, &["cluster", "backup", backup]);
    site.power_off(1);
    let bad = site.state(2, "pindahd.toml");
    std::fs::write(&bad, "{}").unwrap();
    let error = site.pindah(2, &["cluster", "recover", bad.to_str().unwrap(), "--yes"]);
    assert!(
        error.as_ref().unwrap_err().contains("no backup"),
        "{error:?}"
    );
    site.must(2, &["cluster", "recover", backup, "--yes"]);
    let tokens = site.must(2, &["token", "list"]);
    assert!(tokens.contains("ci"), "{tokens}");
    let nodes = site.json(2, &["node", "list"]);
    assert_eq!(nodes.as_array().unwrap().len(), 2, "{nodes}");
}
