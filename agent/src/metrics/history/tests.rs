use super::*;

const GUEST: Uuid = Uuid::from_u128(7);
/// The begin of an hour.
const START_S: u64 = 1_800_000_000;

fn sample(cpu: f64) -> Bucket {
    let mut values = [Some(1e6); QUANTITIES];
    values[Quantity::CpuPercent as usize] = Some(cpu);
    Bucket::sample(values)
}

fn open() -> (tempfile::TempDir, History) {
    let directory = tempfile::tempdir().unwrap();
    let history = History::new(&directory.path().join("history.db"));
    (directory, history)
}

fn take_in(history: &History, time_s: u64, cpu: f64) {
    history.take_in(time_s, vec![(GUEST, sample(cpu))]);
}

fn cpus(history: &History, resolution: Resolution, times_s: Range<u64>) -> Vec<(u64, f64, f64)> {
    let found = history.read(GUEST, resolution, &times_s).unwrap();
    let cpu = |bucket: &Bucket| bucket.get(Quantity::CpuPercent).unwrap();
    let found = found.iter().map(|(slot, bucket)| {
        let cpu = cpu(bucket);
        (slot * resolution.slot_s(), cpu.mean, cpu.max)
    });
    found.collect()
}

#[tokio::test]
async fn every_resolution_tells_mean_and_maximum_and_the_file_keeps_them() {
    let (directory, history) = open();
    for step in 0..12 {
        take_in(&history, START_S + step * 10, step as f64);
    }
    let all = START_S..START_S + 3600;
    let minutes = [(START_S, 2.5, 5.0), (START_S + 60, 8.5, 11.0)];
    let hour = [(START_S, 5.5, 11.0)];
    assert_eq!(cpus(&history, Resolution::Live, all.clone()).len(), 12);
    assert_eq!(cpus(&history, Resolution::Minute, all.clone()), minutes);
    history.close().await;
    assert_eq!(cpus(&history, Resolution::Minute, all.clone()), minutes);
    assert_eq!(cpus(&history, Resolution::Hour, all.clone()), hour);

    // The next agent finds them, and shows a minute for each of its slots.
    let next = History::new(&directory.path().join("history.db"));
    assert_eq!(cpus(&next, Resolution::Minute, all.clone()), minutes);
    let live = cpus(&next, Resolution::Live, all.clone());
    assert_eq!((live.len(), live[11]), (12, (START_S + 110, 8.5, 11.0)));
    // The rest of the minute in which it was started counts beside what was before.
    take_in(&next, START_S + 115, 20.5);
    next.close().await;
    let minutes = cpus(&next, Resolution::Minute, all);
    assert_eq!(minutes[1], (START_S + 60, 71.5 / 7.0, 20.5).rounded());
}

trait Rounded {
    fn rounded(self) -> Self;
}

impl Rounded for (u64, f64, f64) {
    /// As the file keeps it.
    fn rounded(self) -> Self {
        (self.0, (self.1 * 10.0).round() * 0.1, self.2)
    }
}

#[tokio::test]
async fn clock_that_is_set_back_makes_no_slot_twice_and_a_gap_is_one() {
    let (_directory, history) = open();
    for (time_s, cpu) in [
        (0, 1.0),
        (60, 2.0),
        (120, 3.0),
        (60, 4.0),
        (70, 6.0),
        (240, 7.0),
    ] {
        take_in(&history, START_S + time_s, cpu);
    }
    history.close().await;
    let minutes = cpus(&history, Resolution::Minute, START_S..START_S + 300);
    let expected = [
        (0, 1.0, 1.0),
        (60, 4.0, 6.0),
        (120, 3.0, 3.0),
        (240, 7.0, 7.0),
    ];
    let expected = expected.map(|(time, mean, max)| (START_S + time, mean, max));
    assert_eq!(minutes, expected);
    // What the wrong clock called the future is not live.
    let live = cpus(&history, Resolution::Live, START_S..START_S + 300);
    let at = |time_s: u64| live.iter().find(|slot| slot.0 == START_S + time_s);
    assert_eq!(at(60), Some(&(START_S + 60, 3.0, 4.0)));
    assert_eq!(at(120), None);
}

#[tokio::test]
async fn damaged_file_is_put_aside_and_history_goes_on() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("history.db");
    std::fs::write(
        &path,
        b"no database at all, and that for more than a hundred bytes".repeat(9),
    )
    .unwrap();
    let history = History::new(&path);
    take_in(&history, START_S, 1.0);
    assert!(
        history
            .read(GUEST, Resolution::Minute, &(START_S..START_S + 60))
            .is_err()
    );
    take_in(&history, START_S + 60, 2.0);
    wait_until(|| path.with_extension("damaged").exists()).await;
    take_in(&history, START_S + 120, 3.0);
    history.close().await;
    let minutes = cpus(&history, Resolution::Minute, START_S..START_S + 300);
    assert_eq!(
        minutes.len(),
        3,
        "what was pending is not lost: {minutes:?}"
    );
}

#[tokio::test]
async fn file_that_cannot_be_written_leaves_an_hour_in_memory_and_is_tried_again() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("gone/history.db");
    let history = History::new(&path);
    for minute in 0..100 {
        take_in(&history, START_S + minute * 60, 1.0);
    }
    let all = START_S..START_S + 100 * 60;
    let in_memory = cpus(&history, Resolution::Minute, all.clone());
    assert_eq!(in_memory.len(), PENDING_MAX + 1);
    std::fs::create_dir(path.parent().unwrap()).unwrap();
    take_in(&history, START_S + 100 * 60, 1.0);
    wait_until(|| lock(&history.state).pending.is_empty()).await;
    assert!(cpus(&history, Resolution::Minute, all).len() >= PENDING_MAX);
}

async fn wait_until(condition: impl Fn() -> bool) {
    let end = Instant::now() + Duration::from_secs(30);
    while !condition() {
        assert!(Instant::now() < end);
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

#[test]
fn what_another_node_sends_is_read_or_refused() {
    let buckets = BTreeMap::from([
        (START_S / 60, sample(1.5)),
        (START_S / 60 + 90, sample(2.5)),
    ]);
    let bytes = to_wire(&buckets, Resolution::Minute);
    let read = from_wire(&bytes, Resolution::Minute).unwrap();
    assert_eq!(
        read.keys().collect::<Vec<_>>(),
        buckets.keys().collect::<Vec<_>>()
    );
    for length in 1..bytes.len() {
        let cut = from_wire(&bytes[..length], Resolution::Minute);
        assert!(cut.is_err() || cut.unwrap().len() < 2);
    }
    assert!(from_wire(&[0xff; 64], Resolution::Minute).is_err());
}

/// What is said of the file's size in the README.
#[test]
fn year_of_a_guest_takes_less_than_a_megabyte() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("history.db");
    let mut file = File::open(&path).unwrap();
    let mut seed = 1_u64;
    let mut noise = move || {
        seed = seed
            .wrapping_mul(6364136223846793005)
            .wrapping_add(1442695040888963407);
        (seed >> 40) as f64 / (1 << 24) as f64
    };
    // Fifteen days of minutes are 360 of its hours; an hour's minutes take what an hour takes.
    for minute in 0..15 * 1440 {
        let mut bucket = Bucket::default();
        for _ in 0..6 {
            let values = [0.4, 3e8, 30.0, 5e4, 2e4, 1e3, 1e4].map(|usual| Some(usual * noise()));
            bucket.merge(&Bucket::sample(values));
        }
        let number = START_S / 60 + minute;
        let of = HashMap::from([(GUEST, bucket)]);
        file.write(&Minute { number, of }).unwrap();
    }
    drop(file);
    let bytes = std::fs::metadata(&path).unwrap().len() as f64;
    let hours = 15.0 * 24.0;
    // The file holds minutes and hours of 15 days; a year has 24 times as many hours.
    let per_slot = bytes / (hours * 61.0);
    let year = per_slot * (hours * 60.0 + 365.0 * 24.0);
    println!("{year:.0} bytes a guest-year, {per_slot:.1} a slot");
    assert!(year < 1e6, "{year}");
}
