//! Console, random numbers and the balloon's statistics, as Linux's own drivers use them.

use std::path::PathBuf;
use std::time::{Duration, Instant};

use pindah_lab::Flavour::Generic;
use pindah_lab::guest::ACTION_LIMIT;
use pindah_vmm_api::{BalloonConfig, SerialConfig};

use crate::host::{artifacts, kernel, server};

const CONSOLE: &str = "/root/hvc0.log";

#[test]
#[ignore = "lab"]
fn console_random_numbers_and_balloon_statistics_serve_6_12_generic() {
    let server = server();
    let kernel = kernel("6.12", Generic);
    let guest = server.guest("small-devices");
    let guest = guest.kernel(artifacts(), &kernel).unwrap();
    let guest = guest.configure(|config| {
        config.console = Some(SerialConfig::File(PathBuf::from(CONSOLE)));
        config.balloon = Some(BalloonConfig {
            stats_interval_s: 1,
            ..BalloonConfig::default()
        });
    });
    let mut guest = guest.start().unwrap();
    guest.wait_ready().unwrap();

    guest.check("echo said on hvc0 > /dev/hvc0").unwrap();
    let random = guest.check("head -c 4096 /dev/hwrng | wc -c").unwrap();
    assert_eq!(random.trim(), "4096");

    let deadline = Instant::now() + ACTION_LIMIT;
    loop {
        let said = server.check(&format!("cat {CONSOLE}")).unwrap();
        let metrics = guest.api("GET", "/metrics", None).unwrap();
        let total = metrics["balloon"]["guest"]["total_bytes"].as_u64();
        if said.contains("said on hvc0") && total.is_some_and(|bytes| bytes > 0) {
            break;
        }
        assert!(Instant::now() < deadline, "console {said:?}, {metrics}");
        std::thread::sleep(Duration::from_millis(300));
    }
    guest.power_off().unwrap();
    server.check(&format!("rm {CONSOLE}")).unwrap();
}
