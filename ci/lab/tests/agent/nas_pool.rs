//! A NAS as a pool of two nodes, on Debian's kernels.

use anyhow::{Result, ensure};
use pindah_lab::nas::EXPORT;
use pindah_lab::network::HOST_ADDRESS;

use crate::node::{ACTION_LIMIT, Node};
use crate::office::{Office, create_small, start_small, upload_small};

/// What must be said of the mount in `/proc/mounts`.
const OPTIONS: [&str; 8] = [
    "nosuid",
    "nodev",
    "noexec",
    "nosymfollow",
    "vers=4.2",
    "hard",
    "noatime",
    "lookupcache=pos",
];

/// Mount point and options of the pool on this node.
fn mount(node: &Node) -> Result<Option<(String, String)>> {
    let source = format!("{HOST_ADDRESS}:{EXPORT} ");
    let mounts = node.server().check("cat /proc/mounts")?;
    let mut lines = mounts.lines().filter(|line| line.starts_with(&source));
    let fields: Option<Vec<&str>> = lines.next().map(|line| line.split(' ').collect());
    ensure!(lines.next().is_none(), "it is mounted twice:\n{mounts}");
    Ok(fields.map(|fields| (fields[1].to_owned(), fields[3].to_owned())))
}

fn is_mounted_as_it_should_be(node: &Node) -> Result<String> {
    let Some((point, options)) = mount(node)? else {
        anyhow::bail!("it is not mounted on {}", node.name());
    };
    let options: Vec<&str> = options.split(',').collect();
    for option in OPTIONS {
        ensure!(options.contains(&option), "no {option} in {options:?}");
    }
    // Whoever can write to the NAS reads nothing of the node's by it.
    let server = node.server();
    server.check(&format!("ln -sf /etc/shadow {point}/{}", node.name()))?;
    let read = server.run(&format!("cat {point}/{}", node.name()))?;
    let error = read.error_text();
    ensure!(
        error.contains("Too many levels of symbolic links"),
        "{error}"
    );
    server.check(&format!("rm {point}/{}", node.name()))?;
    Ok(point)
}

/// By what the NAS tells it from others.
fn client_id(node: &Node) -> Result<String> {
    let id = node
        .server()
        .check("cat /sys/fs/nfs/net/nfs_client/identifier")?;
    ensure!(id.starts_with("pindah-"), "{} is {id:?}", node.name());
    Ok(id)
}

#[test]
#[ignore = "lab"]
fn nas_is_one_pool_for_both_nodes() {
    let office = Office::new("nas-pool").unwrap();
    let [first, second] = &office.nodes;
    office.create_pool().unwrap();
    is_mounted_as_it_should_be(first).unwrap();
    let point = is_mounted_as_it_should_be(second).unwrap();
    assert_ne!(client_id(first).unwrap(), client_id(second).unwrap());

    // What comes by one node is there on the other one.
    upload_small(&office.lab, second, "nas").unwrap();
    create_small(second, "web", "node1", "nas").unwrap();
    let mut console = start_small(first, "web").unwrap();
    let write = "head -c 1000000 /dev/urandom >/root/data && sync && echo 3 >/proc/sys/vm/drop_caches \
                 && md5sum /root/data";
    let sum = console.run(write, ACTION_LIMIT).unwrap().ok().unwrap();
    drop(console);

    // Its disk is locked for everybody's tools, on the other node too, while it runs.
    let uuid = first.guest("web").unwrap()["uuid"].clone();
    let disk = format!("{point}/volumes/{}/disk0.qcow2", uuid.as_str().unwrap());
    let look = second
        .server()
        .run(&format!("qemu-img check {disk}"))
        .unwrap();
    let error = look.error_text().into_owned();
    assert!(error.contains("lock"), "{}{error}", look.text());

    // Off, it is the other node's to start, and has what it wrote.
    first.pindah("guest stop web --force").unwrap();
    first.pindah("guest migrate web --to node2").unwrap();
    let mut console = start_small(second, "web").unwrap();
    let later = console.run("md5sum /root/data", ACTION_LIMIT).unwrap();
    assert_eq!(later.ok().unwrap().text(), sum.text());
    drop(console);

    first.pindah("guest delete web --force --yes").unwrap();
    first.pindah("pool delete nas --force").unwrap();
    for node in &office.nodes {
        let gone = "! grep -q ' nfs4 ' /proc/mounts && ! ls -d /var/lib/pindah/nfs/*-*-*";
        node.explain(
            node.server()
                .wait_until("nothing mounted", ACTION_LIMIT, gone),
        )
        .unwrap();
    }
}
