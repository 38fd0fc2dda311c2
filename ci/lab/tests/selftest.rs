//! The lab itself: servers, their commands, their network.

use std::time::Duration;

use pindah_lab::Lab;
use pindah_lab::network::HOST_ADDRESS;

#[test]
#[ignore = "lab"]
fn server_plain_has_kvm_and_runs_commands() {
    let lab = Lab::new("selftest-server").unwrap();
    let server = lab.server("a").start().unwrap();

    assert_eq!(server.check("hostname").unwrap(), "a\n");
    server
        .check("test -c /dev/kvm && lsmod | grep -q kvm_amd")
        .unwrap();

    let output = server.run("echo out; echo err >&2; exit 7").unwrap();
    assert_eq!((output.status, output.text().as_ref()), (7, "out\n"));
    assert_eq!(output.error_text(), "err\n");
    assert_eq!(server.run("kill -9 $$").unwrap().status, 128 + 9);
    let missing = server.spawn(&["/no/such/program"]).unwrap();
    let message = missing
        .wait(Duration::from_secs(60))
        .unwrap_err()
        .to_string();
    assert!(message.contains("/no/such/program"), "{message}");

    let bytes: Vec<u8> = (0..3_000_000_u32)
        .map(|i| (i.wrapping_mul(i) >> 5) as u8)
        .collect();
    server.put("/root/bytes", &bytes).unwrap();
    assert!(
        server.get("/root/bytes").unwrap() == bytes,
        "bytes changed on the way"
    );

    let late = server.run_within(Duration::from_secs(3), "echo begun; sleep 1000");
    let message = late.unwrap_err().to_string();
    assert!(
        message.contains("did not end within 3s") && message.contains("begun"),
        "{message}"
    );
    server
        .wait_until("its end", Duration::from_secs(60), "! pgrep -x sleep")
        .unwrap();
}

#[test]
#[ignore = "lab"]
fn servers_on_one_switch_reach_each_other_and_the_host() {
    let lab = Lab::new("selftest-switch").unwrap();
    let servers = ["a", "b"].map(|name| lab.server(name));
    let [a, b] = pindah_lab::start_all(servers).unwrap();

    a.check(&format!("ping -c 2 -W 10 {}", b.address()))
        .unwrap();
    b.check(&format!("ping -c 2 -W 10 {HOST_ADDRESS}")).unwrap();
    lab.network()
        .run(&format!("ping -c 2 -W 10 {}", a.address()))
        .unwrap();

    lab.network()
        .run(&format!("ip link set dev {} down", b.tap()))
        .unwrap();
    let cut = a.run(&format!("ping -c 1 -W 2 {}", b.address())).unwrap();
    assert_ne!(cut.status, 0, "the cable is pulled, but ping gets through");
    lab.network()
        .run(&format!("ip link set dev {} up", b.tap()))
        .unwrap();
    a.wait_until(
        "the cable's return",
        Duration::from_secs(60),
        &format!("ping -c 1 -W 2 {}", b.address()),
    )
    .unwrap();

    b.kill();
    let message = b.run("true").unwrap_err().to_string();
    assert!(message.contains("server b"), "{message}");
    assert_eq!(a.check("echo alive").unwrap(), "alive\n");
}

#[test]
#[ignore = "lab"]
fn host_as_a_server_runs_commands_that_end_with_it() {
    let lab = Lab::new("selftest-host").unwrap();
    let host = lab.host().unwrap();
    host.check(&format!("ip -o addr show br0 | grep -qw {HOST_ADDRESS}"))
        .unwrap();
    host.check(&format!("test -x {}", host.program("pindah-lab-agent")))
        .unwrap();
    let marker = "86400.5";
    let sleep = host.spawn(&[
        "sh",
        "-c",
        &format!("setsid sleep {marker} & echo begun; wait"),
    ]);
    sleep
        .unwrap()
        .wait_for_text("begun", Duration::from_secs(60))
        .unwrap();
    drop(host);
    // It ends soon after its process namespace; asks for at most a minute.
    let ended = format!(
        "for i in $(seq 600); do pgrep -xf 'sleep {marker}' || exit 0; sleep 0.1; done; exit 1"
    );
    lab.network().run(&ended).unwrap();
}
