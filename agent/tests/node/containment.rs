//! Whom a guest's process is, what it may take, and what it is a part of.

use std::fs;
use std::path::{Path, PathBuf};

use pindah_agent::domain::TaskState;
use pindah_agent::guests::GuestState;
use reqwest::Method;
use serde_json::json;

use super::harness::{Agent, is_root, kvm_opens};

/// Where this host has groups for processors, if an agent may make some there.
fn cpu_groups() -> Option<PathBuf> {
    let v1 = ["/sys/fs/cgroup/cpu", "/sys/fs/cgroup/cpu,cpuacct"];
    let mut v1 = v1.into_iter().map(PathBuf::from);
    // There guests are units, in other groups.
    let systemd = Path::new("/run/systemd/system").is_dir();
    v1.find(|path| !systemd && path.join("cgroup.procs").exists())
}

/// The group of a process in the hierarchy for processors, from its root (cgroups(7)).
fn cpu_group_of(pid: u32) -> PathBuf {
    let groups = fs::read_to_string(format!("/proc/{pid}/cgroup")).unwrap();
    let cpu = groups.lines().find_map(|line| {
        let (controllers, group) = line.split_once(':')?.1.split_once(':')?;
        let has_cpu = controllers.split(',').any(|name| name == "cpu");
        has_cpu.then(|| group.trim_start_matches('/').into())
    });
    cpu.unwrap_or_else(|| panic!("no cpu group in {groups}"))
}

#[tokio::test]
async fn cpu_limits_are_applied_changed_and_taken_away_with_the_guest() {
    if !(kvm_opens() && is_root()) {
        return;
    }
    let Some(groups) = cpu_groups() else {
        eprintln!("skipped: this host has no cpu controller of version 1");
        return;
    };
    let agent = Agent::start().await;
    agent.upload_probe().await;
    let plain = agent.create_probe("plain", "", json!({})).await;
    let limits = json!({ "cpu_limits": { "weight": 50, "limit_percent": 150 } });
    let guest = agent.create_probe("web", "", limits).await;
    assert_eq!(guest.limits_error, None);
    // Below the agent's own, which is this test's.
    let own = groups.join(cpu_group_of(std::process::id()));
    let group = own.join(format!("pindah-guest-{}", guest.uuid));
    assert_eq!(groups.join(cpu_group_of(guest.pid.unwrap())), group);
    assert_eq!(groups.join(cpu_group_of(plain.pid.unwrap())), own);
    let read = |name: &str| {
        fs::read_to_string(group.join(name))
            .unwrap()
            .trim()
            .to_owned()
    };
    assert_eq!(read("cgroup.procs"), guest.pid.unwrap().to_string());
    assert_eq!(read("cpu.shares"), "512");
    let period: u64 = read("cpu.cfs_period_us").parse().unwrap();
    let quota = || read("cpu.cfs_quota_us").parse::<i64>().unwrap();
    assert_eq!(quota() as u64, period * 3 / 2);

    agent.must(&["guest", "edit", "web", "--cpu-limit", "0.2"]);
    assert_eq!(
        (quota() as u64, read("cpu.shares").as_str()),
        (period / 5, "512")
    );
    agent.must(&[
        "guest",
        "edit",
        "web",
        "--cpu-limit",
        "none",
        "--cpu-weight",
        "none",
    ]);
    assert_eq!((quota(), read("cpu.shares").as_str()), (-1, "1024"));
    // A guest that had none gets some while it runs.
    agent.must(&["guest", "edit", "plain", "--cpu-weight", "200"]);
    let plain_group = own.join(format!("pindah-guest-{}", plain.uuid));
    let procs = fs::read_to_string(plain_group.join("cgroup.procs")).unwrap();
    assert_eq!(procs.trim(), plain.pid.unwrap().to_string());
    let refused = agent.must_refuse(&["guest", "edit", "web", "--cpu-weight", "0"]);
    assert!(refused.contains("must be 1 to 10000"), "{refused}");
    let refused = agent.must_refuse(&["guest", "edit", "web", "--cpu-limit", "much"]);
    assert!(refused.contains("a number of CPUs"), "{refused}");

    for name in ["web", "plain"] {
        let task = agent
            .begin(Method::POST, &format!("/guests/{name}/stop"), None)
            .await;
        assert_eq!(task.state, TaskState::Done, "{task:?}");
    }
    assert!(!group.exists() && !plain_group.exists(), "{}", agent.log());
}

#[tokio::test]
async fn guest_runs_as_a_user_of_its_own_without_capabilities() {
    if !(kvm_opens() && is_root()) {
        return;
    }
    let mut agent = Agent::start_configured("vmm_user = '64990:64991'").await;
    agent.upload_probe().await;
    let guest = agent
        .create_probe("web", "", json!({ "disks": [{ "size_mib": 8 }] }))
        .await;
    let status = fs::read_to_string(format!("/proc/{}/status", guest.pid.unwrap())).unwrap();
    for line in [
        "Uid:\t64990\t64990\t64990\t64990",
        "Gid:\t64991\t64991\t64991\t64991",
        "CapPrm:\t0000000000000000",
        "CapEff:\t0000000000000000",
        "CapBnd:\t0000000000000000",
        "NoNewPrivs:\t1",
    ] {
        assert!(status.lines().any(|one| one == line), "{line} in {status}");
    }
    // The next agent finds it, and it does what it is asked to.
    agent.kill();
    agent.spawn().await;
    assert_eq!(agent.guest("web").await.pid, guest.pid);
    agent.request(Method::POST, "/guests/web/pause", None).await;
    agent.wait_state("web", GuestState::Paused).await;
    agent
        .request(Method::POST, "/guests/web/resume", None)
        .await;
    agent.wait_state("web", GuestState::Running).await;
    let task = agent.begin(Method::POST, "/guests/web/stop", None).await;
    assert_eq!(task.state, TaskState::Done, "{task:?}");
    let task = agent.begin(Method::POST, "/guests/web/start", None).await;
    assert_eq!(task.state, TaskState::Done, "{task:?}");
}
