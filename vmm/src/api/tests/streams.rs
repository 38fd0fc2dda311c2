//! Connections that become streams: events and the console.

use super::*;

fn kinds(events: impl Iterator<Item = Result<Event, ClientError>>) -> Vec<EventKind> {
    events.map(|event| event.unwrap().kind).collect()
}

#[test]
fn event_stream_gives_what_happens_and_ends_with_the_machine() {
    let mut fixture = Fixture::new();
    fixture.machine.events.publish(EventKind::Started);
    assert!(fixture.is_alive());
    let from_now = fixture.client().events(None).unwrap();
    let from_start = fixture.client().events(Some(0)).unwrap();
    command(&fixture, "POST", "/api/v1/vm/pause").unwrap();
    fixture.machine.events.publish(EventKind::PowerButton);
    fixture.server.take().unwrap().stop();
    let paused = EventKind::Paused {
        reason: PauseReason::Requested,
    };
    assert_eq!(kinds(from_now), [paused.clone(), EventKind::PowerButton]);
    assert_eq!(
        kinds(from_start),
        [EventKind::Started, paused, EventKind::PowerButton]
    );
}

#[test]
fn reader_that_does_not_take_its_events_is_cut_and_others_are_not() {
    let limits = Limits {
        stream_bytes: 1000,
        ..Limits::default()
    };
    let fixture = Fixture::with(limits);
    let slow = fixture.client().events(None).unwrap();
    let mut quick = fixture.client().events(None).unwrap();
    // More than a socket holds, in steps that the server itself can follow.
    let message = "x".repeat(10_000);
    for _ in 0..100 {
        let id = "disk0".to_owned();
        let message = message.clone();
        fixture
            .machine
            .events
            .publish(EventKind::DiskError { id, message });
        assert!(matches!(
            quick.next().unwrap().unwrap().kind,
            EventKind::DiskError { .. }
        ));
    }
    let got = kinds(slow);
    assert!(got.len() < 100);
    assert_eq!(got.last(), Some(&EventKind::Lagged));
}

#[test]
fn console_connection_becomes_raw() {
    let fixture = Fixture::new();
    let mut console = fixture.client().attach_console("serial").unwrap();
    console.get_mut().write_all(b"login\n").unwrap();
    let mut line = String::new();
    console.read_line(&mut line).unwrap();
    assert_eq!(line, "LOGIN\n");
    let Err(ClientError::Refused(error)) = fixture.client().attach_console("hvc9") else {
        panic!("there is no such console");
    };
    assert_eq!(error.code, ErrorCode::NotFound);
    // The API has let go of the socket: stopping it leaves the console alone.
    drop(fixture);
    console.get_mut().write_all(b"still\n").unwrap();
    line.clear();
    console.read_line(&mut line).unwrap();
    assert_eq!(line, "STILL\n");
}

#[test]
fn refused_console_leaves_the_connection_usable() {
    let fixture = Fixture::new();
    let attach = "POST /api/v1/consoles/hvc9/attach HTTP/1.1\r\nUpgrade: pindah-console\r\n\r\n";
    let mut stream = fixture.stream();
    stream.write_all(attach.as_bytes()).unwrap();
    let mut answer = [0; 4096];
    let count = stream.read(&mut answer).unwrap();
    assert!(answer[..count].starts_with(b"HTTP/1.1 404"));
    stream
        .write_all(b"GET /api/v1/vm HTTP/1.1\r\n\r\n")
        .unwrap();
    let count = stream.read(&mut answer).unwrap();
    assert!(answer[..count].starts_with(b"HTTP/1.1 200"));
}
