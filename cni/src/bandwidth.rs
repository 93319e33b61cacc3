//! Bandwidth limits of a pod: the capability `bandwidth`, in the units of the reference plugin of that name.
//!
//! Traffic to the pod is queued at the host end, traffic from the pod at the pod's own end. So both directions are
//! shaped at egress, by delay instead of policing, for every kind of peer.

use serde::{Deserialize, Serialize};

use thiserror::Error;

use crate::netlink::Bucket;

/// A rate limit.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Limit {
    /// Rate in bits per second.
    pub rate: u64,
    /// Burst in bits.
    pub burst: u64,
}

/// The limits of a pod.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Bandwidth {
    /// Traffic to the pod.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ingress: Option<Limit>,
    /// Traffic from the pod.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub egress: Option<Limit>,
}

/// A burst of at least this many bits counts as unspecified. Runtimes without a configured burst pass the largest
/// number of the type, 2^31 - 1 bits or more. Kubernetes' annotations have no burst, so taken literally this would
/// leave the first half gigabyte unlimited.
const UNSAID: u64 = i32::MAX as u64;
/// Largest burst in bits that fits into the kernel's attribute (32 bits, in bytes).
const BURST_MAX: u64 = 8 * u32::MAX as u64;

/// A limit that makes no sense.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[error("runtimeConfig.bandwidth: {direction}Rate {rate} and {direction}Burst {burst}: {what}")]
pub struct LimitError {
    direction: String,
    rate: i64,
    burst: i64,
    what: &'static str,
}

impl Limit {
    /// Validates the values of the capability, in bits per second and bits. Zeros mean no limit.
    pub(crate) fn parse(direction: &str, rate: i64, burst: i64) -> Result<Option<Self>, LimitError> {
        let invalid = |what| Err(LimitError { direction: direction.to_owned(), rate, burst, what });
        let (Ok(rate), Ok(burst)) = (u64::try_from(rate), u64::try_from(burst)) else {
            return invalid("negative values are not allowed");
        };
        match (rate, burst) {
            (0, 0) => Ok(None),
            (0, _) => invalid("burst without a rate"),
            (_, 0) => invalid("rate without a burst"),
            (1..8, _) => invalid("the rate is below 1 byte per second"),
            _ => Ok(Some(Self { rate, burst })),
        }
    }

    /// The token bucket for packets of this MTU, in bytes.
    pub fn bucket(&self, mtu: u32) -> Bucket {
        /// Ethernet header and VLAN tag, in bytes.
        const FRAME: u64 = 18;
        /// Largest segment that the kernel sends of a connection at once (GSO), in bytes.
        const SEGMENTS: u64 = 64 << 10;
        let rate = self.rate / 8;
        // If unspecified: 50 ms of traffic, but at least as much as low rates need to be reached.
        let burst =
            if self.burst < UNSAID { self.burst.min(BURST_MAX) / 8 } else { (rate / 20).clamp(16 << 10, 4 << 20) };
        // A packet larger than the bucket would never be sent.
        let burst = burst.max(u64::from(mtu) + FRAME);
        // The queue holds 25 ms of traffic, as with the plugin `bandwidth`, but at least two whole segments.
        let limit = burst + (rate / 40).max(2 * SEGMENTS);
        let fit = |bytes: u64| u32::try_from(bytes).unwrap_or(u32::MAX);
        Bucket { rate, burst: fit(burst), limit: fit(limit) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_runtimes_give() {
        let parse = |rate, burst| Limit::parse("ingress", rate, burst);
        assert_eq!(parse(0, 0).unwrap(), None);
        assert_eq!(parse(10_000_000, 80_000).unwrap(), Some(Limit { rate: 10_000_000, burst: 80_000 }));
        for (rate, burst) in [(-1, 1), (1, -1), (0, 5), (5, 0), (7, 80_000)] {
            let error = parse(rate, burst).unwrap_err();
            assert!(error.to_string().contains("ingressRate"), "{error}");
        }
    }

    #[test]
    fn buckets() {
        let bucket = |rate: u64, burst: u64| Limit { rate, burst }.bucket(1500);
        assert_eq!(bucket(8_000_000, 800_000).burst, 100_000);
        assert_eq!(bucket(8_000_000, 8).burst, 1518, "a packet fits");
        for unsaid in [u64::from(u32::MAX), UNSAID, u64::MAX] {
            assert_eq!(bucket(80_000_000, unsaid), Bucket { rate: 10_000_000, burst: 500_000, limit: 750_000 });
            assert_eq!(bucket(1_000_000, unsaid).burst, 16 << 10);
        }
        let widest = bucket(u64::MAX, 1 << 30);
        assert_eq!((widest.rate, widest.limit), (u64::MAX / 8, u32::MAX));
    }
}
