//! The web page, as it is served.

use pindah_agent::client::{Client, Context};
use reqwest::header::HeaderMap;
use reqwest::{Method, RequestBuilder};

use super::harness::{Agent, answer};

/// A request of the page, not of the API.
fn get(agent: &Agent, path: &str) -> RequestBuilder {
    let mut context = Context::load(&agent.context()).unwrap();
    context.token.clear();
    let client = Client::new(context).unwrap();
    client.request(Method::GET, &format!("/../..{path}"))
}

fn header<'a>(headers: &'a HeaderMap, name: &str) -> &'a str {
    let value = headers.get(name).and_then(|value| value.to_str().ok());
    value.unwrap_or_default()
}

#[tokio::test]
async fn page_is_served_compressed_and_its_addresses_lead_to_it() {
    let agent = Agent::start().await;
    let index = get(&agent, "/").send().await.unwrap();
    assert_eq!(index.status(), 200);
    let headers = index.headers().clone();
    assert_eq!(header(&headers, "content-type"), "text/html; charset=utf-8");
    assert_eq!(header(&headers, "cache-control"), "no-cache");
    assert_eq!(header(&headers, "x-content-type-options"), "nosniff");
    assert_eq!(header(&headers, "referrer-policy"), "no-referrer");
    let policy = header(&headers, "content-security-policy");
    assert!(policy.contains("script-src 'self';") && policy.contains("frame-ancestors 'none'"));
    assert!(!policy.contains("unsafe"), "{policy}");
    let tag = header(&headers, "etag").to_owned();
    let html = index.text().await.unwrap();

    let again = get(&agent, "/").header("if-none-match", tag);
    assert_eq!(again.send().await.unwrap().status(), 304);

    let script = html.split("src=\"").nth(1).expect("a script in the page");
    let script = script.split('"').next().unwrap();
    assert!(script.starts_with("/assets/"), "{script}");
    let plain = get(&agent, script).send().await.unwrap();
    assert_eq!(header(plain.headers(), "content-encoding"), "");
    let plain = plain.bytes().await.unwrap();
    for (accepted, encoding) in [
        ("gzip, deflate, br", "br"),
        ("gzip", "gzip"),
        ("br;q=0, gzip;q=0.5", "gzip"),
    ] {
        let request = get(&agent, script).header("accept-encoding", accepted);
        let packed = request.send().await.unwrap();
        let headers = packed.headers();
        assert_eq!(header(headers, "content-encoding"), encoding, "{accepted}");
        assert!(header(headers, "cache-control").contains("immutable"));
        assert!(header(headers, "content-type").starts_with("text/javascript"));
        assert!(packed.bytes().await.unwrap().len() < plain.len() / 2);
    }

    let deep = get(&agent, "/guests/web/console").header("accept", "text/html,*/*;q=0.8");
    assert_eq!(deep.send().await.unwrap().text().await.unwrap(), html);
    for path in ["/assets/nothing.js", "/guests/web", "/api/v1/nothing"] {
        let (status, body) = answer(get(&agent, path)).await;
        assert_eq!(status, 404, "{path}");
        assert_eq!(body["error"]["code"], "not_found", "{path}");
    }
    let api = get(&agent, "/api/v1/nothing").header("accept", "text/html");
    assert_eq!(answer(api).await.1["error"]["code"], "not_found");
}
