//! The one place where errors become gRPC codes.

use tonic::{Code, Status};

use crate::failure;
use crate::failure::Kind;

/// The code for each kind, from the error scheme of CSI v1.12.0 and what kubelet makes of it: it retries
/// `Canceled`, `DeadlineExceeded`, `Unavailable`, `ResourceExhausted` and `Aborted` as one uncertain volume, and
/// takes every other code as final for this attempt (`isFinalError`).
pub fn code(kind: Kind) -> Code {
    match kind {
        Kind::InvalidArgument => Code::InvalidArgument,
        Kind::NotFound => Code::NotFound,
        Kind::AlreadyExists => Code::AlreadyExists,
        Kind::Unauthenticated => Code::Unauthenticated,
        Kind::PermissionDenied => Code::PermissionDenied,
        Kind::OutOfRange => Code::OutOfRange,
        Kind::ResourceExhausted => Code::ResourceExhausted,
        Kind::Unavailable => Code::Unavailable,
        Kind::DeadlineExceeded => Code::DeadlineExceeded,
        Kind::Aborted => Code::Aborted,
        Kind::FailedPrecondition => Code::FailedPrecondition,
        Kind::Internal => Code::Internal,
    }
}

/// The status for an error of the volume layer. Its text becomes an event of the pod.
pub fn from_volume(error: &crate::volume::error::Error) -> Status {
    Status::new(code(error.kind()), failure::chain(error))
}

/// The error for a field that must be there.
pub fn missing(field: &str) -> Status {
    Status::invalid_argument(format!("{field} is missing in the request"))
}

/// The name of a code as it appears in metrics and logs, in the spelling of Go's gRPC.
pub fn name(code: Code) -> &'static str {
    match code {
        Code::Ok => "OK",
        Code::Cancelled => "Canceled",
        Code::Unknown => "Unknown",
        Code::InvalidArgument => "InvalidArgument",
        Code::DeadlineExceeded => "DeadlineExceeded",
        Code::NotFound => "NotFound",
        Code::AlreadyExists => "AlreadyExists",
        Code::PermissionDenied => "PermissionDenied",
        Code::ResourceExhausted => "ResourceExhausted",
        Code::FailedPrecondition => "FailedPrecondition",
        Code::Aborted => "Aborted",
        Code::OutOfRange => "OutOfRange",
        Code::Unimplemented => "Unimplemented",
        Code::Internal => "Internal",
        Code::Unavailable => "Unavailable",
        Code::DataLoss => "DataLoss",
        Code::Unauthenticated => "Unauthenticated",
    }
}
