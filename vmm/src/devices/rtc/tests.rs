//! The chip against a clock of the test's, and the device around it.

use proptest::prelude::*;

use super::super::fake::FakeLine;
use super::*;

/// 2024-02-29 23:59:58 UTC, a Thursday.
const LEAP_EVENING: Duration = Duration::from_secs(1_709_251_198);
const CONFIG: CmosConfig = CmosConfig {
    ram_bytes: 5 << 30,
    vcpus: 4,
};

fn chip() -> Chip {
    Chip::new(memory(&CONFIG), LEAP_EVENING)
}

fn after(milliseconds: u64) -> Duration {
    LEAP_EVENING + Duration::from_millis(milliseconds)
}

/// Seconds, minutes, hours, weekday, day, month, year, century.
fn clock(chip: &mut Chip, now: Duration) -> [u8; 8] {
    [0, 2, 4, 6, 7, 8, 9, 0x32].map(|index| chip.read(index, now))
}

#[test]
fn clock_shows_the_hosts_time_in_bcd() {
    let mut chip = chip();
    let evening = [0x58, 0x59, 0x23, 0x05, 0x29, 0x02, 0x24, 0x20];
    assert_eq!(clock(&mut chip, after(0)), evening);
    let midnight = [0x00, 0x00, 0x00, 0x06, 0x01, 0x03, 0x24, 0x20];
    assert_eq!(clock(&mut chip, after(2000)), midnight);
}

#[test]
fn clock_in_binary_and_12_hours_says_pm() {
    let mut chip = chip();
    chip.write(0x0b, 0x04, after(0));
    assert_eq!(chip.read(4, after(0)), 0x8b);
    assert_eq!(chip.read(4, after(2000)), 12);
    chip.write(4, 0x8c, after(2000));
    chip.write(0x0b, 0x06, after(2000));
    assert_eq!(chip.read(4, after(2000)), 12);
}

#[test]
fn clock_that_is_set_goes_on_from_there() {
    let mut chip = chip();
    chip.write(0x0b, 0x82, after(0));
    for (index, value) in [
        (0, 0x30),
        (2, 0x15),
        (4, 0x06),
        (7, 0x01),
        (8, 0x01),
        (9, 0x00),
    ] {
        chip.write(index, value, after(500));
    }
    assert_eq!(chip.read(0, after(10_000)), 0x30);
    chip.write(0x0b, 0x02, after(10_000));
    let set = [0x31, 0x15, 0x06, 0x07, 0x01, 0x01, 0x00, 0x20];
    assert_eq!(clock(&mut chip, after(11_000)), set);
    // A single field, without holding the clock.
    chip.write(2, 0x45, after(11_000));
    assert_eq!(chip.read(2, after(11_000)), 0x45);
    assert_eq!(chip.read(0, after(12_000)), 0x32);
}

#[test]
fn update_in_progress_is_told_at_the_end_of_a_second() {
    let mut chip = chip();
    assert_eq!(chip.read(0x0a, after(0)), 0x26);
    let end = after(0) + Duration::from_micros(999_800);
    assert_eq!(chip.read(0x0a, end), 0xa6);
    assert_eq!(chip.read(0x0a, after(1000)), 0x26);
}

#[test]
fn alarm_fires_at_its_time_and_is_cleared_by_reading() {
    let mut chip = chip();
    for (index, value) in [(1, 0x05), (3, 0xff), (5, 0x00)] {
        chip.write(index, value, after(0));
    }
    chip.write(0x0b, 0x22, after(0));
    assert_eq!(chip.next_interrupt(after(0)), Some(after(7000)));
    chip.advance(after(6999));
    assert!(!chip.interrupts());
    chip.advance(after(7000));
    assert!(chip.interrupts());
    assert_eq!(chip.next_interrupt(after(7000)), None);
    assert_eq!(chip.read(0x0c, after(7000)), 0xf0);
    assert!(!chip.interrupts());
    // The next minute; then, as hour 0 is over, the next day.
    assert_eq!(chip.next_interrupt(after(7000)), Some(after(67_000)));
    let last = after((2 + 59 * 60 + 5) * 1000);
    chip.advance(last);
    chip.read(0x0c, last);
    let tomorrow = after((2 + 86_400 + 5) * 1000);
    assert_eq!(chip.next_interrupt(last), Some(tomorrow));
}

#[test]
fn alarm_that_cannot_match_never_fires() {
    let mut chip = chip();
    chip.write(5, 0x99, after(0));
    chip.write(0x0b, 0x22, after(0));
    assert_eq!(chip.next_interrupt(after(0)), None);
}

#[test]
fn periodic_interrupt_has_the_rate_that_was_set() {
    let mut chip = chip();
    chip.write(0x0b, 0x42, after(0));
    let next = chip.next_interrupt(after(0)).unwrap();
    assert_eq!(next, after(0) + Duration::from_nanos(976_563));
    chip.advance(next);
    assert!(chip.interrupts());
    chip.read(0x0c, next);
    chip.write(0x0a, 0x2f, next);
    assert_eq!(chip.next_interrupt(next), Some(after(500)));
    chip.write(0x0a, 0x20, next);
    assert_eq!(chip.next_interrupt(next), None);
}

#[test]
fn update_interrupt_comes_each_second() {
    let mut chip = chip();
    chip.write(0x0b, 0x12, after(300));
    assert_eq!(chip.next_interrupt(after(300)), Some(after(1000)));
    chip.advance(after(1000));
    assert!(chip.interrupts());
}

#[test]
fn host_clock_that_goes_back_is_survived() {
    let mut chip = chip();
    chip.advance(after(5000));
    chip.read(0x0c, after(5000));
    chip.advance(after(0));
    assert_eq!(chip.read(0x0c, after(0)), 0);
    chip.advance(after(1000));
    assert_eq!(chip.read(0x0c, after(1000)) & 0x10, 0x10);
}

#[test]
fn memory_tells_firmware_of_ram_and_vcpus() {
    let of = |ram_bytes| {
        memory(&CmosConfig {
            ram_bytes,
            vcpus: 4,
        })
    };
    let large = of(5 << 30);
    assert_eq!(large[0x34..0x36], 0xbf00_u16.to_le_bytes());
    assert_eq!(large[0x30..0x32], [0xff, 0xff]);
    assert_eq!(large[0x5b..0x5e], [0x00, 0x80, 0x00]);
    assert_eq!(large[0x5f], 3);
    let small = of(16 << 20);
    assert_eq!(small[0x34..0x36], [0, 0]);
    assert_eq!(small[0x30..0x32], (15 * 1024_u16).to_le_bytes());
}

struct Fixture {
    line: Arc<FakeLine>,
    rtc: Rtc,
}

fn fixture() -> Fixture {
    let line = Arc::new(FakeLine::default());
    let rtc = Rtc::new(&CONFIG, line.clone()).unwrap();
    Fixture { line, rtc }
}

fn write(rtc: &Rtc, index: u8, value: u8) {
    rtc.write(0, &[index]);
    rtc.write(1, &[value]);
}

fn read(rtc: &Rtc, index: u8) -> u8 {
    let mut data = [0];
    rtc.write(0, &[index]);
    rtc.read(1, &mut data);
    data[0]
}

/// Waits until the timer is readable; long, as this host may be slow.
fn wait(rtc: &Rtc) -> bool {
    let mut poll = libc::pollfd {
        fd: rtc.timer(),
        events: libc::POLLIN,
        revents: 0,
    };
    // SAFETY: one valid pollfd, whose descriptor is the device's.
    unsafe { libc::poll(&raw mut poll, 1, 60_000) == 1 }
}

/// Waits for an interrupt. One that was due already when it was enabled needs no timer.
fn wait_for_interrupt(rtc: &Rtc, line: &FakeLine) {
    if !line.level() {
        assert!(wait(rtc));
        rtc.on_timer();
    }
    assert!(line.level());
}

#[test]
fn enabled_interrupt_arms_the_timer_and_raises_the_line() {
    let Fixture { line, rtc } = fixture();
    write(&rtc, 0x0b, 0x42);
    wait_for_interrupt(&rtc, &line);
    assert_eq!(read(&rtc, 0x0c) & 0xc0, 0xc0);
    assert!(!line.level());
    assert!(wait(&rtc));
    rtc.reset();
    assert!(!line.level());
    assert_eq!(read(&rtc, 0x0b), 0x02);
}

#[test]
fn nmi_bit_of_the_index_is_ignored() {
    let Fixture { rtc, .. } = fixture();
    write(&rtc, 0x80 | 0x40, 7);
    assert_eq!(read(&rtc, 0x40), 7);
}

#[test]
fn restore_raises_a_pending_interrupt_and_keeps_the_offset() {
    let Fixture { line, rtc: source } = fixture();
    write(&source, 0x0b, 0x42);
    wait_for_interrupt(&source, &line);
    write(&source, 0x09, 0x70);
    let section = source.save().unwrap();
    let target = fixture();
    target.rtc.restore(&section).unwrap();
    assert!(target.line.level());
    assert_eq!(read(&target.rtc, 0x09), 0x70);
}

#[test]
fn restore_of_state_that_cannot_be_is_refused() {
    let Fixture { rtc, .. } = fixture();
    for (registers, offset_s) in [(127, 0), (128, i64::MAX), (128, i64::MIN)] {
        let state = State {
            index: 0,
            registers: vec![0; registers],
            offset_s,
        };
        let section = Section::new(KIND, "", VERSION, &state).unwrap();
        assert!(rtc.restore(&section).is_err());
    }
}

proptest! {
    #[test]
    fn random_accesses_survive_save_and_restore(
        accesses in prop::collection::vec((any::<u8>(), any::<u8>(), 0_u64..2), 0..60),
    ) {
        let rtc = fixture().rtc;
        for (index, value, offset) in accesses {
            write(&rtc, index, value);
            rtc.write(offset, &[value, index][..2 - offset as usize]);
            rtc.read(offset, &mut [0; 2][..2 - offset as usize]);
            rtc.on_timer();
        }
        // A clock that stands shows the same before and after.
        write(&rtc, 0x0b, 0x82);
        let section = rtc.save().unwrap();
        let restored = fixture().rtc;
        restored.restore(&section).unwrap();
        prop_assert_eq!(restored.save().unwrap(), section);
    }
}
