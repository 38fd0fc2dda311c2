//! What goes on without a majority, and what does not.

use std::time::{Duration, Instant};

use super::harness::{Site, host_can};

const NO_MAJORITY: &str = "most of the cluster's nodes cannot be reached";

#[test]
fn node_that_is_cut_off_shows_and_stops_its_guests_and_changes_nothing_else() {
    if !host_can() {
        return;
    }
    let site = Site::new("ma", 3);
    site.form();
    let web = site.create(1, 3, "web");
    let app = site.create(1, 3, "app");
    site.create(2, 1, "db");
    site.wait_state(3, "db", "running");
    site.cut(3);
    site.wait_majority(3, false);

    // The one that is alone: what is its own is seen and stopped, at once.
    let began = Instant::now();
    site.wait_state(3, "web", "running");
    assert!(
        began.elapsed() < Duration::from_secs(5),
        "{:?}",
        began.elapsed()
    );
    for arguments in [
        &["guest", "create", "new", "--memory", "64M", "--disk", "1M"][..],
        &["guest", "edit", "web", "--notes", "x"],
        &["token", "create", "ci"],
        &["cluster", "token"],
    ] {
        let error = site.pindah(3, arguments).unwrap_err();
        assert!(error.contains(NO_MAJORITY), "{arguments:?}: {error}");
        assert!(!error.trim().contains('\n'), "{error}");
    }
    let error = site.pindah(3, &["guest", "stop", "db"]).unwrap_err();
    assert!(error.contains("node node1 cannot be reached"), "{error}");
    site.must(3, &["guest", "stop", "web", "--force"]);
    assert!(site.runs_on(&web).is_empty());
    // Its disks are its own: it may start it again, and stop it again.
    site.must(3, &["guest", "start", "web"]);
    assert_eq!(site.runs_on(&web), ["node3"]);
    site.must(3, &["guest", "stop", "web", "--force"]);

    // The others notice nothing but that.
    site.wait_state(1, "app", "unknown");
    site.create(1, 2, "new");
    let error = site.pindah(2, &["guest", "stop", "app"]).unwrap_err();
    assert!(error.contains("node node3 cannot be reached"), "{error}");

    site.heal(3);
    site.wait_majority(3, true);
    let mut last = serde_json::Value::Null;
    site.wait(3, "what was wanted is not recorded", || {
        let web = site.json(1, &["guest", "show", "web"]);
        if web != last {
            eprintln!("node 1 shows {web}");
            last = web.clone();
        }
        web["wanted"] == "stopped" && web["state"] == "stopped"
    });
    site.wait_state(1, "app", "running");
    assert_eq!(site.runs_on(&app), ["node3"]);
    for guest in ["web", "app", "db", "new"] {
        site.must(2, &["guest", "delete", guest, "--force", "--yes"]);
    }
    site.assert_clean();
}
