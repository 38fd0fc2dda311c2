//! The lab itself: servers, their commands, their network.

use std::time::{Duration, Instant};

use pindah_lab::Lab;

#[test]
#[ignore = "lab"]
fn server_plain_has_kvm_and_runs_commands() {
    let lab = Lab::new("selftest-server").unwrap();
    let start = Instant::now();
    let server = lab.server("a").start().unwrap();
    eprintln!("booted in {:?}", start.elapsed());

    assert_eq!(server.check("hostname").unwrap(), "a\n");
    server
        .check("test -c /dev/kvm && lsmod | grep -q kvm_amd")
        .unwrap();

    let output = server.run("echo out; echo err >&2; exit 7").unwrap();
    assert_eq!((output.status, output.text().as_ref()), (7, "out\n"));
    assert_eq!(output.error_text(), "err\n");
    assert_eq!(server.run("kill -9 $$").unwrap().status, 128 + 9);

    let bytes: Vec<u8> = (0..3_000_000_u32)
        .map(|i| (i.wrapping_mul(i) >> 5) as u8)
        .collect();
    server.put("/root/bytes", &bytes).unwrap();
    assert!(
        server.get("/root/bytes").unwrap() == bytes,
        "bytes changed on the way"
    );

    let late = server.run_within(Duration::from_secs(1), "echo begun; sleep 1000");
    let message = late.unwrap_err().to_string();
    assert!(
        message.contains("did not end within 1s") && message.contains("begun"),
        "{message}"
    );
    server
        .wait_until("its end", Duration::from_secs(20), "! pgrep -x sleep")
        .unwrap();
}
