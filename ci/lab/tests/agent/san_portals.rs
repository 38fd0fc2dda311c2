//! A SAN with two portals as a pool of two nodes on which systemd runs what Debian has for it:
//! iscsid and multipathd as they come, and the agent as a unit.

use anyhow::{Result, ensure};
use pindah_lab::guest::{BOOT_LIMIT, Console};
use pindah_lab::san::{PORTALS, San, TARGET};

use crate::node::{ACTION_LIMIT, Node};
use crate::office::{Office, start_small, upload_small};

/// Each installation makes one of its own.
fn name_initiator(node: &Node) -> Result<()> {
    let name = format!("iqn.2026-01.org.example:{}", node.name());
    let write = format!("echo InitiatorName={name} >/etc/iscsi/initiatorname.iscsi");
    node.server().check(&write)?;
    // What was read before is of no use.
    node.systemctl("try-restart iscsid").map(drop)
}

/// The node has the pool by both of its portals, and says nothing of them.
fn has_both(node: &Node) -> Result<()> {
    let name = node.name();
    node.wait_line("pool show san", &format!("^{name} *ready, [^:]* free$"))?;
    let paths = "test $(multipath -ll | grep -c 'active ready running') = 2";
    let waited = node.server().wait_until("two paths", ACTION_LIMIT, paths);
    node.explain(waited).map(drop)
}

fn run(console: &mut Console, command: &str) -> Result<String> {
    let output = console.run(command, ACTION_LIMIT)?.ok()?;
    Ok(output.text().trim().to_owned())
}

/// Writes to the disk and reads that again from it.
fn works(node: &Node, console: &mut Console) -> Result<()> {
    const WORK: &str = "head -c 2000000 /dev/urandom >/tmp/new && cp /tmp/new /root/new && sync && \
                        echo 3 >/proc/sys/vm/drop_caches && cmp /tmp/new /root/new; \
                        dmesg | grep -i 'i/o error'";
    let worked = console.run(WORK, ACTION_LIMIT);
    let said = node.explain(worked)?.text().trim().to_owned();
    ensure!(said.is_empty(), "the guest has noticed: {said}");
    Ok(())
}

/// Either portal goes, and comes back, while the guest uses the LUN.
fn outlives_either(office: &Office, san: &San, node: &Node, console: &mut Console) -> Result<()> {
    for portal in PORTALS {
        san.cut(&office.lab, portal)?;
        works(node, console)?;
        let name = node.name();
        node.wait_line(
            "pool show san",
            &format!("^{name} *ready, .* free: {portal}:3260 .*; other portals are used"),
        )?;
        works(node, console)?;
        san.mend(&office.lab)?;
        has_both(node)?;
    }
    Ok(())
}

/// All of it goes: the guest waits, and gets no error.
fn waits_for_all(office: &Office, san: &San, node: &Node, console: &mut Console) -> Result<()> {
    san.lose_power();
    console.send("cp /tmp/new /root/late; sync")?;
    let stalled = format!("^{} *stalled: {}", node.name(), PORTALS[0]);
    node.wait_line("pool show san", &stalled)?;
    // For longer than a path that is gone is waited for.
    let failed = "test $(multipath -ll | grep -c 'failed faulty') = 2";
    let waited = node.server().wait_until("no path", ACTION_LIMIT, failed);
    node.explain(waited)?;
    san.power_on(&office.lab)?;
    has_both(node)?;
    run(console, "cmp /tmp/new /root/late")?;
    works(node, console)
}

#[test]
#[ignore = "lab"]
fn full_lun_with_two_portals_outlives_either_under_systemd() {
    let mut office = Office::with_systemd("san-portals").unwrap();
    let san = office.lab.san().unwrap();
    for node in &office.nodes {
        name_initiator(node).unwrap();
        upload_small(&office.lab, node, "local").unwrap();
    }
    let [first, second] = &office.nodes;
    let [one, other] = PORTALS;
    first
        .pindah(&format!(
            "pool create san --kind iscsi --portal {one} --portal {other} --target {TARGET}"
        ))
        .unwrap();
    for node in &office.nodes {
        has_both(node).unwrap();
    }
    second
        .pindah(
            "guest create web --memory 128M --no-network --node node1 --pool san \
             --image small.raw --kernel vmlinuz --initrd initramfs \
             --cmdline 'console=ttyS0 quiet panic=-1 root=/dev/vda rw'",
        )
        .unwrap();
    let mut console = start_small(first, "web").unwrap();
    works(first, &mut console).unwrap();
    outlives_either(&office, &san, first, &mut console).unwrap();
    waits_for_all(&office, &san, first, &mut console).unwrap();
    drop(console);

    first.pindah("guest migrate web --to node2").unwrap();
    let mut console = second.console("web").unwrap();
    works(second, &mut console).unwrap();
    let sum = run(&mut console, "md5sum /root/new").unwrap();
    drop(console);

    // The host goes down in order, while what its guest needs is there.
    let [_, second] = &mut office.nodes;
    second.shut_down().unwrap();
    second.power_on(&office.lab).unwrap();
    name_initiator(second).unwrap();
    has_both(second).unwrap();
    second.wait_state("web", "running").unwrap();
    let mut console = second.console("web").unwrap();
    second.explain(console.wait_ready(BOOT_LIMIT)).unwrap();
    assert_eq!(run(&mut console, "md5sum /root/new").unwrap(), sum);
    drop(console);

    let [first, second] = &office.nodes;
    second.pindah("guest delete web --force --yes").unwrap();
    first.pindah("pool delete san").unwrap();
    for node in &office.nodes {
        let gone = "! iscsiadm -m session && ! iscsiadm -m node && test -z \"$(multipath -ll)\" && \
                    ! ls /etc/multipath/conf.d/pindah-* && ! grep ^/ /etc/multipath/wwids";
        let waited = node
            .server()
            .wait_until("nothing left of it", ACTION_LIMIT, gone);
        node.explain(waited).unwrap();
    }
}
