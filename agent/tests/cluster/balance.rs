//! Moves that even out the nodes' load.

use std::fs;

use serde_json::Value;

use super::harness::{Site, host_can};
use super::programs::programs;

#[test]
fn busy_node_gives_a_guest_to_one_that_may_have_it() {
    if !host_can() {
        return;
    }
    let site = Site::new("ba", 3);
    site.wait_until_it_serves(1);
    let error = site.pindah(1, &["cluster", "balance"]).unwrap_err();
    assert!(error.contains("this node is in no cluster"), "{error}");
    site.form();
    let nas = site.path("nas");
    fs::create_dir(&nas).unwrap();
    let path = nas.to_str().unwrap();
    site.must(1, &["pool", "create", "nas", "--path", path, "--shared"]);
    let probe = programs().join("pindah-probe");
    site.must(
        1,
        &["image", "upload", probe.to_str().unwrap(), "--pool", "nas"],
    );
    // One that never rests in each pool: the first may go, the second has its disk here only.
    spin(&site, "busy", "nas", "nas/pindah-probe");
    spin(&site, "here", "local", probe.to_str().unwrap());

    // Not to a node that takes none.
    site.must(2, &["node", "drain", "node2"]);
    let mut balance = Value::Null;
    site.wait(2, "it does not see the load", || {
        balance = site.json(2, &["cluster", "balance"]);
        balance["moves"]
            .as_array()
            .is_some_and(|moves| !moves.is_empty())
    });
    let moves = balance["moves"].as_array().unwrap();
    assert_eq!(moves.len(), 1, "{balance}");
    assert_eq!(moves[0]["command"], "pindah guest migrate busy --to node3");
    assert!(
        moves[0]["reason"].as_str().unwrap().contains("% on node3"),
        "{balance}"
    );
    assert!(!moves[0]["forecast"].is_null(), "{balance}");
    let nodes = balance["nodes"].as_array().unwrap();
    let names: Vec<&Value> = nodes.iter().map(|node| &node["node"]).collect();
    assert_eq!(names, ["node1", "node3"], "{balance}");
    let cpu = |node: usize, when: &str| nodes[node][when]["cpu"].as_f64().unwrap();
    assert!(
        cpu(0, "now") > cpu(0, "then") && cpu(1, "now") < cpu(1, "then"),
        "{balance}"
    );

    let shown = site.must(2, &["cluster", "balance", "--apply"]);
    assert!(
        shown.contains("pindah guest migrate busy --to node3"),
        "{shown}"
    );
    assert_eq!(site.json(1, &["guest", "show", "busy"])["node"], "node3");
    site.wait(3, "it is not even yet", || {
        let balance = site.json(3, &["cluster", "balance"]);
        let measured = balance["nodes"][1]["now"]["cpu"].as_f64() > Some(0.0);
        measured && balance["moves"].as_array().is_some_and(Vec::is_empty)
    });
    for guest in ["busy", "here"] {
        site.must(1, &["guest", "delete", guest, "--force", "--yes"]);
    }
    site.assert_clean();
}

fn spin(site: &Site, name: &str, pool: &str, kernel: &str) {
    let create = ["guest", "create", name, "--memory", "64M", "--disk", "1M"];
    let rest = ["--no-network", "--cmdline", "ws_mib=4 spin=1", "--start"];
    let place = ["--pool", pool, "--kernel", kernel, "--node", "node1"];
    site.must(1, &[&create[..], &rest, &place].concat());
}
