//! Scenarios of arbitrary packets over arbitrary tables, through the pipeline on the host: a fixed sequence of
//! generated ones, and the corpus kept by a coverage-guided fuzzer.
//!
//! The fuzzer is a package outside the workspace, since it requires unstable compiler flags: `RUSTC_BOOTSTRAP=1 cargo
//! fuzz run --fuzz-dir tests/fuzz --sanitizer none pipeline`. Its working corpus is `tests/fuzz/corpus/pipeline`, and
//! failing inputs are written to `tests/fuzz/artifacts`; copy one to `tests/fuzz/corpus` to make it a permanent test
//! case.

mod choices;
mod frame;
mod oracle;
mod scenario;
mod sockets;
mod view;
mod world;

use std::collections::BTreeSet;
use std::fmt::Display;
use std::fs;
use std::net::IpAddr;
use std::panic::{UnwindSafe, catch_unwind, resume_unwind};
use std::path::{Path, PathBuf};

use podnet_common::{layout::Hook, simulator::FinalVerdict, verdict::Reason};

/// Number of generated scenarios; they take half a minute without optimisation.
const SCENARIOS: u64 = 12_000;

/// Hooks and outcomes that scenarios have covered.
#[derive(Default)]
struct Met(BTreeSet<(Hook, String)>);

impl Met {
    /// Plays a scenario of packets.
    fn play(&mut self, name: impl Display, bytes: &[u8]) {
        self.0.extend(naming(name, || {
            let mut ends = Vec::new();
            scenario::play(bytes, |o| ends.push((o.entry.hook, kind(o.end))));
            ends
        }));
    }

    /// Requires that an outcome occurred at one of the hooks.
    fn demand(&self, hooks: &[Hook], end: &str) {
        let met = |hook: &Hook| self.0.iter().any(|(at, met)| at == hook && met.contains(end));
        assert!(hooks.iter().any(met), "no packet met {end} at {hooks:?}, but {:#?}", self.0);
    }
}

/// Prints the scenario's name if it fails.
fn naming<T>(name: impl Display, play: impl FnOnce() -> T + UnwindSafe) -> T {
    catch_unwind(play).unwrap_or_else(|panic| {
        eprintln!("in the scenario {name}");
        resume_unwind(panic)
    })
}

/// An outcome without its interface.
fn kind(end: FinalVerdict) -> String {
    match end {
        FinalVerdict::Pass => "Pass".to_owned(),
        FinalVerdict::Answer(_) => "Answer".to_owned(),
        FinalVerdict::Drop(reason) => format!("Drop({reason:?})"),
        FinalVerdict::Reject(reason, _) => format!("Reject({reason:?})"),
        FinalVerdict::Forward(out, _) => format!("Forward({out:?})"),
    }
}

fn fuzz_directory() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/fuzz")
}

/// Bytes of a generated scenario (xorshift64*, Vigna 2016).
fn bytes(seed: u64) -> Vec<u8> {
    let mut x = (seed + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    let mut next = || {
        x ^= x >> 12;
        x ^= x << 25;
        x ^= x >> 27;
        x.wrapping_mul(0x2545_f491_4f6c_dd1d)
    };
    let words = 30 + next() % 150;
    (0..words).flat_map(|_| next().to_le_bytes()).collect()
}

#[test]
fn arbitrary_packets_over_arbitrary_tables_satisfy_the_oracle() {
    let mut met = Met::default();
    for seed in 0..SCENARIOS {
        met.play(seed, &bytes(seed));
    }
    // Without coverage of the outcomes the test would prove little.
    let ingress = [Hook::FromPod, Hook::FromUplink, Hook::FromHost];
    for end in [
        "Forward(Pod)",
        "Forward(Uplink)",
        "Forward(Host)",
        "Forward(Link)",
        "Forward(Via)",
        "Forward(Tunnel)",
        "Pass",
        "Answer",
    ] {
        met.demand(&ingress, end);
    }
    for reason in Reason::ALL {
        let never = [Reason::NoProgram, Reason::MissedTailCall, Reason::PacketWriteFailed, Reason::Internal];
        if !never.contains(reason) {
            met.demand(&Hook::ALL, &format!("({reason:?})"));
        }
    }
    for reason in ["NoEndpoint", "UndefinedPort", "TtlExceeded", "TooBig"] {
        met.demand(&ingress, &format!("Reject({reason})"));
    }
}

#[test]
fn corpus_satisfies_the_oracle() {
    let directory = fuzz_directory().join("corpus");
    let mut paths: Vec<_> = fs::read_dir(&directory).unwrap().map(|entry| entry.unwrap().path()).collect();
    paths.retain(|path| path.is_file());
    paths.sort();
    assert!(paths.len() > 100, "the corpus is gone: {}", directory.display());
    let mut met = Met::default();
    for path in paths {
        let bytes = fs::read(&path).unwrap();
        met.play(path.display(), &bytes);
        naming(path.display(), || sockets::play(&bytes, |_| {}));
    }
    met.demand(&[Hook::FromUplink], "Forward(Via)");
    met.demand(&[Hook::UplinkXdp], "Forward(Link)");
}

#[test]
fn arbitrary_sockets_over_arbitrary_tables_satisfy_the_oracle() {
    let mut met = BTreeSet::new();
    for seed in 0..SCENARIOS {
        let bytes = bytes(seed);
        met.extend(naming(seed, || {
            let mut met = Vec::new();
            sockets::play(&bytes, |o| {
                met.push((format!("{:?}", o.operation), IpAddr::from(o.before.addr).is_ipv4(), o.kind()))
            });
            met
        }));
    }
    for v4 in [false, true] {
        for (operation, kinds) in [
            ("Connect", ["backend", "refused", "as it was"].as_slice()),
            ("SendMsg", &["backend", "refused", "as it was"]),
            ("Peer", &["frontend", "as it was"]),
        ] {
            for kind in kinds {
                assert!(met.contains(&(operation.to_owned(), v4, kind)), "{operation} was never {kind} (IPv4: {v4})");
            }
        }
    }
}
