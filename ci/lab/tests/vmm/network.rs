//! A guest on a tap, the server's bridge and the lab's switch.

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::time::Duration;

use pindah_lab::Flavour::{Cloud, Generic};
use pindah_lab::Kernel;
use pindah_lab::network::HOST_ADDRESS;
use pindah_vmm_api::VhostMode;

use crate::host::{artifacts, kernel, lab, server};

const LIMIT: Duration = Duration::from_secs(120);
const BYTES: usize = 4 << 20;

/// Pings both ways, then 4 MiB by TCP from the guest to the host and back.
fn reaches_outside_and_back(kernel: &Kernel, number: u8, vhost: VhostMode) {
    let server = server();
    if vhost == VhostMode::On {
        server.check("modprobe vhost_net").unwrap();
    }
    let (tap, address) = (format!("net{number}"), format!("10.9.0.{}", 100 + number));
    let tap_up =
        format!("ip tuntap add {tap} mode tap vnet_hdr && ip link set dev {tap} master br0 up");
    server.check(&tap_up).unwrap();
    let guest = server
        .guest(&format!("net-{number}"))
        .kernel(artifacts(), kernel)
        .unwrap();
    let guest = guest
        .net(&tap)
        .configure(|config| config.nets[0].vhost = vhost);
    let mut guest = guest.start().unwrap();
    guest.wait_ready().unwrap();
    guest
        .check(&format!(
            "ip addr add {address}/24 dev eth0 && ip link set eth0 up"
        ))
        .unwrap();
    guest
        .check(&format!("ping -c 3 -W 30 {HOST_ADDRESS}"))
        .unwrap();
    lab()
        .network()
        .run(&format!("ping -c 3 -W 30 {address}"))
        .unwrap();

    let listener = lab()
        .network()
        .enter(|| Ok(TcpListener::bind((HOST_ADDRESS, 0))?))
        .unwrap();
    let port = listener.local_addr().unwrap().port();
    let echo = std::thread::spawn(move || {
        let mut stream = listener.accept().unwrap().0;
        let mut bytes = vec![0; BYTES];
        stream.set_read_timeout(Some(LIMIT)).unwrap();
        stream.read_exact(&mut bytes).unwrap();
        stream.write_all(&bytes).unwrap();
    });
    guest
        .check(&format!("head -c {BYTES} /dev/urandom >/tmp/out"))
        .unwrap();
    let exchange = format!(
        "nc {HOST_ADDRESS} {port} </tmp/out | head -c {BYTES} >/tmp/in && cmp /tmp/out /tmp/in"
    );
    guest.check(&exchange).unwrap();
    echo.join().unwrap();

    guest.console().send("nc -l -p 7 -e cat").unwrap();
    let answer = lab().network().enter(|| {
        let mut stream = connect(&address)?;
        stream.write_all(b"from outside\n")?;
        let mut answer = [0; 13];
        stream.read_exact(&mut answer)?;
        Ok(answer)
    });
    assert_eq!(&answer.unwrap(), b"from outside\n");
}

/// The guest may not listen yet.
fn connect(address: &str) -> anyhow::Result<TcpStream> {
    let deadline = std::time::Instant::now() + LIMIT;
    loop {
        match TcpStream::connect((address, 7)) {
            Ok(stream) => {
                stream.set_read_timeout(Some(LIMIT))?;
                return Ok(stream);
            }
            Err(error) if std::time::Instant::now() > deadline => return Err(error.into()),
            Err(_) => std::thread::sleep(Duration::from_millis(200)),
        }
    }
}

#[test]
#[ignore = "lab"]
fn net_under_6_12_generic_reaches_outside_and_back() {
    reaches_outside_and_back(&kernel("6.12", Generic), 1, VhostMode::Off);
}

#[test]
#[ignore = "lab"]
fn net_with_vhost_under_6_1_cloud_reaches_outside_and_back() {
    reaches_outside_and_back(&kernel("6.1", Cloud), 2, VhostMode::On);
}

#[test]
#[ignore = "lab"]
fn full_net_under_6_1_generic_reaches_outside_and_back() {
    reaches_outside_and_back(&kernel("6.1", Generic), 3, VhostMode::Off);
}

#[test]
#[ignore = "lab"]
fn full_net_with_vhost_under_6_12_cloud_reaches_outside_and_back() {
    reaches_outside_and_back(&kernel("6.12", Cloud), 4, VhostMode::On);
}
