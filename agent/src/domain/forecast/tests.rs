use uuid::Uuid;

use super::*;

const MIB: u64 = 1 << 20;

fn known<'a>() -> MoveInputs<'a> {
    MoveInputs {
        memory_bytes: 512 * MIB,
        paused: false,
        last: None,
        moved_bytes_per_s: None,
        link_bits_per_s: None,
        cap_bytes_per_s: None,
        mode: MigrationMode::Precopy,
        downtime_target: Duration::from_millis(25),
        timeout: Duration::from_secs(600),
    }
}

/// 256 MiB that took half of that on the wire in a second, in which the guest wrote `written`.
fn last(written_mib: u64) -> LastMove {
    LastMove {
        guest: Uuid::nil(),
        from: "node1".to_owned(),
        to: "node2".to_owned(),
        ended_unix_ms: 0,
        memory_bytes: 256 * MIB,
        pass_wire_bytes: 128 * MIB,
        pass_us: 1_000_000,
        written_bytes: written_mib * MIB,
        fixed_us: 2_000,
        overhead_us: 100_000,
        capped: false,
    }
}

#[test]
fn nothing_is_foretold_without_a_speed() {
    let forecast = known().forecast();
    assert_eq!(
        (forecast.total_ms, forecast.total_uncompressed_ms),
        (None, None)
    );
    assert_eq!(
        forecast.to_string(),
        "the speed of the link is not known, so no time is foretold; how fast it writes is not \
         known before it has moved once; it is to stand for at most 25.0 ms"
    );
    assert_eq!(
        forecast.beside(1_500, 900),
        "took 1.50 s, not foretold; stood for 900 µs, aimed at 25.0 ms"
    );
}

#[test]
fn link_alone_tells_how_long_it_is_if_nothing_compresses() {
    let forecast = MoveInputs {
        link_bits_per_s: Some(1_000_000_000),
        ..known()
    }
    .forecast();
    // 536.9 MB at 117.7 MB/s.
    assert_eq!(forecast.total_uncompressed_ms, Some(4_562));
    assert_eq!((forecast.total_ms, forecast.downtime_us), (None, None));
    assert_eq!(
        forecast.to_string(),
        "4.56 s if nothing compresses, at 112 MiB/s, the speed of the link; how fast it writes \
         is not known before it has moved once, and taken for little; it is to stand for at \
         most 25.0 ms"
    );
}

#[test]
fn guest_that_has_moved_is_foretold_as_it_was() {
    let last = last(16);
    let forecast = MoveInputs {
        last: Some(&last),
        moved_bytes_per_s: Some(128 * MIB),
        link_bits_per_s: Some(1_000_000_000),
        ..known()
    }
    .forecast();
    // 2 s for all of it, 32 MiB more in 125 ms; then 2 MiB are left, in 7.8 ms.
    assert_eq!(forecast.speed_by, Some(SpeedSource::EarlierMove));
    assert_eq!(forecast.total_ms, Some(100 + 2_000 + 125 + 10));
    assert_eq!(forecast.downtime_us, Some(9_812));
    assert!(forecast.total_uncompressed_ms > Some(4_000));
    let text = forecast.to_string();
    assert!(text.starts_with("about 2.23 s if it compresses as in its last move, 4."));
    assert!(
        text.ends_with("it writes 16.0 MiB/s as in its last move; it stands for about 9.81 ms")
    );
}

#[test]
fn guest_that_writes_too_fast_is_held_or_leaves_pages() {
    let last = last(1024);
    let precopy = MoveInputs {
        last: Some(&last),
        moved_bytes_per_s: Some(128 * MIB),
        ..known()
    };
    let held = precopy.forecast();
    assert!(held.downtime_us.unwrap() <= 25_000, "{held:?}");
    // It halves what is left of 512 MiB, pass after pass: about as much again.
    let total_ms = held.total_ms.unwrap();
    assert!((3_900..4_200).contains(&total_ms), "{held:?}");
    let hybrid = MoveInputs {
        mode: MigrationMode::Hybrid,
        ..precopy
    };
    let hybrid = hybrid.forecast();
    assert_eq!(hybrid.downtime_us, Some(2_000));
    assert_eq!(hybrid.total_ms, Some(100 + 2_000 + 2 + 2_000));
}

#[test]
fn paused_guest_writes_nothing() {
    let last = last(1024);
    let paused = MoveInputs {
        paused: true,
        last: Some(&last),
        moved_bytes_per_s: Some(128 * MIB),
        ..known()
    };
    let forecast = paused.forecast();
    assert_eq!(forecast.total_ms, Some(100 + 2_000 + 2));
    assert_eq!(forecast.dirty_bytes_per_s, Some(0));
}

#[test]
fn limit_counts_if_it_is_lower_and_what_it_makes_too_long_is_said() {
    let forecast = MoveInputs {
        link_bits_per_s: Some(1_000_000_000),
        cap_bytes_per_s: Some(MIB),
        timeout: Duration::from_secs(60),
        ..known()
    }
    .forecast();
    assert_eq!(forecast.total_uncompressed_ms, Some(512_000));
    let text = forecast.to_string();
    assert!(
        text.contains("the limit that was asked for; it is given up after 1 min 0 s"),
        "{text}"
    );
    let higher = MoveInputs {
        link_bits_per_s: Some(10_000_000),
        cap_bytes_per_s: Some(100 * MIB),
        ..known()
    };
    assert_eq!(higher.forecast().speed_by, Some(SpeedSource::Link));
}

proptest::proptest! {
    #[test]
    fn all_memory_is_sent_once_and_the_downtime_target_is_kept(
        memory_mib in 1u64..100_000,
        speed in 1u64..10_000_000_000,
        written_mib in 0u64..2000,
        target_ms in 1u64..60_000,
    ) {
        let last = last(written_mib);
        let known = MoveInputs {
            memory_bytes: memory_mib * MIB,
            last: Some(&last),
            moved_bytes_per_s: Some(speed),
            downtime_target: Duration::from_millis(target_ms),
            ..known()
        };
        let forecast = known.forecast();
        let downtime_us = forecast.downtime_us.unwrap();
        assert!(downtime_us <= (target_ms * 1000).max(2_000 + target_ms * 500));
        let pass = (memory_mib * MIB) as f64 / 2.0 / speed as f64;
        assert!(forecast.total_ms.unwrap() as f64 / 1e3 + 1e-3 >= pass);
    }
}
