//! A guest at work moves, and nobody notices.

use crate::load::{Observers, Work};
use crate::site::{Site, Traveller};

fn guest_moves_while_everybody_talks_with_it(name: &str, moves: usize) {
    let site = Site::new(name, ["max", "max"]);
    let host = site.host();
    let mut traveller = Traveller::start(&site, &|_| {});
    let booted = traveller
        .guest()
        .check("cat /proc/sys/kernel/random/boot_id")
        .unwrap();
    let mut observers = Observers::start(traveller.guest(), &host, site.directory());
    let (offset, error) = traveller.clock_offset();
    Work::wait_for_disk(&mut traveller);
    for number in 1..=moves {
        Work::look(traveller.guest());
        let downtime = traveller.move_over();
        let work = Work::look(traveller.guest());
        assert!(work.gap_ms > 0.0, "the guest saw no blackout: {work:?}");
        println!(
            "move {number}: downtime {downtime}, the guest's longest gap {:.0} ms",
            work.gap_ms
        );
        observers.wait_for_more();
    }
    Work::wait_for_disk(&mut traveller);
    let (later, later_error) = traveller.clock_offset();
    let (drift, error) = (later - offset, error + later_error);
    assert!(
        drift.abs() < 0.2 + error,
        "the clock stepped by {drift:.2} s, or up to {error:.2} s less"
    );
    let guest = traveller.guest();
    assert_eq!(
        guest.check("cat /proc/sys/kernel/random/boot_id").unwrap(),
        booted
    );
    let (gap_s, answered) = observers.pings();
    println!(
        "{answered} pings answered, at most {gap_s:.2} s apart; clock {drift:+.3} s, to within {error:.3} s"
    );
    traveller.power_off();
}

#[test]
#[ignore = "lab"]
fn guest_at_work_moves_there_and_back() {
    guest_moves_while_everybody_talks_with_it("moves", 2);
}

#[test]
#[ignore = "lab"]
fn full_guest_at_work_moves_20_times() {
    guest_moves_while_everybody_talks_with_it("moves-20", 20);
}
