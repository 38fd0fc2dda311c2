//! Descriptors that come with a request.

use super::*;

#[test]
fn snapshot_goes_to_the_descriptors_that_come_with_it() {
    let fixture = Fixture::new();
    let (state, memory) = fixture.snapshot_files();
    let request = SnapshotRequest::default();
    let report: SnapshotReport = fixture
        .client()
        .post_with_descriptors(
            "/api/v1/snapshot",
            &request,
            &[state.as_fd(), memory.as_fd()],
        )
        .unwrap();
    assert_eq!((report.ram_bytes, report.written_bytes), (4 << 20, 4096));
    assert_eq!(memory.metadata().unwrap().len(), 4 << 20);
    assert_eq!(state.metadata().unwrap().len(), report.state_bytes);
    assert!(fixture.machine.running.load(Ordering::SeqCst));
    let request = SnapshotRequest {
        then: AfterSnapshot::Exit,
    };
    let (state, memory) = fixture.snapshot_files();
    let report: SnapshotReport = fixture
        .client()
        .post_with_descriptors(
            "/api/v1/snapshot",
            &request,
            &[state.as_fd(), memory.as_fd()],
        )
        .unwrap();
    assert_eq!(report.paused_ms, None);
    assert_eq!(fixture.machine.calls(), ["save", "save", "power off"]);
}

#[test]
fn snapshot_to_descriptors_of_the_wrong_kind_is_refused() {
    let fixture = Fixture::new();
    let (state, memory) = fixture.snapshot_files();
    let (socket, _other) = UnixStream::pair().unwrap();
    let read_only = File::open(fixture.directory.path().join("memory")).unwrap();
    let full = fixture.directory.path().join("full");
    std::fs::write(&full, "x").unwrap();
    let full = File::options().read(true).write(true).open(full).unwrap();
    let attempt = |descriptors: &[std::os::fd::BorrowedFd<'_>]| {
        let request = SnapshotRequest::default();
        let mut client = fixture.client();
        match client.post_with_descriptors::<_, SnapshotReport>(
            "/api/v1/snapshot",
            &request,
            descriptors,
        ) {
            Err(ClientError::Refused(error)) => error,
            other => panic!("{other:?}"),
        }
    };
    assert_eq!(attempt(&[]).code, ErrorCode::BadRequest);
    assert_eq!(attempt(&[state.as_fd()]).code, ErrorCode::BadRequest);
    let three = [state.as_fd(), memory.as_fd(), memory.as_fd()];
    assert_eq!(attempt(&three).code, ErrorCode::BadRequest);
    for (file, message) in [
        (socket.as_fd(), "the memory file must be a regular file"),
        (
            read_only.as_fd(),
            "the memory file must be open for writing",
        ),
        (full.as_fd(), "the memory file must be empty"),
    ] {
        let error = attempt(&[state.as_fd(), file]);
        assert_eq!(
            (error.code, error.message.as_str()),
            (ErrorCode::InvalidValue, message)
        );
    }
    assert!(fixture.machine.running.load(Ordering::SeqCst));
    assert_eq!(fixture.machine.calls(), [""; 0]);
}

#[test]
fn descriptors_where_none_are_taken_are_refused_and_closed() {
    let fixture = Fixture::new();
    let (ours, mut theirs) = UnixStream::pair().unwrap();
    let answer: Result<VmInfo, _> = fixture.client().post_with_descriptors(
        "/api/v1/vm/pause",
        &serde_json::json!({}),
        &[ours.as_fd()],
    );
    assert!(
        matches!(answer, Err(ClientError::Refused(error)) if error.code == ErrorCode::BadRequest)
    );
    drop(ours);
    theirs.set_read_timeout(Some(PATIENCE)).unwrap();
    assert_eq!(
        theirs.read(&mut [0]).unwrap(),
        0,
        "nobody holds the other end"
    );
}

#[test]
fn snapshot_whose_client_leaves_is_given_up_and_the_guest_goes_on() {
    let fixture = Fixture::new();
    fixture.machine.set_stuck(true);
    let events = fixture.machine.events.subscribe().unwrap();
    let (state, memory) = fixture.snapshot_files();
    let stream = fixture.stream();
    let descriptors = [state.as_fd(), memory.as_fd()];
    let request = b"POST /api/v1/snapshot HTTP/1.1\r\n\r\n";
    crate::api::socket::send(&stream, request, &descriptors).unwrap();
    wait_until(|| fixture.machine.calls() == ["save"]);
    assert_eq!(
        command(&fixture, "POST", "/api/v1/vm/reset"),
        Err(ErrorCode::Conflict),
        "one operation at a time"
    );
    drop(stream);
    // The server has seen it go before it answers a connection that came later.
    assert!(fixture.is_alive());
    fixture.machine.set_stuck(false);
    wait_until(|| fixture.machine.running.load(Ordering::SeqCst));
    wait_until(|| command(&fixture, "POST", "/api/v1/vm/reset").is_ok());
    assert_eq!(events.receiver.try_iter().count(), 0, "nothing was taken");
}
