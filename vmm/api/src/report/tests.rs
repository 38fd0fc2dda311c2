use super::*;

#[test]
fn quantities_have_three_digits_and_a_unit() {
    for (bytes, text) in [
        (0, "0 B"),
        (1023, "1023 B"),
        (1024, "1.00 KiB"),
        (10_234, "9.99 KiB"),
        (12_897_485, "12.3 MiB"),
        (1_048_575, "1.00 MiB"),
        (u64::MAX, "16.0 EiB"),
    ] {
        assert_eq!(Bytes(bytes).to_string(), text);
    }
    for (us, text) in [
        (0, "0 µs"),
        (999, "999 µs"),
        (1240, "1.24 ms"),
        (12_345, "12.3 ms"),
        (999_499, "999 ms"),
        (999_500, "1.00 s"),
        (59_949_999, "59.9 s"),
        (59_950_000, "1 min 0 s"),
        (125_000_000, "2 min 5 s"),
        (7_500_000_000, "2 h 5 min"),
    ] {
        assert_eq!(Time(us).to_string(), text);
    }
    assert!(Time(u64::MAX).to_string().ends_with("min"));
}

#[test]
fn status_in_precopy_says_how_it_goes() {
    let mut status = MigrationStatus {
        phase: MigrationPhase::Precopy,
        elapsed_ms: 3000,
        round: 2,
        remaining_bytes: 12_897_485,
        sent_bytes: 432_013_312,
        rate_bytes_per_s: 117_440_512,
        dirty_bytes_per_s: 50_000_000,
        predicted_downtime_us: 1240,
        eta_ms: Some(3200),
        throttle_percent: 0,
        reason: None,
    };
    assert_eq!(
        StatusLine(&status).to_string(),
        "3.00 s  round 2  412 MiB sent  12.3 MiB left  writes 47.7 MiB/s  link 112 MiB/s  \
         downtime 1.24 ms  ETA 3.20 s"
    );
    status.eta_ms = None;
    status.throttle_percent = 40;
    let line = StatusLine(&status).to_string();
    assert!(
        line.ends_with("1.24 ms  ETA unknown  throttle 40 %"),
        "{line}"
    );
}

#[test]
fn status_of_a_failure_says_why_on_one_line() {
    let status = MigrationStatus {
        phase: MigrationPhase::Failed,
        elapsed_ms: 1500,
        reason: Some("no CPU\nlike this\u{1b}[2J".to_owned()),
        ..MigrationStatus::default()
    };
    assert_eq!(
        StatusLine(&status).to_string(),
        "1.50 s  failed, the guest goes on here: no CPU like this [2J"
    );
}

#[test]
fn summary_says_what_it_was() {
    let report = MigrationReport {
        total_ms: 598,
        downtime_us: 4310,
        sent_bytes: 70_254_592,
        pages: PageStatistics {
            untouched_pages: 114_176,
            zero_pages: 256,
            delta_pages: 1920,
            raw_pages: 16_896,
            wire_bytes: 69_700_000,
            ..PageStatistics::default()
        },
        rounds: vec![
            RoundReport {
                pages: 17_152,
                wire_bytes: 69_500_000,
                duration_us: 589_000,
            },
            RoundReport {
                pages: 1920,
                wire_bytes: 200_000,
                duration_us: 1700,
            },
        ],
        switchover: SwitchoverReport {
            quiesce_us: 12,
            pause_us: 95,
            last_pages_us: 310,
            save_us: 280,
            commit_us: 40,
            answer_us: 3585,
            drain_us: 1100,
            ownership_us: 0,
            restore_us: 900,
            resume_us: 60,
        },
        state_bytes: 45_000,
        throttle_percent: 0,
        postcopy: None,
    };
    let text = "\
Migrated in 598 ms: 67.0 MiB sent at 112 MiB/s on average, the guest stood for 4.31 ms
memory      446 MiB untouched, 1.00 MiB zero, 7.50 MiB differences, 66.0 MiB raw, as 66.5 MiB on the wire
round 1     67.0 MiB of memory as 66.3 MiB in 589 ms: 113 MiB/s
round 2     7.50 MiB of memory as 195 KiB in 1.70 ms: 112 MiB/s
source      quiesce 12 µs, pause 95 µs, last pages 310 µs, save 280 µs, commit 40 µs, answer 3.58 ms
destination drain 1.10 ms, ownership 0 µs, restore 900 µs, resume 60 µs
state       43.9 KiB";
    assert_eq!(Summary(&report).to_string(), text);
}

#[test]
fn summary_of_a_guest_that_left_pages_behind_says_how_they_came() {
    let mut report = MigrationReport {
        postcopy: Some(PostcopyReport {
            duration_us: 2_300_000,
            pages: 16_384,
            demanded_pages: 120,
            fault_median_us: 850,
            fault_max_us: 4200,
        }),
        ..MigrationReport::default()
    };
    let text = Summary(&report).to_string();
    let expected = "\nleft behind 64.0 MiB fetched in 2.30 s while the guest ran; it waited for 120 \
                    pages, 850 µs each in the median, 4.20 ms at most\nstate ";
    assert!(text.contains(expected), "{text}");
    report.postcopy = Some(PostcopyReport::default());
    let text = Summary(&report).to_string();
    assert!(text.contains("waited for 0 pages\nstate "), "{text}");
}

#[test]
fn summary_of_many_rounds_shows_the_first_and_the_last_ones() {
    let report = MigrationReport {
        rounds: vec![RoundReport::default(); 100],
        throttle_percent: 95,
        ..MigrationReport::default()
    };
    let text = Summary(&report).to_string();
    assert!(text.contains("vCPUs were held for up to 95 %"), "{text}");
    assert!(text.contains("\nround 1 "), "{text}");
    assert!(text.contains("88 more rounds"), "{text}");
    assert!(text.contains("\nround 90 "), "{text}");
    assert!(text.contains("\nround 100 "), "{text}");
    assert!(!text.contains("\nround 89 "), "{text}");
}
