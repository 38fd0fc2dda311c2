//! Servers with unlike processors.

use pindah_vmm_api::{Baseline, VmConfig};

use crate::site::{Site, Traveller};

const RICH: &str = "max";
const POOR: &str = "EPYC,+svm,+npt";

#[test]
#[ignore = "lab"]
fn guest_with_a_common_baseline_moves_to_a_poorer_processor_and_back() {
    let site = Site::new("unlike", [RICH, POOR]);
    let common = |config: &mut VmConfig| config.cpus.baseline = Baseline::V2;
    let mut traveller = Traveller::start(&site, &common);
    let flags = "grep -m1 ^flags /proc/cpuinfo";
    let shown = traveller.guest().check(flags).unwrap();
    for _ in 0..2 {
        let downtime = traveller.move_over();
        println!("moved, downtime {downtime}");
        assert_eq!(traveller.guest().check(flags).unwrap(), shown);
        traveller.guest().check("sha256sum /usr/bin/perl").unwrap();
    }
    traveller.power_off();

    // One that was shown everything stays, and the message names what is missing.
    let mut traveller = Traveller::start(&site, &|_| {});
    let (output, arriving) = traveller.try_move();
    assert_ne!(output.status, 0);
    let said = output.error_text();
    assert!(
        said.contains("lacks") && said.contains("baseline"),
        "{said}"
    );
    assert_ne!(arriving.wait_end().unwrap().status, 0);
    traveller.guest().check("true").unwrap();
    traveller.power_off();
}
