//! A LUN of a SAN as a pool of two nodes, by Debian's open-iscsi and LVM on Debian's kernels.

use anyhow::{Result, ensure};
use pindah_lab::guest::Console;
use pindah_lab::network::HOST_ADDRESS;
use pindah_lab::san::{San, TARGET};

use crate::node::{ACTION_LIMIT, Node};
use crate::office::{Office, start_small, upload_small};

/// What Debian's services have done on a server of flesh and blood. Each has a name of its own
/// there. LVM leaves the names of its volumes to udev.
fn prepare(node: &Node) -> Result<()> {
    let name = format!("iqn.2026-01.org.example:{}", node.name());
    let script = format!(
        "echo InitiatorName={name} >/etc/iscsi/initiatorname.iscsi && mkdir -p /run/lock && \
         modprobe -a iscsi_tcp sd_mod dm_mod && /usr/lib/systemd/systemd-udevd --daemon && iscsid"
    );
    node.server().check(&script).map(drop)
}

fn wait_ready(node: &Node) -> Result<()> {
    node.wait_line("pool list", &format!("^san .* {} *ready", node.name()))
}

/// The volumes that are active on this node.
fn active(node: &Node) -> Result<String> {
    let listed = node
        .server()
        .check("ls /dev/pindah-san 2>/dev/null; true")?;
    Ok(listed.trim().to_owned())
}

/// It becomes active where its guest is, and goes where it was.
fn is_active_on(node: &Node, other: &Node, volume: &str) -> Result<()> {
    let here = active(node)?;
    ensure!(here == volume, "{} has {here:?}", node.name());
    let gone = "test -z \"$(ls /dev/pindah-san 2>/dev/null)\"";
    let waited = other.server().wait_until("it inactive", ACTION_LIMIT, gone);
    other.explain(waited).map(drop)
}

fn run(console: &mut Console, command: &str) -> Result<String> {
    let output = console.run(command, ACTION_LIMIT)?.ok()?;
    Ok(output.text().trim().to_owned())
}

/// What is read comes from the disk.
const SUM: &str = "sync; echo 3 >/proc/sys/vm/drop_caches; md5sum /root/data";

/// The target restarts while the guest writes: both wait, and nothing else does.
fn outlives_the_target(
    office: &Office,
    san: &San,
    node: &Node,
    console: &mut Console,
) -> Result<()> {
    san.lose_power();
    console
        .send("dd if=/dev/urandom of=/root/more bs=64k count=16 conv=fsync && md5sum /root/more")?;
    node.wait_line(
        "pool show san",
        &format!("{} *stalled: {HOST_ADDRESS}", node.name()),
    )?;
    let answer_s = node.answer_s("/guests")?;
    ensure!(answer_s < 5.0, "the API takes {answer_s} s");
    let guest = node.guest("web")?;
    ensure!(guest["state"] == "running", "{guest}");
    san.power_on(&office.lab)?;
    wait_ready(node)?;
    run(console, "md5sum /root/more").map(drop)
}

#[test]
#[ignore = "lab"]
fn full_lun_is_one_pool_for_both_nodes_and_guests_move_on_it() {
    let office = Office::new("san-pool").unwrap();
    let san = office.lab.san().unwrap();
    let [first, second] = &office.nodes;
    for node in &office.nodes {
        prepare(node).unwrap();
        upload_small(&office.lab, node, "local").unwrap();
    }
    first
        .pindah(&format!(
            "pool create san --kind iscsi --portal {HOST_ADDRESS} --target {TARGET}"
        ))
        .unwrap();
    for node in &office.nodes {
        wait_ready(node).unwrap();
    }
    // What is owed to it waits for ever.
    let queues = "cat /sys/class/iscsi_session/session*/recovery_tmo";
    assert_eq!(first.server().check(queues).unwrap().trim(), "off");

    second
        .pindah(
            "guest create web --memory 128M --no-network --node node1 --pool san \
             --image small.raw --kernel vmlinuz --initrd initramfs \
             --cmdline 'console=ttyS0 quiet panic=-1 root=/dev/vda rw'",
        )
        .unwrap();
    assert_eq!(active(first).unwrap(), "");
    let mut console = start_small(first, "web").unwrap();
    let guest = first.guest("web").unwrap();
    let uuid = guest["uuid"].as_str().unwrap().replace('-', "");
    let volume = format!("{uuid}.disk0.raw");
    is_active_on(first, second, &volume).unwrap();
    let write = "head -c 1000000 /dev/urandom >/root/data";
    run(&mut console, write).unwrap();
    let sum = run(&mut console, SUM).unwrap();
    // Its disk has 64 MiB, and grows by whole extents under it.
    second.pindah("guest disk resize web disk0 70M").unwrap();
    let sectors = run(&mut console, "cat /sys/block/vda/size").unwrap();
    assert_eq!(sectors, (72 * 2048).to_string());
    drop(console);

    first.pindah("guest migrate web --to node2").unwrap();
    is_active_on(second, first, &volume).unwrap();
    let mut console = second.console("web").unwrap();
    assert_eq!(run(&mut console, SUM).unwrap(), sum);
    outlives_the_target(&office, &san, second, &mut console).unwrap();
    assert_eq!(run(&mut console, SUM).unwrap(), sum);
    drop(console);

    second.pindah("guest delete web --force --yes").unwrap();
    assert_eq!(active(second).unwrap(), "");
    first.pindah("pool delete san").unwrap();
    for node in &office.nodes {
        let gone = "! iscsiadm -m session && ! iscsiadm -m node";
        let waited = node
            .server()
            .wait_until("nobody logged in", ACTION_LIMIT, gone);
        node.explain(waited).unwrap();
    }
}
