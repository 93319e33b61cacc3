//! The tables of network policy.

use podnet_common::{
    addr::Addr,
    layout::{PolicyDenial, PolicyPod, PolicyRule, PolicyVerdict, Prefix, ProtoPort, Subject},
    tables::{POLICY_BLOCKS, POLICY_DENIALS, POLICY_PEERS, POLICY_PODS, POLICY_PORTS, POLICY_RULES, SUBJECTS, Table},
};

use super::{MemoryTables, copied};
use crate::mirror::{Counts, Entries, TableError};

macro_rules! entries {
    ($($table:ident: $key:ty, $value:ty, $name:literal, $capacity:expr;)*) => {$(
        impl Entries<$key, $value> for MemoryTables {
            fn list(&self) -> Result<Vec<($key, $value)>, TableError> {
                Ok(copied(&self.host.$table))
            }

            fn put(&mut self, key: &$key, value: &$value) -> Result<(), TableError> {
                let capacity: fn(&Self) -> usize = $capacity;
                if self.host.$table.len() >= capacity(self) && !self.host.$table.contains_key(key) {
                    return Err(TableError::Full { table: $name, advice: "remove policies" });
                }
                self.write($name, "write to")?;
                self.host.$table.insert(*key, *value);
                Ok(())
            }

            fn delete(&mut self, key: &$key) -> Result<(), TableError> {
                self.write($name, "delete from")?;
                self.host.$table.remove(key);
                Ok(())
            }
        }
    )*};
}

entries! {
    subjects: Addr, Subject, "subjects", |_| SUBJECTS.capacity();
    policy_pods: u32, PolicyPod, "policy_pods", |_| POLICY_PODS.capacity();
    policy_peers: Addr, u32, "policy_peers", |tables| tables.policy_peers_max;
    policy_blocks: Prefix, u32, "policy_blocks", |_| POLICY_BLOCKS.capacity();
    policy_ports: ProtoPort, u32, "policy_ports", |_| POLICY_PORTS.capacity();
    policy_rules: PolicyRule, PolicyVerdict, "policy_rules", |tables| tables.policy_rules_max;
}

impl MemoryTables {
    /// Number of entries of a table of policies; zero for others.
    pub(super) fn policy_entries(&self, table: Table) -> usize {
        let counts = [
            (SUBJECTS.table(), self.host.subjects.len()),
            (POLICY_PEERS.table(), self.host.policy_peers.len()),
            (POLICY_BLOCKS.table(), self.host.policy_blocks.len()),
            (POLICY_RULES.table(), self.host.policy_rules.len()),
        ];
        counts.into_iter().find(|(own, _)| *own == table).map_or(0, |(_, entries)| entries)
    }
}

impl Entries<PolicyDenial, ()> for MemoryTables {
    fn list(&self) -> Result<Vec<(PolicyDenial, ())>, TableError> {
        Ok(self.host.policy_denials.borrow().keys().map(|key| (*key, ())).collect())
    }

    fn put(&mut self, key: &PolicyDenial, (): &()) -> Result<(), TableError> {
        self.write(POLICY_DENIALS.name(), "write to")?;
        self.host.policy_denials.get_mut().entry(*key).or_default();
        Ok(())
    }

    fn delete(&mut self, key: &PolicyDenial) -> Result<(), TableError> {
        self.write(POLICY_DENIALS.name(), "delete from")?;
        self.host.policy_denials.get_mut().remove(key);
        Ok(())
    }
}

impl Counts<PolicyDenial> for MemoryTables {
    fn counts(&self) -> Result<Vec<(PolicyDenial, u64)>, TableError> {
        Ok(copied(&*self.host.policy_denials.borrow()))
    }
}
