//! Every fuzz target on stable, for 60 seconds or a million cases, with bytes from a seed.
//!
//! `PINDAH_FUZZ_SECONDS` sets another time. A failure prints `PINDAH_FUZZ_SEED` and
//! `PINDAH_FUZZ_CASE`: with both set, a run begins at that case and does it alone.

use std::fmt::Write as _;
use std::io::Write as _;
use std::panic::PanicHookInfo;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, Once};
use std::time::{Duration, Instant};

use fastrand::Rng;

const SECONDS: u64 = 60;
const CASES: u64 = 1_000_000;
/// A case that takes longer hangs, however slow the host is.
const CASE_DEADLINE: Duration = Duration::from_secs(60);
/// All targets together stay far below, unless something leaks.
const RESIDENT_BYTES_MAX: u64 = 1 << 30;
const DESCRIPTORS_MAX: usize = 2048;
const INPUT_BYTES_MAX: usize = 1024;

/// What one target is doing.
struct Progress {
    name: &'static str,
    seed: u64,
    case: AtomicU64,
    done: AtomicBool,
}

static ALL: Mutex<Vec<Arc<Progress>>> = Mutex::new(Vec::new());

/// Says which cases were running, past the capture of the test harness, and ends the process: a
/// panic on a device's thread would otherwise go unseen.
fn abort(what: &str) -> ! {
    let mut text = format!("\n{what}\n");
    for progress in ALL.lock().iter().flat_map(|all| all.iter()) {
        if !progress.done.load(Ordering::SeqCst) {
            let case = progress.case.load(Ordering::SeqCst);
            let (name, seed) = (progress.name, progress.seed);
            let _ = writeln!(
                text,
                "running: PINDAH_FUZZ_SEED={seed} PINDAH_FUZZ_CASE={case} \
                 cargo test -p pindah-fuzz --release --test bounded {name}"
            );
        }
    }
    let _ = std::io::stderr().write_all(text.as_bytes());
    std::process::abort()
}

fn panicked(info: &PanicHookInfo) {
    let trace = std::backtrace::Backtrace::force_capture();
    let thread = std::thread::current();
    let name = thread.name().unwrap_or("?");
    abort(&format!("thread {name}: {info}\n{trace}"))
}

fn number(variable: &str) -> Option<u64> {
    let text = std::env::var(variable).ok()?;
    Some(text.parse().expect("a number in PINDAH_FUZZ_*"))
}

/// The bytes of one case: they follow from seed and number alone.
fn bytes(seed: u64, case: u64) -> Vec<u8> {
    let mut rng = Rng::with_seed(seed ^ case.wrapping_mul(0x9e37_79b9_7f4a_7c15));
    let mut bytes = vec![0; rng.usize(0..=INPUT_BYTES_MAX)];
    rng.fill(&mut bytes);
    // Small numbers choose among few, and zeroes are what a well-behaved guest mostly writes.
    let calm = rng.usize(0..4) * 8;
    for byte in &mut bytes {
        if rng.usize(0..64) < calm {
            *byte = 0;
        }
    }
    bytes
}

fn resident_bytes() -> u64 {
    let statm = std::fs::read_to_string("/proc/self/statm").unwrap();
    let pages: u64 = statm.split(' ').nth(1).unwrap().parse().unwrap();
    pages * 4096
}

/// Ends the process when a case hangs, or when memory or descriptors leak.
fn watch() {
    let mut seen: Vec<(u64, Instant)> = Vec::new();
    loop {
        std::thread::sleep(Duration::from_secs(1));
        let all = ALL.lock().unwrap().clone();
        seen.resize(all.len(), (u64::MAX, Instant::now()));
        for (progress, (last, since)) in all.iter().zip(&mut seen) {
            let case = progress.case.load(Ordering::SeqCst);
            if case != *last || progress.done.load(Ordering::SeqCst) {
                (*last, *since) = (case, Instant::now());
            } else if since.elapsed() > CASE_DEADLINE {
                abort(&format!("{}: case {case} hangs", progress.name));
            }
        }
        let resident = resident_bytes();
        if resident > RESIDENT_BYTES_MAX {
            abort(&format!("{resident} bytes of memory in use"));
        }
        let descriptors = std::fs::read_dir("/proc/self/fd").unwrap().count();
        if descriptors > DESCRIPTORS_MAX {
            abort(&format!("{descriptors} descriptors in use"));
        }
    }
}

fn bounded(name: &'static str, run: fn(&[u8])) {
    static WATCH: Once = Once::new();
    WATCH.call_once(|| {
        std::panic::set_hook(Box::new(panicked));
        std::thread::spawn(watch);
    });
    let seed = number("PINDAH_FUZZ_SEED").unwrap_or_else(|| fastrand::u64(..));
    let only = number("PINDAH_FUZZ_CASE");
    let limit = Duration::from_secs(number("PINDAH_FUZZ_SECONDS").unwrap_or(SECONDS));
    let first = only.unwrap_or(0);
    let progress = Arc::new(Progress {
        name,
        seed,
        case: AtomicU64::new(first),
        done: AtomicBool::new(false),
    });
    ALL.lock().unwrap().push(Arc::clone(&progress));
    let start = Instant::now();
    let end = if only.is_some() { first + 1 } else { CASES };
    let mut case = first;
    while case < end && start.elapsed() < limit {
        progress.case.store(case, Ordering::SeqCst);
        run(&bytes(seed, case));
        case += 1;
    }
    progress.done.store(true, Ordering::SeqCst);
    let count = case - first;
    let elapsed = start.elapsed().as_secs_f64();
    let rate = count as f64 / elapsed;
    // Past the capture: how much was tried is part of the result.
    let text =
        format!("{name}: {count} cases in {elapsed:.1} s, {rate:.0} a second, seed {seed}\n");
    std::io::stderr().write_all(text.as_bytes()).unwrap();
    assert!(count > 0, "no case was run");
}

#[test]
fn queue() {
    bounded("queue", pindah_fuzz::queue::run);
}

#[test]
fn block() {
    bounded("block", pindah_fuzz::block::run);
}

#[test]
fn net() {
    if let Err(reason) = pindah_fuzz::net::available() {
        let text = format!("net: skipped: {reason}\n");
        std::io::stderr().write_all(text.as_bytes()).unwrap();
        return;
    }
    bounded("net", pindah_fuzz::net::run);
}

#[test]
fn pci() {
    bounded("pci", pindah_fuzz::pci::run);
}

#[test]
fn api() {
    bounded("api", pindah_fuzz::api::run);
}

#[test]
fn state() {
    bounded("state", pindah_fuzz::state::run);
}

#[test]
fn kernel() {
    bounded("kernel", pindah_fuzz::kernel::run);
}

#[test]
fn config() {
    bounded("config", pindah_fuzz::config::run);
}

#[test]
fn pages() {
    bounded("pages", pindah_fuzz::pages::run);
}

#[test]
fn stream() {
    bounded("stream", pindah_fuzz::stream::run);
}
