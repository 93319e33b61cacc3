//! Properties of every packet, whatever the contents of the tables.

mod answers;
mod errors;
mod flows;
mod network_policy;
mod policy;
pub mod sockets;
mod translation;

use std::{collections::BTreeSet, fmt};

use podnet_common::{
    layout::{CtEntry, Hook, Tuple},
    pipeline::Tables as _,
    simulator::{FinalVerdict, HostTables},
    verdict::Reason,
};

use crate::{choices::Choices, scenario::Entry, view::View, world::World};

/// A packet and the outcome of a hook.
pub struct Outcome<'a> {
    pub entry: Entry,
    pub input: &'a [u8],
    pub end: FinalVerdict,
    pub output: Vec<u8>,
    /// Tables before the packet.
    pub before: HostTables,
}

impl fmt::Display for Outcome<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { entry: Entry { hook, ifindex }, input, end, output, .. } = self;
        write!(f, "{hook:?} at {}: {end:?}\n  in  {input:02x?}\n  out {output:02x?}\n", ifindex.0)
    }
}

/// State kept from packet to packet.
#[derive(Default)]
pub struct State {
    /// Entries whose other half has been removed.
    pub widowed: BTreeSet<Tuple>,
}

impl State {
    /// Removes an entry of `conntrack`, as the collector does.
    pub fn lose(&mut self, world: &World, c: &mut Choices<'_>) {
        let mut conntrack = world.tables.conntrack.borrow_mut();
        let n = c.below(conntrack.len().max(1));
        let Some((key, entry)) = conntrack.iter().nth(n).map(|(key, entry)| (*key, *entry)) else { return };
        conntrack.remove(&key);
        if entry.flags & CtEntry::ONE_WAY == 0 {
            self.widowed.insert(entry.reply_key(key.proto));
        }
    }
}

/// Checks everything.
pub fn check(world: &World, o: &Outcome<'_>, state: &mut State) {
    match o.end {
        FinalVerdict::Drop(reason) => {
            let internal = [Reason::MissedTailCall, Reason::NoProgram, Reason::PacketWriteFailed];
            assert!(!internal.contains(&reason), "{o}the pipeline has failed");
            assert!(reason != Reason::StaleTable || world.broken, "{o}the tables are complete");
            assert!(o.output == o.input, "{o}a dropped packet was changed");
            if let (Reason::PolicyIngress | Reason::PolicyEgress, Some(packet)) = (reason, View::of(o.input)) {
                network_policy::check_denied(o, &packet);
            }
        }
        FinalVerdict::Reject(..) | FinalVerdict::Answer(_) => answers::check(world, o),
        FinalVerdict::Pass | FinalVerdict::Forward(..) => match View::of(o.input) {
            Some(packet) => {
                translation::check(world, o, &packet);
                policy::check_source(world, o, &packet);
                network_policy::check_passed(world, o, &packet);
                errors::known(world, o, &packet);
            }
            None => {
                assert!(o.output == o.input && o.end == FinalVerdict::Pass, "{o}no IP packet, yet it was handled");
                // A packet that cannot be parsed completely cannot be checked either, so it must not pass where sources
                // are checked.
                let ip = matches!(o.input.get(12..14), Some([8, 0] | [0x86, 0xdd]));
                let evaluated = matches!(o.entry.hook, Hook::FromPod | Hook::FromUplink | Hook::UplinkXdp);
                assert!(!(ip && evaluated), "{o}an IP packet has passed unread");
            }
        },
    }
    flows::check(world, o, state);
    flows::repeat(world, o);
    if !world.broken {
        policy::check(world, o, state);
        flows::answer(world, o);
    }
}

/// Ports of a packet's tuple, taken from the first fragment where necessary.
fn ports(tables: &HostTables, packet: &View<'_>) -> Option<(u16, u16)> {
    let Some(piece) = packet.fragment.filter(|piece| piece.later) else { return packet.ports() };
    let (src, dst) = (packet.src.into(), packet.dst.into());
    let proto = podnet_common::addr::Proto(packet.protocol);
    let key = podnet_common::layout::FragmentKey { src, dst, id: piece.id, proto, _pad: [0; 3] };
    tables.fragment(&key).map(|ports| (ports.sport.get(), ports.dport.get()))
}

/// The entry for a packet.
fn flow(tables: &HostTables, packet: &View<'_>) -> Option<(Tuple, CtEntry)> {
    let key = packet.tuple(ports(tables, packet)?);
    tables.flow(&key, |entry| (key, *entry))
}

/// Whether the packets of a half left the stack by an interface that isn't that of the pod with their destination. The
/// pipeline evaluates such a flow again, and may choose another backend.
fn leaves_for_another_pod(tables: &HostTables, half: &CtEntry) -> bool {
    let pod = tables.endpoint(&half.dst).map(|endpoint| endpoint.ifindex.0);
    half.leaves_stack() && pod.is_some_and(|pod| pod != !half.in_ifindex.0)
}

/// Whether a hook is at egress, behind the stack's routing.
fn egress(hook: Hook) -> bool {
    matches!(hook, Hook::ToPod | Hook::ToUplink)
}
