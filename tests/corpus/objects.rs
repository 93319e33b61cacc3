//! Attacks by objects.

use std::net::SocketAddr;

use anyhow::{Result, ensure};
use podnet_tests::lab::eventually;
use podnet_tests::traffic::{Outcome, Transport};
use serde::Deserialize;

use super::Site;

/// An attack by objects.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Attack {
    /// Description.
    attack: String,
    /// Manifest; `$SERVER4`, `$SERVER6`, `$NODE4` and `$NODE6` stand for addresses of the server's pod and its node,
    /// `$LONG` for 100,000 characters.
    objects: String,
    /// Expected texts of warnings.
    #[serde(default)]
    warns: Vec<String>,
    /// Addresses at which no TCP connection may be answered.
    #[serde(default)]
    closed: Vec<SocketAddr>,
}

impl Attack {
    pub(super) fn name(&self) -> &str {
        &self.attack
    }
}

pub(super) fn attack(site: &Site, attack: &Attack) -> Result<()> {
    site.lab.apply("attack", &site.fill_in(&attack.objects))?;
    site.warns(&attack.warns.iter().map(|text| site.fill_in(text)).collect::<Vec<_>>())?;
    for at in &attack.closed {
        for place in [&site.client().place, &site.node().place] {
            eventually(&format!("{at} is closed"), || {
                let outcome = place.outcome(Transport::Tcp, *at);
                ensure!(!matches!(outcome, Outcome::Answer { .. }), "{outcome:?}");
                Ok(())
            })?;
        }
    }
    Ok(())
}
