//! What a request asks for, and what it is told.

use super::*;

#[test]
fn state_and_commands_reach_the_machine() {
    let fixture = Fixture::new();
    let mut client = fixture.client();
    let info: VmInfo = client.get("/api/v1/vm").unwrap();
    assert_eq!(
        (info.name.as_str(), info.state),
        ("fake", RunState::Running)
    );
    client
        .command::<()>("POST", "/api/v1/vm/pause", None)
        .unwrap();
    let info: VmInfo = client.get("/api/v1/vm").unwrap();
    assert_eq!(info.state, RunState::Paused);
    for path in ["relock", "resume", "power-off", "reset"] {
        let path = format!("/api/v1/vm/{path}");
        client.command::<()>("POST", &path, None).unwrap();
    }
    let force = ResumeRequest { force: true };
    client
        .command("POST", "/api/v1/vm/resume", Some(&force))
        .unwrap();
    let target = BalloonTarget { target_mib: 3 };
    client
        .command("PUT", "/api/v1/balloon", Some(&target))
        .unwrap();
    let resize = DiskResize { size_bytes: 1024 };
    client
        .command("PATCH", "/api/v1/disks/disk0", Some(&resize))
        .unwrap();
    let limits = DiskLimits {
        bandwidth_bytes_per_s: None,
        iops: Some(500),
    };
    client
        .command("PUT", "/api/v1/disks/disk0/limits", Some(&limits))
        .unwrap();
    assert_eq!(
        fixture.machine.calls(),
        [
            "pause",
            "relock",
            "resume",
            "power off",
            "reset",
            "resume by force",
            "balloon 3",
            "resize disk0 1024",
            "limit disk0 Some(500)"
        ]
    );
    let config: VmConfig = client.get("/api/v1/vm/config").unwrap();
    assert_eq!(config.memory.size_mib, 16);
    let _: Metrics = client.get("/api/v1/metrics").unwrap();
    let document: serde_json::Value = client.get("/api/v1/openapi.json").unwrap();
    assert_eq!(document["openapi"], "3.1.0");
}

#[test]
fn refusals_of_the_machine_have_their_status_and_causes() {
    let fixture = Fixture::new();
    let mut client = fixture.client();
    let mut refused = |method: &str, path: &str, body: serde_json::Value| match client.command(
        method,
        path,
        Some(&body),
    ) {
        Err(ClientError::Refused(error)) => (error.code, error.message),
        other => panic!("{other:?}"),
    };
    let empty = serde_json::json!({});
    let (code, message) = refused("POST", "/api/v1/vm/power-button", empty);
    assert_eq!(code, ErrorCode::Conflict);
    assert_eq!(
        message,
        "the power button is not possible while the guest is paused"
    );
    let size = serde_json::json!({"size_bytes": 512});
    let (code, message) = refused("PATCH", "/api/v1/disks/disk9", size.clone());
    assert_eq!(
        (code, message.as_str()),
        (ErrorCode::NotFound, "there is no disk disk9")
    );
    let (code, message) = refused("PATCH", "/api/v1/disks/broken", size);
    assert_eq!(code, ErrorCode::HostError);
    assert!(message.starts_with("resize broken: "), "{message}");
    let (code, message) = refused(
        "PUT",
        "/api/v1/balloon",
        serde_json::json!({"target_mib": 5}),
    );
    assert_eq!(
        (code, message.as_str()),
        (ErrorCode::InvalidValue, "target_mib = 5: at most 4")
    );
    for body in [
        serde_json::json!({}),
        serde_json::json!({"target_mib": -1}),
        serde_json::json!({"target_mib": "1G"}),
        serde_json::json!({"target_mib": 1, "extra": 1}),
        serde_json::json!([1]),
    ] {
        assert_eq!(
            refused("PUT", "/api/v1/balloon", body).0,
            ErrorCode::BadRequest
        );
    }
}

#[test]
fn bad_requests_get_their_error() {
    let fixture = Fixture::new();
    let huge_header = format!("GET /{} HTTP/1.1\r\n\r\n", "a".repeat(9000));
    for (request, expected) in [
        ("GARBAGE\r\n\r\n", ErrorCode::BadRequest),
        ("\x16\x03\x01\x02\0\x01", ErrorCode::BadRequest),
        ("GET /nowhere HTTP/1.1\r\n\r\n", ErrorCode::NotFound),
        (
            "DELETE /api/v1/vm HTTP/1.1\r\n\r\n",
            ErrorCode::MethodNotAllowed,
        ),
        (
            "POST /api/v1/vm/pause HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
            ErrorCode::LengthRequired,
        ),
        (
            "PUT /api/v1/balloon HTTP/1.1\r\nContent-Length: 1000000\r\n\r\n",
            ErrorCode::BodyTooLarge,
        ),
        (
            "PUT /api/v1/balloon HTTP/1.1\r\nContent-Length: 2\r\n\r\n{}",
            ErrorCode::UnsupportedMediaType,
        ),
        (
            "PUT /api/v1/balloon HTTP/1.1\r\nContent-Type: application/json\r\nContent-Length: 2\r\n\r\n{x",
            ErrorCode::BadRequest,
        ),
        (
            "POST /api/v1/vm/pause HTTP/1.1\r\nContent-Type: application/json\r\nContent-Length: 7\r\n\r\n{\"a\":1}",
            ErrorCode::BadRequest,
        ),
        (
            "GET /api/v1/events?since=yesterday HTTP/1.1\r\n\r\n",
            ErrorCode::BadRequest,
        ),
        (
            "POST /api/v1/snapshot HTTP/1.1\r\n\r\n",
            ErrorCode::BadRequest,
        ),
        (
            "POST /api/v1/consoles/serial/attach HTTP/1.1\r\n\r\n",
            ErrorCode::BadRequest,
        ),
        (&huge_header, ErrorCode::HeaderTooLarge),
    ] {
        let answer = fixture.exchange(request.as_bytes());
        assert_eq!(
            status_and_code(&answer),
            (expected.status(), Some(expected)),
            "{request:?} gives {answer:?}"
        );
    }
    let answer = fixture.exchange(b"DELETE /api/v1/vm HTTP/1.1\r\n\r\n");
    assert!(answer.contains("\r\nAllow: GET\r\n"), "{answer}");
    assert_eq!(fixture.machine.calls(), [""; 0]);
}

#[test]
fn curl_understands_the_server() {
    let Ok(version) = std::process::Command::new("curl").arg("--version").output() else {
        return;
    };
    assert!(version.status.success());
    let fixture = Fixture::new();
    let curl = |arguments: &[&str]| {
        let output = std::process::Command::new("curl")
            .args(["-sS", "-w", " %{http_code}", "--unix-socket"])
            .arg(fixture.path())
            .args(arguments)
            .output()
            .unwrap();
        String::from_utf8(output.stdout).unwrap()
    };
    let state = curl(&["http://vm/api/v1/vm"]);
    assert!(
        state.contains("\"name\":\"fake\"") && state.ends_with(" 200"),
        "{state}"
    );
    assert_eq!(curl(&["-X", "POST", "http://vm/api/v1/vm/pause"]), " 204");
    let json = ["-X", "PUT", "-H", "Content-Type: application/json", "-d"];
    let url = "http://vm/api/v1/balloon";
    assert_eq!(
        curl(&[&json[..], &["{\"target_mib\": 1}", url]].concat()),
        " 204"
    );
    let long = format!("{{\"target_mib\": 1{}}}", " ".repeat(2_000));
    let expect = ["-H", "Expect: 100-continue"];
    assert_eq!(curl(&[&json[..], &[&long, url], &expect].concat()), " 204");
    let huge = format!("{{\"target_mib\": 1{}}}", " ".repeat(100_000));
    let refused = curl(&[&json[..], &[&huge, url]].concat());
    assert!(refused.ends_with(" 413"), "{refused}");
}
