//! Who may do what: each route of the API's description, asked by each kind of caller.

use std::collections::BTreeMap;

use pindah_agent::client::{Client, Context};
use reqwest::Method;
use serde_json::{Value, json};

use super::harness::{Agent, answer};

/// What a route needs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Rule {
    /// Nothing.
    Open,
    /// A token; the answer holds what it may see.
    Known,
    /// A role for everything.
    Viewer,
    Operator,
    Admin,
    /// Another node.
    Node,
    /// A right to the guest in the path.
    Look,
    Run,
    Change,
    Share,
}

use Rule::{Admin, Change, Known, Look, Node, Open, Operator, Run, Share, Viewer};

/// One line a route of `agent/api/openapi.json`; a route without a line fails the test.
const RULES: &[(&str, &str, Rule)] = &[
    ("post", "/api/v1/arrivals", Node),
    ("post", "/api/v1/arrivals/settle", Node),
    ("get", "/api/v1/arrivals/{guest}/offer", Node),
    ("get", "/api/v1/cluster", Viewer),
    ("get", "/api/v1/cluster/backup", Admin),
    ("get", "/api/v1/cluster/balance", Viewer),
    ("get", "/api/v1/cluster/clock", Viewer),
    ("get", "/api/v1/cluster/cpu", Viewer),
    ("post", "/api/v1/cluster/cpu/adopt", Admin),
    ("post", "/api/v1/cluster/init", Admin),
    ("post", "/api/v1/cluster/join", Admin),
    ("post", "/api/v1/cluster/leave", Admin),
    ("post", "/api/v1/cluster/members", Open),
    ("post", "/api/v1/cluster/recover", Admin),
    ("post", "/api/v1/cluster/tokens", Admin),
    ("post", "/api/v1/cluster/update", Admin),
    ("get", "/api/v1/events", Known),
    ("get", "/api/v1/guests", Known),
    ("post", "/api/v1/guests", Operator),
    ("get", "/api/v1/guests/{guest}", Look),
    ("patch", "/api/v1/guests/{guest}", Change),
    ("delete", "/api/v1/guests/{guest}", Change),
    ("post", "/api/v1/guests/{guest}/clone", Operator),
    ("get", "/api/v1/guests/{guest}/console", Run),
    ("get", "/api/v1/guests/{guest}/disks/{disk}/content", Change),
    ("put", "/api/v1/guests/{guest}/disks/{disk}/limits", Change),
    ("post", "/api/v1/guests/{guest}/disks/{disk}/resize", Change),
    ("post", "/api/v1/guests/{guest}/disks/{disk}/move", Change),
    (
        "patch",
        "/api/v1/guests/{guest}/interfaces/{interface}",
        Change,
    ),
    ("get", "/api/v1/guests/{guest}/history", Look),
    ("get", "/api/v1/guests/{guest}/log", Look),
    ("put", "/api/v1/guests/{guest}/memory", Change),
    ("get", "/api/v1/guests/{guest}/migrate", Look),
    ("post", "/api/v1/guests/{guest}/migrate", Change),
    ("post", "/api/v1/guests/{guest}/pause", Run),
    ("post", "/api/v1/guests/{guest}/reset", Run),
    ("post", "/api/v1/guests/{guest}/resume", Run),
    ("post", "/api/v1/guests/{guest}/start", Run),
    ("post", "/api/v1/guests/{guest}/stop", Run),
    ("put", "/api/v1/guests/{guest}/template", Change),
    ("delete", "/api/v1/guests/{guest}/template", Change),
    ("get", "/api/v1/history", Node),
    ("get", "/api/v1/history/tally", Node),
    ("get", "/api/v1/images", Viewer),
    ("get", "/api/v1/images/{image}", Viewer),
    ("put", "/api/v1/images/{image}", Operator),
    ("delete", "/api/v1/images/{image}", Operator),
    ("get", "/api/v1/images/{image}/content", Operator),
    ("post", "/api/v1/login", Open),
    ("get", "/api/v1/metrics", Known),
    ("get", "/api/v1/networks", Viewer),
    ("post", "/api/v1/networks", Admin),
    ("get", "/api/v1/networks/{network}", Viewer),
    ("patch", "/api/v1/networks/{network}", Admin),
    ("delete", "/api/v1/networks/{network}", Admin),
    ("get", "/api/v1/nodes", Viewer),
    ("get", "/api/v1/nodes/{node}", Viewer),
    ("delete", "/api/v1/nodes/{node}", Admin),
    ("put", "/api/v1/nodes/{node}/bundle", Admin),
    ("get", "/api/v1/nodes/{node}/bundle/content", Node),
    ("post", "/api/v1/nodes/{node}/drain", Operator),
    ("get", "/api/v1/nodes/{node}/history", Viewer),
    ("post", "/api/v1/nodes/{node}/undrain", Operator),
    ("post", "/api/v1/nodes/{node}/update", Admin),
    ("get", "/api/v1/pools", Viewer),
    ("post", "/api/v1/pools", Admin),
    ("get", "/api/v1/pools/{pool}", Viewer),
    ("delete", "/api/v1/pools/{pool}", Admin),
    ("get", "/api/v1/pools/{pool}/volumes", Viewer),
    ("get", "/api/v1/report", Known),
    ("get", "/api/v1/session", Known),
    ("post", "/api/v1/session", Open),
    ("put", "/api/v1/session", Known),
    ("delete", "/api/v1/session", Known),
    ("get", "/api/v1/tasks", Known),
    ("get", "/api/v1/tasks/{task}", Look),
    ("post", "/api/v1/tasks/{task}/cancel", Run),
    ("get", "/api/v1/tasks/{task}/log", Look),
    ("get", "/api/v1/tokens", Admin),
    ("post", "/api/v1/tokens", Admin),
    ("get", "/api/v1/tokens/{token}", Admin),
    ("delete", "/api/v1/tokens/{token}", Admin),
    ("put", "/api/v1/tokens/{token}/guests/{guest}", Share),
    ("delete", "/api/v1/tokens/{token}/guests/{guest}", Share),
    ("put", "/api/v1/tokens/{token}/role", Admin),
    ("delete", "/api/v1/tokens/{token}/role", Admin),
    ("get", "/api/v1/users", Admin),
    ("post", "/api/v1/users", Admin),
    ("get", "/api/v1/users/{user}", Admin),
    ("delete", "/api/v1/users/{user}", Admin),
    ("put", "/api/v1/users/{user}/guests/{guest}", Share),
    ("delete", "/api/v1/users/{user}/guests/{guest}", Share),
    ("put", "/api/v1/users/{user}/role", Admin),
    ("delete", "/api/v1/users/{user}/role", Admin),
    ("get", "/metrics", Known),
];

/// What becomes of a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Fate {
    /// Whatever the answer, it is not about who asks.
    Let,
    Unauthorized,
    Forbidden,
    /// As if there were no such guest or task.
    Hidden,
}

/// Levels: 0 none, 1 viewer, 2 operator, 3 admin; of everything and of the guest in the path.
fn expected(rule: Rule, of_all: u8, of_guest: u8) -> Fate {
    let by_role = |needed: u8| {
        if of_all >= needed {
            Fate::Let
        } else {
            Fate::Forbidden
        }
    };
    let right = |of_all_needed: u8, of_guest_needed: u8| {
        if of_all >= of_all_needed || of_guest >= of_guest_needed {
            Fate::Let
        } else if of_all == 0 && of_guest == 0 {
            Fate::Hidden
        } else {
            Fate::Forbidden
        }
    };
    match rule {
        Open | Known => Fate::Let,
        Viewer => by_role(1),
        Operator => by_role(2),
        Admin => by_role(3),
        Node => Fate::Forbidden,
        Look => right(1, 1),
        Run => right(2, 2),
        Change => right(2, 3),
        Share => right(3, 3),
    }
}

struct Site {
    agent: Agent,
    /// By guest: `web` and `db`.
    uuids: BTreeMap<&'static str, String>,
    /// The tasks that made them.
    tasks: BTreeMap<&'static str, String>,
}

impl Site {
    async fn new() -> Self {
        let agent = Agent::start().await;
        let (mut uuids, mut tasks) = (BTreeMap::new(), BTreeMap::new());
        for name in ["web", "db"] {
            let spec = json!({ "name": name, "memory_mib": 64, "interfaces": [],
                "disks": [{ "size_mib": 1 }] });
            let task = agent.begin(Method::POST, "/guests", Some(&spec)).await;
            uuids.insert(name, agent.guest(name).await.uuid.to_string());
            tasks.insert(name, task.id.to_string());
        }
        Self {
            agent,
            uuids,
            tasks,
        }
    }

    fn client(&self, token: &str) -> Client {
        let mut context = Context::load(&self.agent.context()).unwrap();
        token.clone_into(&mut context.token);
        Client::new(context).unwrap()
    }

    /// A token with a role for everything, or for `web` only.
    async fn token(&self, name: &str, role: Option<&str>, on_web: Option<&str>) -> Client {
        let mut body = json!({ "name": name });
        if let Some(role) = role {
            body["role"] = json!(role);
        }
        if let Some(role) = on_web {
            body["guests"] = json!({ &self.uuids["web"]: role });
        }
        let (status, made) = self
            .agent
            .request(Method::POST, "/tokens", Some(&body))
            .await;
        assert_eq!(status, 201, "{made}");
        self.client(made["data"]["text"].as_str().unwrap())
    }

    /// A request that nobody's rights make succeed: its query and body are wrong, and what its path
    /// names beside guests and tasks does not exist.
    async fn fate(&self, client: &Client, (method, path): (&str, &str), guest: &str) -> Fate {
        let path = path
            .replace("{guest}", guest)
            .replace("{task}", &self.tasks[guest])
            .replace("{node}", "nobody")
            .replace("{token}", "0123456789abcdef");
        let path = path.replace(['{', '}'], "");
        let method = Method::from_bytes(method.to_uppercase().as_bytes()).unwrap();
        let under = path.strip_prefix("/api/v1").map(str::to_owned);
        let under = under.unwrap_or_else(|| format!("/../..{path}"));
        let request = client.request(method, &format!("{under}?nonsense=1"));
        let request = request
            .header("content-type", "text/plain")
            .body("nonsense");
        let response = request.send().await.unwrap();
        let (status, path) = (response.status().as_u16(), response.url().path().to_owned());
        if path.ends_with("/events") {
            // This one's body has no end.
            return if status == 401 {
                Fate::Unauthorized
            } else {
                Fate::Let
            };
        }
        let body: Value =
            serde_json::from_slice(&response.bytes().await.unwrap()).unwrap_or_default();
        let message = body["error"]["message"].as_str().unwrap_or_default();
        let no_guest = format!("there is no guest {guest}");
        let no_task = format!("there is no task {}", self.tasks[guest]);
        match status {
            // A login or join that fails is refused for its own reasons.
            401 if path.ends_with("/login") => Fate::Let,
            401 => Fate::Unauthorized,
            403 if path.ends_with("/cluster/members") => Fate::Let,
            403 => Fate::Forbidden,
            404 if message.starts_with(&no_guest) || message.starts_with(&no_task) => Fate::Hidden,
            _ => Fate::Let,
        }
    }
}

#[tokio::test]
async fn every_route_lets_those_through_who_may() {
    let document: Value =
        serde_json::from_str(include_str!("../../api/openapi.json")).expect("the description");
    let mut described: Vec<(String, String)> = Vec::new();
    for (path, methods) in document["paths"].as_object().unwrap() {
        for method in methods.as_object().unwrap().keys() {
            if ["get", "post", "put", "patch", "delete"].contains(&method.as_str()) {
                described.push((method.clone(), path.clone()));
            }
        }
    }
    let ruled = |method: &str, path: &str| {
        let mut rules = RULES.iter();
        rules.any(|rule| (rule.0, rule.1) == (method, path))
    };
    for (method, path) in &described {
        assert!(ruled(method, path), "{method} {path} needs a rule");
    }
    assert_eq!(described.len(), RULES.len(), "a rule is for no route");

    let site = Site::new().await;
    let callers = [
        ("viewer", site.token("v", Some("viewer"), None).await, 1, 0),
        (
            "operator",
            site.token("o", Some("operator"), None).await,
            2,
            0,
        ),
        ("admin", site.token("a", Some("admin"), None).await, 3, 0),
        (
            "web's viewer",
            site.token("wv", None, Some("viewer")).await,
            0,
            1,
        ),
        (
            "web's operator",
            site.token("wo", None, Some("operator")).await,
            0,
            2,
        ),
        (
            "web's admin",
            site.token("wa", None, Some("admin")).await,
            0,
            3,
        ),
        (
            "viewer, web's operator",
            site.token("vwo", Some("viewer"), Some("operator")).await,
            1,
            2,
        ),
        ("without a role", site.token("n", None, None).await, 0, 0),
    ];
    let unknown = site.client("pindah_0123456789abcdef_0");
    for &(method, path, rule) in RULES {
        for guest in ["web", "db"] {
            for (who, client, of_all, of_web) in &callers {
                let of_guest = if guest == "web" { *of_web } else { 0 };
                let fate = site.fate(client, (method, path), guest).await;
                let expected = expected(rule, *of_all, of_guest);
                assert_eq!(fate, expected, "{who}: {method} {path} of {guest}");
            }
        }
        let fate = site.fate(&unknown, (method, path), "web").await;
        if path != "/api/v1/login" {
            assert_eq!(fate, Fate::Unauthorized, "unknown: {method} {path}");
        }
    }
    for guest in ["web", "db"] {
        site.agent.guest(guest).await;
    }
}

#[tokio::test]
async fn lists_show_what_may_be_seen_and_a_role_that_is_taken_is_gone() {
    let site = Site::new().await;
    let agent = &site.agent;
    let user = json!({ "name": "anna", "password": "correct horse" });
    let (status, body) = agent.request(Method::POST, "/users", Some(&user)).await;
    assert_eq!((status, &body["data"]), (201, &json!({ "name": "anna" })));
    agent.must(&[
        "user", "grant", "anna", "--role", "operator", "--guest", "web",
    ]);
    let shown = agent.must(&["user", "show", "anna"]);
    assert!(shown.contains("operator of web"), "{shown}");

    let login = json!({ "user": "anna", "password": "correct horse" });
    let login = site.client("").request(Method::POST, "/login").json(&login);
    let (status, body) = answer(login).await;
    assert_eq!(status, 200, "{body}");
    let anna = site.client(body["data"]["token"].as_str().unwrap());
    let names = async |path: &str, field: &str| -> Vec<String> {
        let (status, body) = answer(anna.request(Method::GET, path)).await;
        assert_eq!(status, 200, "{path}: {body}");
        let list = body["data"]
            .as_array()
            .or(body["data"]["guests"].as_array());
        let list = list.unwrap().iter();
        list.map(|one| one[field].as_str().unwrap().to_owned())
            .collect()
    };
    assert_eq!(names("/guests", "name").await, ["web"]);
    assert_eq!(names("/tasks", "subject").await, ["web"]);
    assert_eq!(names("/metrics", "name").await, ["web"]);
    let figures = anna
        .request(Method::GET, "/../../metrics")
        .send()
        .await
        .unwrap();
    let figures = figures.text().await.unwrap();
    assert!(figures.contains("guest=\"web\""), "{figures}");
    assert!(!figures.contains("guest=\"db\"") && !figures.contains("pindah_node_cpus"));

    let events = anna.request(Method::GET, "/events").send().await.unwrap();
    for guest in ["db", "web"] {
        agent.must(&["guest", "edit", guest, "--notes", "seen"]);
    }
    let mut events = events;
    let first = tokio::time::timeout(super::harness::DEADLINE, events.chunk()).await;
    let first = String::from_utf8(first.expect("an event").unwrap().unwrap().to_vec()).unwrap();
    assert!(
        first.contains("\"web\"") && !first.contains("\"db\""),
        "{first}"
    );

    agent.must(&["user", "revoke", "anna", "--guest", "web"]);
    assert!(names("/guests", "name").await.is_empty());
    let (status, _) = answer(anna.request(Method::GET, "/guests/web")).await;
    assert_eq!(status, 404);
    let refused = agent.must_refuse(&["user", "grant", "nobody", "--role", "admin"]);
    assert!(refused.contains("there is no user nobody"), "{refused}");
    let body =
        json!({ "name": "x", "guests": { "00000000-0000-0000-0000-000000000000": "viewer" } });
    let (status, body) = agent.request(Method::POST, "/tokens", Some(&body)).await;
    assert_eq!(status, 422, "{body}");
}
