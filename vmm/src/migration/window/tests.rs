//! A link in a box: one queue, a destination behind it, and a stranger who pings.

use std::{collections::VecDeque, time::Duration};

use super::*;

const MBIT: f64 = 1e6 / 8.0;
const US: f64 = 1e-6;

/// What is simulated. Times in seconds, rates in bytes a second.
struct Scene {
    /// From when on, how fast.
    link: Vec<(f64, f64)>,
    /// There and back without any queue.
    rtt: f64,
    /// How fast the destination puts in place what has arrived.
    apply: f64,
    /// Time for which the destination is now and then off the processor, and how often.
    stall: f64,
    stall_share: f64,
    /// From an ACK to the sender's next frame, at most.
    wake: f64,
    length: f64,
}

impl Scene {
    fn new(rate: f64, rtt: f64) -> Self {
        Self {
            link: vec![(0.0, rate)],
            rtt,
            apply: 4e9,
            stall: 0.0,
            stall_share: 0.0,
            wake: 10.0 * US,
            length: 2.0,
        }
    }

    fn rate_at(&self, now: f64) -> f64 {
        let (_, rate) = self.link.iter().rfind(|(from, _)| *from <= now).unwrap();
        *rate
    }
}

/// What came out.
#[derive(Debug)]
struct Outcome {
    /// Share of what the link could have carried.
    utilisation: f64,
    /// What a ping waits, in seconds, the shortest first.
    queue: Vec<f64>,
    /// How long the destination would take for what is on its way at most times (99 of 100).
    debt: f64,
    window: Window,
}

impl Outcome {
    fn p99(&self) -> f64 {
        self.queue[self.queue.len() * 99 / 100]
    }
}

/// A sequence that looks random and is the same each time.
struct Dice(u64);

impl Dice {
    /// From 0 to 1.
    fn roll(&mut self) -> f64 {
        self.0 = self
            .0
            .wrapping_mul(6364136223846793005)
            .wrapping_add(1442695040888963407);
        (self.0 >> 40) as f64 / (1u64 << 24) as f64
    }
}

fn run(scene: &Scene) -> Outcome {
    let at = Duration::from_secs_f64;
    let mut dice = Dice(1);
    let mut window = Window::new(Duration::ZERO);
    let mut acks: VecDeque<(f64, u64, f64)> = VecDeque::new();
    // When frames enter the link, and until when it is busy with them.
    let mut frames: VecDeque<(f64, f64)> = VecDeque::new();
    let mut link_busy = 0.0f64;
    // Until when the kernel holds back what comes next.
    let mut left = 0.0f64;
    let (mut link_rtt, mut link_min) = (scene.rtt, f64::INFINITY);
    let (mut now, mut link_free, mut apply_free) = (0.0f64, 0.0f64, 0.0f64);
    let (mut sent, mut acked, mut capacity) = (0u64, 0u64, 0.0f64);
    let (mut queue, mut debts, mut next_ping) = (Vec::new(), Vec::new(), 0.0f64);
    while now < scene.length {
        let frame = window.frame_bytes() as u64;
        if window.available() >= frame {
            window.on_sent(at(now), frame);
            sent += frame;
            let paced = window.pace().map_or(0.0, |pace| frame as f64 / pace as f64);
            let leaves = now.max(left);
            left = leaves + paced;
            link_free = link_free.max(leaves) + frame as f64 / scene.rate_at(leaves.max(link_free));
            frames.push_back((leaves, link_free));
            let arrival = link_free + scene.rtt / 2.0;
            apply_free = apply_free.max(arrival) + frame as f64 / scene.apply;
            if dice.roll() < scene.stall_share {
                apply_free += scene.stall * dice.roll();
            }
            acks.push_back((
                apply_free + scene.rtt / 2.0,
                sent,
                link_free + scene.rtt - leaves,
            ));
            continue;
        }
        let (due, mut total, mut on_link) = acks.pop_front().expect("a full window waits");
        while next_ping < due.min(scene.length) {
            while let Some((_, until)) = frames.pop_front_if(|&mut (leaves, _)| leaves <= next_ping)
            {
                link_busy = until;
            }
            queue.push((link_busy - next_ping).max(0.0));
            debts.push((sent - acked) as f64 / scene.apply.min(scene.rate_at(next_ping)));
            capacity += scene.rate_at(next_ping).min(scene.apply) * 100.0 * US;
            next_ping += 100.0 * US;
        }
        now = due.max(now) + dice.roll() * scene.wake;
        // What has come until the sender woke.
        while let Some((_, later, link)) = acks.pop_front_if(|&mut (due, _, _)| due <= now) {
            (total, on_link) = (later, link);
        }
        let before = std::mem::replace(&mut acked, total);
        // The kernel's mean of eight acknowledgements, one for each two segments.
        let share = 1.0 - 0.875f64.powf((total - before) as f64 / 2900.0);
        link_rtt += (on_link - link_rtt) * share;
        link_min = on_link.min(link_min);
        window.on_link(LinkTime {
            rtt: at(link_rtt),
            min_rtt: at(link_min),
        });
        window.on_ack(at(now), total);
    }
    queue.sort_by(f64::total_cmp);
    debts.sort_by(f64::total_cmp);
    let outcome = Outcome {
        utilisation: acked as f64 / capacity,
        debt: debts[debts.len() * 99 / 100],
        queue,
        window,
    };
    println!(
        "used {:.3}, queue p50 {:.3} p99 {:.3} max {:.3} ms, debt {:.3} ms, window {}, frame {}, rate {:?}, rtt {:?}",
        outcome.utilisation,
        outcome.queue[outcome.queue.len() / 2] * 1e3,
        outcome.p99() * 1e3,
        outcome.queue[outcome.queue.len() - 1] * 1e3,
        outcome.debt * 1e3,
        outcome.window.bytes,
        outcome.window.frame_bytes(),
        outcome.window.rate(),
        outcome.window.min_rtt(),
    );
    outcome
}

#[test]
fn link_of_100_mbit_is_full_and_its_queue_short() {
    for rtt in [100.0, 300.0, 1000.0] {
        let outcome = run(&Scene::new(100.0 * MBIT, rtt * US));
        assert!(outcome.utilisation > 0.95, "{}", outcome.utilisation);
        assert!(outcome.p99() < 2.2e-3, "{}", outcome.p99());
    }
}

#[test]
fn link_of_1_gbit_is_full_and_its_queue_short() {
    for (rtt, wake) in [(100.0, 10.0), (100.0, 100.0), (300.0, 50.0)] {
        let mut scene = Scene::new(1000.0 * MBIT, rtt * US);
        scene.wake = wake * US;
        let outcome = run(&scene);
        assert!(outcome.utilisation > 0.95, "{}", outcome.utilisation);
        assert!(outcome.p99() < 0.75e-3, "{}", outcome.p99());
    }
}

#[test]
fn link_of_10_gbit_is_full_and_its_queue_short() {
    let outcome = run(&Scene::new(10_000.0 * MBIT, 50.0 * US));
    assert!(outcome.utilisation > 0.95, "{}", outcome.utilisation);
    assert!(outcome.p99() < 0.75e-3, "{}", outcome.p99());
}

#[test]
fn long_link_is_full_and_its_queue_mostly_short() {
    let outcome = run(&Scene::new(1000.0 * MBIT, 10_000.0 * US));
    assert!(outcome.utilisation > 0.9, "{}", outcome.utilisation);
    // The bursts of the start come around again with the ACKs.
    assert!(outcome.p99() < 6e-3, "{}", outcome.p99());
    assert!(outcome.queue[outcome.queue.len() / 2] < 0.5e-3);
}

#[test]
fn sleepy_sender_still_fills_100_mbit() {
    let mut scene = Scene::new(100.0 * MBIT, 200.0 * US);
    scene.wake = 500.0 * US;
    let outcome = run(&scene);
    assert!(outcome.utilisation > 0.95, "{}", outcome.utilisation);
    assert!(outcome.p99() < 3e-3, "{}", outcome.p99());
}

#[test]
fn loopback_with_a_noisy_scheduler_is_not_held_back() {
    let mut scene = Scene::new(6e9, 50.0 * US);
    scene.apply = 3e9;
    scene.wake = 50.0 * US;
    let quiet = run(&scene);
    assert!(quiet.utilisation > 0.95, "{}", quiet.utilisation);
    scene.stall = 2e-3;
    scene.stall_share = 0.01;
    // What the stalls themselves take: 1 ms for each hundred frames.
    let noisy = run(&scene);
    let frame = noisy.window.frame_bytes() as f64;
    let possible = 1.0 / (1.0 + 1e-3 / (100.0 * frame / scene.apply));
    assert!(
        noisy.utilisation > 0.9 * possible,
        "{} of {possible}",
        noisy.utilisation
    );
}

#[test]
fn busy_hosts_still_use_the_link_and_keep_its_queue_short() {
    for (rate, stall, used, queue) in [
        (100.0, 10e-3, 0.8, 5e-3),
        (1000.0, 3e-3, 0.75, 1.5e-3),
        (1000.0, 20e-3, 0.15, 1.5e-3),
    ] {
        let mut scene = Scene::new(rate * MBIT, 200.0 * US);
        scene.wake = stall;
        scene.stall = stall;
        scene.stall_share = 0.01;
        scene.length = 4.0;
        let outcome = run(&scene);
        assert!(outcome.utilisation > used, "{}", outcome.utilisation);
        assert!(outcome.p99() < queue, "{}", outcome.p99());
    }
}

#[test]
fn link_that_changes_its_rate_is_followed() {
    let mut scene = Scene::new(1000.0 * MBIT, 100.0 * US);
    scene.link = vec![
        (0.0, 1000.0 * MBIT),
        (1.0, 100.0 * MBIT),
        (3.0, 1000.0 * MBIT),
    ];
    scene.length = 4.0;
    let outcome = run(&scene);
    assert!(outcome.utilisation > 0.95, "{}", outcome.utilisation);
    assert!(outcome.p99() < 2.2e-3, "{}", outcome.p99());
}

#[test]
fn slow_destination_owes_little() {
    for apply in [20e6, 300e6] {
        let mut scene = Scene::new(10_000.0 * MBIT, 50.0 * US);
        scene.apply = apply;
        let outcome = run(&scene);
        assert!(outcome.utilisation > 0.95, "{}", outcome.utilisation);
        // It cannot be told from one that waits for a processor.
        assert!(outcome.debt < 25e-3, "{}", outcome.debt);
        assert!(outcome.p99() < 0.2e-3, "{}", outcome.p99());
    }
}

#[test]
fn long_migration_keeps_seeing_the_links_own_delay() {
    let mut scene = Scene::new(100.0 * MBIT, 500.0 * US);
    scene.length = 60.0;
    let outcome = run(&scene);
    assert!(outcome.utilisation > 0.97, "{}", outcome.utilisation);
    assert!(outcome.p99() < 2.2e-3, "{}", outcome.p99());
    let rtt = outcome.window.min_rtt().unwrap();
    assert!(rtt < Duration::from_micros(1300), "{rtt:?}");
}

#[test]
fn idle_times_do_not_lower_the_rate() {
    let ms = Duration::from_millis;
    let mut window = Window::new(Duration::ZERO);
    let (mut now, mut sent) = (Duration::ZERO, 0);
    let frame = 8 << 10;
    for _ in 0..2000 {
        sent += frame;
        window.on_sent(now, frame);
        while window.available() >= window.frame_bytes() as u64 {
            sent += frame;
            window.on_sent(now, frame);
        }
        now += Duration::from_micros(655) * (window.in_flight() / frame) as u32;
        window.on_ack(now, sent);
    }
    let busy = window.rate().unwrap();
    for _ in 0..100 {
        window.on_sent(now, 100);
        sent += 100;
        now += ms(1);
        window.on_ack(now, sent);
        now += ms(50);
    }
    let idle = window.rate().unwrap();
    assert!((12_000_000..13_000_000).contains(&busy), "{busy}");
    assert!(idle >= busy * 99 / 100, "{busy} {idle}");
}

#[test]
fn acks_that_cannot_be_are_ignored() {
    let ms = Duration::from_millis;
    let mut window = Window::new(ms(0));
    window.on_ack(ms(1), 1 << 40);
    assert_eq!(window.in_flight(), 0);
    window.on_sent(ms(2), 1000);
    window.on_ack(ms(1), u64::MAX);
    assert_eq!(window.in_flight(), 0);
    window.on_ack(ms(3), 500);
    assert_eq!(window.in_flight(), 0);
    for n in 0..10_000u64 {
        window.on_sent(ms(3 + n), 1 << 20);
        window.on_ack(ms(3 + n), u64::MAX);
    }
    assert!(window.available() <= MAX_WINDOW);
    assert!(window.frame_bytes() <= MAX_FRAME_FAST as usize);
}

#[test]
fn acknowledgements_that_come_all_at_once_are_no_fast_link() {
    const SEND: u64 = 10_000;
    let mut window = Window::new(Duration::ZERO);
    let (mut now, mut acked) = (Duration::ZERO, 0);
    for _ in 0..50 {
        for _ in 0..10 {
            now += Duration::from_millis(1);
            window.on_sent(now, SEND);
        }
        // The destination's thread was off its processor.
        for _ in 0..10 {
            now += Duration::from_micros(100);
            acked += SEND;
            window.on_ack(now, acked);
        }
    }
    let rate = window.rate().unwrap();
    assert!(rate <= 10_500_000, "{rate}");
}
