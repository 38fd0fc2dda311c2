//! Who may do what.

use std::time::Instant;

use pindah_agent::api::TokenCreated;
use pindah_agent::client::{Client, Context};
use reqwest::Method;
use serde_json::{Value, json};

use super::harness::{Agent, DEADLINE, answer};

fn client_with(agent: &Agent, token: &str) -> Client {
    let mut context = Context::load(&agent.context()).unwrap();
    token.clone_into(&mut context.token);
    Client::new(context).unwrap()
}

#[tokio::test]
async fn role_decides_what_a_token_may_do() {
    let agent = Agent::start().await;
    let token = async |role: &str| -> TokenCreated {
        let body = json!({ "name": format!("t-{role}"), "role": role });
        agent.client().post("/tokens", &body).await.unwrap()
    };
    let viewer = client_with(&agent, &token("viewer").await.text);
    let operator = client_with(&agent, &token("operator").await.text);
    let nobody = client_with(&agent, "pindah_0123456789abcdef_0");
    let guest = json!({ "name": "web", "memory_mib": 64, "interfaces": [],
        "disks": [{ "size_mib": 1 }] });
    for (who, client, get, create, accounts) in [
        ("viewer", &viewer, 200, 403, 403),
        ("operator", &operator, 200, 202, 403),
        ("nobody", &nobody, 401, 401, 401),
    ] {
        let status = async |method: Method, path: &str, body: &Value| {
            answer(client.request(method, path).json(body)).await.0
        };
        assert_eq!(
            status(Method::GET, "/guests", &json!({})).await,
            get,
            "{who}"
        );
        assert_eq!(
            status(Method::POST, "/guests", &guest).await,
            create,
            "{who}"
        );
        assert_eq!(
            status(Method::GET, "/tokens", &json!({})).await,
            accounts,
            "{who}"
        );
    }
    let audit = std::fs::read_to_string(agent.path("state/audit.log")).unwrap();
    assert!(audit.contains("\"user\":\"t-viewer\""), "{audit}");
    assert!(audit.contains("\"status\":403"), "{audit}");
}

#[tokio::test]
async fn login_gives_a_token_and_too_many_failures_a_wait() {
    let agent = Agent::start().await;
    let user = json!({ "name": "siti", "role": "viewer", "password": "correct horse" });
    let (status, body) = agent.request(Method::POST, "/users", Some(&user)).await;
    assert_eq!(
        (status, &body["data"]),
        (201, &json!({ "name": "siti", "role": "viewer" }))
    );
    let login = async |password: &str| {
        let body = json!({ "user": "siti", "password": password });
        answer(
            client_with(&agent, "")
                .request(Method::POST, "/login")
                .json(&body),
        )
        .await
    };
    let (status, body) = login("correct horse").await;
    assert_eq!(status, 200, "{body}");
    let siti = client_with(&agent, body["data"]["token"].as_str().unwrap());
    assert_eq!(answer(siti.request(Method::GET, "/guests")).await.0, 200);
    assert_eq!(answer(siti.request(Method::GET, "/users")).await.0, 403);
    assert_eq!(login("wrong horse").await.0, 401);
    // Each further failure doubles the wait: however slow this host is, it is in the wait at last.
    let end = Instant::now() + DEADLINE * 2;
    loop {
        let waits = login("wrong horse").await.0 == 429;
        if waits && login("correct horse").await.0 == 429 {
            break;
        }
        assert!(Instant::now() < end, "who guesses passwords never waits");
    }
}

#[tokio::test]
async fn secrets_are_for_their_owner_only() {
    use std::os::unix::fs::PermissionsExt;

    let agent = Agent::start().await;
    for (name, mode) in [
        ("admin.json", 0o600),
        ("private", 0o700),
        ("private/ca-key.pem", 0o600),
        ("audit.log", 0o600),
        ("guests", 0o700),
        ("tasks", 0o700),
        ("pool/images", 0o700),
    ] {
        let path = agent.path("state").join(name);
        let permissions = std::fs::metadata(&path).unwrap().permissions();
        assert_eq!(permissions.mode() & 0o777, mode, "{name}");
    }
}
