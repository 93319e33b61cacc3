//! API failures: their consequences and their text.

use std::io;

use kube::runtime::watcher::Error;
use podnet_cni::text::chain;

use crate::metrics::api::ApiError;

/// An error with its causes. Of a server's error, kube's text repeats the message as a debug-formatted structure, and
/// says that a message was plain text; both are left out.
pub(super) fn in_words(error: &(dyn std::error::Error + 'static)) -> String {
    let mut text = chain(error);
    let mut cause = Some(error);
    while let Some(error) = cause {
        if let Some(kube::Error::Api(status)) = error.downcast_ref() {
            // The server's own errors may have no reason: `message: reason`.
            let words = status.to_string();
            let words = words.strip_suffix("Failed to parse error data").unwrap_or(&words);
            text = text.replace(&format!("ApiError: {status} ({status:?})"), words.trim_end_matches([':', ' ', '\n']));
        }
        cause = error.source();
    }
    text
}

/// Whether an error is the server's rejection with this status code.
pub(super) fn has_code(error: &Error, code: u16) -> bool {
    use Error::{InitialListFailed, WatchStartFailed};
    matches!(error, WatchStartFailed(kube::Error::Api(status)) | InitialListFailed(kube::Error::Api(status))
        if status.code == code)
}

/// Whether a watch has ended because nothing came within the read timeout. A server sends nothing, not even bookmarks,
/// for a kind without changes since the server's start.
pub(super) fn silent(error: &Error) -> bool {
    let Error::WatchFailed(error) = error else { return false };
    let mut cause: Option<&dyn std::error::Error> = Some(error);
    while let Some(error) = cause {
        let io = error.downcast_ref::<io::Error>();
        // Nested client errors hide the error's kind.
        if io.is_some_and(|error| error.kind() == io::ErrorKind::TimedOut) {
            return true;
        }
        cause = error.source();
    }
    false
}

/// Whether the server doesn't support streaming lists.
pub(super) fn lacks_streaming(error: &Error, listed: bool) -> bool {
    let refused = matches!(error, Error::WatchStartFailed(_)) && (has_code(error, 422) || has_code(error, 400));
    // With an etcd before 3.4.25 or 3.5.8 the server notices only after the start.
    refused || (!listed && matches!(error, Error::WatchError(status) if status.code != 410))
}

/// Whether the error requires a relist: an event can't be decoded, or the server has forgotten the watch's resource
/// version and kube would keep asking for it. kube itself handles a 410 within a watch.
pub(super) fn forgets(error: &Error) -> bool {
    match error {
        Error::WatchFailed(kube::Error::SerdeError(_) | kube::Error::Api(_)) => true,
        Error::WatchError(status) => status.code != 410,
        Error::WatchStartFailed(_) => has_code(error, 410),
        _ => false,
    }
}

/// Class of the error, for metrics.
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

/// An error with its causes, and advice for the most common ones.
pub(super) fn explain(error: &Error) -> String {
    let text = in_words(error);
    let code = [401, 403, 404].into_iter().find(|code| has_code(error, *code));
    match code {
        Some(401) => format!(
            "{text}; the credentials were rejected: check `kubernetes.kubeconfig`, or the service account of the pod"
        ),
        Some(403) => format!("{text}; apply the ClusterRole of deploy/podnet.yaml"),
        Some(404) => format!(
            "{text}; the server doesn't serve this kind in the version that podnet needs: objects that have been read \
             stay in effect"
        ),
        _ => text,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_servers_message_is_shown_once() {
        let status = r#"{"status": "Failure", "message": "nodes is forbidden", "reason": "Forbidden", "code": 403}"#;
        let error = kube::Error::Api(Box::new(serde_json::from_str(status).unwrap()));
        assert!(error.to_string().contains("Some(Failure)"), "kube has changed: {error}");
        assert_eq!(in_words(&error), "nodes is forbidden: Forbidden");
        // Not by the API, but by its multiplexer.
        let plain = kube::core::Status::failure("404 page not found\n", "Failed to parse error data").with_code(404);
        assert_eq!(in_words(&kube::Error::Api(Box::new(plain))), "404 page not found");
        let listing = kube::runtime::watcher::Error::InitialListFailed(error);
        let text = in_words(&listing);
        assert!(text.ends_with(": nodes is forbidden: Forbidden") && !text.contains("Some"), "{text}");
    }
}
