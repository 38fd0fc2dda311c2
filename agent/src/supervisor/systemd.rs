//! Guests as transient scopes of systemd (org.freedesktop.systemd1(5), systemd.scope(5)).
//!
//! `pindah-guest-UUID.scope` in `pindah.slice`: `systemctl status` and `systemd-cgtop` show what it
//! takes. It goes with its last process, and stopping the agent's own unit does not touch it. It is
//! ordered before that: when the host goes down the agent ends first, and does not take the end of
//! its guests for crashes.

use std::fs;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use async_trait::async_trait;
use futures_util::StreamExt;
use tokio::time::{sleep, timeout};
use uuid::Uuid;
use zbus::Address;
use zbus::zvariant::{ObjectPath, OwnedObjectPath, Value};

use super::containment::{Contained, Containment, ContainmentError};
use crate::domain::CpuLimits;

/// There if systemd is process 1 (sd_booted(3)).
const BOOTED: &str = "/run/systemd/system";
/// How long systemd may take, in all: guests wait for it when they start.
const PATIENCE: Duration = Duration::from_secs(5);
/// By how much shorter that is when it has not answered before.
const LESS_PATIENT: u32 = 5;
/// How long the scope of a process that has just ended is waited for.
const RETRY: Duration = Duration::from_millis(100);
/// The agent's own unit.
const AGENT: &str = "pindahd.service";
/// What a guest uses of its host: as the host goes down its guests end first.
const HOST: [&str; 6] = [
    "local-fs.target",
    "network.target",
    "remote-fs.target",
    "iscsid.service",
    "open-iscsi.service",
    "multipathd.service",
];
/// What says that there is a unit of this name.
const UNIT_EXISTS: &str = "org.freedesktop.systemd1.UnitExists";
/// No limit: `CGROUP_WEIGHT_INVALID` and `USEC_INFINITY` of systemd.
const UNLIMITED: u64 = u64::MAX;

#[zbus::proxy(
    interface = "org.freedesktop.systemd1.Manager",
    default_service = "org.freedesktop.systemd1",
    default_path = "/org/freedesktop/systemd1",
    gen_blocking = false
)]
trait Manager {
    fn subscribe(&self) -> zbus::Result<()>;

    fn start_transient_unit(
        &self,
        name: &str,
        mode: &str,
        properties: &[(&str, Value<'_>)],
        auxiliary: &[(&str, &[(&str, Value<'_>)])],
    ) -> zbus::Result<OwnedObjectPath>;

    fn set_unit_properties(
        &self,
        name: &str,
        runtime: bool,
        properties: &[(&str, Value<'_>)],
    ) -> zbus::Result<()>;

    #[zbus(property(emits_changed_signal = "false"))]
    fn system_state(&self) -> zbus::Result<String>;

    #[zbus(signal)]
    fn job_removed(
        &self,
        id: u32,
        job: ObjectPath<'_>,
        unit: &str,
        result: &str,
    ) -> zbus::Result<()>;
}

/// The scopes of systemd's system instance.
#[derive(Debug)]
pub struct Scopes {
    /// Where it is; `None`: on the host's system bus.
    bus: Option<Address>,
    patience: Duration,
    /// Whether it did not answer when it was asked last.
    silent: AtomicBool,
}

impl Scopes {
    /// Those of this host.
    pub fn of_host() -> Self {
        Self {
            bus: None,
            patience: PATIENCE,
            silent: AtomicBool::new(false),
        }
    }
}

#[async_trait]
impl Containment for Scopes {
    async fn contain(&self, guest: &Contained<'_>) -> Result<(), ContainmentError> {
        let patience = if self.silent.load(Ordering::Relaxed) {
            self.patience / LESS_PATIENT
        } else {
            self.patience
        };
        let contained = timeout(patience, contain(self.bus.as_ref(), guest)).await;
        self.silent.store(contained.is_err(), Ordering::Relaxed);
        contained.unwrap_or(Err(ContainmentError::Silent))
    }

    /// systemd removes a scope when its last process has ended.
    async fn release(&self, _: Uuid) {}
}

async fn contain(bus: Option<&Address>, guest: &Contained<'_>) -> Result<(), ContainmentError> {
    let failed = |action| {
        move |source: zbus::Error| ContainmentError::Systemd {
            action,
            source: Box::new(source),
        }
    };
    let connection = connect(bus).await;
    let connection = connection.map_err(failed("answer on the system bus"))?;
    let manager = ManagerProxy::new(&connection).await;
    let manager = manager.map_err(failed("answer on the system bus"))?;
    let unit = unit_name(guest.uuid);
    if is_in(guest.pid, &unit) {
        let limits = limits(guest.limits);
        let set = manager.set_unit_properties(&unit, true, &limits).await;
        return set.map_err(failed("limit the guest's unit"));
    }
    let subscribed = manager.subscribe().await;
    subscribed.map_err(failed("tell of its jobs"))?;
    let jobs = manager.receive_job_removed().await;
    let mut jobs = jobs.map_err(failed("tell of its jobs"))?;
    let job = loop {
        let properties = properties(guest);
        let started = manager.start_transient_unit(&unit, "fail", &properties, &[]);
        match started.await {
            // Its process before this one has just ended.
            Err(zbus::Error::MethodError(name, ..)) if name == UNIT_EXISTS => sleep(RETRY).await,
            started => break started.map_err(failed("make the guest's unit"))?,
        }
    };
    while let Some(signal) = jobs.next().await {
        if let Ok(ended) = signal.args()
            && ended.job.as_str() == job.as_str()
        {
            return match ended.result {
                "done" => Ok(()),
                result => Err(ContainmentError::Job {
                    unit,
                    result: result.to_owned(),
                }),
            };
        }
    }
    Err(ContainmentError::Silent)
}

/// Whether systemd is process 1.
pub(super) fn is_booted() -> bool {
    Path::new(BOOTED).is_dir()
}

/// Whether systemd is shutting the host down.
pub async fn host_goes_down() -> bool {
    if !is_booted() {
        return false;
    }
    let state = async {
        let connection = connect(None).await?;
        ManagerProxy::new(&connection).await?.system_state().await
    };
    match timeout(PATIENCE, state).await {
        Ok(Ok(state)) => state == "stopping",
        Ok(Err(error)) => {
            tracing::warn!("systemd does not say whether the host goes down: {error}");
            false
        }
        Err(_) => {
            tracing::warn!("systemd does not say whether the host goes down");
            false
        }
    }
}

/// One connection a call: there are few, and the bus may be started anew between them.
async fn connect(bus: Option<&Address>) -> zbus::Result<zbus::Connection> {
    let builder = match bus {
        Some(address) => zbus::connection::Builder::address(address.clone()),
        None => zbus::connection::Builder::system(),
    };
    builder?.build().await
}

fn unit_name(uuid: Uuid) -> String {
    format!("pindah-guest-{uuid}.scope")
}

/// Whether a process is in a unit, in any hierarchy (cgroups(7), `/proc/pid/cgroup`).
fn is_in(pid: u32, unit: &str) -> bool {
    let groups = fs::read_to_string(format!("/proc/{pid}/cgroup")).unwrap_or_default();
    let mut groups = groups.lines().filter_map(|line| line.rsplit_once('/'));
    groups.any(|(_, last)| last == unit)
}

fn properties(guest: &Contained<'_>) -> Vec<(&'static str, Value<'static>)> {
    let mut properties = vec![
        ("Description", format!("Guest {}", guest.name).into()),
        ("Slice", "pindah.slice".into()),
        ("PIDs", vec![guest.pid].into()),
        ("CollectMode", "inactive-or-failed".into()),
        ("Before", vec![AGENT].into()),
        ("After", HOST.to_vec().into()),
        ("CPUAccounting", true.into()),
        ("MemoryAccounting", true.into()),
        ("TasksAccounting", true.into()),
    ];
    properties.extend(limits(guest.limits));
    properties
}

fn limits(limits: CpuLimits) -> Vec<(&'static str, Value<'static>)> {
    let quota_us = limits.limit_percent.map(|percent| percent * 10_000);
    vec![
        ("CPUWeight", limits.weight.unwrap_or(UNLIMITED).into()),
        ("CPUQuotaPerSecUSec", quota_us.unwrap_or(UNLIMITED).into()),
    ]
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixListener;
    use std::time::Instant;

    use super::*;

    /// How the call ended, and how long it took.
    async fn ask(scopes: &Scopes) -> (Result<(), ContainmentError>, Duration) {
        let begun = Instant::now();
        let guest = Contained {
            uuid: Uuid::nil(),
            name: "web",
            pid: std::process::id(),
            limits: CpuLimits::default(),
        };
        (scopes.contain(&guest).await, begun.elapsed())
    }

    #[tokio::test]
    async fn silent_bus_is_waited_for_in_full_once_and_asked_again() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("bus");
        // It takes connections, and says nothing.
        let listener = UnixListener::bind(&path).unwrap();
        let scopes = Scopes {
            bus: Some(format!("unix:path={}", path.display()).parse().unwrap()),
            patience: Duration::from_secs(2),
            ..Scopes::of_host()
        };
        let (first, waited) = ask(&scopes).await;
        assert!(matches!(first, Err(ContainmentError::Silent)), "{first:?}");
        assert!(waited >= scopes.patience, "{waited:?}");
        let (second, waited) = ask(&scopes).await;
        assert!(
            matches!(second, Err(ContainmentError::Silent)),
            "{second:?}"
        );
        assert!(waited < scopes.patience, "{waited:?}");

        // One that is not there says so, and whoever comes back has its time again.
        drop(listener);
        let (third, _) = ask(&scopes).await;
        assert!(
            matches!(third, Err(ContainmentError::Systemd { .. })),
            "{third:?}"
        );
        fs::remove_file(&path).unwrap();
        let _listener = UnixListener::bind(&path).unwrap();
        let (fourth, waited) = ask(&scopes).await;
        assert!(
            matches!(fourth, Err(ContainmentError::Silent)),
            "{fourth:?}"
        );
        assert!(waited >= scopes.patience, "{waited:?}");
    }
}
