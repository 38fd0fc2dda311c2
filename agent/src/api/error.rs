//! How a request fails: a status, a code for programs, a sentence for people.

use axum::Json;
use axum::http::{Method, StatusCode, Uri, header};
use axum::response::{IntoResponse, Response};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::causes::chain;
use crate::cluster::ClusterError;
use crate::domain::Invalid;
use crate::guests::GuestError;
use crate::network::NetworkRequestError;
use crate::security::AccountError;
use crate::storage::StorageError;
use crate::store::StoreError;
use crate::tasks::CancelError;
use crate::update::UpdateError;
use crate::vmm_client::VmmError;

/// The body of every answer whose status is 400 or above.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct ErrorBody {
    /// What went wrong.
    pub error: ErrorInfo,
}

/// What went wrong.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct ErrorInfo {
    /// For a program to decide on.
    pub code: ErrorCode,
    /// For a person: one sentence that names the thing and says why.
    pub message: String,
}

/// Kinds of failure; each goes with one HTTP status.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum ErrorCode {
    /// 400: the request is not what this path takes.
    BadRequest,
    /// 401: no token, or none that is known.
    Unauthorized,
    /// 403: the token's role does not allow it.
    Forbidden,
    /// 404: there is no such thing.
    NotFound,
    /// 405: the path does not take this method.
    MethodNotAllowed,
    /// 409: its state, or another operation, forbids it now.
    Conflict,
    /// 409: there is no memory for it.
    NoMemory,
    /// 409: there is no space for it.
    NoSpace,
    /// 412: it has changed since it was read.
    PreconditionFailed,
    /// 413: the body is too large.
    BodyTooLarge,
    /// 415: the body is not JSON.
    UnsupportedMediaType,
    /// 422: a value that is well-formed and cannot be.
    InvalidValue,
    /// 428: an edit without `If-Match`.
    PreconditionRequired,
    /// 429: too many failed logins.
    TooManyRequests,
    /// 500: the node failed.
    Internal,
    /// 502: the node that it belongs to cannot be reached.
    NodeUnreachable,
    /// 503: something that is needed does not answer.
    Unavailable,
    /// 504: the node that it belongs to does not answer in time.
    NodeTimeout,
}

impl ErrorCode {
    /// The HTTP status that goes with it (RFC 9110, section 15; RFC 6585).
    pub fn status(self) -> StatusCode {
        match self {
            Self::BadRequest => StatusCode::BAD_REQUEST,
            Self::Unauthorized => StatusCode::UNAUTHORIZED,
            Self::Forbidden => StatusCode::FORBIDDEN,
            Self::NotFound => StatusCode::NOT_FOUND,
            Self::MethodNotAllowed => StatusCode::METHOD_NOT_ALLOWED,
            Self::Conflict | Self::NoMemory | Self::NoSpace => StatusCode::CONFLICT,
            Self::PreconditionFailed => StatusCode::PRECONDITION_FAILED,
            Self::BodyTooLarge => StatusCode::PAYLOAD_TOO_LARGE,
            Self::UnsupportedMediaType => StatusCode::UNSUPPORTED_MEDIA_TYPE,
            Self::InvalidValue => StatusCode::UNPROCESSABLE_ENTITY,
            Self::PreconditionRequired => StatusCode::PRECONDITION_REQUIRED,
            Self::TooManyRequests => StatusCode::TOO_MANY_REQUESTS,
            Self::Internal => StatusCode::INTERNAL_SERVER_ERROR,
            Self::NodeUnreachable => StatusCode::BAD_GATEWAY,
            Self::Unavailable => StatusCode::SERVICE_UNAVAILABLE,
            Self::NodeTimeout => StatusCode::GATEWAY_TIMEOUT,
        }
    }
}

/// A request that fails.
#[derive(Debug)]
pub struct ApiError {
    info: ErrorInfo,
}

impl ApiError {
    /// With a sentence.
    pub fn new(code: ErrorCode, message: impl Into<String>) -> Self {
        let message = message.into();
        Self {
            info: ErrorInfo { code, message },
        }
    }

    pub(super) fn of(code: ErrorCode, error: &(dyn std::error::Error + 'static)) -> Self {
        if code.status().is_server_error() {
            tracing::error!("{}", chain(error));
        }
        Self::new(code, chain(error))
    }

    /// What it says.
    pub(super) fn into_message(self) -> String {
        self.info.message
    }
}

impl IntoResponse for ApiError {
    fn into_response(self) -> Response {
        let status = self.info.code.status();
        let body = Json(ErrorBody { error: self.info });
        if status == StatusCode::PAYLOAD_TOO_LARGE {
            // The rest of it is not read: the connection cannot be used again.
            return (status, [(header::CONNECTION, "close")], body).into_response();
        }
        (status, body).into_response()
    }
}

pub(super) async fn no_such_path(uri: Uri) -> ApiError {
    let path: String = uri.path().chars().take(200).collect();
    let message = format!("there is no {path}; GET /api/v1/openapi.json tells what there is");
    ApiError::new(ErrorCode::NotFound, message)
}

pub(super) async fn no_such_method(method: Method, uri: Uri) -> ApiError {
    let path: String = uri.path().chars().take(200).collect();
    let message = format!("{path} does not take {method}");
    ApiError::new(ErrorCode::MethodNotAllowed, message)
}

impl From<Invalid> for ApiError {
    fn from(error: Invalid) -> Self {
        Self::of(ErrorCode::InvalidValue, &error)
    }
}

impl From<StoreError> for ApiError {
    fn from(error: StoreError) -> Self {
        let code = match &error {
            StoreError::TooLarge { .. } => ErrorCode::BodyTooLarge,
            StoreError::Engine(_) | StoreError::NoMajority => ErrorCode::Unavailable,
            _ => ErrorCode::Internal,
        };
        Self::of(code, &error)
    }
}

impl From<StorageError> for ApiError {
    fn from(error: StorageError) -> Self {
        let code = match error {
            StorageError::Store(error) => return error.into(),
            StorageError::NoImage { .. } | StorageError::NoPool(_) => ErrorCode::NotFound,
            StorageError::ImageExists(_)
            | StorageError::VolumeExists(_)
            | StorageError::PoolExists(_)
            | StorageError::BuiltIn
            | StorageError::Deleting(_)
            | StorageError::InUse(_)
            | StorageError::Locked { .. }
            | StorageError::Cancelled => ErrorCode::Conflict,
            StorageError::BadImage { .. }
            | StorageError::TooSmall { .. }
            | StorageError::BadPath { .. }
            | StorageError::Unfit { .. }
            | StorageError::Invalid(_) => ErrorCode::InvalidValue,
            StorageError::Unavailable { .. }
            | StorageError::Stalled { .. }
            | StorageError::NoVolume(_) => ErrorCode::Unavailable,
            StorageError::NoSpace { .. } => ErrorCode::NoSpace,
            StorageError::Io { ref source, .. }
                if source.kind() == std::io::ErrorKind::StorageFull =>
            {
                ErrorCode::NoSpace
            }
            StorageError::Io { .. }
            | StorageError::QemuImg { .. }
            | StorageError::Lvm { .. }
            | StorageError::Zero { .. } => ErrorCode::Internal,
        };
        Self::of(code, &error)
    }
}

impl From<GuestError> for ApiError {
    fn from(error: GuestError) -> Self {
        let code = match error {
            GuestError::Store(error) => return error.into(),
            // An image or a pool that a request names is part of its value, not what its path leads to.
            GuestError::Storage(StorageError::NoImage { .. } | StorageError::NoPool(_))
            | GuestError::Invalid(_) => ErrorCode::InvalidValue,
            GuestError::Storage(error) => return error.into(),
            GuestError::NetworkRequest(error) => return error.into(),
            GuestError::Network(ref error) if error.is_refusal() => ErrorCode::Conflict,
            GuestError::NotFound(_)
            | GuestError::NoDisk { .. }
            | GuestError::NoInterface { .. } => ErrorCode::NotFound,
            GuestError::Changed(_) => ErrorCode::PreconditionFailed,
            GuestError::NoMemory { .. } => ErrorCode::NoMemory,
            GuestError::NameTaken(_)
            | GuestError::MacTaken(_)
            | GuestError::Busy(_)
            | GuestError::Spare { .. }
            | GuestError::State { .. }
            | GuestError::Incomplete(_)
            | GuestError::Template(_)
            | GuestError::Placement(_)
            | GuestError::Witness(_)
            | GuestError::Alone(_)
            | GuestError::Immovable { .. }
            | GuestError::NoNetwork { .. }
            | GuestError::NoDestination { .. }
            | GuestError::Cpu { .. }
            | GuestError::Drained(_)
            | GuestError::Undrained(_)
            | GuestError::Unsettled(_)
            | GuestError::Cancelled
            | GuestError::Vmm(VmmError::Refused { .. }) => ErrorCode::Conflict,
            GuestError::Peer(error) => return error.into(),
            GuestError::Vmm(_) | GuestError::Unconnected { .. } => ErrorCode::Unavailable,
            GuestError::Start { .. }
            | GuestError::Network(_)
            | GuestError::Spawn(_)
            | GuestError::Io { .. } => ErrorCode::Internal,
        };
        Self::of(code, &error)
    }
}

impl From<NetworkRequestError> for ApiError {
    fn from(error: NetworkRequestError) -> Self {
        let code = match error {
            NetworkRequestError::Store(error) => return error.into(),
            NetworkRequestError::NotFound(_) => ErrorCode::NotFound,
            NetworkRequestError::Invalid(_) => ErrorCode::InvalidValue,
            NetworkRequestError::Changed(_) => ErrorCode::PreconditionFailed,
            NetworkRequestError::Exists(_)
            | NetworkRequestError::OfNode(_)
            | NetworkRequestError::InUse { .. }
            | NetworkRequestError::BridgeInUse { .. }
            | NetworkRequestError::SubnetTaken { .. }
            | NetworkRequestError::Taken { .. } => ErrorCode::Conflict,
            NetworkRequestError::Apply(ref error) if error.is_refusal() => ErrorCode::Conflict,
            NetworkRequestError::Apply(_) => ErrorCode::Internal,
        };
        Self::of(code, &error)
    }
}

impl From<AccountError> for ApiError {
    fn from(error: AccountError) -> Self {
        let code = match error {
            AccountError::Store(error) => return error.into(),
            AccountError::Denied => ErrorCode::Unauthorized,
            AccountError::Invalid(_) => ErrorCode::InvalidValue,
            AccountError::Exists { .. } | AccountError::Login(_) | AccountError::NotLogin(_) => {
                ErrorCode::Conflict
            }
            AccountError::NotFound { .. } => ErrorCode::NotFound,
            AccountError::Crypto(_) => ErrorCode::Internal,
        };
        Self::of(code, &error)
    }
}

impl From<ClusterError> for ApiError {
    fn from(error: ClusterError) -> Self {
        let code = match error {
            ClusterError::Store(error) => return error.into(),
            ClusterError::Peer(error) => return error.into(),
            ClusterError::Value { .. } | ClusterError::Backup(_) => ErrorCode::InvalidValue,
            ClusterError::Token(_) => ErrorCode::Forbidden,
            ClusterError::NoNode(_) => ErrorCode::NotFound,
            ClusterError::Refused { .. }
            | ClusterError::AlreadyIn
            | ClusterError::NotIn
            | ClusterError::Busy(_)
            | ClusterError::HasGuests(..)
            | ClusterError::NameTaken(_)
            | ClusterError::NodeState(_) => ErrorCode::Conflict,
            ClusterError::NotReady(..)
            | ClusterError::NotEntered { .. }
            | ClusterError::Late { .. }
            | ClusterError::Members(_) => ErrorCode::Unavailable,
            ClusterError::Io { .. }
            | ClusterError::Etcd(_)
            | ClusterError::Authority(_)
            | ClusterError::Network(_) => ErrorCode::Internal,
        };
        Self::of(code, &error)
    }
}

impl From<UpdateError> for ApiError {
    fn from(error: UpdateError) -> Self {
        let code = match error {
            UpdateError::Store(error) => return error.into(),
            UpdateError::Guests(error) => return error.into(),
            UpdateError::Peer(error) => return error.into(),
            UpdateError::NoBundle(_) => ErrorCode::NotFound,
            UpdateError::NotAppliance(_)
            | UpdateError::Busy(_)
            | UpdateError::Older { .. }
            | UpdateError::GuestsRun { .. }
            | UpdateError::NotIn(_)
            | UpdateError::RolloutRuns(_)
            | UpdateError::Unready(_) => ErrorCode::Conflict,
            UpdateError::Signature { .. }
            | UpdateError::Damaged(_)
            | UpdateError::Incompatible { .. }
            | UpdateError::Version(_)
            | UpdateError::Fetch { .. } => ErrorCode::InvalidValue,
            UpdateError::NoSpace { .. } => ErrorCode::NoSpace,
            UpdateError::Program { .. } => ErrorCode::Unavailable,
            UpdateError::Io { ref source, .. }
                if source.kind() == std::io::ErrorKind::StorageFull =>
            {
                ErrorCode::NoSpace
            }
            UpdateError::Io { .. } => ErrorCode::Internal,
        };
        Self::of(code, &error)
    }
}

impl From<CancelError> for ApiError {
    fn from(error: CancelError) -> Self {
        let code = match error {
            CancelError::Store(error) => return error.into(),
            CancelError::NotFound(_) => ErrorCode::NotFound,
            CancelError::Ended(_) => ErrorCode::Conflict,
        };
        Self::of(code, &error)
    }
}
