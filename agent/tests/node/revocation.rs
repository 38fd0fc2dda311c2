//! What lasts ends with the right to it.

use futures_util::StreamExt;
use pindah_agent::api::{LoginAnswer, TokenCreated};
use pindah_agent::client::{Client, Context};
use reqwest::Method;
use serde_json::json;
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::tungstenite::protocol::frame::coding::CloseCode;

use super::harness::{Agent, DEADLINE, kvm_opens};

fn client_with(agent: &Agent, token: &str) -> Client {
    let mut context = Context::load(&agent.context()).unwrap();
    token.clone_into(&mut context.token);
    Client::new(context).unwrap()
}

async fn events(client: &Client) -> reqwest::Response {
    let stream = client.request(Method::GET, "/events").send().await.unwrap();
    assert_eq!(stream.status(), 200);
    stream
}

/// Reads until the stream ends.
async fn end_of(mut stream: reqwest::Response) {
    let end = async { while let Ok(Some(_)) = stream.chunk().await {} };
    tokio::time::timeout(DEADLINE, end)
        .await
        .expect("the stream ends");
}

#[tokio::test]
async fn event_streams_end_when_the_token_or_its_roles_do() {
    let agent = Agent::start().await;
    let mut stays = events(agent.client()).await;

    let body = json!({ "name": "dashboard", "role": "viewer" });
    let token: TokenCreated = agent.client().post("/tokens", &body).await.unwrap();
    let of_token = events(&client_with(&agent, &token.text)).await;
    agent.must(&["token", "delete", &token.token.id]);
    end_of(of_token).await;

    let body = json!({ "name": "anna", "role": "operator", "password": "correct horse" });
    let (status, made) = agent.request(Method::POST, "/users", Some(&body)).await;
    assert_eq!(status, 201, "{made}");
    let login = json!({ "user": "anna", "password": "correct horse" });
    let login: LoginAnswer = agent.client().post("/login", &login).await.unwrap();
    let anna = client_with(&agent, &login.token);
    let before = events(&anna).await;
    agent.must(&["user", "grant", "anna", "--role", "viewer"]);
    end_of(before).await;
    let of_user = events(&anna).await;
    agent.must(&["user", "delete", "anna"]);
    end_of(of_user).await;

    // Whose rights are what they were hears on.
    let guest = json!({ "name": "web", "memory_mib": 64, "interfaces": [],
        "disks": [{ "size_mib": 1 }] });
    agent.begin(Method::POST, "/guests", Some(&guest)).await;
    let mut heard = String::new();
    let hear = async {
        while !heard.contains("\"web\"") {
            let piece = stays.chunk().await.unwrap().expect("the stream goes on");
            heard.push_str(&String::from_utf8_lossy(&piece));
        }
    };
    tokio::time::timeout(DEADLINE, hear)
        .await
        .expect("an event of web");
}

#[tokio::test]
async fn console_ends_when_its_user_may_no_longer_run_the_guest() {
    if !kvm_opens() {
        return;
    }
    let agent = Agent::start().await;
    agent.upload_probe().await;
    let guest = agent.create_probe("web", "", json!({})).await;
    let body = json!({ "name": "desk", "guests": { guest.uuid.to_string(): "operator" } });
    let token: TokenCreated = agent.client().post("/tokens", &body).await.unwrap();
    let desk = client_with(&agent, &token.text);
    let mut console = desk.websocket("/guests/web/console").await.unwrap();
    let id = token.token.id.as_str();
    agent.must(&["token", "grant", id, "--role", "viewer", "--guest", "web"]);
    let last = async {
        loop {
            match console.next().await {
                Some(Ok(Message::Close(frame))) => return frame,
                Some(Ok(_)) => {}
                other => panic!("the console broke: {other:?}"),
            }
        }
    };
    let frame = tokio::time::timeout(DEADLINE, last).await;
    let frame = frame.expect("the console ends").expect("a reason");
    assert_eq!(frame.code, CloseCode::Policy);
    assert!(frame.reason.contains("may no longer use it"), "{frame}");
}
