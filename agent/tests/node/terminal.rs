//! `pindah`, as a person types it.

use std::io::Write;
use std::process::{Command, Stdio};

use serde_json::Value;

use super::harness::{Agent, kvm_opens};
use super::programs::{pindah, programs};

#[tokio::test]
async fn guest_is_created_listed_shown_stopped_and_deleted() {
    if !kvm_opens() {
        return;
    }
    let agent = Agent::start().await;
    let probe = programs().join("pindah-probe");
    let create = [
        "guest",
        "create",
        "web",
        "--memory",
        "64M",
        "--disk",
        "8M",
        "--no-network",
        "--kernel",
        probe.to_str().unwrap(),
        "--cmdline",
        "ws_mib=4",
        "--tag",
        "test",
        "--start",
    ];
    let (ok, output, error) = agent.pindah(&create);
    assert!(ok, "{error}\n{}", agent.log());
    assert_eq!(output, "");
    let (_, list, _) = agent.pindah(&["guest", "list"]);
    let lines: Vec<&str> = list.lines().collect();
    assert!(
        lines[0].starts_with("NAME") && lines[1].starts_with("web   running"),
        "{list}"
    );
    let (_, show, _) = agent.pindah(&["guest", "show", "web"]);
    assert!(show.contains("disk0: 8 MiB qcow2 in local"), "{show}");
    let (_, json, _) = agent.pindah(&["guest", "list", "--json"]);
    let json: Value = serde_json::from_str(&json).unwrap();
    assert_eq!(json[0]["memory_mib"], 64);

    let (ok, _, error) = agent.pindah(&create);
    assert!(!ok);
    assert_eq!(
        error,
        "pindah: there is a guest web already; choose another name\n"
    );
    let (ok, output, error) = agent.pindah(&["guest", "edit", "web", "--memory", "128M"]);
    assert!(ok, "{error}");
    assert_eq!(
        output,
        "web is changed; stop and start it for all of it to count\n"
    );
    let (ok, _, error) = agent.pindah(&["guest", "delete", "web"]);
    assert!(!ok && error.contains("say --yes to delete web"), "{error}");
    let (ok, _, error) = agent.pindah(&["guest", "delete", "web", "--yes"]);
    assert!(
        !ok && error.contains("stop it first, or delete it by force"),
        "{error}"
    );
    let (ok, _, error) = agent.pindah(&["guest", "stop", "web"]);
    assert!(ok, "{error}");
    let (ok, _, error) = agent.pindah(&["guest", "delete", "web", "--yes"]);
    assert!(ok, "{error}");
    let (_, tasks, _) = agent.pindah(&["task", "list", "--json"]);
    let tasks: Value = serde_json::from_str(&tasks).unwrap();
    let kinds: Vec<&str> = tasks
        .as_array()
        .unwrap()
        .iter()
        .map(|task| task["kind"].as_str().unwrap())
        .collect();
    assert_eq!(kinds, ["delete_guest", "stop_guest", "create_guest"]);
    let id = tasks[1]["id"].as_str().unwrap();
    let (_, log, _) = agent.pindah(&["task", "log", id]);
    assert!(
        log.contains("switching it off") && log.ends_with("done\n"),
        "{log}"
    );
    let (ok, _, _) = agent.pindah(&["task", "wait", id]);
    assert!(ok);
    agent.assert_no_guests_left();
}

#[tokio::test]
async fn console_passes_what_is_typed_and_shows_what_comes() {
    if !kvm_opens() {
        return;
    }
    let agent = Agent::start().await;
    agent.upload_probe().await;
    let guest = agent.create_probe("web", "", serde_json::json!({})).await;
    agent.wait_reports(&guest, "ready", 1).await;
    let mut console = Command::new(pindah())
        .args(["guest", "console", "web"])
        .env("PINDAH_CONTEXT", agent.context())
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut stdin = console.stdin.take().unwrap();
    stdin.write_all(b"status\n").unwrap();
    agent.wait_reports(&guest, "status", 1).await;
    tokio::time::sleep(std::time::Duration::from_millis(300)).await;
    // Ctrl-] leaves it, and the guest runs on.
    stdin.write_all(b"\x1dpoweroff\n").unwrap();
    let output = console.wait_with_output().unwrap();
    assert!(output.status.success());
    let shown = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(shown.contains("\"ev\":\"status\""), "{shown}");
    let beats = agent.reports(&guest, "beat").len();
    agent.wait_reports(&guest, "beat", beats + 2).await;
}

#[tokio::test]
async fn errors_say_what_to_do_next() {
    let agent = Agent::start().await;
    for (arguments, expected) in [
        (
            &["guest", "show", "web"][..],
            "there is no guest web; `pindah guest list` shows",
        ),
        (&["guest", "show", "../x"], "cannot be a name"),
        (
            &["guest", "create", "web", "--memory", "512"],
            "needs a unit, as in 512M",
        ),
        (
            &["guest", "create", "Web", "--memory", "64M"],
            "must be 1 to 63 lower-case letters",
        ),
        (
            &["guest", "create", "web", "--memory", "64M"],
            "must have at least one disk to boot from, or the guest a kernel",
        ),
        (
            &[
                "guest",
                "create",
                "web",
                "--memory",
                "64M",
                "--image",
                "/no/such/file",
            ],
            "there is no file /no/such/file",
        ),
        (
            &["--context", "/no/such/file", "node", "list"],
            "Start pindahd on this machine",
        ),
        (&["guest", "explode"], "unrecognized subcommand"),
    ] {
        let (ok, _, error) = agent.pindah(arguments);
        assert!(!ok && error.contains(expected), "{arguments:?}: {error}");
    }
    let (ok, completions, _) = agent.pindah(&["completions", "bash"]);
    assert!(ok && completions.contains("pindah"));
}
