//! How any request may be refused, in the description of each path: what a path says of itself is
//! only what is its own.

use utoipa::openapi::path::{Operation, Parameter, ParameterIn};
use utoipa::openapi::{ContentBuilder, OpenApi, Ref, Response, ResponseBuilder};

use super::ErrorCode;

/// One of them, and the paths that it is common to.
struct Refusal {
    code: ErrorCode,
    description: &'static str,
    applies: fn(&Operation) -> bool,
}

const REFUSALS: &[Refusal] = &[
    Refusal {
        code: ErrorCode::BadRequest,
        description: "The query, a header or the body is not what this path takes",
        applies: |operation| takes_query(operation) || takes_json(operation),
    },
    Refusal {
        code: ErrorCode::Unauthorized,
        description: "No token, or none that is known",
        applies: |_| true,
    },
    Refusal {
        code: ErrorCode::Forbidden,
        description: "The token's role does not allow it",
        applies: needs_token,
    },
    Refusal {
        code: ErrorCode::NotFound,
        description: "There is no such node",
        applies: |_| true,
    },
    Refusal {
        code: ErrorCode::BodyTooLarge,
        description: "The body is too large",
        applies: |operation| operation.request_body.is_some(),
    },
    Refusal {
        code: ErrorCode::UnsupportedMediaType,
        description: "The body is not JSON",
        applies: takes_json,
    },
    Refusal {
        code: ErrorCode::InvalidValue,
        description: "A value that is well-formed and cannot be",
        applies: takes_json,
    },
    Refusal {
        code: ErrorCode::Internal,
        description: "The node failed",
        applies: |_| true,
    },
    Refusal {
        code: ErrorCode::NodeUnreachable,
        description: "The node that it belongs to cannot be reached",
        applies: |_| true,
    },
    Refusal {
        code: ErrorCode::Unavailable,
        description: "Something that is needed does not answer",
        applies: |_| true,
    },
    Refusal {
        code: ErrorCode::NodeTimeout,
        description: "The node that it belongs to does not answer in time",
        applies: |_| true,
    },
];

impl Refusal {
    /// `Unauthorized`, …
    fn name(&self) -> String {
        format!("{:?}", self.code)
    }

    fn response(&self) -> Response {
        let body = ContentBuilder::new().schema(Some(Ref::from_schema_name("ErrorBody")));
        ResponseBuilder::new()
            .description(self.description)
            .content("application/json", body.build())
            .build()
    }
}

fn needs_token(operation: &Operation) -> bool {
    // What says nothing has what is said for all.
    operation.security.is_none()
}

fn takes_query(operation: &Operation) -> bool {
    let is_query = |parameter: &Parameter| parameter.parameter_in == ParameterIn::Query;
    operation.parameters.iter().flatten().any(is_query)
}

fn takes_json(operation: &Operation) -> bool {
    let body = operation.request_body.as_ref();
    body.is_some_and(|body| body.content.contains_key("application/json"))
}

/// Adds them to what each path says.
pub(super) fn describe(document: &mut OpenApi) {
    for item in document.paths.paths.values_mut() {
        let operations = [
            &mut item.get,
            &mut item.put,
            &mut item.post,
            &mut item.patch,
            &mut item.delete,
        ];
        for operation in operations.into_iter().flatten() {
            for refusal in REFUSALS {
                if (refusal.applies)(operation) {
                    let status = refusal.code.status().as_u16().to_string();
                    let response = Ref::from_response_name(refusal.name());
                    let responses = &mut operation.responses.responses;
                    responses.entry(status).or_insert(response.into());
                }
            }
        }
    }
    let components = document.components.get_or_insert_default();
    for refusal in REFUSALS {
        let response = refusal.response().into();
        components.responses.insert(refusal.name(), response);
    }
}
