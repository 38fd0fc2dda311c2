//! A node is emptied for its maintenance.

use super::harness::host_can;
use super::traveller::{Traveller, create};

#[test]
fn drained_node_is_empty_and_its_guests_come_back() {
    if !host_can() {
        return;
    }
    let traveller = Traveller::new("dr", 3, 4);
    let site = &traveller.site;
    create(site, "app", 4, &["--start"]);
    create(site, "off", 4, &[]);
    let own = ["guest", "create", "own", "--memory", "64M", "--no-network"];
    let probe = super::programs::programs().join("pindah-probe");
    let rest = [
        "--kernel",
        probe.to_str().unwrap(),
        "--disk",
        "1M",
        "--node",
        "node1",
    ];
    site.must(3, &[&own[..], &rest].concat());
    let pid = traveller.show(3)["pid"].clone();

    // What only it has keeps a guest there, and is named.
    let error = site.pindah(3, &["node", "drain", "node1"]).unwrap_err();
    assert!(
        error.contains("3 guests have left and 1 are still there: guest own:"),
        "{error}"
    );
    site.must(3, &["guest", "delete", "own", "--yes"]);
    site.must(3, &["node", "drain", "node1"]);
    traveller.wait_until_it_is_on(&["node2", "node3"], 3);
    let nodes = site.json(3, &["node", "list"]);
    assert_eq!(
        (&nodes[0]["drained"], &nodes[0]["guests"]),
        (&true.into(), &0.into()),
        "{nodes}"
    );
    for (arguments, why) in [
        (
            &["guest", "migrate", "web", "--to", "node1"][..],
            "node1 is drained",
        ),
        (&[&own[..], &rest].concat(), "node1 is drained"),
        (&["node", "drain", "node9"], "there is no node node9"),
        (&["node", "undrain", "node2"], "node2 is not drained"),
    ] {
        let error = site.pindah(2, arguments).unwrap_err();
        assert!(error.contains(why), "{arguments:?}: {error}");
    }
    site.must(2, &["guest", "delete", "off", "--yes"]);
    site.must(2, &["node", "undrain", "node1"]);
    for guest in ["web", "app"] {
        let shown = site.json(2, &["guest", "show", guest]);
        assert_eq!(shown["node"], "node1", "{shown}");
    }
    let blackout_ms = traveller.wait_until_it_beats(1, 2);
    println!("drained and back: blackout {blackout_ms:.2} ms as the guest saw it");
    assert!(blackout_ms > 0.0);
    assert_ne!(traveller.show(2)["pid"], pid);
    site.must(2, &["guest", "delete", "app", "--force", "--yes"]);
    traveller.delete(2);
}
