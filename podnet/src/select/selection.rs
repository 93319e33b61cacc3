//! What a service comes to on this node.

use std::fmt;

use crate::frontend::{Frontend, FrontendAddr};
use crate::room::{Bound, Room};

/// What a service comes to on this node.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Selection {
    /// Its frontends. No two have the same address, port and protocol: an address that the service has in several ways
    /// counts as the first of ClusterIP, load balancer's address, external IP.
    pub frontends: Vec<Frontend>,
    /// What they take of the tables.
    pub takes: Room,
    /// What there is no room for.
    pub beyond: Option<Beyond>,
    /// How many lists of backends have no table by which nodes choose alike, for want of room.
    pub unspread: usize,
}

/// Frontends of a service that would take more than its share.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Beyond {
    /// What the first of them goes beyond.
    pub bound: Bound,
    /// The first of them.
    pub first: FrontendAddr,
    /// How many there are.
    pub count: usize,
}

impl fmt::Display for Beyond {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { bound: Bound { table, most, scarce }, first, count } = self;
        let others = count.saturating_sub(1);
        let why = match scarce {
            false => "the limit for every Service",
            true => "the limit for each Service of its namespace while the table is oversubscribed",
        };
        write!(
            f,
            "{first} and {others} more frontends are ignored: the Service exceeds its share of the table `{table}` \
             ({most} entries, {why}); use fewer ports, addresses, endpoints or source ranges"
        )
    }
}

impl Selection {
    /// What there is no room for, for people: what is left out, and what isn't as it should be.
    pub fn shortages(&self) -> (Option<String>, Option<String>) {
        let unspread = (self.unspread > 0).then(|| {
            format!(
                "{} of its backend lists exceed its share of the table `slots`: for these, nodes choose the same \
                 backend only until its endpoints change; preserve the source of fewer ports",
                self.unspread
            )
        });
        (self.beyond.map(|beyond| beyond.to_string()), unspread)
    }
}
