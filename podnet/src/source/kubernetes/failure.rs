//! Failures of the API: what follows from them, and how they are told.

use std::io;

use kube::runtime::watcher::Error;
use podnet_cni::text::chain;

use crate::metrics::api::ApiError;

/// An error with its causes. What a server says is in kube's text a second time, as Rust prints structures.
pub(super) fn in_words(error: &(dyn std::error::Error + 'static)) -> String {
    let mut text = chain(error);
    let mut cause = Some(error);
    while let Some(error) = cause {
        if let Some(kube::Error::Api(status)) = error.downcast_ref() {
            text = text.replace(&format!("ApiError: {status} ({status:?})"), &status.to_string());
        }
        cause = error.source();
    }
    text
}

/// The server's answer to a request that it refused.
pub(super) fn has_code(error: &Error, code: u16) -> bool {
    use Error::{InitialListFailed, WatchStartFailed};
    matches!(error, WatchStartFailed(kube::Error::Api(status)) | InitialListFailed(kube::Error::Api(status))
        if status.code == code)
}

/// Whether a watch has ended because nothing came for as long as a connection is trusted. A server has nothing to say, not
/// even how far it is, of a kind of which nothing has changed since it was started.
pub(super) fn silent(error: &Error) -> bool {
    let Error::WatchFailed(error) = error else { return false };
    let mut cause: Option<&dyn std::error::Error> = Some(error);
    while let Some(error) = cause {
        let io = error.downcast_ref::<io::Error>();
        // Clients wrap each other's errors, which hides the kind.
        if io.is_some_and(|error| error.kind() == io::ErrorKind::TimedOut) {
            return true;
        }
        cause = error.source();
    }
    false
}

/// Whether the server doesn't know how to send a list as a stream.
pub(super) fn lacks_streaming(error: &Error, listed: bool) -> bool {
    let refused = matches!(error, Error::WatchStartFailed(_)) && (has_code(error, 422) || has_code(error, 400));
    // With an etcd before 3.4.25 or 3.5.8 it notices only when it has begun.
    refused || (!listed && matches!(error, Error::WatchError(status) if status.code != 410))
}

/// Whether what has changed can be found by a new list only: something came that nobody understands, or the server doesn't
/// know any more where the watch was and kube goes on asking. A 410 within a watch it sees to by itself.
pub(super) fn forgets(error: &Error) -> bool {
    match error {
        Error::WatchFailed(kube::Error::SerdeError(_) | kube::Error::Api(_)) => true,
        Error::WatchError(status) => status.code != 410,
        Error::WatchStartFailed(_) => has_code(error, 410),
        _ => false,
    }
}

/// What kind of error it is, for metrics.
pub(super) fn classify(error: &Error) -> ApiError {
    use Error::{InitialListFailed, NoResourceVersion, WatchError, WatchFailed, WatchStartFailed};
    match error {
        WatchError(status) => ApiError::of_code(status.code),
        InitialListFailed(kube::Error::Api(status))
        | WatchStartFailed(kube::Error::Api(status))
        | WatchFailed(kube::Error::Api(status)) => ApiError::of_code(status.code),
        InitialListFailed(kube::Error::SerdeError(_)) | WatchFailed(kube::Error::SerdeError(_)) | NoResourceVersion => {
            ApiError::Malformed
        }
        _ => ApiError::Unreachable,
    }
}

/// An error with its causes, and what to do about the commonest.
pub(super) fn explain(error: &Error) -> String {
    let text = in_words(error);
    let code = [401, 403].into_iter().find(|code| has_code(error, *code));
    match code {
        Some(401) => format!("{text}; the credentials were rejected"),
        Some(403) => format!("{text}; apply the ClusterRole of deploy/podnet.yaml"),
        _ => text,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_server_says_is_told_in_its_words_alone() {
        let status = r#"{"status": "Failure", "message": "nodes is forbidden", "reason": "Forbidden", "code": 403}"#;
        let error = kube::Error::Api(Box::new(serde_json::from_str(status).unwrap()));
        assert!(error.to_string().contains("Some(Failure)"), "kube has changed: {error}");
        assert_eq!(in_words(&error), "nodes is forbidden: Forbidden");
        let listing = kube::runtime::watcher::Error::InitialListFailed(error);
        let text = in_words(&listing);
        assert!(text.ends_with(": nodes is forbidden: Forbidden") && !text.contains("Some"), "{text}");
    }
}
