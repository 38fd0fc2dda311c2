//! Who is let in by the web page's cookie, and what other sites' pages can do with it.

use pindah_agent::client::{Client, Context};
use reqwest::header::HeaderMap;
use reqwest::{Method, StatusCode};
use serde_json::{Value, json};

use super::harness::{Agent, answer};

/// Somebody who has no token.
fn nobody(agent: &Agent) -> Client {
    let mut context = Context::load(&agent.context()).unwrap();
    context.token.clear();
    Client::new(context).unwrap()
}

fn header<'a>(headers: &'a HeaderMap, name: &str) -> &'a str {
    let value = headers.get(name).and_then(|value| value.to_str().ok());
    value.unwrap_or_default()
}

/// A site with a user, and the user's cookie.
async fn logged_in() -> (Agent, Client, String) {
    let agent = Agent::start().await;
    let user = json!({ "name": "anna", "role": "operator", "password": "correct horse" });
    let (status, made) = agent.request(Method::POST, "/users", Some(&user)).await;
    assert_eq!(status, 201, "{made}");
    let client = nobody(&agent);
    let login = json!({ "user": "anna", "password": "correct horse" });
    let answer = client.request(Method::POST, "/session").json(&login);
    let answer = answer.send().await.unwrap();
    assert_eq!(answer.status(), 200);
    let set = header(answer.headers(), "set-cookie").to_owned();
    let who: Value = serde_json::from_slice(&answer.bytes().await.unwrap()).unwrap();
    assert_eq!(who["data"]["user"], "anna");
    assert_eq!(who["data"]["role"], "operator");
    let mut parts = set.split("; ");
    let cookie = parts.next().unwrap().to_owned();
    let flags: Vec<&str> = parts.collect();
    assert!(cookie.starts_with("__Host-pindah=pindah_"), "{cookie}");
    for flag in [
        "Secure",
        "HttpOnly",
        "SameSite=Strict",
        "Path=/",
        "Max-Age=3600",
    ] {
        assert!(flags.contains(&flag), "{flag}: {set}");
    }
    (agent, client, cookie)
}

#[tokio::test]
async fn cookie_is_a_login_that_is_renewed_and_ends() {
    let (_agent, client, cookie) = logged_in().await;
    let with = |method: Method, path: &str| {
        let request = client.request(method, path).header("cookie", &cookie);
        request.header("sec-fetch-site", "same-origin")
    };
    let (status, who) = answer(with(Method::GET, "/session")).await;
    assert_eq!((status, &who["data"]["user"]), (200, &json!("anna")));
    assert_eq!(answer(with(Method::GET, "/guests")).await.0, 200);
    assert_eq!(answer(with(Method::GET, "/users")).await.0, 403);

    let renewed = with(Method::PUT, "/session").send().await.unwrap();
    assert_eq!(renewed.status(), StatusCode::NO_CONTENT);
    let set = header(renewed.headers(), "set-cookie");
    assert!(set.starts_with(&cookie) && set.contains("Max-Age=3600"));
    assert_eq!(answer(with(Method::GET, "/guests")).await.0, 200);

    let ended = with(Method::DELETE, "/session").send().await.unwrap();
    assert_eq!(ended.status(), StatusCode::NO_CONTENT);
    let set = header(ended.headers(), "set-cookie");
    assert!(set.starts_with("__Host-pindah=;") && set.contains("Max-Age=0"));
    assert_eq!(answer(with(Method::GET, "/guests")).await.0, 401);
    // Who has an old cookie can log in again.
    let login = json!({ "user": "anna", "password": "correct horse" });
    let again = with(Method::POST, "/session").json(&login);
    assert_eq!(answer(again).await.0, 200);
    let wrong = json!({ "user": "anna", "password": "wrong horse" });
    let wrong = with(Method::POST, "/session").json(&wrong);
    assert_eq!(answer(wrong).await.0, 401);
}

#[tokio::test]
async fn token_that_is_no_login_cannot_be_renewed_as_one() {
    let agent = Agent::start().await;
    for method in [Method::PUT, Method::DELETE] {
        let (status, body) = agent.request(method, "/session", None).await;
        assert_eq!(status, 409, "{body}");
    }
    assert_eq!(agent.request(Method::GET, "/tokens", None).await.0, 200);
}

#[tokio::test]
async fn cookie_changes_nothing_for_another_sites_page() {
    let (agent, client, cookie) = logged_in().await;
    let guest = json!({ "name": "web", "memory_mib": 64, "interfaces": [],
        "disks": [{ "size_mib": 1 }] });
    let own = Context::load(&agent.context()).unwrap().server;
    let create = |name: &'static str, value: &str| {
        let request = client.request(Method::POST, "/guests").json(&guest);
        request.header("cookie", &cookie).header(name, value)
    };
    let elsewhere = [
        create("x-nothing", "said"),
        create("sec-fetch-site", "cross-site"),
        create("sec-fetch-site", "same-site"),
        create("origin", "https://example.org"),
        create("origin", "null"),
        create("origin", &own.replace("https", "http")),
        create("origin", "https://example.org").header("sec-fetch-site", "none"),
    ];
    for request in elsewhere {
        let (status, body) = answer(request).await;
        assert_eq!(status, 403, "{body}");
    }
    let console = client.request(Method::GET, "/guests/web/console");
    let console = console
        .header("cookie", &cookie)
        .header("upgrade", "websocket")
        .header("connection", "upgrade")
        .header("origin", "https://example.org");
    assert_eq!(answer(console).await.0, 403);
    let login = json!({ "user": "anna", "password": "correct horse" });
    let login = client.request(Method::POST, "/session").json(&login);
    let login = login.header("origin", "https://example.org");
    assert_eq!(answer(login).await.0, 403);

    assert_eq!(answer(create("origin", &own)).await.0, 202);
}
