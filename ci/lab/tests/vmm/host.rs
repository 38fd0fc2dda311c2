//! The servers that the tests here share.
//!
//! Each test takes one for itself and gives it back; one that fails takes its
//! server with it, for what it has left behind there would fail others.

use std::ops::Deref;
use std::path::Path;
use std::sync::{Condvar, LazyLock, Mutex, MutexGuard, PoisonError};

use pindah_lab::{Artifacts, Flavour, Kernel, Lab, Server};

/// Servers that run at once; as many as a small host has cores.
const SERVERS: usize = 2;
/// A guest of 512 MiB, and the page cache of its disks.
const MEMORY_MIB: u32 = 1536;

static LAB: LazyLock<Lab> = LazyLock::new(|| Lab::new("vmm").unwrap());

/// Servers that no test has.
static POOL: Mutex<Pool> = Mutex::new(Pool {
    idle: Vec::new(),
    running: 0,
    started: 0,
});
static GIVEN_BACK: Condvar = Condvar::new();

struct Pool {
    idle: Vec<Server>,
    /// Idle or not.
    running: usize,
    /// Since the beginning; numbers their names.
    started: usize,
}

fn pool() -> MutexGuard<'static, Pool> {
    POOL.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A server that a test has for itself.
pub struct Lease(Option<Server>);

impl Deref for Lease {
    type Target = Server;

    fn deref(&self) -> &Server {
        self.0.as_ref().expect("it is taken at the end only")
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        let server = self.0.take();
        let mut pool = pool();
        if std::thread::panicking() {
            pool.running -= 1;
        } else {
            pool.idle.extend(server);
        }
        GIVEN_BACK.notify_one();
    }
}

/// An emulated server; or this host, where `PINDAH_LAB=host` says that its
/// `/dev/kvm` runs Linux.
pub fn server() -> Lease {
    let mut pool = pool();
    loop {
        if let Some(server) = pool.idle.pop() {
            return Lease(Some(server));
        }
        if pool.running < SERVERS {
            break;
        }
        pool = GIVEN_BACK
            .wait(pool)
            .unwrap_or_else(PoisonError::into_inner);
    }
    pool.running += 1;
    pool.started += 1;
    let name = format!("node{}", pool.started);
    drop(pool);
    // Should it not start, then this test fails, and its place is free again.
    let mut lease = Lease(None);
    lease.0 = Some(start(&name));
    lease
}

fn start(name: &str) -> Server {
    if std::env::var("PINDAH_LAB").is_ok_and(|lab| lab == "host") {
        return LAB.host().unwrap();
    }
    LAB.server(name).memory_mib(MEMORY_MIB).start().unwrap()
}

/// The lab around them.
pub fn lab() -> &'static Lab {
    &LAB
}

/// What guests are made of.
pub fn artifacts() -> &'static Artifacts {
    LAB.artifacts()
}

/// Debian's kernel of this version and flavour.
pub fn kernel(version: &str, flavour: Flavour) -> Kernel {
    artifacts().kernel(version, flavour).unwrap()
}

/// A copy of an artifact in `server` that a test may write to.
pub fn copy(server: &Server, artifact: &Path, name: &str) -> String {
    let to = format!("/root/{name}");
    let from = server.artifact(artifact);
    server
        .check(&format!("cp --sparse=always {} {to}", from.display()))
        .unwrap();
    to
}
