//! One node's update, until it restarts.

use std::fs::File;
use std::path::Path;
use std::time::Duration;

use serde_json::Value;
use tokio::process::Command;
use uuid::Uuid;

use super::fetch::require_url;
use super::pending::{self, Pending};
use super::rauc::{self, Mark};
use super::{Bundle, UpdateError, UpdateRequest, Updates, installed_version};
use crate::causes::chain;
use crate::domain::{Task, TaskKind, TaskState, TaskSubject};
use crate::names::some_of;
use crate::tasks::{Failure, TaskContext};

/// How long one look at another task waits for its end.
const TASK_POLL: Duration = Duration::from_secs(2);
/// How long the host may take to go down: as long as systemd gives the agent, and more.
const GOING_DOWN: Duration = Duration::from_secs(900);
/// What asks systemd for that.
const SYSTEMCTL: &str = "systemctl";

impl Updates {
    /// Begins to update this node.
    ///
    /// # Errors
    /// [`UpdateError`]: what can be told before anything is done.
    pub async fn begin(&self, request: UpdateRequest, user: &str) -> Result<Task, UpdateError> {
        let working = self.begin_work()?;
        let (slots, _) = self.look().await?;
        self.require_way_for_guests(&request).await?;
        match (&request.url, &request.from) {
            (Some(url), _) => {
                require_url(url)?;
            }
            (None, None) => {
                let (_, path) = self.bundle()?;
                self.check(&path, request.force).await?;
            }
            (None, Some(_)) => {}
        }
        let pending = Pending {
            task: Uuid::nil(),
            user: user.to_owned(),
            request,
            from_version: installed_version().to_owned(),
            version: String::new(),
            from: slots.running,
            to: slots.other,
            kvm: Path::new("/dev/kvm").exists(),
            undrain: false,
            restarting: None,
            why: None,
        };
        let updates = self.clone();
        let subject = TaskSubject::node(&self.node);
        let task = self
            .tasks
            .start(TaskKind::UpdateNode, subject, user, |context| async move {
                let _working = working;
                let task = context.id();
                updates
                    .carry_out(Pending { task, ..pending }, &context)
                    .await
            });
        let task = task.await?;
        self.note_turn(task.id).await;
        Ok(task)
    }

    /// Does it, or leaves all as it was. It ends with the host's restart.
    pub(super) async fn carry_out(
        &self,
        mut pending: Pending,
        context: &TaskContext,
    ) -> Result<Value, Failure> {
        let Err(failure) = self.until_restart(&mut pending, context).await;
        if let Err(error) = Pending::end(&self.directory(), None) {
            context.log(&format!("the update cannot be forgotten: {error}"));
        }
        self.shelf_is_done(&pending);
        if pending.undrain {
            self.let_guests_back(&pending.user, context).await;
        }
        Err(failure)
    }

    async fn until_restart(
        &self,
        pending: &mut Pending,
        context: &TaskContext,
    ) -> Result<std::convert::Infallible, Failure> {
        self.save(pending)?;
        let bundle = self.take(&pending.request, context).await?;
        let (version, to) = (bundle.version, pending.to.clone());
        context.log(&format!("writing version {version} to slot {to}"));
        pending.version.clone_from(&version);
        self.save(pending)?;
        context.check()?;
        rauc::install(&self.shelf().path(), |percent, what| {
            context.log(&format!("{percent:3} % {what}"));
            let text = format!("writing slot {to}: {what}");
            context.progress(10 + percent / 2, &text);
        })
        .await?;
        context.check()?;
        context.progress(60, "guests leave");
        self.send_guests_away(pending, context).await?;
        context.check()?;
        context.progress(75, "restarting");
        self.restart_into_other(pending, context).await
    }

    /// The bundle, on this node, which it may be updated by.
    async fn take(
        &self,
        request: &UpdateRequest,
        context: &TaskContext,
    ) -> Result<Bundle, Failure> {
        context.progress(0, "looking at the bundle");
        let bundle = match (&request.url, &request.from) {
            (Some(url), _) => self.fetch(url, context).await?,
            (None, Some(node)) if *node != self.node => self.fetch_from(node, context).await?,
            _ => self.shelf().bundle()?,
        };
        self.check(&self.shelf().path(), request.force).await?;
        Ok(bundle)
    }

    pub(super) fn save(&self, pending: &Pending) -> Result<(), UpdateError> {
        let directory = self.directory();
        let saved = pending.save(&directory);
        saved.map_err(UpdateError::io("write", &directory))
    }

    /// Guests that run and that nobody would take.
    async fn require_way_for_guests(&self, request: &UpdateRequest) -> Result<(), UpdateError> {
        if self.peers.is_some() || request.stop_guests {
            return Ok(());
        }
        let names = self.running_guests().await?;
        if names.is_empty() {
            return Ok(());
        }
        Err(UpdateError::GuestsRun {
            node: self.node.clone(),
            names: some_of(&names),
        })
    }

    async fn running_guests(&self) -> Result<Vec<String>, UpdateError> {
        let (guests, _) = self.guests.list(None, usize::MAX).await?;
        let guests = guests.into_iter().map(|stored| stored.value);
        let here = guests.filter(|guest| guest.node == self.node);
        let running = here.filter(|guest| self.guests.status(guest.uuid).state.has_process());
        Ok(running.map(|guest| guest.name.to_string()).collect())
    }

    async fn send_guests_away(
        &self,
        pending: &mut Pending,
        context: &TaskContext,
    ) -> Result<(), Failure> {
        if pending.request.stop_guests {
            let running = self.running_guests().await?;
            if !running.is_empty() {
                let names = some_of(&running);
                context.log(&format!(
                    "{names}: shut down with the node, and start after it"
                ));
            }
            return Ok(());
        }
        if self.peers.is_none() {
            // They may have been started meanwhile.
            return Ok(self.require_way_for_guests(&pending.request).await?);
        }
        if self.witness {
            return Ok(());
        }
        let drained = self.guests.drained_nodes().await;
        if !drained.map_err(UpdateError::from)?.contains(&self.node) {
            pending.undrain = true;
            self.save(pending)?;
        }
        let task = self.guests.drain(&pending.user).await;
        let task = task.map_err(UpdateError::from)?;
        context.log(&format!("guests move to other nodes: task {}", task.id));
        let ended = self.follow(task.id, context).await?;
        match ended.state {
            TaskState::Done => Ok(()),
            _ => Err(Failure::Failed(format!(
                "guests do not leave: {}",
                ended.error.unwrap_or_default()
            ))),
        }
    }

    /// A task of this node, when it has ended. It is cancelled with ours.
    async fn follow(&self, id: Uuid, context: &TaskContext) -> Result<Task, Failure> {
        loop {
            let task = self.tasks.wait(id, TASK_POLL).await;
            match task.map_err(UpdateError::from)? {
                Some(task) if task.state == TaskState::Running => {}
                Some(task) => return Ok(task),
                None => return Err(Failure::Failed(format!("task {id} is gone"))),
            }
            if let Err(cancelled) = context.check() {
                // One that has ended need not be cancelled.
                let _ = self.tasks.cancel(id).await;
                return Err(cancelled);
            }
        }
    }

    /// Ends the drain that was made for the update. Guests that do not come back are no failure of it.
    pub(super) async fn let_guests_back(&self, user: &str, context: &TaskContext) {
        let back = async {
            let task = self.guests.undrain(user).await?;
            context.log(&format!("guests come back: task {}", task.id));
            loop {
                match self.tasks.wait(task.id, TASK_POLL).await? {
                    Some(task) if task.state == TaskState::Running => {}
                    task => return Ok::<_, UpdateError>(task.and_then(|task| task.error)),
                }
            }
        };
        match back.await {
            Ok(None) => {}
            Ok(Some(error)) => context.log(&error),
            Err(error) => context.log(&format!("guests do not come back: {}", chain(&error))),
        }
    }

    /// From here on the next start is the other slot's, once.
    async fn restart_into_other(
        &self,
        pending: &mut Pending,
        context: &TaskContext,
    ) -> Result<std::convert::Infallible, Failure> {
        let mark = pending::trial_mark(&self.state_dir, &pending.to);
        let begun = async {
            pending.restarting =
                Some(pending::boot_id().map_err(UpdateError::io("read", Path::new("boot_id")))?);
            self.save(pending)?;
            let made = File::create(&mark).and_then(|file| file.sync_all());
            made.map_err(UpdateError::io("create", &mark))?;
            rauc::mark(Mark::OtherActive).await?;
            context.log(&format!("restarting into slot {}", pending.to));
            restart_host().await
        };
        let failure = match begun.await {
            Ok(()) => {
                tokio::time::sleep(GOING_DOWN).await;
                let minutes = GOING_DOWN.as_secs() / 60;
                Failure::Failed(format!("the node has not gone down in {minutes} minutes"))
            }
            Err(error) => Failure::from(error),
        };
        // A restart for any other reason is to be one of what runs.
        if let Err(error) = rauc::mark(Mark::RunningActive).await {
            context.log(&error.to_string());
        }
        // It need not have been made.
        let _ = std::fs::remove_file(mark);
        Err(failure)
    }

    /// Drops the bundle, unless other nodes are yet to fetch it.
    pub(super) fn shelf_is_done(&self, pending: &Pending) {
        let ours = pending.request.from.as_deref() == Some(&*self.node);
        if !ours {
            self.shelf().clear();
        }
    }
}

/// Asks systemd for it, which asks us to end.
pub(super) async fn restart_host() -> Result<(), UpdateError> {
    let refused = |reason: String| UpdateError::Program {
        program: SYSTEMCTL,
        reason,
    };
    let output = Command::new(SYSTEMCTL).arg("reboot").output().await;
    let output = output.map_err(|error| refused(error.to_string()))?;
    if output.status.success() {
        return Ok(());
    }
    let said = String::from_utf8_lossy(&output.stderr);
    Err(refused(said.trim().chars().take(200).collect()))
}
