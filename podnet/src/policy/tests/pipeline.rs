//! Evaluation of the tables by the pipeline's own code.

use std::collections::BTreeMap;

use podnet_common::addr::{Addr, IfIndex, Port};
use podnet_common::layout::{CtEntry, Subject, Tuple};
use podnet_common::removal;
use podnet_common::simulator::{HostPacket, HostTables};

use super::{Direction, Question};
use crate::policy::Desired;

/// Source port of all connections.
const CLIENT_PORT: Port = Port::new(40_000);

/// The tables in the pipeline.
pub(super) struct Pipeline<'a> {
    subjects: &'a BTreeMap<Addr, Subject>,
    tables: HostTables,
}

impl<'a> Pipeline<'a> {
    pub(super) fn new(desired: &'a Desired) -> Self {
        let mut tables = HostTables::default();
        tables.policy_peers.clone_from(&desired.peers);
        tables.policy_blocks.clone_from(&desired.blocks);
        tables.policy_ports.clone_from(&desired.ports);
        tables.policy_rules.clone_from(&desired.rules);
        Self { subjects: &desired.subjects, tables }
    }

    /// Whether the policies allow a connection, as far as its subject is concerned.
    pub(super) fn allows(&mut self, question: &Question) -> bool {
        let Question { subject, direction, peer, proto, port } = *question;
        let (subject, peer) = (Addr::from(subject), Addr::from(peer));
        let Some(sets) = self.subjects.get(&subject).filter(|_| subject != peer) else { return true };
        // The pipeline evaluates both ends at once.
        let (client, server, sets) = match direction {
            Direction::Ingress => (peer, subject, Subject { egress: Subject::OPEN, ..*sets }),
            Direction::Egress => (subject, peer, Subject { ingress: Subject::OPEN, ..*sets }),
        };
        let (sport, dport) = (CLIENT_PORT, Port::new(port));
        let flow = Tuple { src: client, dst: server, sport, dport, proto, ..Tuple::default() };
        let entry = CtEntry { src: client, dst: server, sport, dport, ..CtEntry::default() };
        self.tables.subjects = [(subject, sets)].into();
        self.tables.conntrack = BTreeMap::from([(flow, entry)]).into();
        let data = [&[0; removal::START], bytemuck::bytes_of(&flow)].concat();
        removal::deny(&HostPacket { data, ifindex: IfIndex::default() }, &self.tables) == 0
    }
}

/// As [`Pipeline::allows`], for a single connection.
pub(super) fn allows(desired: &Desired, question: &Question) -> bool {
    Pipeline::new(desired).allows(question)
}
