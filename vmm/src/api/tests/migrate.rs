//! The API of migration, with a thread that only pretends.

use std::net::{TcpListener, TcpStream};
use std::os::fd::{BorrowedFd, OwnedFd};

use pindah_vmm_api::{Encryption, MigrateRequest, MigrationPhase, MigrationStatus};

use super::*;
use crate::migration::progress::Progress;
use crate::migration::worker::Job;

const PATH: &str = "/api/v1/migrate";

/// Goes on until it is cancelled. With one data connection nothing can be cancelled any more
/// after the first moment, and the migration ends when the other side closes.
pub(super) fn pretend(job: Job, progress: &Progress) {
    let Job::Send(outgoing) = job else {
        unreachable!("the API only sends")
    };
    let is_late = outgoing.request.data_connections == 1 && progress.commit();
    let phase = if is_late {
        MigrationPhase::Switchover
    } else {
        MigrationPhase::Precopy
    };
    progress.update(|status| status.phase = phase);
    if is_late {
        let _ = (&outgoing.control).read(&mut [0]);
        progress.update(|status| status.phase = MigrationPhase::Completed);
        return;
    }
    while !progress.cancel().is_set() {
        std::thread::sleep(Duration::from_millis(1));
    }
}

/// Our ends, which a request carries, and the other ones.
fn sockets(count: usize) -> (Vec<OwnedFd>, Vec<TcpStream>) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    (0..count)
        .map(|_| {
            let ours = TcpStream::connect(address).unwrap();
            (OwnedFd::from(ours), listener.accept().unwrap().0)
        })
        .unzip()
}

fn request(data_connections: u8) -> MigrateRequest {
    MigrateRequest {
        data_connections,
        encryption: Encryption::Plaintext,
        ..MigrateRequest::default()
    }
}

fn post(
    fixture: &Fixture,
    request: &MigrateRequest,
    descriptors: &[OwnedFd],
) -> Result<MigrationStatus, ClientError> {
    let descriptors: Vec<BorrowedFd<'_>> = descriptors.iter().map(AsFd::as_fd).collect();
    fixture
        .client()
        .post_with_descriptors(PATH, request, &descriptors)
}

fn refused<T: std::fmt::Debug>(outcome: Result<T, ClientError>) -> (ErrorCode, String) {
    match outcome {
        Err(ClientError::Refused(info)) => (info.code, info.message),
        other => panic!("{other:?}"),
    }
}

fn status(fixture: &Fixture) -> Result<MigrationStatus, ClientError> {
    fixture.client().get(PATH)
}

fn cancel(fixture: &Fixture) -> Result<(), ClientError> {
    fixture.client().command::<()>("DELETE", PATH, None)
}

fn wait_for(fixture: &Fixture, phase: MigrationPhase) {
    let late = Instant::now() + PATIENCE;
    while status(fixture).unwrap().phase != phase {
        assert!(Instant::now() < late, "never {phase:?}");
        std::thread::sleep(Duration::from_millis(1));
    }
}

#[test]
fn migration_is_started_told_of_and_given_up() {
    let fixture = Fixture::new();
    assert_eq!(refused(status(&fixture)).0, ErrorCode::NotFound);
    assert_eq!(refused(cancel(&fixture)).0, ErrorCode::NotFound);
    let (ours, _theirs) = sockets(3);
    post(&fixture, &request(2), &ours).unwrap();
    wait_for(&fixture, MigrationPhase::Precopy);

    let (code, message) = refused(post(&fixture, &request(2), &ours));
    assert_eq!(code, ErrorCode::Conflict);
    assert!(message.contains("under way"), "{message}");
    for path in ["pause", "resume", "reset"] {
        let path = format!("/api/v1/vm/{path}");
        let outcome = fixture.client().command::<()>("POST", &path, None);
        assert_eq!(refused(outcome).0, ErrorCode::Conflict, "{path}");
    }
    assert!(fixture.machine.calls().is_empty());

    cancel(&fixture).unwrap();
    wait_for(&fixture, MigrationPhase::Failed);
    assert_eq!(refused(cancel(&fixture)).0, ErrorCode::Conflict);
    let pause = fixture
        .client()
        .command::<()>("POST", "/api/v1/vm/pause", None);
    pause.unwrap();
}

#[test]
fn migration_past_the_point_of_no_return_is_not_given_up() {
    let fixture = Fixture::new();
    let (ours, theirs) = sockets(2);
    post(&fixture, &request(1), &ours).unwrap();
    wait_for(&fixture, MigrationPhase::Switchover);
    assert_eq!(refused(cancel(&fixture)).0, ErrorCode::Conflict);
    drop(theirs);
    wait_for(&fixture, MigrationPhase::Completed);
    let (code, message) = refused(post(&fixture, &request(1), &ours));
    assert_eq!(code, ErrorCode::Conflict);
    assert!(message.contains("has moved"), "{message}");
}

#[test]
fn descriptors_of_the_wrong_number_or_kind_are_refused() {
    let fixture = Fixture::new();
    let (ours, _theirs) = sockets(2);
    for (request, descriptors, expected) in [
        (request(2), &ours[..], "takes 3 file descriptors"),
        (request(1), &ours[..1], "takes 2 file descriptors"),
        (
            MigrateRequest {
                server_name: Some("node2".into()),
                ..MigrateRequest::default()
            },
            &ours[..],
            "takes 5 file descriptors",
        ),
    ] {
        let (code, message) = refused(post(&fixture, &request, descriptors));
        assert_eq!(code, ErrorCode::BadRequest);
        assert!(message.contains(expected), "{message}");
    }
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let (state, memory) = fixture.snapshot_files();
    let foreign = UnixStream::pair().unwrap();
    for other in [
        OwnedFd::from(listener),
        state.into(),
        memory.into(),
        foreign.0.into(),
    ] {
        let pair = [ours[0].try_clone().unwrap(), other];
        let (code, message) = refused(post(&fixture, &request(1), &pair));
        assert_eq!(code, ErrorCode::InvalidValue);
        assert_eq!(message, "file descriptor 1 is no connected TCP socket");
    }
    assert_eq!(refused(status(&fixture)).0, ErrorCode::NotFound);
}

#[test]
fn values_that_cannot_be_are_refused_by_name() {
    let fixture = Fixture::new();
    let (ours, _theirs) = sockets(2);
    let tls = MigrateRequest::default();
    let named = |name: &str| MigrateRequest {
        server_name: Some(name.to_owned()),
        ..MigrateRequest::default()
    };
    for (request, expected) in [
        (request(0), "data_connections = 0: 1 to 4"),
        (request(5), "data_connections = 5: 1 to 4"),
        (tls, "server_name = \"\": a host name"),
        (named("not a name"), "server_name = \"not a name\""),
        (
            MigrateRequest {
                timeout_s: 0,
                ..request(1)
            },
            "timeout_s = 0",
        ),
        (
            MigrateRequest {
                downtime_target_ms: 0,
                ..request(1)
            },
            "downtime_target_ms = 0",
        ),
        (
            MigrateRequest {
                bandwidth_bytes_per_s: Some(0),
                ..request(1)
            },
            "bandwidth_bytes_per_s = 0",
        ),
    ] {
        let (code, message) = refused(post(&fixture, &request, &ours));
        assert_eq!(code, ErrorCode::InvalidValue);
        assert!(message.contains(expected), "{message}");
    }
}
