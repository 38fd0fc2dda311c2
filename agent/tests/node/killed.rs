//! The agent is killed all through an action, each time a little later. What the next one makes of
//! it is the action done or not begun, and nothing that belongs to nobody.

use std::fs;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use serde_json::Value;

use super::harness::{Agent, DEADLINE, is_root, kvm_opens, stdout};
use super::programs::{pindah, programs};

/// Moments of an action at which the agent dies: the first as it begins, the last after its end.
const MOMENTS: u32 = 8;

const DELETE: &[&str] = &["guest", "delete", "web", "--force", "--yes"];

/// An agent with a network, a disk's image and the probe.
async fn site(name: &str) -> Agent {
    let agent = Agent::start_in_namespace(name).await;
    let disk = agent.path("disk");
    fs::write(&disk, vec![0x5a; 8 << 20]).unwrap();
    let probe = programs().join("pindah-probe");
    for (name, file) in [("disk", &disk), ("probe", &probe)] {
        let file = file.to_str().unwrap();
        agent.must(&["image", "upload", file, "--name", name]);
    }
    agent
}

fn create(more: &'static str) -> Vec<&'static str> {
    let mut arguments = vec!["guest", "create", "web", "--memory", "64M"];
    arguments.extend(["--disk", "8M", "--image", "disk", "--format", "raw"]);
    arguments.extend(["--kernel", "probe", "--cmdline", "ws_mib=4"]);
    arguments.extend((!more.is_empty()).then_some(more));
    arguments
}

fn begin(agent: &Agent, arguments: &[&str]) -> Child {
    let mut command = Command::new("ip");
    command
        .args(["netns", "exec", agent.namespace()])
        .arg(pindah())
        .args(arguments)
        .env("PINDAH_CONTEXT", agent.context())
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null());
    command.spawn().expect("pindah starts")
}

/// Does the action, and kills the agent at `moment` of [`MOMENTS`] of the time that it takes.
async fn die_at(agent: &mut Agent, arguments: &[&str], moment: u32, whole: Duration) {
    let mut action = begin(agent, arguments);
    tokio::time::sleep(whole * moment / (MOMENTS - 1)).await;
    agent.kill();
    action.wait().unwrap();
    agent.spawn().await;
}

/// The guest, if there is one, when it is as somebody wants it.
async fn settled(agent: &Agent) -> Option<Value> {
    let end = Instant::now() + DEADLINE;
    loop {
        let listed = agent.must(&["guest", "list", "--json"]);
        let guests: Vec<Value> = serde_json::from_str(&listed).unwrap();
        match guests.first() {
            None => return None,
            Some(guest) if guest["state"] == guest["wanted"] => return Some(guest.clone()),
            Some(guest) => assert!(Instant::now() < end, "{guest}\n{}", agent.log()),
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

/// VMMs of this agent's.
fn processes(agent: &Agent) -> usize {
    let state = agent.path("state").display().to_string();
    let processes = fs::read_dir("/proc").unwrap().flatten();
    let lines = processes.filter_map(|process| fs::read(process.path().join("cmdline")).ok());
    let lines = lines.map(|line| String::from_utf8_lossy(&line).into_owned());
    lines
        .filter(|line| line.contains("pindah-vmm") && line.contains(&state))
        .count()
}

fn taps(agent: &Agent) -> usize {
    let links = stdout(agent, "ip", &["-br", "link", "show", "type", "tun"]);
    links.lines().count()
}

/// What there is of the guest is all of it.
fn assert_whole(agent: &Agent, guest: &Value, moment: u32) {
    let runs = usize::from(guest["state"] == "running");
    let found = (processes(agent), taps(agent));
    assert_eq!(found, (runs, runs), "{moment}: {guest}\n{}", agent.log());
}

fn assert_nothing(agent: &Agent, moment: u32) {
    let found = (processes(agent), taps(agent));
    assert_eq!(found, (0, 0), "{moment}\n{}", agent.log());
    agent.assert_no_guests_left();
}

/// How long it takes when nobody dies.
fn time(agent: &Agent, arguments: &[&str]) -> Duration {
    let start = Instant::now();
    agent.must(arguments);
    start.elapsed()
}

#[tokio::test]
async fn guest_whose_create_dies_is_there_or_is_not() {
    if !(kvm_opens() && is_root()) {
        return;
    }
    let mut agent = site("killed-create").await;
    let create = create("--start");
    let whole = time(&agent, &create);
    agent.must(DELETE);
    let mut made = 0;
    for moment in 0..MOMENTS {
        die_at(&mut agent, &create, moment, whole).await;
        match settled(&agent).await {
            None => assert_nothing(&agent, moment),
            Some(guest) => {
                made += 1;
                assert_whole(&agent, &guest, moment);
                // It is as good as any other.
                if guest["state"] == "stopped" {
                    agent.must(&["guest", "start", "web"]);
                }
                agent.must(DELETE);
                assert_nothing(&agent, moment);
            }
        }
    }
    println!("made at {made} of {MOMENTS} moments");
}

#[tokio::test]
async fn guest_whose_start_dies_runs_once_or_not_at_all() {
    if !(kvm_opens() && is_root()) {
        return;
    }
    let mut agent = site("killed-start").await;
    agent.must(&create(""));
    let (start, stop) = (
        ["guest", "start", "web"],
        ["guest", "stop", "web", "--force"],
    );
    let whole = time(&agent, &start);
    agent.must(&stop);
    let mut running = 0;
    for moment in 0..MOMENTS {
        die_at(&mut agent, &start, moment, whole).await;
        let guest = settled(&agent).await.expect("it was there before");
        assert_whole(&agent, &guest, moment);
        if guest["state"] == "running" {
            running += 1;
            agent.must(&stop);
        }
    }
    println!("running after {running} of {MOMENTS} moments");
}

#[tokio::test]
async fn guest_whose_deletion_dies_is_whole_or_gone() {
    if !(kvm_opens() && is_root()) {
        return;
    }
    let mut agent = site("killed-delete").await;
    let create = create("--start");
    agent.must(&create);
    let whole = time(&agent, DELETE);
    for moment in 0..MOMENTS {
        agent.must(&create);
        die_at(&mut agent, DELETE, moment, whole).await;
        if let Some(guest) = settled(&agent).await {
            assert_whole(&agent, &guest, moment);
            agent.must(DELETE);
        }
        assert_nothing(&agent, moment);
    }
}
