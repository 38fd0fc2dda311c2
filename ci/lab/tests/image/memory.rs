//! What an idle node takes.

use std::io::Write as _;

use pindah_lab::Lab;
use pindah_lab::bare::BareServer;

use crate::{blank_disk, check_node, installed, log_in};

/// What a node of 2 GB may take for itself, etcd included (MemTotal - MemAvailable).
const TARGET_MIB: u64 = 150;

/// Processes with what is theirs alone (anonymous) and their share of the files that they have
/// mapped, in KiB; the kernel's memory; the largest modules.
const TABLE: &str = r#"printf '%9s %9s  %s\n' anon file process
for p in /proc/[0-9]*; do
    awk -v name="$(cat $p/comm 2>/dev/null)" '/^Pss_Anon:/ { a = $2 } /^Pss_File:/ { f = $2 }
        END { if (NR) printf "%9d %9d  %s\n", a, f, name }' $p/smaps_rollup 2>/dev/null
done | sort -rn
grep -E '^(MemTotal|MemFree|MemAvailable|Buffers|Cached|Shmem|AnonPages|Slab|SReclaimable|SUnreclaim|KernelStack|PageTables|Percpu|VmallocUsed)' /proc/meminfo
echo min_free_kbytes $(cat /proc/sys/vm/min_free_kbytes)
awk '{ sum += $2 } END { print "modules", NR, sum / 1024, "KiB" }' /proc/modules
sort -k2 -rn /proc/modules | head -20 | awk '{ print "  ", $1, $2 / 1024 }'
sort -k3 -rn /proc/slabinfo | awk 'NR > 2 { print $3 * $4 / 1024, $1 }' | sort -rn | head -15
"#;

fn field_mib(server: &mut BareServer, name: &str) -> u64 {
    let command = format!("awk '$1 == \"{name}:\" {{ print $2 }}' /proc/meminfo");
    server.run(&command).unwrap().parse::<u64>().unwrap() / 1024
}

#[test]
#[ignore = "lab"]
fn full_idle_node_leaves_nearly_all_memory_to_guests() {
    let lab = Lab::new("image-memory").unwrap();
    let _dhcp = lab.dhcp().unwrap();
    let mut server = installed(&lab, &blank_disk(&lab, "disk.img"))
        .start()
        .unwrap();
    log_in(&mut server);
    check_node(&mut server);
    for _ in 0..6 {
        // One command has two minutes.
        server.run("awk '{ left = 300 - $1; if (left > 60) left = 60; if (left > 0) system(\"sleep \" left) }' /proc/uptime").unwrap();
    }
    let total = field_mib(&mut server, "MemTotal");
    let used = total - field_mib(&mut server, "MemAvailable");
    let table = server.run(&format!("(\n{TABLE})"));
    let _ = writeln!(std::io::stderr(), "{}", table.unwrap());
    let _ = writeln!(
        std::io::stderr(),
        "an idle node takes {used} of {total} MiB"
    );
    assert!(used <= TARGET_MIB, "{used} MiB");
}
