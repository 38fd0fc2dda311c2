//! Every path of the API. Server and `openapi.json` both follow this table.

use pindah_vmm_api::{ErrorCode, ErrorInfo};

use super::refuse;

/// What a request can ask for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(missing_docs)]
pub enum Operation {
    GetVm,
    GetConfig,
    Pause,
    Resume,
    Relock,
    PressPowerButton,
    PowerOff,
    Reset,
    SetBalloon,
    ResizeDisk,
    LimitDisk,
    AttachConsole,
    TakeSnapshot,
    StartMigration,
    GetMigration,
    CancelMigration,
    GetMetrics,
    StreamEvents,
    GetOpenApi,
}

/// One method on one path.
#[derive(Clone, Copy, Debug)]
pub struct Route {
    /// HTTP method.
    pub method: &'static str,
    /// Path, in which `{id}` stands for one segment.
    pub path: &'static str,
    /// What it asks for.
    pub operation: Operation,
}

const fn route(method: &'static str, path: &'static str, operation: Operation) -> Route {
    Route {
        method,
        path,
        operation,
    }
}

/// All of them.
pub const ROUTES: &[Route] = &[
    route("GET", "/api/v1/vm", Operation::GetVm),
    route("GET", "/api/v1/vm/config", Operation::GetConfig),
    route("POST", "/api/v1/vm/pause", Operation::Pause),
    route("POST", "/api/v1/vm/resume", Operation::Resume),
    route("POST", "/api/v1/vm/relock", Operation::Relock),
    route(
        "POST",
        "/api/v1/vm/power-button",
        Operation::PressPowerButton,
    ),
    route("POST", "/api/v1/vm/power-off", Operation::PowerOff),
    route("POST", "/api/v1/vm/reset", Operation::Reset),
    route("PUT", "/api/v1/balloon", Operation::SetBalloon),
    route("PATCH", "/api/v1/disks/{id}", Operation::ResizeDisk),
    route("PUT", "/api/v1/disks/{id}/limits", Operation::LimitDisk),
    route(
        "POST",
        "/api/v1/consoles/{id}/attach",
        Operation::AttachConsole,
    ),
    route("POST", "/api/v1/snapshot", Operation::TakeSnapshot),
    route("POST", "/api/v1/migrate", Operation::StartMigration),
    route("GET", "/api/v1/migrate", Operation::GetMigration),
    route("DELETE", "/api/v1/migrate", Operation::CancelMigration),
    route("GET", "/api/v1/metrics", Operation::GetMetrics),
    route("GET", "/api/v1/events", Operation::StreamEvents),
    route("GET", "/api/v1/openapi.json", Operation::GetOpenApi),
];

/// Why a request leads nowhere.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct NoRoute {
    pub(super) error: ErrorInfo,
    /// The methods that the path does take.
    pub(super) allow: Option<String>,
}

/// The operation for a request, and the `{id}` in its path.
pub(super) fn find<'p>(method: &str, path: &'p str) -> Result<(Operation, &'p str), NoRoute> {
    let mut allowed = Vec::new();
    for route in ROUTES {
        match matched(route.path, path) {
            Some(id) if route.method == method => return Ok((route.operation, id)),
            Some(_) => allowed.push(route.method),
            None => {}
        }
    }
    if allowed.is_empty() {
        let message = format!("there is no {path}; GET /api/v1/openapi.json tells what there is");
        return Err(NoRoute {
            error: refuse(ErrorCode::NotFound, message),
            allow: None,
        });
    }
    let allow = allowed.join(", ");
    Err(NoRoute {
        error: refuse(
            ErrorCode::MethodNotAllowed,
            format!("{path} takes {allow}, not {method}"),
        ),
        allow: Some(allow),
    })
}

fn matched<'p>(pattern: &str, path: &'p str) -> Option<&'p str> {
    let mut id = "";
    let mut segments = path.split('/');
    for expected in pattern.split('/') {
        match segments.next()? {
            segment if expected == "{id}" && !segment.is_empty() => id = segment,
            segment if segment == expected => {}
            _ => return None,
        }
    }
    segments.next().is_none().then_some(id)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_lead_to_their_operations() {
        for (method, path, expected) in [
            ("GET", "/api/v1/vm", Ok((Operation::GetVm, ""))),
            (
                "PATCH",
                "/api/v1/disks/disk0",
                Ok((Operation::ResizeDisk, "disk0")),
            ),
            (
                "PUT",
                "/api/v1/disks/disk0/limits",
                Ok((Operation::LimitDisk, "disk0")),
            ),
            (
                "POST",
                "/api/v1/consoles/serial/attach",
                Ok((Operation::AttachConsole, "serial")),
            ),
            ("GET", "/api/v1/vm/", Err(None)),
            ("GET", "/api/v1/disks/", Err(None)),
            ("GET", "/", Err(None)),
            ("GET", "", Err(None)),
            ("DELETE", "/api/v1/vm", Err(Some("GET"))),
            ("get", "/api/v1/vm", Err(Some("GET"))),
            ("GET", "/api/v1/disks/x", Err(Some("PATCH"))),
        ] {
            let found = find(method, path).map_err(|no_route| no_route.allow);
            assert_eq!(
                found,
                expected.map_err(|allow| allow.map(str::to_owned)),
                "{method} {path}"
            );
        }
    }
}
