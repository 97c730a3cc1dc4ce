//! The one match from kind of error to gRPC code.

use datafusion::arrow::error::ArrowError;
use tonic::{Code, Status};
use tonic_types::{ErrorDetails, StatusExt};
use tracing::error;
use updraft_engine::{Error, ErrorKind};

use crate::wire::UploadError;

/// The longest text that a client is told, in bytes. It goes in a header, where each byte that is no ASCII takes three, and
/// many clients take no more than 8 KiB of headers: they would fail without any text.
const TEXT_MAX: usize = 2 << 10;
/// How much of that is the end of a text, where the hints are.
const TEXT_END: usize = 512;

/// `text`, or its beginning and its end.
fn brief(text: String) -> String {
    if text.len() <= TEXT_MAX {
        return text;
    }
    let (head, tail) = (text.floor_char_boundary(TEXT_MAX - TEXT_END), text.ceil_char_boundary(text.len() - TEXT_END));
    format!("{} [...] {}", &text[..head], &text[tail..])
}

/// What a client is told of an error of the engine.
pub(crate) fn status(error: Error) -> Status {
    let code = match error.kind() {
        ErrorKind::Invalid | ErrorKind::Unsupported => Code::InvalidArgument,
        ErrorKind::NotFound => Code::NotFound,
        ErrorKind::Denied => Code::PermissionDenied,
        ErrorKind::Stale => Code::FailedPrecondition,
        ErrorKind::Exhausted => Code::ResourceExhausted,
        ErrorKind::Unavailable => Code::Unavailable,
        ErrorKind::Corrupt => Code::DataLoss,
        ErrorKind::Deadline => Code::DeadlineExceeded,
        ErrorKind::Cancelled => Code::Cancelled,
        ErrorKind::Internal => return internal(&error),
    };
    if let Some(delay) = error.retry_after() {
        let details = ErrorDetails::with_retry_info(Some(delay));
        return Status::with_error_details(code, brief(error.to_string()), details);
    }
    Status::new(code, brief(error.to_string()))
}

/// A bug of ours: the text stays in the log, the client gets what finds it there.
fn internal(error: &Error) -> Status {
    let query = match error {
        Error::Panicked { query, .. } => *query,
        _ => updraft_engine::QueryId::new(),
    };
    error!(query_id = %query, %error, "internal error");
    Status::internal(format!("internal error; the server's log has more under query id {query}"))
}

/// A command that is not offered.
pub(crate) fn not_offered(what: &str) -> Status {
    Status::unimplemented(format!("{} not offered: this server answers statements that read", brief(what.to_owned())))
}

/// An answer of our own that could not be built.
pub(crate) fn answer_failed(error: ArrowError) -> Status {
    internal(&Error::DataFusion(error.into()))
}

impl From<UploadError> for Status {
    fn from(error: UploadError) -> Self {
        match error {
            UploadError::Transport { source } => *source,
            UploadError::NoRoom { source } => status(*source),
            UploadError::TooLarge { .. } => Status::resource_exhausted(brief(error.to_string())),
            other => Status::invalid_argument(brief(other.to_string())),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use expect_test::expect;

    use super::*;

    #[test]
    fn each_kind_has_its_code() {
        let errors = [
            Error::Invalid("x".into()),
            Error::TooComplex("x".into()),
            Error::Unsupported("x".into()),
            Error::NotFound { what: "table", name: "t".into(), hint: "h" },
            Error::Exhausted("x".into()),
            Error::Stale("x".into()),
            Error::Draining,
            Error::Deadline("1s".into()),
            Error::Cancelled,
            Error::Panicked { query: updraft_engine::QueryId::new(), message: "secret".into() },
        ];
        let lines: Vec<_> = errors
            .into_iter()
            .map(status)
            .map(|status| format!("{:?}: {}", status.code(), status.message().split(" id ").next().unwrap_or_default()))
            .collect();
        expect![[r#"
            InvalidArgument: x
            InvalidArgument: statement is too complex: x
            InvalidArgument: x
            NotFound: table "t" does not exist; hint: h
            ResourceExhausted: x
            FailedPrecondition: x
            Unavailable: the server is shutting down; try again on another one, or in a moment
            DeadlineExceeded: query ran longer than its limit of 1s; hint: raise statement_timeout or the client's deadline
            Cancelled: query was cancelled
            Internal: internal error; the server's log has more under query"#]]
        .assert_eq(&lines.join("\n"));
    }

    #[test]
    fn long_texts_keep_their_beginning_and_their_end() {
        let columns = "\u{e9}t\u{e9}_, ".repeat(1000);
        let told = status(Error::Invalid(format!("no field \"x\"; valid fields are {columns}; hint: look")))
            .message()
            .to_owned();
        assert!(told.len() <= TEXT_MAX + 16, "{}", told.len());
        assert!(told.starts_with("no field \"x\"; valid") && told.ends_with("; hint: look"), "{told}");
        let short = "\u{e9}".repeat(TEXT_MAX / 2);
        assert_eq!(status(Error::Invalid(short.clone())).message(), short);
    }

    #[test]
    fn what_passes_by_itself_says_when_to_retry() {
        let retry = |error| status(error).get_details_retry_info().and_then(|info| info.retry_delay);
        assert_eq!(retry(Error::Draining), Some(Duration::from_secs(1)));
        let retry_after = Duration::from_millis(2500);
        let full = Error::QueueFull { queued: 9, limit: 9, principal: None, retry_after };
        assert_eq!(retry(full), Some(retry_after));
        assert_eq!(retry(Error::Cancelled), None);
    }
}
