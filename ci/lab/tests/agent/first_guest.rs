//! One guest, from its image to a failure of the power.

use anyhow::{Context, Result, ensure};
use pindah_lab::guest::{BOOT_LIMIT, Console};

use crate::node::{ACTION_LIMIT, Node};
use crate::site::{OUTSIDE_NAME, OUTSIDE_PORT, OUTSIDE_WORD, Site};

/// Says whether the root file system was left in order.
const WAS_CLEAN: &str = "! grep -q 'recovering journal' /run/initramfs/fsck.log && \
                         ! dmesg | grep -q 'recovery complete'";

/// Fails with the command's output unless it succeeds in the guest.
fn check(console: &mut Console, command: &str) -> Result<String> {
    let output = console.run(command, ACTION_LIMIT)?.ok()?;
    Ok(output.text().trim_end().to_owned())
}

/// Attaches to a guest that has just been started, and waits until it listens.
fn booted(node: &Node) -> Result<Console> {
    let mut console = node.console("web")?;
    let ready = console.wait_ready(BOOT_LIMIT);
    node.explain(ready)?;
    Ok(console)
}

fn boot_id(console: &mut Console) -> Result<String> {
    check(console, "cat /proc/sys/kernel/random/boot_id")
}

/// The guest's address, as soon as the agent shows one.
fn address(node: &Node) -> Result<String> {
    let show = "pindah guest show web | grep '^addresses *[0-9]'";
    let shown = node.server().wait_until("an address", ACTION_LIMIT, show);
    let shown = node.explain(shown)?.text().into_owned();
    let address = shown.split_whitespace().nth(1).context("an address")?;
    Ok(address.to_owned())
}

/// The page comes from the guest, and the guest reaches what the server does, by name.
fn serves_and_reaches_outside(node: &Node, console: &mut Console) -> Result<()> {
    let address = address(node)?;
    let fetch = format!("curl -sS --max-time 20 http://{address}/");
    let page = node
        .server()
        .wait_until("the guest's page", ACTION_LIMIT, &fetch);
    let page = page?.text().into_owned();
    ensure!(page.contains("It moves"), "the guest serves {page:?}");
    let listen = format!("bash -c 'cat </dev/tcp/{OUTSIDE_NAME}/{OUTSIDE_PORT}'");
    let word = check(console, &listen)?;
    ensure!(word == OUTSIDE_WORD, "outside says {word:?}");
    Ok(())
}

/// The agent is killed; the guest, and who it is, stay.
fn outlives_the_agent(node: &mut Node) -> Result<Console> {
    let before = node.guest("web")?;
    node.kill_agent()?;
    node.start_agent()?;
    let after = node.guest("web")?;
    for field in ["state", "pid", "uuid", "addresses"] {
        let (before, after) = (&before[field], &after[field]);
        ensure!(before == after, "{field} was {before} and is {after}");
    }
    node.console("web")
}

/// A reboot from inside is another boot of the same guest, in the same process.
fn reboots(node: &Node, console: &mut Console) -> Result<()> {
    let (before, boot) = (node.guest("web")?, boot_id(console)?);
    console.send("systemctl reboot")?;
    console.wait_ready(BOOT_LIMIT)?;
    ensure!(boot_id(console)? != boot, "it has not booted");
    let after = node.guest("web")?;
    for field in ["state", "pid", "uuid", "crashes"] {
        let (before, after) = (&before[field], &after[field]);
        ensure!(before == after, "{field} was {before} and is {after}");
    }
    check(console, WAS_CLEAN).map(drop)
}

/// Asked by the power button it shuts down, and is not switched off.
fn stops_when_asked(node: &Node) -> Result<()> {
    node.pindah("guest stop web")?;
    let guest = node.guest("web")?;
    ensure!(
        guest["state"] == "stopped" && guest["wanted"] == "stopped",
        "{guest}"
    );
    let tasks: Vec<serde_json::Value> = serde_json::from_str(&node.pindah("--json task list")?)?;
    let stop = tasks.iter().find(|task| task["kind"] == "stop_guest");
    let id = stop
        .and_then(|task| task["id"].as_str())
        .context("a task")?;
    let log = node.pindah(&format!("task log {id}"))?;
    ensure!(!log.contains("switching it off"), "it was killed:\n{log}");
    Ok(())
}

/// What shuts itself down is off, and is meant to be.
fn is_off_by_its_own_doing(node: &Node) -> Result<()> {
    let guest = node.wait_state("web", "stopped")?;
    ensure!(guest["wanted"] == "stopped", "{guest}");
    ensure!(guest["reason"] == "the guest shut itself down", "{guest}");
    Ok(())
}

#[test]
#[ignore = "lab"]
fn first_guest_lives_as_its_owner_expects() {
    let mut site = Site::new("agent").unwrap();
    let image = site.lab.artifacts().boot_disk().unwrap();
    let node = &mut site.node;
    let image = node.server().artifact(&image);
    let upload = format!("image upload {} --name debian.qcow2", image.display());
    node.pindah(&upload).unwrap();
    node.pindah("guest create web --memory 256M --image debian.qcow2 --start")
        .unwrap();
    let mut console = booted(node).unwrap();
    serves_and_reaches_outside(node, &mut console).unwrap();
    drop(console);

    let mut console = outlives_the_agent(node).unwrap();
    reboots(node, &mut console).unwrap();
    console.send("systemctl poweroff").unwrap();
    is_off_by_its_own_doing(node).unwrap();

    node.pindah("guest start web").unwrap();
    let mut console = booted(node).unwrap();
    check(&mut console, WAS_CLEAN).unwrap();
    let boot = boot_id(&mut console).unwrap();
    stops_when_asked(node).unwrap();

    node.pindah("guest start web").unwrap();
    node.server().check("sync").unwrap();
    node.lose_power();
    node.power_on(&site.lab).unwrap();
    node.wait_state("web", "running").unwrap();
    let mut console = booted(node).unwrap();
    assert_ne!(boot_id(&mut console).unwrap(), boot);
    serves_and_reaches_outside(node, &mut console).unwrap();
}
