//! Metrics of the Kubernetes API.

use std::{
    fmt,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::{SystemTime, UNIX_EPOCH},
};

use prometheus_client::{
    collector::Collector,
    encoding::{DescriptorEncoder, EncodeLabelSet, EncodeMetric as _},
    metrics::{
        MetricType,
        counter::Counter,
        family::Family,
        gauge::{ConstGauge, Gauge},
    },
    registry::{Registry, Unit},
};

use crate::model::Kind;

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct OfKind {
    kind: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Changed {
    kind: &'static str,
    change: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Listed {
    kind: &'static str,
    cause: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Failed {
    kind: &'static str,
    error: &'static str,
}

/// Why all objects of a kind were listed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ListCause {
    /// Start of the daemon.
    Start,
    /// The server no longer has the changes since the last known version (410).
    Expired,
    /// After an error it is unknown what has changed.
    Error,
}

impl ListCause {
    const ALL: [Self; 3] = [Self::Start, Self::Expired, Self::Error];

    const fn name(self) -> &'static str {
        match self {
            Self::Start => "start",
            Self::Expired => "expired",
            Self::Error => "error",
        }
    }
}

/// Kinds of errors.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ApiError {
    /// The server could not be reached, or the connection broke.
    Unreachable,
    /// 401 or 403.
    Denied,
    /// 410: the server no longer has the changes since the last known version.
    Expired,
    /// 429.
    Throttled,
    /// Other status codes from 400 to 499.
    Rejected,
    /// Status codes from 500 on.
    Server,
    /// Undecodable data.
    Malformed,
}

impl ApiError {
    const ALL: [Self; 7] = [
        Self::Unreachable,
        Self::Denied,
        Self::Expired,
        Self::Throttled,
        Self::Rejected,
        Self::Server,
        Self::Malformed,
    ];

    /// From the server's status code.
    pub const fn of_code(code: u16) -> Self {
        match code {
            401 | 403 => Self::Denied,
            410 => Self::Expired,
            429 => Self::Throttled,
            400..500 => Self::Rejected,
            _ => Self::Server,
        }
    }

    const fn name(self) -> &'static str {
        match self {
            Self::Unreachable => "unreachable",
            Self::Denied => "denied",
            Self::Expired => "expired",
            Self::Throttled => "throttled",
            Self::Rejected => "rejected",
            Self::Server => "server",
            Self::Malformed => "malformed",
        }
    }
}

/// Metrics of the API by kind of object. Clones share their values.
#[derive(Clone, Debug, Default)]
pub struct ApiMetrics {
    connected: Family<OfKind, Gauge>,
    contact: Family<OfKind, Gauge<f64, AtomicU64>>,
    events: Family<Changed, Counter>,
    lists: Family<Listed, Counter>,
    errors: Family<Failed, Counter>,
    queue: Queue,
}

/// Number of changes that wait for the event loop: the difference of two counters, each incremented by one side only.
#[derive(Clone, Debug, Default)]
struct Queue(Arc<[AtomicU64; 2]>);

impl Collector for Queue {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> Result<(), fmt::Error> {
        let [given, taken] = &*self.0;
        // Everything taken was given before.
        let taken = taken.load(Ordering::Acquire);
        let waiting = ConstGauge::new(given.load(Ordering::Acquire).saturating_sub(taken));
        let help = "Changes received from the API and not yet processed by the event loop.";
        waiting.encode(encoder.encode_descriptor("api_queue_length", help, None, MetricType::Gauge)?)
    }
}

impl ApiMetrics {
    /// All series at 0.
    pub fn new() -> Self {
        let metrics = Self::default();
        for kind in Kind::ALL.map(Kind::name) {
            metrics.connected.get_or_create(&OfKind { kind }).set(0);
            metrics.contact.get_or_create(&OfKind { kind }).set(0.0);
            for change in ["applied", "deleted"] {
                metrics.events.get_or_create(&Changed { kind, change }).inc_by(0);
            }
            for cause in ListCause::ALL.map(ListCause::name) {
                metrics.lists.get_or_create(&Listed { kind, cause }).inc_by(0);
            }
            for error in ApiError::ALL.map(ApiError::name) {
                metrics.errors.get_or_create(&Failed { kind, error }).inc_by(0);
            }
        }
        metrics
    }

    pub(super) fn register(&self, registry: &mut Registry) {
        let help = "1 if the watch of this kind is established, or not needed";
        registry.register("api_connected", help, self.connected.clone());
        let help = "Unix time of the last data received on a watch, bookmarks included; 0 if there was none";
        registry.register_with_unit("api_last_contact_timestamp", help, Unit::Seconds, self.contact.clone());
        registry.register("api_events", "Watch events received, by kind and change", self.events.clone());
        let help = "Full lists of a kind, by cause";
        registry.register("api_lists", help, self.lists.clone());
        registry.register("api_errors", "Errors of API requests, by kind and class", self.errors.clone());
        registry.register_collector(Box::new(self.queue.clone()));
    }

    /// Whether the server answers for the kind.
    pub fn set_connected(&self, kind: Kind, connected: bool) {
        self.connected.get_or_create(&OfKind { kind: kind.name() }).set(connected.into());
    }

    /// The server has sent something, if only a bookmark.
    pub fn heard(&self, kind: Kind) {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        self.contact.get_or_create(&OfKind { kind: kind.name() }).set(now.as_secs_f64());
    }

    /// A watch event about an object.
    pub fn event(&self, kind: Kind, deleted: bool) {
        let change = if deleted { "deleted" } else { "applied" };
        self.events.get_or_create(&Changed { kind: kind.name(), change }).inc();
    }

    /// All objects of a kind were listed.
    pub fn list(&self, kind: Kind, cause: ListCause) {
        self.lists.get_or_create(&Listed { kind: kind.name(), cause: cause.name() }).inc();
    }

    /// A request failed.
    pub fn error(&self, kind: Kind, error: ApiError) {
        self.errors.get_or_create(&Failed { kind: kind.name(), error: error.name() }).inc();
    }

    /// Changes were sent to the event loop.
    pub fn given(&self, changes: usize) {
        self.queue.0[0].fetch_add(changes as u64, Ordering::AcqRel);
    }

    /// The event loop has received changes.
    pub fn taken(&self, changes: usize) {
        self.queue.0[1].fetch_add(changes as u64, Ordering::AcqRel);
    }
}
