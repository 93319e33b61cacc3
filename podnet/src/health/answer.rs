//! Responses of the servers, the same as kube-proxy's (pkg/proxy/healthcheck in Kubernetes). Pure.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use serde_json::json;

use crate::{http::Answer, select::HealthCheck};

/// Header with the number of local endpoints.
const WEIGHT: &str = "x-load-balancing-endpoint-weight";

/// State of the node at one moment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Moment {
    /// The current time.
    pub now: SystemTime,
    /// Whether the datapath is up to date, or has been behind only briefly.
    pub healthy: bool,
    /// When it was last up to date.
    pub updated: SystemTime,
    /// Whether the node isn't leaving, so new connections may be sent to it.
    pub eligible: bool,
}

const JSON: &str = "application/json";

fn status(ok: bool) -> u16 {
    if ok { 200 } else { 503 }
}

/// The response of the node's own server for a path.
pub(super) fn node(path: &str, moment: &Moment) -> Answer {
    let Moment { now, healthy, updated, eligible } = *moment;
    let updated = rfc3339(if healthy { now } else { updated });
    let now = rfc3339(now);
    let (status, body) = match path {
        "/healthz" => {
            let body = json!({"lastUpdated": updated, "currentTime": now, "nodeEligible": eligible});
            (status(healthy && eligible), body)
        }
        "/livez" => (status(healthy), json!({"lastUpdated": updated, "currentTime": now})),
        _ => (404, json!({"error": "only /healthz and /livez are served"})),
    };
    Answer { status, content_type: JSON, body: body.to_string(), header: None }
}

/// The response of a service's server, for any path.
pub(super) fn service(check: &HealthCheck, healthy: bool) -> Answer {
    let body = json!({
        "service": {"namespace": check.service.namespace, "name": check.service.name},
        "localEndpoints": check.local_endpoints,
        "serviceProxyHealthy": healthy,
    });
    let ok = healthy && check.local_endpoints > 0;
    let header = Some((WEIGHT, check.local_endpoints));
    Answer { status: status(ok), content_type: JSON, body: body.to_string(), header }
}

/// A UTC time with a resolution of seconds (RFC 3339).
fn rfc3339(time: SystemTime) -> String {
    let seconds = time.duration_since(UNIX_EPOCH).unwrap_or(Duration::ZERO).as_secs();
    let (days, second) = (seconds / 86_400, seconds % 86_400);
    // The Gregorian calendar repeats every 146,097 days. In years that begin in March the leap day is the last day.
    let days = days + 719_468;
    let (era, day) = (days / 146_097, days % 146_097);
    let year = (day - day / 1460 + day / 36_524 - day / 146_096) / 365;
    let day = day - (365 * year + year / 4 - year / 100);
    let month = (5 * day + 2) / 153;
    let day = day - (153 * month + 2) / 5 + 1;
    let month = if month < 10 { month + 3 } else { month - 9 };
    let year = era * 400 + year + u64::from(month <= 2);
    format!("{year:04}-{month:02}-{day:02}T{:02}:{:02}:{:02}Z", second / 3600, second / 60 % 60, second % 60)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::ObjectName;

    fn at(seconds: u64) -> SystemTime {
        UNIX_EPOCH + Duration::from_secs(seconds)
    }

    #[test]
    fn times_are_formatted_as_rfc_3339() {
        for (seconds, text) in [
            (0, "1970-01-01T00:00:00Z"),
            (951_782_399, "2000-02-28T23:59:59Z"),
            (951_782_400, "2000-02-29T00:00:00Z"),
            (951_868_800, "2000-03-01T00:00:00Z"),
            (1_704_067_199, "2023-12-31T23:59:59Z"),
            (1_709_210_096, "2024-02-29T12:34:56Z"),
            (4_107_542_400, "2100-03-01T00:00:00Z"),
        ] {
            assert_eq!(rfc3339(at(seconds)), text);
        }
    }

    #[test]
    fn healthz_reports_eligibility_and_livez_liveness() {
        let moment = |healthy, eligible| Moment { now: at(120), healthy, updated: at(60), eligible };
        for (path, healthy, eligible, status) in [
            ("/healthz", true, true, 200),
            ("/healthz", true, false, 503),
            ("/healthz", false, true, 503),
            ("/livez", true, true, 200),
            ("/livez", true, false, 200),
            ("/livez", false, true, 503),
            ("/", true, true, 404),
        ] {
            assert_eq!(node(path, &moment(healthy, eligible)).status, status, "{path} {healthy} {eligible}");
        }
        let body = |path, healthy| node(path, &moment(healthy, true)).body;
        assert_eq!(
            body("/healthz", true),
            r#"{"currentTime":"1970-01-01T00:02:00Z","lastUpdated":"1970-01-01T00:02:00Z","nodeEligible":true}"#
        );
        assert_eq!(
            body("/livez", false),
            r#"{"currentTime":"1970-01-01T00:02:00Z","lastUpdated":"1970-01-01T00:01:00Z"}"#
        );
    }

    #[test]
    fn service_is_healthy_with_local_endpoints_and_a_healthy_proxy() {
        for (local_endpoints, healthy, status) in [(2, true, 200), (0, true, 503), (2, false, 503)] {
            let service_name = ObjectName { namespace: "shop".into(), name: "web".into() };
            let answer = service(&HealthCheck { port: 1, service: service_name, local_endpoints }, healthy);
            assert_eq!((answer.status, answer.header), (status, Some((WEIGHT, local_endpoints))));
            let body: serde_json::Value = serde_json::from_str(&answer.body).unwrap();
            let expected = json!({
                "service": {"namespace": "shop", "name": "web"},
                "localEndpoints": local_endpoints,
                "serviceProxyHealthy": healthy,
            });
            assert_eq!(body, expected);
        }
    }
}
