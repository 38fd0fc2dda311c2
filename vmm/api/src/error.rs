//! How a request fails.

use serde::{Deserialize, Serialize};

/// The body of every answer whose status is 400 or above.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct ErrorBody {
    /// What went wrong.
    pub error: ErrorInfo,
}

/// What went wrong, for a program and for a person.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct ErrorInfo {
    /// For a program to decide on.
    pub code: ErrorCode,
    /// For a person: one line that names the thing, with its causes.
    pub message: String,
}

/// Kinds of failure; each goes with one HTTP status.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
#[serde(rename_all = "snake_case")]
pub enum ErrorCode {
    /// 400: the request is not HTTP/1.1, or its body is not what this path takes.
    BadRequest,
    /// 404: no such path, device or console.
    NotFound,
    /// 405: the path does not take this method.
    MethodNotAllowed,
    /// 408: the request did not arrive in time.
    Timeout,
    /// 409: the guest's state, or another operation, forbids it now.
    Conflict,
    /// 411: a body of unknown length.
    LengthRequired,
    /// 413: the body is too large.
    BodyTooLarge,
    /// 415: the body is not JSON.
    UnsupportedMediaType,
    /// 417: an `Expect` header that is not `100-continue`.
    ExpectationFailed,
    /// 422: a value that is well-formed and cannot be.
    InvalidValue,
    /// 431: the header is too large.
    HeaderTooLarge,
    /// 500: the host failed.
    HostError,
    /// 501: this guest was not built with it.
    NotSupported,
    /// 503: too many connections.
    TooManyConnections,
}

impl ErrorCode {
    /// All of them.
    pub const ALL: [Self; 14] = [
        Self::BadRequest,
        Self::NotFound,
        Self::MethodNotAllowed,
        Self::Timeout,
        Self::Conflict,
        Self::LengthRequired,
        Self::BodyTooLarge,
        Self::UnsupportedMediaType,
        Self::ExpectationFailed,
        Self::InvalidValue,
        Self::HeaderTooLarge,
        Self::HostError,
        Self::NotSupported,
        Self::TooManyConnections,
    ];

    /// The HTTP status that goes with it (RFC 9110, section 15).
    pub fn status(self) -> u16 {
        match self {
            Self::BadRequest => 400,
            Self::NotFound => 404,
            Self::MethodNotAllowed => 405,
            Self::Timeout => 408,
            Self::Conflict => 409,
            Self::LengthRequired => 411,
            Self::BodyTooLarge => 413,
            Self::UnsupportedMediaType => 415,
            Self::ExpectationFailed => 417,
            Self::InvalidValue => 422,
            Self::HeaderTooLarge => 431,
            Self::HostError => 500,
            Self::NotSupported => 501,
            Self::TooManyConnections => 503,
        }
    }
}
