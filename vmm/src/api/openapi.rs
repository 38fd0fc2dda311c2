//! `openapi.json`, made from the route table and the wire types, and held to the checked-in one.

use pindah_vmm_api::{
    BalloonTarget, DiskLimits, DiskResize, ErrorBody, Event, Metrics, MigrateRequest,
    MigrationStatus, ResumeRequest, SnapshotReport, SnapshotRequest, VmConfig, VmInfo,
};
use schemars::generate::SchemaSettings;
use schemars::{JsonSchema, SchemaGenerator};
use serde_json::{Value, json};

use super::handler::CONSOLE_PROTOCOL;
use super::routes::{Operation, ROUTES, Route};

/// What the route table does not say of an operation.
struct Description {
    id: &'static str,
    summary: &'static str,
    /// Schema of the body, and whether there must be one.
    body: Option<(Value, bool)>,
    /// Status and content of the good answer.
    answer: (u16, Value),
}

fn schema<T: JsonSchema>(generator: &mut SchemaGenerator) -> Value {
    generator.subschema_for::<T>().to_value()
}

fn ok<T: JsonSchema>(description: &str, generator: &mut SchemaGenerator) -> (u16, Value) {
    let schema = schema::<T>(generator);
    let content = json!({ "application/json": { "schema": schema } });
    (
        200,
        json!({ "description": description, "content": content }),
    )
}

fn accepted<T: JsonSchema>(description: &str, generator: &mut SchemaGenerator) -> (u16, Value) {
    (202, ok::<T>(description, generator).1)
}

fn done(description: &str) -> (u16, Value) {
    (204, json!({ "description": description }))
}

fn describe(operation: Operation, generator: &mut SchemaGenerator) -> Description {
    let (id, summary, body, answer) = match operation {
        Operation::GetVm => (
            "getVm",
            "What the guest is and how it is doing",
            None,
            ok::<VmInfo>("The guest.", generator),
        ),
        Operation::GetConfig => (
            "getConfig",
            "What the guest was built from, ids and addresses filled in, its disks' limits as they \
             are now",
            None,
            ok::<VmConfig>("The configuration.", generator),
        ),
        Operation::Pause => (
            "pause",
            "Stop the vCPUs; no error when they stand still already",
            None,
            done("The guest stands still and nothing is in flight."),
        ),
        Operation::Resume => (
            "resume",
            "Let the vCPUs go on; no error when they run already",
            Some((schema::<ResumeRequest>(generator), false)),
            done("The guest runs."),
        ),
        Operation::Relock => (
            "relock",
            "Take the disks' locks anew where a disk has failed; the guest stands, and still does",
            None,
            done("They are held, and `resume` need not take them."),
        ),
        Operation::PressPowerButton => (
            "pressPowerButton",
            "Press the ACPI power button: ask the guest to shut down",
            None,
            done("The guest has been asked; whether it listens shows in the events."),
        ),
        Operation::PowerOff => (
            "powerOff",
            "Take the power away; the VMM ends",
            None,
            done("The guest is off."),
        ),
        Operation::Reset => (
            "reset",
            "Reset the machine",
            None,
            done("The guest starts anew."),
        ),
        Operation::SetBalloon => (
            "setBalloon",
            "Ask the guest to give back this much memory",
            Some((schema::<BalloonTarget>(generator), true)),
            done("The guest has been asked; how far it is shows in the metrics."),
        ),
        Operation::ResizeDisk => (
            "resizeDisk",
            "Give a disk another size and tell the guest",
            Some((schema::<DiskResize>(generator), true)),
            done("The image has the size, and the guest was told."),
        ),
        Operation::LimitDisk => (
            "limitDisk",
            "Set how much of its storage a disk may take; an empty object lifts all limits",
            Some((schema::<DiskLimits>(generator), true)),
            done("The limits count from now on, for requests that wait already, too."),
        ),
        Operation::AttachConsole => (
            "attachConsole",
            "Turn this connection into a console, `serial` or `console`",
            None,
            (
                101,
                json!({
                    "description": "Raw bytes both ways from here on; what was kept comes first.",
                    "headers": { "Upgrade": { "schema": { "const": CONSOLE_PROTOCOL } } },
                }),
            ),
        ),
        Operation::TakeSnapshot => (
            "takeSnapshot",
            "Write the guest to two files that come as descriptors (SCM_RIGHTS). Closing the \
             connection gives it up",
            Some((schema::<SnapshotRequest>(generator), false)),
            ok::<SnapshotReport>("The snapshot is on disk.", generator),
        ),
        Operation::StartMigration => (
            "startMigration",
            "Move the guest to another machine. Its connected TCP sockets and, with TLS, three \
             PEM files come as descriptors (SCM_RIGHTS): control, data_connections of data; \
             authorities, certificate with its chain, private key",
            Some((schema::<MigrateRequest>(generator), true)),
            accepted::<MigrationStatus>("It has begun; events tell how it goes.", generator),
        ),
        Operation::GetMigration => (
            "getMigration",
            "How the last migration is going, or went; 404 if none was started",
            None,
            ok::<MigrationStatus>("How it is going.", generator),
        ),
        Operation::CancelMigration => (
            "cancelMigration",
            "Give the migration up; 409 once the destination has been told to run the guest",
            None,
            done("It will end soon, and the guest goes on here; the events tell."),
        ),
        Operation::GetMetrics => (
            "getMetrics",
            "Counters of vCPUs and devices",
            None,
            ok::<Metrics>("The counters.", generator),
        ),
        Operation::StreamEvents => ("streamEvents", "What happens to the guest", None, {
            let schema = schema::<Event>(generator);
            let content = json!({ "application/x-ndjson": { "schema": schema } });
            let description = "One event a line, until the VMM ends or the reader is too slow.";
            (
                200,
                json!({ "description": description, "content": content }),
            )
        }),
        Operation::GetOpenApi => (
            "getOpenApi",
            "This document",
            None,
            ok::<Value>("An OpenAPI 3.1 document.", generator),
        ),
    };
    Description {
        id,
        summary,
        body,
        answer,
    }
}

fn parameters(route: &Route) -> Vec<Value> {
    let mut parameters = Vec::new();
    if route.path.contains("{id}") {
        parameters.push(json!({
            "name": "id", "in": "path", "required": true, "schema": { "type": "string" },
            "description": "The device's id, as the state names it.",
        }));
    }
    if route.operation == Operation::AttachConsole {
        parameters.push(json!({
            "name": "Upgrade", "in": "header", "required": true,
            "schema": { "const": CONSOLE_PROTOCOL },
        }));
    }
    if route.operation == Operation::StreamEvents {
        parameters.push(json!({
            "name": "after", "in": "query", "schema": { "type": "integer", "minimum": 0 },
            "description": "Begin with the events after this number, as far as they are kept \
                (256); absent: with what happens from now on.",
        }));
    }
    parameters
}

fn operation(route: &Route, generator: &mut SchemaGenerator) -> Value {
    let Description {
        id,
        summary,
        body,
        answer: (status, answer),
    } = describe(route.operation, generator);
    let error = schema::<ErrorBody>(generator);
    let mut operation = json!({
        "operationId": id,
        "summary": summary,
        "responses": {
            status.to_string(): answer,
            "default": {
                "description": "It failed; the guest is as it was.",
                "content": { "application/json": { "schema": error } },
            },
        },
    });
    let parameters = parameters(route);
    if !parameters.is_empty() {
        operation["parameters"] = parameters.into();
    }
    if let Some((schema, required)) = body {
        let content = json!({ "application/json": { "schema": schema } });
        operation["requestBody"] = json!({ "required": required, "content": content });
    }
    operation
}

fn document() -> Value {
    let settings = SchemaSettings::draft2020_12()
        .with(|settings| settings.definitions_path = "/components/schemas".into());
    let mut generator = settings.into_generator();
    let mut paths = json!({});
    for route in ROUTES {
        let method = route.method.to_ascii_lowercase();
        paths[route.path][method] = operation(route, &mut generator);
    }
    let schemas = generator.take_definitions(true);
    json!({
        "openapi": "3.1.0",
        "info": {
            "title": "pindah-vmm",
            "version": "1",
            "license": { "name": "Apache-2.0", "identifier": "Apache-2.0" },
            "description": "One guest. HTTP/1.1 on a Unix socket: \
                curl --unix-socket SOCKET http://vm/api/v1/vm. Bodies are JSON with \
                Content-Type: application/json. A header has at most 8 KiB, a body 64 KiB; a \
                request must arrive within 10 s. Commands run one at a time; reading waits for \
                none of them.",
        },
        "paths": paths,
        "components": { "schemas": schemas },
    })
}

#[test]
fn openapi_file_is_what_the_code_says() {
    let mut expected = serde_json::to_string_pretty(&document()).unwrap();
    expected.push('\n');
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/api/openapi.json");
    if std::env::var_os("UPDATE_OPENAPI").is_some() {
        std::fs::write(path, &expected).unwrap();
    }
    let checked_in = std::fs::read_to_string(path).unwrap();
    assert!(
        checked_in == expected,
        "openapi.json differs from the code: UPDATE_OPENAPI=1 cargo test openapi writes it anew"
    );
}

#[test]
fn openapi_references_lead_somewhere() {
    fn check(value: &Value, document: &Value) {
        match value {
            Value::Object(fields) => {
                if let Some(Value::String(reference)) = fields.get("$ref") {
                    let pointer = reference.strip_prefix('#').unwrap();
                    assert!(document.pointer(pointer).is_some(), "{reference}");
                }
                fields.values().for_each(|value| check(value, document));
            }
            Value::Array(items) => items.iter().for_each(|value| check(value, document)),
            _ => {}
        }
    }
    let document = document();
    check(&document, &document);
    assert!(document["components"]["schemas"]["VmInfo"].is_object());
}
