//! What clients do with their connections.

use super::*;

#[test]
fn body_beyond_the_limit_is_refused_while_the_client_still_sends() {
    let fixture = Fixture::new();
    let mut request = b"PUT /api/v1/balloon HTTP/1.1\r\nContent-Length: 8000000\r\n\r\n".to_vec();
    request.resize(8_000_000, b'x');
    let answer = fixture.exchange(&request);
    assert_eq!(status_and_code(&answer).0, 413, "{answer}");
    assert!(fixture.is_alive());
}

#[test]
fn requests_in_one_write_are_answered_in_order() {
    let fixture = Fixture::new();
    let answer = fixture.exchange(
        b"POST /api/v1/vm/pause HTTP/1.1\r\n\r\nGET /api/v1/vm HTTP/1.1\r\n\r\n\
          POST /api/v1/vm/resume HTTP/1.1\r\n\r\nGET /nowhere HTTP/1.1\r\nConnection: close\r\n\r\n",
    );
    let statuses: Vec<_> = answer
        .match_indices("HTTP/1.1 ")
        .map(|(at, _)| &answer[at + 9..at + 12])
        .collect();
    assert_eq!(statuses, ["204", "200", "204", "404"]);
    assert!(answer.contains("\"state\":\"paused\""), "{answer}");
    assert!(answer.contains("Connection: close"), "{answer}");
}

#[test]
fn expect_continue_is_answered_before_the_body() {
    let fixture = Fixture::new();
    let mut stream = fixture.stream();
    let head = "PUT /api/v1/balloon HTTP/1.1\r\nContent-Type: application/json\r\n\
        Expect: 100-continue\r\nContent-Length: 16\r\n\r\n";
    stream.write_all(head.as_bytes()).unwrap();
    let mut interim = [0; 25];
    stream.read_exact(&mut interim).unwrap();
    assert_eq!(&interim, b"HTTP/1.1 100 Continue\r\n\r\n");
    stream.write_all(b"{\"target_mib\": 2").unwrap();
    let mut answer = [0; 12];
    stream.read_exact(&mut answer).unwrap();
    assert_eq!(&answer, b"HTTP/1.1 400");
    stream = fixture.stream();
    stream
        .write_all(head.replace("16", "17").as_bytes())
        .unwrap();
    stream.read_exact(&mut interim).unwrap();
    stream.write_all(b"{\"target_mib\": 2}").unwrap();
    stream.read_exact(&mut answer).unwrap();
    assert_eq!(&answer, b"HTTP/1.1 204");
    assert_eq!(fixture.machine.calls(), ["balloon 2"]);
}

#[test]
fn client_that_sends_a_byte_at_a_time_is_cut_at_its_deadline_and_blocks_nobody() {
    let limits = Limits {
        request: Duration::from_millis(300),
        ..Limits::default()
    };
    let fixture = Fixture::with(limits);
    let mut slow = fixture.stream();
    slow.write_all(b"GET /api/v1/vm HTTP/1.1\r\nX: ").unwrap();
    assert!(fixture.is_alive());
    // Whatever it sends, the deadline of the whole request stands.
    let mut writer = slow.try_clone().unwrap();
    std::thread::spawn(move || {
        while writer.write_all(b"a").is_ok() {
            std::thread::sleep(Duration::from_millis(10));
        }
    });
    let mut answer = String::new();
    slow.read_to_string(&mut answer).unwrap();
    assert_eq!(status_and_code(&answer), (408, Some(ErrorCode::Timeout)));
    assert!(fixture.is_alive());
}

#[test]
fn idle_client_is_closed_without_a_word() {
    let limits = Limits {
        idle: Duration::from_millis(100),
        ..Limits::default()
    };
    let fixture = Fixture::with(limits);
    let mut idle = fixture.stream();
    let mut answer = String::new();
    idle.read_to_string(&mut answer).unwrap();
    assert_eq!(answer, "");
}

#[test]
fn connection_beyond_the_limit_takes_an_idle_ones_place_or_is_refused() {
    let limits = Limits {
        connections: 2,
        ..Limits::default()
    };
    let fixture = Fixture::with(limits);
    let mut idle = fixture.stream();
    let head = "POST /api/v1/vm/pause HTTP/1.1\r\nContent-Type: application/json\r\n\
        Expect: 100-continue\r\nContent-Length: 2\r\n\r\n";
    // Each is inside a request once it has been told to go on.
    let mut busy = [(), ()].map(|()| {
        let mut stream = fixture.stream();
        stream.write_all(head.as_bytes()).unwrap();
        stream.read_exact(&mut [0; 25]).unwrap();
        stream
    });
    assert_eq!(idle.read(&mut [0]).unwrap(), 0, "it has made room");
    let answer = fixture.exchange(b"");
    assert_eq!(
        status_and_code(&answer),
        (503, Some(ErrorCode::TooManyConnections))
    );
    for stream in &mut busy {
        stream.write_all(b"{}").unwrap();
        let mut answer = [0; 12];
        stream.read_exact(&mut answer).unwrap();
        assert_eq!(&answer, b"HTTP/1.1 204");
    }
}

#[test]
fn state_is_answered_while_a_command_takes_long() {
    let fixture = Fixture::new();
    fixture.machine.set_stuck(true);
    let path = fixture.path();
    let slow = std::thread::spawn(move || {
        let mut client = Client::connect(&path).unwrap();
        client.command::<()>("POST", "/api/v1/vm/reset", None)
    });
    wait_until(|| fixture.machine.calls() == ["reset"]);
    assert!(fixture.is_alive());
    assert!(!slow.is_finished());
    fixture.machine.set_stuck(false);
    slow.join().unwrap().unwrap();
}

#[test]
fn many_clients_at_once_are_all_answered() {
    let fixture = Fixture::new();
    let path = fixture.path();
    let clients: Vec<_> = (0..16)
        .map(|number| {
            let path = path.clone();
            std::thread::spawn(move || {
                let mut client = Client::connect(&path).unwrap();
                for _ in 0..50 {
                    let info: VmInfo = client.get("/api/v1/vm").unwrap();
                    assert_eq!(info.name, "fake");
                    let target = BalloonTarget {
                        target_mib: number % 5,
                    };
                    client
                        .command("PUT", "/api/v1/balloon", Some(&target))
                        .unwrap();
                }
            })
        })
        .collect();
    for client in clients {
        client.join().unwrap();
    }
    assert_eq!(fixture.machine.calls().len(), 16 * 50);
}

#[test]
fn stopped_server_answers_what_it_has_taken_and_goes() {
    let mut fixture = Fixture::new();
    let mut idle = fixture.stream();
    let mut stream = fixture.stream();
    stream
        .write_all(b"POST /api/v1/vm/power-off HTTP/1.1\r\n\r\n")
        .unwrap();
    wait_until(|| fixture.machine.calls() == ["power off"]);
    fixture.server.take().unwrap().stop();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    assert!(answer.starts_with("HTTP/1.1 204"), "{answer}");
    assert_eq!(idle.read(&mut [0]).unwrap(), 0);
    assert!(UnixStream::connect(fixture.path()).is_err());
}

/// Sends `bytes` and reads what comes until the server closes, which it does as the other
/// direction is closed.
fn survives(path: &Path, bytes: &[u8]) {
    let mut stream = UnixStream::connect(path).unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    let _ = stream.write_all(bytes);
    let _ = stream.shutdown(std::net::Shutdown::Write);
    let mut answer = Vec::new();
    let _ = stream.read_to_end(&mut answer);
}

#[test]
fn any_bytes_are_survived() {
    let fixture = Fixture::new();
    let path = fixture.path();
    let method = prop_oneof!["GET|PUT|POST|PATCH|DELETE", "[A-Z]{1,9}"];
    let target = prop_oneof![
        proptest::sample::select(crate::api::routes::ROUTES)
            .prop_map(|route| route.path.to_owned()),
        "/[ -~]{0,40}",
    ];
    let header = prop_oneof![
        "Content-Length: [0-9]{0,6}",
        "Content-Type: application/json",
        "Expect: 100-continue",
        "[ -~]{0,40}",
    ];
    let headers = proptest::collection::vec(header, 0..5);
    let body = proptest::collection::vec(any::<u8>(), 0..200);
    let request = (method, target, headers, body);
    let mut runner = proptest::test_runner::TestRunner::new(ProptestConfig::with_cases(500));
    runner
        .run(&request, |(method, target, headers, body)| {
            // A stream would go on for ever; it has tests of its own.
            prop_assume!(!target.starts_with("/api/v1/events"));
            let headers: Vec<_> = headers
                .iter()
                .map(|header| format!("{header}\r\n"))
                .collect();
            let head = format!("{method} {target} HTTP/1.1\r\n{}\r\n", headers.concat());
            survives(&path, &[head.as_bytes(), &body].concat());
            survives(&path, &body);
            Ok(())
        })
        .unwrap();
    assert!(fixture.is_alive());
}
