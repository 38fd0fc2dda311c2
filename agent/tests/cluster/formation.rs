//! A cluster is made, entered and left, and any node answers for all.

use std::io::Write;
use std::process::Stdio;

use super::harness::{Site, host_can};

#[test]
fn three_nodes_become_one_and_a_guest_notices_nothing() {
    if !host_can() {
        return;
    }
    let site = Site::new("fo", 3);
    for number in 1..=3 {
        site.wait_until_it_serves(number);
    }
    let before = site.create(1, 1, "old");
    let pid = site.json(1, &["guest", "show", "old"])["pid"].clone();
    // One that is alone has no tokens, and is entered by nobody.
    let error = site.pindah(1, &["cluster", "token"]).unwrap_err();
    assert!(error.contains("in no cluster"), "{error}");
    site.form();
    let old = site.json(3, &["guest", "show", "old"]);
    assert_eq!((&old["pid"], &old["uuid"]), (&pid, &before.as_str().into()));
    let error = site.pindah(1, &["cluster", "init"]).unwrap_err();
    assert!(error.contains("in a cluster already"), "{error}");

    any_node_answers_for_all(&site);
    of_two_starts_one_wins(&site);

    let error = site.pindah(3, &["cluster", "leave"]).unwrap_err();
    assert!(error.contains("this node has 1 guests"), "{error}");
    for guest in ["old", "two", "three"] {
        site.must(2, &["guest", "delete", guest, "--force", "--yes"]);
    }
    site.must(3, &["cluster", "leave"]);
    let shown = site.must(1, &["cluster", "show"]);
    assert!(shown.contains("two nodes: neither can lose"), "{shown}");
    let alone = site.json(3, &["node", "list"]);
    assert_eq!(alone.as_array().unwrap().len(), 1, "{alone}");
    assert_eq!(site.etcds(3), 0);
    site.assert_clean();
}

fn any_node_answers_for_all(site: &Site) {
    site.create(3, 2, "two");
    site.create(1, 3, "three");
    for number in 1..=3 {
        for guest in ["old", "two", "three"] {
            site.wait_state(number, guest, "running");
        }
    }
    let nodes = site.json(2, &["node", "list"]);
    for node in nodes.as_array().unwrap() {
        assert_eq!(
            (&node["health"], &node["guests"]),
            (&"ready".into(), &1.into())
        );
        let ahead = node["clock_ahead_ms"].as_i64().unwrap();
        assert!(ahead.abs() < 1000, "{node}");
    }
    site.wait(1, "the log is empty", || {
        site.must(1, &["guest", "log", "three"])
            .contains("\"ev\":\"ready\"")
    });
    let mut console = site.command(1, &["guest", "console", "two"]);
    console.stdin(Stdio::piped()).stdout(Stdio::null());
    let mut console = console.spawn().unwrap();
    let mut stdin = console.stdin.take().unwrap();
    stdin.write_all(b"status\n").unwrap();
    site.wait(2, "what is typed does not arrive", || {
        site.must(3, &["guest", "log", "two"])
            .contains("\"ev\":\"status\"")
    });
    stdin.write_all(b"\x1d").unwrap();
    assert!(console.wait().unwrap().success());
    for command in ["pause", "resume", "reset"] {
        site.must(1, &["guest", command, "three"]);
    }
    events_of_all_nodes_are_heard_on_one(site);
    let error = site
        .pindah(1, &["guest", "list", "--node", "none"])
        .unwrap_err();
    assert!(error.contains("there is no node none"), "{error}");
}

fn events_of_all_nodes_are_heard_on_one(site: &Site) {
    let listener = site.listen(1);
    site.wait(1, "the pause is not heard of", || {
        site.must(3, &["guest", "pause", "three"]);
        site.must(3, &["guest", "resume", "three"]);
        let heard = listener.heard();
        heard.contains("\"node\":\"node3\"") && heard.contains("paused")
    });
}

fn of_two_starts_one_wins(site: &Site) {
    site.must(1, &["guest", "stop", "two", "--force"]);
    let starts: Vec<_> = (1..=3)
        .map(|number| {
            let mut command = site.command(number, &["guest", "start", "two"]);
            command.stderr(Stdio::piped()).spawn().unwrap()
        })
        .collect();
    let ended = starts
        .into_iter()
        .map(|start| start.wait_with_output().unwrap());
    let won = ended.filter(|output| output.status.success()).count();
    assert_eq!(won, 1);
    let uuid = site.json(1, &["guest", "show", "two"])["uuid"].clone();
    assert_eq!(site.runs_on(uuid.as_str().unwrap()), ["node2"]);
}

#[test]
fn token_that_is_not_good_lets_nobody_in() {
    if !host_can() {
        return;
    }
    let site = Site::new("to", 3);
    for number in 1..=3 {
        site.wait_until_it_serves(number);
    }
    for number in [1, 3] {
        site.must(number, &["cluster", "init"]);
    }
    let refused = |server: &str, token: &str, expected: &str| {
        let error = site.pindah(2, &["cluster", "join", server, token.trim()]);
        let error = error.unwrap_err();
        assert!(error.contains(expected), "{error}");
    };
    let token = site.must(1, &["cluster", "token"]);
    let foreign = site.must(3, &["cluster", "token"]);
    refused(
        "10.77.0.1",
        &foreign,
        "belongs to another cluster than the token",
    );
    refused("10.77.0.1", "pindah-join.x", "this is no join token");
    let parts: Vec<&str> = token.trim().split('.').collect();
    let wrong = token.replace(parts[2], &"0".repeat(64));
    refused("10.77.0.1", &wrong, "was used, has expired, or is another");
    refused("10.77.0.9", &token, "does not let this node in");
    site.create(2, 2, "mine");
    refused("10.77.0.1", &token, "this node has 1 guests");
    site.must(2, &["guest", "delete", "mine", "--force", "--yes"]);
    // It is still good, once.
    site.must(
        2,
        &["cluster", "join", "10.77.0.1", token.trim(), "--witness"],
    );
    let error = site.pindah(3, &["cluster", "join", "10.77.0.1", token.trim()]);
    assert!(error.unwrap_err().contains("in a cluster already"));
    let error = site.pindah(
        1,
        &[
            "guest", "create", "web", "--memory", "64M", "--disk", "1M", "--node", "node2",
        ],
    );
    assert!(
        error.as_ref().unwrap_err().contains("is a witness"),
        "{error:?}"
    );
    // A network is not its business either.
    site.must(1, &["network", "create", "lan"]);
    site.must(2, &["network", "edit", "lan", "--uplink", "node2=none0"]);
    let node = site.must(2, &["node", "show", "node2"]);
    assert!(!node.contains("lan"), "{node}");
    site.assert_clean();
}
