//! Programs of two generations side by side.

use anyhow::ensure;
use podnet_common::{
    layout::{Hook, Out},
    simulator::FinalVerdict,
};

use crate::expect::{both_families, expect, from_client};

#[test]
fn packets_end_in_the_generation_in_which_they_began() {
    both_families(|both, a, uplink| {
        // The other generation, which has no programs here, is switched to while a packet is between two stages.
        both.kernel.switch_to(1)?;
        for input in from_client((a.client, 40_030), (a.far, 80)) {
            let there = input.translated((a.client, 40_030), (a.remote, 8080)).ttl(63);
            expect(both, Hook::FromPod, &input, FinalVerdict::Forward(Out::Uplink, uplink), &there)?;
        }
        for input in from_client((a.client, 40_030), (a.empty, 80)) {
            let (verdict, _) = both.run(Hook::FromPod, &input.bytes())?;
            ensure!(matches!(verdict, FinalVerdict::Reject(..)), "{verdict:?}");
        }
        both.kernel.switch_to(0)
    });
}
