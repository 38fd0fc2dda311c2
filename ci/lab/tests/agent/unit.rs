//! The agent as a unit of systemd, and its guests as units beside it.

use anyhow::{Context, Result, ensure};
use pindah_lab::Lab;
use pindah_lab::guest::BOOT_LIMIT;
use pindah_lab::nas::EXPORT;
use pindah_lab::network::HOST_ADDRESS;

use crate::node::{ACTION_LIMIT, Node};
use crate::office::{start_small, upload_small, wait_pool};
use crate::turn;

/// What the agent has started that goes on without it.
const OTHERS: [&str; 2] = ["etcd", "dnsmasq"];
/// Whether the agent's unit has started again by itself.
const STARTED_AGAIN: &str =
    "test $(systemctl show --value -p NRestarts pindahd) = 1 && systemctl is-active pindahd";

/// The guest shuts down when somebody presses its button, and says so on its disk.
const HEAR_THE_BUTTON: &str = "for e in /dev/input/event*; do \
    (head -c 24 $e >/dev/null; echo heard >/root/heard; sync; poweroff -f) & done; echo listening";

fn create(node: &Node) -> Result<()> {
    node.pindah(
        "guest create web --memory 128M --cpu-weight 50 --cpu-limit 40% --pool nas \
         --image nas/small.raw --kernel nas/vmlinuz --initrd nas/initramfs \
         --cmdline 'console=ttyS0 quiet panic=-1 root=/dev/vda rw'",
    )
    .map(drop)
}

fn pid(node: &Node) -> Result<u64> {
    let guest = node.guest("web")?;
    guest["pid"].as_u64().context("it has a process")
}

fn scope(node: &Node) -> Result<String> {
    let guest = node.guest("web")?;
    let uuid = guest["uuid"].as_str().context("it has a UUID")?;
    Ok(format!("pindah-guest-{uuid}.scope"))
}

/// The control group of a process.
fn group(node: &Node, pid: u64) -> Result<String> {
    let said = node.server().check(&format!("cat /proc/{pid}/cgroup"))?;
    let group = said.trim().strip_prefix("0::").context(said.clone())?;
    Ok(group.to_owned())
}

/// The guest's VMM is in a scope of its own, which goes down before what it lives on, and is nobody of
/// importance.
fn is_contained(node: &Node) -> Result<()> {
    let (pid, scope) = (pid(node)?, scope(node)?);
    let group = group(node, pid)?;
    ensure!(
        group == format!("/pindah.slice/{scope}"),
        "it is in {group}"
    );
    let server = node.server();
    let shown = node.systemctl(&format!("show -p ActiveState,Description,Before {scope}"))?;
    for line in ["ActiveState=active", "Description=Guest web"] {
        ensure!(shown.lines().any(|one| one == line), "{shown}");
    }
    ensure!(shown.contains("pindahd.service"), "{shown}");
    let who = server.check(&format!("stat -c %U /proc/{pid}"))?;
    ensure!(who.trim() == "pindah-vmm", "it is {who}");
    let status = server.check(&format!("grep CapEff /proc/{pid}/status"))?;
    ensure!(status.trim().ends_with("\t0000000000000000"), "{status}");
    let oom = server.check(&format!("cat /proc/{pid}/oom_score_adj"))?;
    ensure!(oom.trim() == "0", "its OOM score is {oom}");
    Ok(())
}

/// What the kernel was told of its processors.
fn is_limited(node: &Node, weight: &str, max: &str) -> Result<()> {
    let directory = format!("/sys/fs/cgroup{}", group(node, pid(node)?)?);
    let command = format!("cat {directory}/cpu.weight {directory}/cpu.max");
    let said = node.server().check(&command)?;
    let said: Vec<&str> = said.lines().collect();
    ensure!(said == [weight, max], "its limits are {said:?}");
    Ok(())
}

/// What must be the same after the agent has been away.
fn standing(node: &Node) -> Result<Vec<String>> {
    let server = node.server();
    let mut standing = vec![pid(node)?.to_string(), scope(node)?];
    for name in OTHERS {
        standing.push(server.check(&format!("pgrep -x {name}"))?);
    }
    standing.push(server.check("grep ' nfs4 ' /proc/1/mounts")?);
    standing.push(server.check("ls /sys/class/net/pindah0/brif")?);
    let boot = "cat /proc/sys/kernel/random/boot_id";
    let boot = node.console("web")?.run(boot, ACTION_LIMIT)?.ok()?;
    standing.push(boot.text().into_owned());
    is_contained(node)?;
    Ok(standing)
}

/// The agent ends in each way in which it can, and the next one finds all as it was.
fn outlives_the_agent(node: &mut Node) -> Result<()> {
    let before = standing(node)?;
    let same = |node: &Node, how: &str| {
        let after = standing(node)?;
        ensure!(before == after, "{how}: {before:#?} is {after:#?}");
        let guest = node.guest("web")?;
        ensure!(
            guest["state"] == "running" && guest["crashes"] == 0,
            "{guest}"
        );
        Ok(())
    };
    node.systemctl("restart pindahd")?;
    same(node, "restarted")?;

    node.kill_agent()?;
    let again = node
        .server()
        .wait_until("the agent again", ACTION_LIMIT, STARTED_AGAIN);
    node.explain(again)?;
    same(node, "killed")?;

    let vmm = pid(node)?;
    node.systemctl("stop pindahd")?;
    node.server().check(&format!("test -d /proc/{vmm}"))?;
    node.start_agent()?;
    same(node, "stopped and started")
}

/// Whether the guest starts takes no longer for a bus that says nothing, and who has started
/// without it has a scope later.
fn starts_without_the_bus(node: &mut Node) -> Result<()> {
    let scope = scope(node)?;
    node.pindah("guest stop web --force")?;
    let shown = node.systemctl(&format!("show --value -p LoadState {scope}"))?;
    ensure!(shown == "not-found", "its scope is {shown}");

    node.systemctl("kill --signal STOP dbus")?;
    let started = start_small(node, "web");
    node.systemctl("kill --signal CONT dbus")?;
    started?;
    let complaint = "journalctl -b -u pindahd | grep 'guest web: systemd does not answer'";
    let complained = node.server().check(complaint);
    node.explain(complained)?;
    let group = group(node, pid(node)?)?;
    ensure!(group == "/system.slice/pindahd.service", "it is in {group}");
    node.systemctl("restart pindahd")?;
    is_contained(node)
}

#[test]
#[ignore = "lab"]
fn agent_is_a_unit_and_its_guests_are_others() {
    let _turn = turn();
    let lab = Lab::new("agent-unit").unwrap();
    let _nas = lab.nas().unwrap();
    let mut node = Node::with_systemd(&lab, "node1").unwrap();
    node.pindah("cluster init").unwrap();
    let pool = format!("pool create nas --kind nfs --server {HOST_ADDRESS} --export {EXPORT}");
    node.pindah(&pool).unwrap();
    wait_pool(&node, "node1", "ready").unwrap();
    upload_small(&lab, &node, "nas").unwrap();
    create(&node).unwrap();
    start_small(&node, "web").unwrap();
    is_contained(&node).unwrap();
    is_limited(&node, "50", "40000 100000").unwrap();
    node.pindah("guest edit web --cpu-weight 200 --cpu-limit none")
        .unwrap();
    is_limited(&node, "200", "max 100000").unwrap();

    outlives_the_agent(&mut node).unwrap();
    is_limited(&node, "200", "max 100000").unwrap();
    starts_without_the_bus(&mut node).unwrap();

    // The host goes down in order: its guest hears of it first, and is back with the host.
    let mut console = node.console("web").unwrap();
    let listen = console.run(HEAR_THE_BUTTON, ACTION_LIMIT).unwrap();
    assert_eq!(listen.ok().unwrap().text(), "listening\n");
    drop(console);
    node.shut_down().unwrap();
    node.power_on(&lab).unwrap();
    let guest = node.wait_state("web", "running").unwrap();
    assert_eq!(guest["crashes"], 0, "{guest}");
    is_contained(&node).unwrap();
    let mut console = node.console("web").unwrap();
    node.explain(console.wait_ready(BOOT_LIMIT)).unwrap();
    let heard = console.run("cat /root/heard", ACTION_LIMIT).unwrap();
    assert_eq!(heard.ok().unwrap().text(), "heard\n");
}
