//! The server on real sockets, with a machine that is none.

mod commands;
mod connections;
mod descriptors;
mod fake;
mod migrate;
mod streams;

use std::fs::File;
use std::io::{BufRead, Read, Write};
use std::os::fd::AsFd;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex};
use std::time::{Duration, Instant};

use pindah_vmm_api::{
    AfterSnapshot, BalloonTarget, DeviceInfo, DiskFormat, DiskLimits, DiskResize, ErrorBody,
    ErrorCode, Event, EventKind, Metrics, PauseReason, ResumeRequest, RunState, SnapshotReport,
    SnapshotRequest, VmConfig, VmInfo,
};
use proptest::prelude::*;
use vm_memory::{Bytes, GuestAddress};

use self::fake::FakeMachine;
use super::client::{Client, ClientError};
use super::{Limits, Server};
use crate::memory::{DirtyRegion, GuestMemory};
use crate::migration::worker::Migrator;
use crate::vm::events::Events;
use crate::vm::machine::{Machine, MachineError};
use crate::vm::migratable::{Migratable, MigratableError};
use crate::vm::state::VmState;

/// Longer than anything takes on a slow host.
const PATIENCE: Duration = Duration::from_secs(30);

struct Fixture {
    machine: Arc<FakeMachine>,
    server: Option<Server>,
    directory: tempfile::TempDir,
}

impl Fixture {
    fn new() -> Self {
        Self::with(Limits::default())
    }

    fn with(limits: Limits) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let listener = UnixListener::bind(directory.path().join("api")).unwrap();
        let machine = FakeMachine::new();
        let migrator = Migrator::spawn(migrate::pretend).unwrap();
        let server = Server::spawn_with(listener, machine.clone(), migrator, limits).unwrap();
        Self {
            machine,
            server: Some(server),
            directory,
        }
    }

    fn path(&self) -> PathBuf {
        self.directory.path().join("api")
    }

    fn stream(&self) -> UnixStream {
        let stream = UnixStream::connect(self.path()).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        stream.set_write_timeout(Some(PATIENCE)).unwrap();
        stream
    }

    fn client(&self) -> Client {
        Client::new(self.stream())
    }

    /// Sends bytes, closes the sending side and returns all that comes back.
    fn exchange(&self, bytes: &[u8]) -> String {
        let mut stream = self.stream();
        // The server may have refused and closed before it has all.
        let _ = stream.write_all(bytes);
        let _ = stream.shutdown(std::net::Shutdown::Write);
        let mut answer = Vec::new();
        let _ = stream.read_to_end(&mut answer);
        String::from_utf8(answer).unwrap()
    }

    fn is_alive(&self) -> bool {
        self.client().get::<VmInfo>("/api/v1/vm").is_ok()
    }

    fn snapshot_files(&self) -> (File, File) {
        let file = |name: &str| {
            File::options()
                .read(true)
                .write(true)
                .create(true)
                .truncate(true)
                .open(self.directory.path().join(name))
                .unwrap()
        };
        (file("state"), file("memory"))
    }
}

fn wait_until(condition: impl Fn() -> bool) {
    let start = Instant::now();
    while !condition() {
        assert!(start.elapsed() < PATIENCE, "it never came true");
        std::thread::sleep(Duration::from_millis(2));
    }
}

fn status_and_code(answer: &str) -> (u16, Option<ErrorCode>) {
    let status = answer
        .split(' ')
        .nth(1)
        .and_then(|status| status.parse().ok())
        .unwrap_or(0);
    let body = answer.split_once("\r\n\r\n").map_or("", |(_, body)| body);
    let error: Option<ErrorBody> = serde_json::from_str(body).ok();
    (status, error.map(|body| body.error.code))
}

fn command(fixture: &Fixture, method: &str, path: &str) -> Result<(), ErrorCode> {
    match fixture.client().command::<()>(method, path, None) {
        Ok(()) => Ok(()),
        Err(ClientError::Refused(error)) => Err(error.code),
        Err(error) => panic!("{error}"),
    }
}
