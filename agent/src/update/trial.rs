//! A node's update, after its restart: the slot that runs proves itself, or the node goes back.

use std::path::Path;
use std::time::Duration;

use serde_json::{Value, json};
use tokio::time::Instant;

use super::node::restart_host;
use super::pending::{self, Pending};
use super::rauc::{self, Mark};
use super::{LastUpdate, UpdateError, Updates, installed_version, lock};
use crate::causes::chain;
use crate::clock::now_unix_ms;
use crate::tasks::{Failure, TaskContext};

/// How long a slot on trial may take until all is as it should be, from when the API serves: less
/// than `pindah-trial.timer` gives the whole.
const PATIENCE: Duration = Duration::from_secs(300);
/// How often we look.
const POLL: Duration = Duration::from_secs(1);
/// How long one wait for the majority is.
const MAJORITY_PATIENCE: Duration = Duration::from_secs(5);
/// What a slot that came up and then did nothing leaves behind.
const SILENT: &str = "it did not say why";

/// What a start of the agent is, to an update.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Start {
    /// The node has not restarted for it yet.
    Before,
    /// It runs what was written.
    OnTrial,
    /// It runs what it ran before.
    FellBack,
}

impl Pending {
    fn start(&self, running: &str, boot_id: &str) -> Start {
        match &self.restarting {
            None => Start::Before,
            Some(_) if running == self.to => Start::OnTrial,
            Some(before) if before == boot_id => Start::Before,
            Some(_) => Start::FellBack,
        }
    }
}

impl Updates {
    /// Goes on with what an agent before us has begun, when the node serves; and says of the slot
    /// that runs that it works.
    pub async fn resume(self) {
        match self.look().await {
            Ok((slots, _)) => {
                if let Err(error) = self.resume_node(&slots.running).await {
                    tracing::error!("cannot go on with the update: {}", chain(&error));
                }
            }
            Err(UpdateError::NotAppliance(_)) => {}
            Err(error) => tracing::error!("slots: {}", chain(&error)),
        }
        self.resume_rollout().await;
    }

    async fn resume_node(&self, running: &str) -> Result<(), UpdateError> {
        let Some(mut pending) = Pending::load(&self.directory()) else {
            said(self.mark_good(running).await);
            return Ok(());
        };
        let boot_id = pending::boot_id().map_err(UpdateError::io("read", Path::new("boot_id")))?;
        let working = self.wait_for_work().await;
        let updates = self.clone();
        match pending.start(running, &boot_id) {
            Start::Before => {
                said(self.mark_good(running).await);
                pending.restarting = None;
                self.tasks.resume(pending.task, |context| async move {
                    let _working = working;
                    context.log("the agent has ended meanwhile, and begins again");
                    updates.carry_out(pending, &context).await
                });
            }
            Start::OnTrial => {
                let running = running.to_owned();
                self.tasks.resume(pending.task, |context| async move {
                    let _working = working;
                    updates.prove(pending, &running, &context).await
                });
            }
            Start::FellBack => {
                said(rauc::mark(Mark::OtherBad).await);
                said(rauc::mark(Mark::RunningActive).await);
                said(self.mark_good(running).await);
                self.tasks.resume(pending.task, |context| async move {
                    let _working = working;
                    updates.fall_back(&pending, &context).await
                });
            }
        }
        Ok(())
    }

    async fn mark_good(&self, running: &str) -> Result<(), UpdateError> {
        rauc::mark(Mark::RunningGood).await?;
        for slot in ["A", "B"] {
            // The other one is not on trial any more either.
            let _ = std::fs::remove_file(pending::trial_mark(&self.state_dir, slot));
        }
        tracing::info!("slot {running} works: the boot loader starts it again");
        self.look().await?;
        Ok(())
    }

    /// Says that the slot that runs works, if it does; else the next start of the host ends the task.
    async fn prove(
        &self,
        mut pending: Pending,
        running: &str,
        context: &TaskContext,
    ) -> Result<Value, Failure> {
        let version = installed_version();
        context.log(&format!("version {version} runs on trial"));
        context.progress(80, "looking whether all works");
        let given_up = match self.unhealthy(&pending).await {
            None => match self.mark_good(running).await {
                Ok(()) => return self.succeed(&pending, context).await,
                Err(error) => chain(&error),
            },
            Some(why) => why,
        };
        context.log(&format!("version {version} does not work here: {given_up}"));
        pending.why = Some(given_up);
        let going_back = async {
            self.save(&pending)?;
            restart_host().await
        };
        if let Err(error) = going_back.await {
            // `pindah-trial.timer` does it then.
            context.log(&chain(&error));
        }
        std::future::pending().await
    }

    /// What is not as it was before the update, when it has had its time.
    async fn unhealthy(&self, pending: &Pending) -> Option<String> {
        let end = Instant::now() + PATIENCE;
        loop {
            let why = self.ailment(pending).await?;
            if Instant::now() > end {
                return Some(why);
            }
            tokio::time::sleep(POLL).await;
        }
    }

    async fn ailment(&self, pending: &Pending) -> Option<String> {
        if pending.kvm && !Path::new("/dev/kvm").exists() {
            return Some("/dev/kvm is not there any more".to_owned());
        }
        // In a cluster both need the majority.
        self.store.settled(MAJORITY_PATIENCE).await;
        if let Err(error) = self.guests.list(None, 1).await {
            return Some(format!("the store: {}", chain(&error)));
        }
        if let Some(peers) = &self.peers {
            match peers.is_alive(&self.node).await {
                Ok(true) => {}
                Ok(false) => return Some("the cluster has not heard of it".to_owned()),
                Err(error) => return Some(format!("the store: {error}")),
            }
        }
        None
    }

    async fn succeed(&self, pending: &Pending, context: &TaskContext) -> Result<Value, Failure> {
        let version = installed_version();
        context.log(&format!("version {version} works in slot {}", pending.to));
        context.progress(90, "guests come back");
        self.finish(pending, context).await;
        self.end(pending, None, context);
        Ok(json!({ "node": self.node, "version": version, "slot": pending.to }))
    }

    async fn fall_back(&self, pending: &Pending, context: &TaskContext) -> Result<Value, Failure> {
        let why = pending.why.as_deref().unwrap_or(SILENT);
        self.finish(pending, context).await;
        self.end(pending, Some(why), context);
        let (version, to, from) = (&pending.version, &pending.to, &pending.from);
        let before = &pending.from_version;
        Err(Failure::Failed(format!(
            "version {version} in slot {to} has not come up healthy ({why}), so the node has gone \
             back to slot {from} with version {before}"
        )))
    }

    fn end(&self, pending: &Pending, fell_back: Option<&str>, context: &TaskContext) {
        let last = LastUpdate {
            from_version: pending.from_version.clone(),
            version: pending.version.clone(),
            ended_unix_ms: now_unix_ms(),
            fell_back: fell_back.map(str::to_owned),
        };
        if let Err(error) = Pending::end(&self.directory(), Some(&last)) {
            context.log(&format!("the update's end cannot be kept: {error}"));
        }
        *lock(&self.inner.last) = Some(last);
    }

    async fn finish(&self, pending: &Pending, context: &TaskContext) {
        self.shelf_is_done(pending);
        if pending.undrain {
            self.let_guests_back(&pending.user, context).await;
        }
    }
}

/// What the boot loader does not learn now it may at the next start; the update goes on without.
fn said(marked: Result<(), UpdateError>) {
    if let Err(error) = marked {
        tracing::error!("the boot loader cannot be told: {}", chain(&error));
    }
}

#[cfg(test)]
mod tests {
    use uuid::Uuid;

    use super::*;
    use crate::update::UpdateRequest;

    #[test]
    fn start_tells_where_the_update_stands() {
        let mut pending = Pending {
            task: Uuid::nil(),
            user: "root".to_owned(),
            request: UpdateRequest::default(),
            from_version: "0.1.0".to_owned(),
            version: "0.2.0".to_owned(),
            from: "A".to_owned(),
            to: "B".to_owned(),
            kvm: true,
            undrain: false,
            restarting: None,
            why: None,
        };
        assert_eq!(pending.start("A", "1"), Start::Before);
        pending.restarting = Some("1".to_owned());
        assert_eq!(pending.start("A", "1"), Start::Before);
        assert_eq!(pending.start("B", "2"), Start::OnTrial);
        assert_eq!(pending.start("A", "2"), Start::FellBack);
    }
}
