//! A part dies; the rest goes on, and it comes back where it was.

use super::harness::{Site, host_can};

#[test]
fn agent_and_etcd_that_are_killed_cost_nobody_a_guest() {
    if !host_can() {
        return;
    }
    let mut site = Site::new("fa", 3);
    site.form();
    let uuid = site.create(1, 2, "web");
    let pid = site.json(2, &["guest", "show", "web"])["pid"].clone();

    // The agent: others say that it is away, and its etcd still votes.
    site.kill_agent(2);
    let error = site.pindah(1, &["guest", "stop", "web"]).unwrap_err();
    assert!(error.contains("node node2 cannot be reached"), "{error}");
    site.wait_state(3, "web", "unknown");
    let nodes = site.json(1, &["node", "list"]);
    assert_eq!(nodes[1]["health"], "unreachable", "{nodes}");
    assert_eq!(
        (site.etcds(2), site.runs_on(&uuid)),
        (1, vec!["node2".to_owned()])
    );
    let error = site.pindah(1, &["node", "remove", "node2"]).unwrap_err();
    assert!(error.contains("only if it never comes back"), "{error}");
    site.start(2);
    site.wait_state(1, "web", "running");
    assert_eq!(site.json(3, &["guest", "show", "web"])["pid"], pid);
    assert_eq!(site.etcds(2), 1);

    // A member of etcd, one after another, the leader among them: everything can still be changed.
    for number in 1..=3 {
        site.kill_etcd(number);
        let name = format!("after{number}");
        site.create(number, 3, &name);
        site.wait(number, "etcd does not come back", || {
            site.etcds(number) == 1
        });
        site.wait_majority(number, true);
        site.must(1, &["guest", "delete", &name, "--force", "--yes"]);
    }

    // Agent and etcd of a node at once.
    site.kill_agent(3);
    site.kill_etcd(3);
    site.must(2, &["guest", "stop", "web", "--force"]);
    site.must(1, &["guest", "start", "web"]);
    site.start(3);
    site.wait_state(3, "web", "running");
    site.must(3, &["guest", "delete", "web", "--force", "--yes"]);
    site.assert_clean();
}

#[test]
fn node_with_a_new_address_is_found_there_and_a_dead_one_removed() {
    if !host_can() {
        return;
    }
    let mut site = Site::new("ad", 3);
    site.form();
    site.create(1, 3, "web");
    site.kill_agent(3);
    site.readdress(3, "10.77.0.33/24");
    site.start(3);
    site.wait_majority(3, true);
    site.wait(1, "the new address is not known", || {
        let nodes = site.json(1, &["node", "list"]);
        nodes[2]["address"] == "10.77.0.33:7480" && nodes[2]["health"] == "ready"
    });
    site.wait(1, "its etcd is not known there", || {
        let shown = site.must(1, &["cluster", "show"]);
        shown.contains("https://10.77.0.33:7483")
    });
    site.wait_state(1, "web", "running");
    site.must(1, &["guest", "delete", "web", "--force", "--yes"]);
    // It counts for the majority as before.
    site.kill_agent(2);
    site.kill_etcd(2);
    site.create(1, 3, "app");
    site.must(1, &["guest", "delete", "app", "--force", "--yes"]);
    // The dead one is taken out, and its name is free.
    site.wait(1, "node2 is still taken for alive", || {
        site.json(1, &["node", "list"])[1]["health"] == "unreachable"
    });
    site.must(3, &["node", "remove", "node2", "--force"]);
    let members = site.json(1, &["cluster", "show"])["members"].clone();
    assert_eq!(members.as_array().unwrap().len(), 2, "{members}");
    site.assert_clean();
}

#[test]
fn after_a_power_cut_all_guests_are_where_intent_says() {
    if !host_can() {
        return;
    }
    let mut site = Site::new("po", 3);
    site.form();
    let guests = ["a", "b", "c", "d"];
    let uuids: Vec<String> = guests
        .iter()
        .enumerate()
        .map(|(index, name)| site.create(index % 3 + 1, (index + 1) % 3 + 1, name))
        .collect();
    site.must(1, &["guest", "stop", "d", "--force"]);
    for number in 1..=3 {
        site.power_off(number);
    }
    for number in 1..=3 {
        site.start(number);
    }
    for (guest, state) in [
        ("a", "running"),
        ("b", "running"),
        ("c", "running"),
        ("d", "stopped"),
    ] {
        site.wait_state(2, guest, state);
    }
    for (uuid, expected) in uuids
        .iter()
        .zip([vec!["node2"], vec!["node3"], vec!["node1"], vec![]])
    {
        assert_eq!(site.runs_on(uuid), expected);
    }
    for guest in guests {
        site.must(3, &["guest", "delete", guest, "--force", "--yes"]);
    }
    site.assert_clean();
}
