//! Result of the selection for a service on this node.

use std::fmt;

use crate::entry_counts::{Bound, EntryCounts};
use crate::frontend::{Frontend, FrontendAddr};

/// Result of the selection for a service on this node.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Selection {
    /// Its frontends, unique by address, port and protocol: an address that the service has in several roles counts as
    /// the first of ClusterIP, load balancer IP, external IP.
    pub frontends: Vec<Frontend>,
    /// Table entries that they take.
    pub takes: EntryCounts,
    /// Frontends without room.
    pub beyond: Option<Beyond>,
    /// Number of backend lists that lack a Maglev table for want of room.
    pub unspread: usize,
}

/// The frontends that exceed a service's share.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Beyond {
    /// The bound that the first of them exceeds.
    pub bound: Bound,
    /// The first of them.
    pub first: FrontendAddr,
    /// Their number.
    pub count: usize,
}

impl fmt::Display for Beyond {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { bound: Bound { table, most, scarce }, first, count } = self;
        let frontends = match count.saturating_sub(1) {
            0 => format!("{first} is"),
            1 => format!("{first} and 1 more frontend are"),
            others => format!("{first} and {others} more frontends are"),
        };
        let why = match scarce {
            false => "the limit for every Service",
            true => "the limit for each Service of its namespace while the table is oversubscribed",
        };
        write!(
            f,
            "{frontends} ignored: the Service exceeds its share of the table `{table}` \
             ({most} entries, {why}); use fewer ports, addresses, endpoints or source ranges"
        )
    }
}

impl Selection {
    /// Shortages as text for users: frontends that are left out, and lists without a Maglev table.
    pub fn shortages(&self) -> (Option<String>, Option<String>) {
        let unspread = (self.unspread > 0).then(|| {
            format!(
                "{} of its backend lists have no Maglev table, for want of room in its share of the table `slots`: \
                 nodes choose the same backend only until its endpoints change; preserve the client's address for \
                 fewer ports",
                self.unspread
            )
        });
        (self.beyond.map(|beyond| beyond.to_string()), unspread)
    }
}
