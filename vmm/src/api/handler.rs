//! What each operation does with its request.

use std::fs::File;
use std::os::fd::OwnedFd;

use pindah_vmm_api::{
    ErrorCode, ErrorInfo, MigrateRequest, PauseReason, RunState, SnapshotRequest,
};
use serde::de::DeserializeOwned;

use super::refuse;
use super::request::Head;
use super::response::Response;
use super::routes::{self, Operation};
use super::worker::Job;
use crate::causes::chain;
use crate::migration::request::{Outgoing, RequestError};
use crate::migration::worker::{CancelError, Migrator};
use crate::vm::machine::Machine;

/// The protocol that a console's connection goes on in: raw bytes both ways.
pub(super) const CONSOLE_PROTOCOL: &str = "pindah-console";

/// A whole request.
pub(super) struct Request {
    pub(super) head: Head,
    pub(super) body: Vec<u8>,
    pub(super) descriptors: Vec<OwnedFd>,
}

/// What comes of it.
pub(super) enum Action {
    /// An answer at once.
    Respond(Response),
    /// An answer when the worker has done it.
    Run(Job),
    /// The answer is a stream of the events after this one; `None`: from now on.
    Stream { after: Option<u64> },
    /// The guest moves, unless something stands in the way.
    Migrate(Box<Outgoing>),
    /// The connection becomes this console.
    Attach { console: String },
}

/// Decides what a request asks for. Waits for nothing.
pub(super) fn handle(machine: &dyn Machine, migrator: &Migrator, request: Request) -> Action {
    let (operation, id) = match routes::find(&request.head.method, &request.head.path) {
        Ok((operation, id)) => (operation, id.to_owned()),
        Err(no_route) => {
            let mut response = Response::error(no_route.error);
            response.allow = no_route.allow;
            return Action::Respond(response);
        }
    };
    dispatch(machine, migrator, operation, id, request)
        .unwrap_or_else(|error| Action::Respond(Response::error(error)))
}

fn dispatch(
    machine: &dyn Machine,
    migrator: &Migrator,
    operation: Operation,
    id: String,
    request: Request,
) -> Result<Action, ErrorInfo> {
    if request.head.content_length > 0 && !request.head.is_json {
        return Err(refuse(
            ErrorCode::UnsupportedMediaType,
            "a body must be JSON: send Content-Type: application/json (curl: --json)",
        ));
    }
    let Request {
        head,
        body,
        descriptors,
    } = request;
    let takes_descriptors = matches!(
        operation,
        Operation::TakeSnapshot | Operation::StartMigration
    );
    if !descriptors.is_empty() && !takes_descriptors {
        return Err(refuse(
            ErrorCode::BadRequest,
            format!("{} takes no file descriptors", head.path),
        ));
    }
    Ok(match operation {
        Operation::GetVm => Action::Respond(Response::json(&machine.info())),
        Operation::GetConfig => Action::Respond(Response::json(&machine.config())),
        Operation::GetMetrics => Action::Respond(Response::json(&machine.metrics())),
        Operation::GetOpenApi => Action::Respond(Response::raw_json(pindah_vmm_api::OPENAPI)),
        Operation::Pause => without_body(&body, Job::Pause)?,
        Operation::Resume => Action::Run(Job::Resume(json_or_default(&body)?)),
        Operation::Relock => without_body(&body, Job::Relock)?,
        Operation::PressPowerButton => without_body(&body, Job::PressPowerButton)?,
        Operation::PowerOff => without_body(&body, Job::PowerOff)?,
        Operation::Reset => without_body(&body, Job::Reset)?,
        Operation::SetBalloon => Action::Run(Job::SetBalloon(json(&body)?)),
        Operation::ResizeDisk => Action::Run(Job::ResizeDisk(id, json(&body)?)),
        Operation::LimitDisk => Action::Run(Job::LimitDisk(id, json(&body)?)),
        Operation::TakeSnapshot => snapshot(&body, descriptors)?,
        Operation::StartMigration => migrate(machine, &body, descriptors)?,
        Operation::GetMigration => match migrator.status() {
            Some(status) => Action::Respond(Response::json(&status)),
            None => return Err(cancel_error(CancelError::None)),
        },
        Operation::CancelMigration => {
            migrator.cancel().map_err(cancel_error)?;
            Action::Respond(Response::done())
        }
        Operation::StreamEvents => Action::Stream {
            after: after(&head.query)?,
        },
        Operation::AttachConsole => attach(id, &head)?,
    })
}

fn json<T: DeserializeOwned>(body: &[u8]) -> Result<T, ErrorInfo> {
    // serde would take an array for a struct, too.
    if body.trim_ascii_start().first() != Some(&b'{') {
        return Err(refuse(ErrorCode::BadRequest, "the body must be an object"));
    }
    serde_json::from_slice(body)
        .map_err(|error| refuse(ErrorCode::BadRequest, format!("the body: {error}")))
}

fn json_or_default<T: DeserializeOwned + Default>(body: &[u8]) -> Result<T, ErrorInfo> {
    match body {
        [] => Ok(T::default()),
        body => json(body),
    }
}

/// An empty object is fine too: some clients always send one.
fn without_body(body: &[u8], job: Job) -> Result<Action, ErrorInfo> {
    let text = String::from_utf8_lossy(body);
    match text.trim() {
        "" | "{}" => Ok(Action::Run(job)),
        _ => Err(refuse(
            ErrorCode::BadRequest,
            "this takes no body, or an empty object",
        )),
    }
}

fn snapshot(body: &[u8], descriptors: Vec<OwnedFd>) -> Result<Action, ErrorInfo> {
    let request: SnapshotRequest = json_or_default(body)?;
    let count = descriptors.len();
    let Ok([state, memory]) = <[OwnedFd; 2]>::try_from(descriptors) else {
        return Err(refuse(
            ErrorCode::BadRequest,
            format!(
                "a snapshot takes two file descriptors by SCM_RIGHTS, the state's and the \
                 memory's; {count} came"
            ),
        ));
    };
    Ok(Action::Run(Job::TakeSnapshot {
        then: request.then,
        state: File::from(state),
        memory: File::from(memory),
    }))
}

fn migrate(
    machine: &dyn Machine,
    body: &[u8],
    descriptors: Vec<OwnedFd>,
) -> Result<Action, ErrorInfo> {
    let request: MigrateRequest = json(body)?;
    let outgoing = Outgoing::new(request, descriptors).map_err(|error| {
        let code = match error {
            RequestError::Descriptors { .. } => ErrorCode::BadRequest,
            RequestError::Value { .. } | RequestError::Socket { .. } => ErrorCode::InvalidValue,
        };
        refuse(code, chain(&error))
    })?;
    let info = machine.info();
    match (info.state, info.pause_reason) {
        (RunState::Paused, Some(PauseReason::InDoubt)) => Err(refuse(
            ErrorCode::Conflict,
            "the last migration is in doubt, and the guest may run at its destination: resume it \
             first",
        )),
        (RunState::Paused, Some(PauseReason::PostcopyLost)) => Err(refuse(
            ErrorCode::Conflict,
            "the guest was lost in its last migration",
        )),
        (RunState::Running | RunState::Paused, _) => Ok(Action::Migrate(Box::new(outgoing))),
        (state, _) => Err(refuse(
            ErrorCode::Conflict,
            format!("a guest that is {state} cannot move"),
        )),
    }
}

fn cancel_error(error: CancelError) -> ErrorInfo {
    let code = match error {
        CancelError::None => ErrorCode::NotFound,
        CancelError::TooLate => ErrorCode::Conflict,
    };
    refuse(code, error.to_string())
}

fn after(query: &str) -> Result<Option<u64>, ErrorInfo> {
    if query.is_empty() {
        return Ok(None);
    }
    let number = query.strip_prefix("after=").and_then(|n| n.parse().ok());
    number.map(Some).ok_or_else(|| {
        refuse(
            ErrorCode::BadRequest,
            format!("query {query:?}: only after=SEQUENCE is known"),
        )
    })
}

fn attach(id: String, head: &Head) -> Result<Action, ErrorInfo> {
    if head.upgrade.as_deref() != Some(CONSOLE_PROTOCOL) {
        return Err(refuse(
            ErrorCode::BadRequest,
            format!("the connection becomes the console: send Upgrade: {CONSOLE_PROTOCOL}"),
        ));
    }
    Ok(Action::Attach { console: id })
}
