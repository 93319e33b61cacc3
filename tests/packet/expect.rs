//! Running a test on fresh tables, and requiring verdicts and frames.

use std::net::IpAddr;

use anyhow::{Result, ensure};
use podnet_common::{
    addr::IfIndex,
    layout::Hook,
    simulator::{FinalVerdict, HostTables},
    verdict::Reason,
};

use crate::{
    cluster::{Addresses, Both, CLIENT_MAC, HOST_MAC, addresses, in_namespace},
    frame::{Frame, SYN},
};

/// Runs a test for both families, each with fresh tables.
pub fn both_families(test: fn(&mut Both, &Addresses, IfIndex) -> Result<()>) {
    both_families_with(|_| {}, test);
}

pub fn both_families_with(
    change: impl Fn(&mut HostTables) + Send + 'static,
    test: impl Fn(&mut Both, &Addresses, IfIndex) -> Result<()> + Send + 'static,
) {
    /// Attempts at a test in which the clock's tick changes: within each tick, one packet of a flow leaves the fast
    /// path.
    const TRIES: usize = 4;
    in_namespace(move |uplink| {
        let mut tried = 0;
        loop {
            let mut both = Both::new(uplink, &change)?;
            let begun = both.tick()?;
            let result = [false, true].into_iter().try_for_each(|v6| test(&mut both, &addresses(v6), uplink));
            tried += 1;
            if result.is_ok() || tried == TRIES || both.tick()? == begun {
                return result;
            }
        }
    });
}

/// TCP and UDP frames from the client pod; the TCP frame is a SYN.
pub fn from_client(src: (IpAddr, u16), dst: (IpAddr, u16)) -> [Frame; 2] {
    [Frame::tcp(src, dst, SYN), Frame::udp(src, dst)].map(|f| f.macs(CLIENT_MAC, HOST_MAC))
}

/// Requires a verdict and an output frame.
#[track_caller]
pub fn expect(both: &Both, hook: Hook, input: &Frame, verdict: FinalVerdict, output: &Frame) -> Result<()> {
    let (got, bytes) = both.run(hook, &input.bytes())?;
    ensure!(got == verdict, "{hook:?} {input:?}: {got:?}, expected {verdict:?}");
    ensure!(bytes == output.bytes(), "{input:?}\n  got      {bytes:02x?}\n  expected {:02x?}", output.bytes());
    Ok(())
}

#[track_caller]
pub fn expect_drop(both: &Both, hook: Hook, input: &Frame, reason: Reason) -> Result<()> {
    let (got, _) = both.run(hook, &input.bytes())?;
    ensure!(got == FinalVerdict::Drop(reason), "{hook:?} {input:?}: {got:?}, expected {reason:?}");
    Ok(())
}
