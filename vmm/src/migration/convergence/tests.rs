//! A guest that writes and a link that carries, page by page.

use super::*;

const MIB: usize = 256;
const MS: Duration = Duration::from_millis(1);
const RAW: f64 = 4112.0;

/// What is simulated.
#[derive(Clone, Copy)]
struct Scene {
    /// Pages that the first round sends.
    pages: usize,
    /// Pages that the guest writes, the first ones.
    working_set: usize,
    /// Bytes of whole pages that it writes a second.
    writes: f64,
    /// In turn, or anywhere.
    random: bool,
    /// Bytes that a page takes on the wire when it is sent again.
    rewrite: f64,
    /// Whether that is known from a trial before the first round ends.
    trial: bool,
    /// Bytes a second.
    link: f64,
    fixed_cost: Duration,
    downtime: Duration,
}

const STILL: Scene = Scene {
    pages: 64 * MIB,
    working_set: 2,
    writes: 10.0 * 4096.0,
    random: false,
    rewrite: RAW,
    trial: false,
    link: 1e9,
    fixed_cost: Duration::from_micros(700),
    downtime: Duration::from_millis(25),
};

/// 64 MiB that are written at 50 MB/s.
const BUSY: Scene = Scene {
    pages: 66 * MIB,
    working_set: 64 * MIB,
    writes: 50e6,
    ..STILL
};

/// What came out.
#[derive(Debug)]
struct Outcome {
    total: Duration,
    downtime: Duration,
    rounds: usize,
    throttle: u8,
    aborted: bool,
}

#[derive(Clone, Copy, PartialEq)]
enum Page {
    Clean,
    Dirty,
    /// To be sent in this round.
    Pending,
}

struct Simulation {
    scene: Scene,
    pages: Vec<Page>,
    dirty: usize,
    now: f64,
    /// Writes that were made, and the part of one that was not.
    cursor: usize,
    owed: f64,
    throttle: u8,
    /// Pages made dirty since then.
    counted: (f64, usize),
    rate: f64,
}

impl Simulation {
    fn pass(&mut self, seconds: f64) {
        self.now += seconds;
        let share = 1.0 - f64::from(self.throttle) / 100.0;
        self.owed += self.scene.writes / 4096.0 * share * seconds;
        while self.owed >= 1.0 {
            self.owed -= 1.0;
            self.cursor = if self.scene.random {
                self.cursor
                    .wrapping_mul(6364136223846793005)
                    .wrapping_add(1442695040888963407)
            } else {
                self.cursor + 1
            };
            let at = if self.scene.random {
                self.cursor >> 33
            } else {
                self.cursor
            };
            let page = &mut self.pages[at % self.scene.working_set];
            if *page == Page::Clean {
                *page = Page::Dirty;
                self.dirty += 1;
                self.counted.1 += 1;
            }
        }
    }

    /// Measures the dirty rate since the last time.
    fn measure(&mut self) {
        let (since, pages) = self.counted;
        if self.now > since {
            self.rate = pages as f64 / (self.now - since);
        }
        self.counted = (self.now, 0);
    }
}

fn run(scene: Scene) -> Outcome {
    let mut guest = Simulation {
        scene,
        pages: vec![Page::Pending; scene.pages],
        dirty: 0,
        now: 0.0,
        cursor: 1,
        owed: 0.0,
        throttle: 0,
        counted: (0.0, 0),
        rate: 0.0,
    };
    let targets = Targets {
        downtime: scene.downtime,
        timeout: Duration::from_secs(60),
        may_leave_pages: false,
    };
    let window = (scene.link * 0.6e-3).max(16384.0);
    let mut predictions: Vec<Prediction> = Vec::new();
    let mut checked = 0.0;
    loop {
        // One round, and what is known of it every 50 ms.
        let round = predictions.len();
        let bytes_per_page = if round == 0 { RAW } else { scene.rewrite };
        let mut todo: Vec<usize> = Vec::new();
        for (number, page) in guest.pages.iter_mut().enumerate() {
            if *page != Page::Clean {
                *page = Page::Pending;
                todo.push(number);
            }
        }
        guest.dirty = 0;
        let observe = |guest: &Simulation, unsent: usize, in_flight: f64| Observation {
            unsent_bytes: (unsent as f64 * if round == 0 { RAW } else { scene.rewrite }) as u64,
            dirty_pages: guest.dirty as u64,
            dirty_pages_per_s: guest.rate,
            wire_bytes_per_page: if scene.trial || round > 0 {
                scene.rewrite
            } else {
                RAW
            },
            rewrites_measured: scene.trial || round > 0,
            send_bytes_per_s: scene.link as u64,
            in_flight_bytes: in_flight as u64,
            fixed_cost: scene.fixed_cost,
            elapsed: Duration::from_secs_f64(guest.now),
            throttle_percent: guest.throttle,
            earlier: &[],
        };
        let mut sent = 0.0;
        for (index, chunk) in todo.chunks(16).enumerate() {
            for number in chunk {
                guest.pages[*number] = Page::Clean;
            }
            sent += chunk.len() as f64 * bytes_per_page;
            guest.pass(chunk.len() as f64 * bytes_per_page / scene.link);
            let unsent = todo.len().saturating_sub((index + 1) * 16);
            if guest.now - checked >= 0.05 && unsent > 0 {
                checked = guest.now;
                guest.measure();
                let observation = observe(&guest, unsent, window);
                if let Decision::Throttle { percent } = decide(&observation, &targets) {
                    guest.throttle = percent;
                }
            }
        }
        guest.pass(100e-6);
        guest.measure();
        let observation = Observation {
            earlier: &predictions,
            ..observe(&guest, 0, window.min(sent))
        };
        let downtime = predicted_downtime(&observation);
        let decision = decide(&observation, &targets);
        let elapsed = observation.elapsed;
        let switched = decision == Decision::SwitchOver;
        if switched || matches!(decision, Decision::Abort { .. }) {
            let outcome = Outcome {
                total: elapsed + if switched { downtime } else { Duration::ZERO },
                downtime,
                rounds: predictions.len() + 1,
                throttle: guest.throttle,
                aborted: !switched,
            };
            println!("{outcome:?}");
            return outcome;
        }
        if let Decision::Throttle { percent } = decision {
            guest.throttle = percent;
        }
        predictions.push(Prediction { elapsed, downtime });
    }
}

fn assert_within(outcome: &Outcome, total: Duration, downtime: Duration) {
    assert!(!outcome.aborted && outcome.rounds <= 12, "{outcome:?}");
    assert!(outcome.total <= total, "{outcome:?}");
    assert!(outcome.downtime <= downtime, "{outcome:?}");
}

#[test]
fn idle_guest_stands_for_the_fixed_cost_only() {
    let outcome = run(STILL);
    assert_within(&outcome, 75 * MS, Duration::from_micros(800));
    let slow = run(Scene {
        link: 12e6,
        fixed_cost: 2 * MS,
        ..STILL
    });
    assert_within(&slow, 5900 * MS, Duration::from_micros(2500));
}

#[test]
fn busy_guest_on_loopback_stands_little_longer() {
    for random in [false, true] {
        let outcome = run(Scene { random, ..BUSY });
        assert_within(&outcome, 85 * MS, Duration::from_micros(1200));
        assert_eq!(outcome.throttle, 0);
    }
}

#[test]
fn busy_guest_on_1_gbit_stands_for_5_ms_at_most() {
    let gbit = Scene {
        link: 118e6,
        fixed_cost: Duration::from_micros(1500),
        ..BUSY
    };
    for random in [false, true] {
        let raw = run(Scene { random, ..gbit });
        assert_within(&raw, 1200 * MS, 5 * MS);
        let deltas = run(Scene {
            rewrite: 110.0,
            random,
            ..gbit
        });
        assert_within(&deltas, 620 * MS, 3 * MS);
        assert_eq!((raw.throttle, deltas.throttle), (0, 0));
    }
}

#[test]
fn busy_guest_with_small_differences_fits_through_100_mbit() {
    let outcome = run(Scene {
        link: 12e6,
        rewrite: 100.0,
        fixed_cost: 2 * MS,
        ..BUSY
    });
    assert_within(&outcome, 6300 * MS, 6 * MS);
    assert_eq!(outcome.throttle, 0);
}

/// 256 MiB that are written at 500 MB/s.
const HOT: Scene = Scene {
    pages: 260 * MIB,
    working_set: 256 * MIB,
    writes: 500e6,
    link: 118e6,
    fixed_cost: Duration::from_micros(1500),
    ..BUSY
};

#[test]
fn hot_guest_converges_within_3_s_on_1_gbit() {
    for random in [false, true] {
        let deltas = run(Scene {
            rewrite: 110.0,
            random,
            ..HOT
        });
        assert_within(&deltas, 3000 * MS, 20 * MS);
        assert_eq!(deltas.throttle, 0);
        // Without differences nothing but the throttle helps, and that from the first round on. A
        // guest that writes anywhere shows how fast it does so only when much of it is sent.
        let raw = run(Scene {
            trial: true,
            random,
            ..HOT
        });
        let total = if random { 5500 } else { 3000 };
        assert_within(&raw, total * MS, 20 * MS);
    }
}

#[test]
fn guest_that_writes_twice_what_the_link_carries_is_throttled() {
    for random in [false, true] {
        let outcome = run(Scene {
            writes: 236e6,
            link: 118e6,
            random,
            ..BUSY
        });
        assert_within(&outcome, 2500 * MS, 25 * MS);
        assert!((60..=99).contains(&outcome.throttle), "{outcome:?}");
    }
}

fn end_of_round(earlier: &[Prediction]) -> Observation<'_> {
    Observation {
        unsent_bytes: 0,
        dirty_pages: 10_000,
        dirty_pages_per_s: 10_000.0,
        wire_bytes_per_page: RAW,
        rewrites_measured: true,
        send_bytes_per_s: 100_000_000,
        in_flight_bytes: 0,
        fixed_cost: MS,
        elapsed: Duration::from_secs(1),
        throttle_percent: 0,
        earlier,
    }
}

const TARGETS: Targets = Targets {
    downtime: Duration::from_millis(25),
    timeout: Duration::from_secs(10),
    may_leave_pages: false,
};

#[test]
fn time_that_is_over_aborts_even_below_the_target() {
    let late = Observation {
        dirty_pages: 0,
        elapsed: TARGETS.timeout,
        ..end_of_round(&[])
    };
    let reason = AbortReason::Timeout;
    assert_eq!(decide(&late, &TARGETS), Decision::Abort { reason });
}

#[test]
fn throttle_is_chosen_so_that_the_next_round_leaves_half() {
    for (writes, now, percent) in [
        (25_000.0, 0, 60),
        (50_000.0, 0, 80),
        (200_000.0, 0, 95),
        (10_000_000.0, 0, 99),
        (24_000.0, 60, 80),
        (25_000.0, 95, 99),
    ] {
        let observation = Observation {
            dirty_pages_per_s: writes,
            throttle_percent: now,
            ..end_of_round(&[])
        };
        let decision = decide(&observation, &TARGETS);
        assert_eq!(decision, Decision::Throttle { percent }, "{writes} {now}");
    }
}

#[test]
fn throttle_at_its_limit_goes_on_until_the_time_is_over() {
    let observation = Observation {
        dirty_pages_per_s: 1e6,
        throttle_percent: 99,
        ..end_of_round(&[])
    };
    assert_eq!(decide(&observation, &TARGETS), Decision::Iterate);
}

#[test]
fn guest_that_may_leave_pages_does_so_where_it_would_be_held_and_nowhere_else() {
    let may = Targets {
        may_leave_pages: true,
        ..TARGETS
    };
    for dirty_pages in [0, 10, 600, 10_000, 100_000] {
        for writes in [0.0, 100.0, 10_000.0, 23_000.0, 25_000.0, 1e7] {
            for rewrites_measured in [false, true] {
                for unsent_bytes in [0, 1 << 20] {
                    let observation = Observation {
                        dirty_pages,
                        unsent_bytes,
                        rewrites_measured,
                        dirty_pages_per_s: writes,
                        ..end_of_round(&[])
                    };
                    let expected = match decide(&observation, &TARGETS) {
                        Decision::Throttle { .. } => Decision::LeavePages,
                        decision => decision,
                    };
                    assert_eq!(decide(&observation, &may), expected, "{observation:?}");
                }
            }
        }
    }
}

#[test]
fn fixed_cost_beyond_the_target_leaves_half_of_it_for_pages() {
    let costly = |dirty_pages| Observation {
        fixed_cost: 30 * MS,
        dirty_pages,
        dirty_pages_per_s: 1e6,
        ..end_of_round(&[])
    };
    assert_eq!(decide(&costly(0), &TARGETS), Decision::SwitchOver);
    let decision = decide(&costly(100_000), &TARGETS);
    assert!(
        matches!(decision, Decision::Throttle { .. }),
        "{decision:?}"
    );
    let quiet = Observation {
        dirty_pages_per_s: 0.0,
        ..costly(100_000)
    };
    assert_eq!(decide(&quiet, &TARGETS), Decision::Iterate);
    assert!(expected_switchover(&quiet, &TARGETS).is_some());
}

#[test]
fn unknown_send_rate_predicts_no_downtime_that_could_be_met() {
    let observation = Observation {
        send_bytes_per_s: 0,
        ..end_of_round(&[])
    };
    assert_eq!(predicted_downtime(&observation), Duration::MAX);
    assert_ne!(decide(&observation, &TARGETS), Decision::SwitchOver);
}

#[test]
fn rounds_below_the_target_end_when_they_bring_nothing() {
    let at = |ms: u32, downtime_ms: u32| Prediction {
        elapsed: ms * MS,
        downtime: downtime_ms * MS,
    };
    // 40 pages dirty: 2.6 ms predicted, and much less promised.
    let now = |earlier| Observation {
        dirty_pages: 40,
        dirty_pages_per_s: 1000.0,
        ..end_of_round(earlier)
    };
    assert_eq!(decide(&now(&[]), &TARGETS), Decision::Iterate);
    let kept_failing = [at(990, 2), at(993, 2), at(996, 2)];
    assert_eq!(decide(&now(&kept_failing), &TARGETS), Decision::SwitchOver);
    let was_better = [at(990, 1), at(993, 3), at(996, 3)];
    assert_eq!(decide(&now(&was_better), &TARGETS), Decision::Iterate);
    let long_ago = [at(500, 20)];
    assert_eq!(decide(&now(&long_ago), &TARGETS), Decision::SwitchOver);
}

#[test]
fn expected_switchover_sums_up_the_rounds() {
    // 411 ms now, growth 0.41: 411 + 169 + 69 ms until 28 ms, and one more.
    let expected = expected_switchover(&end_of_round(&[]), &TARGETS).unwrap();
    assert!(expected > 640 * MS && expected < 690 * MS, "{expected:?}");
    let hopeless = Observation {
        dirty_pages_per_s: 30_000.0,
        ..end_of_round(&[])
    };
    assert_eq!(expected_switchover(&hopeless, &TARGETS), None);
}
