//! Roles count on every node: what one passes on is done for who asked it, and for nobody else.

use std::io::Write;
use std::path::PathBuf;
use std::process::{Command, Stdio};

use serde_json::Value;

use super::harness::{Said, Site, host_can};

/// Somebody with a token, on node 1.
struct Desk<'a> {
    site: &'a Site,
    context: PathBuf,
}

impl<'a> Desk<'a> {
    fn new(site: &'a Site, arguments: &[&str]) -> (Self, Value) {
        let made = site.json(1, &[&["token", "create", "desk"], arguments].concat());
        let context = std::fs::read(site.state(1, "admin.json")).expect("a context");
        let mut context: Value = serde_json::from_slice(&context).expect("a context");
        context["token"] = made["text"].clone();
        let path = site.path("desk.json");
        std::fs::write(&path, context.to_string()).expect("a context");
        let desk = Self {
            site,
            context: path,
        };
        (desk, made["token"]["id"].clone())
    }

    fn command(&self, arguments: &[&str]) -> Command {
        let mut command = self.site.command(1, arguments);
        command.env("PINDAH_CONTEXT", &self.context);
        command
    }

    fn pindah(&self, arguments: &[&str]) -> Said {
        let output = self.command(arguments).output().expect("pindah starts");
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        if output.status.success() {
            Ok(text(&output.stdout))
        } else {
            Err(text(&output.stderr))
        }
    }

    fn must(&self, arguments: &[&str]) -> String {
        let said = self.pindah(arguments);
        said.unwrap_or_else(|error| panic!("{arguments:?}: {error}"))
    }

    fn must_refuse(&self, arguments: &[&str]) -> String {
        let said = self.pindah(arguments);
        said.expect_err("it may not do that")
    }
}

#[test]
fn role_for_one_guest_goes_along_to_the_node_that_has_it() {
    if !host_can() {
        return;
    }
    let site = Site::new("ro", 2);
    site.form();
    for guest in ["web", "db"] {
        site.create(1, 2, guest);
        site.wait_state(1, guest, "running");
    }
    let (desk, id) = Desk::new(&site, &["--role", "operator", "--guest", "web"]);
    let id = id.as_str().expect("an id");

    // Node 2 has both, and is told what node 1 knows of who asks.
    let listed = desk.must(&["guest", "list"]);
    assert!(listed.contains("web") && !listed.contains("db"), "{listed}");
    desk.must(&["guest", "stop", "web"]);
    site.wait_state(2, "web", "stopped");
    desk.must(&["guest", "start", "web"]);
    site.wait_state(2, "web", "running");
    assert!(desk.must(&["guest", "log", "web"]).contains("\"ev\""));
    let refused = desk.must_refuse(&["guest", "delete", "web", "--force", "--yes"]);
    assert!(
        refused.contains("this needs the role admin for guest web"),
        "{refused}"
    );
    for hidden in [
        &["guest", "stop", "db"][..],
        &["guest", "log", "db"],
        &["guest", "delete", "db", "--force", "--yes"],
    ] {
        let refused = desk.must_refuse(hidden);
        assert!(refused.contains("there is no guest db"), "{refused}");
    }
    let refused = desk.must_refuse(&["node", "drain", "node2"]);
    assert!(
        refused.contains("roles for single guests only"),
        "{refused}"
    );

    // What it does is written down where it is done, in its own name.
    let audit = std::fs::read_to_string(site.state(2, "audit.log")).expect("an audit log");
    let theirs = audit
        .lines()
        .filter(|line| line.contains("\"user\":\"desk\""));
    let theirs: Vec<&str> = theirs.collect();
    let stop = theirs.iter().find(|line| line.contains("/guests/web/stop"));
    assert!(
        stop.expect("the stop").contains("\"status\":202"),
        "{stop:?}"
    );
    assert!(!theirs.iter().any(|line| line.contains("/guests/db")));

    // A console on node 2, opened through node 1, ends with the role.
    let mut console = desk.command(&["guest", "console", "web"]);
    let console = console.stdin(Stdio::piped()).stdout(Stdio::null()).spawn();
    let mut console = console.expect("pindah starts");
    let mut typed = console.stdin.take().expect("a pipe");
    typed.write_all(b"status\n").expect("it is read");
    site.wait(2, "nothing reaches the console", || {
        let log = site.pindah(2, &["guest", "log", "web"]);
        log.is_ok_and(|log| log.contains("\"ev\":\"status\""))
    });
    site.must(2, &["token", "revoke", id, "--guest", "web"]);
    site.wait(1, "the console goes on", || {
        console.try_wait().expect("a child").is_some()
    });
    let refused = desk.must_refuse(&["guest", "stop", "web"]);
    assert!(refused.contains("there is no guest web"), "{refused}");
    for guest in ["web", "db"] {
        site.must(1, &["guest", "delete", guest, "--force", "--yes"]);
    }
    site.assert_clean();
}
