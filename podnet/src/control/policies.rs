//! Network policies: the room of NetworkPolicies, Namespaces and Pods, and the tables that they are written to.

use podnet_common::addr::Addr;
use podnet_common::layout::{PolicyPort, PolicyRule, Prefix, Subject};

use crate::mirror::{Entries, First, Mirror, TableError};
use crate::model::{Kind, Object, ObjectKey};
use crate::policy::{Desired, Policies};

/// All policies, and the tables as written so far.
#[derive(Debug)]
pub struct NetworkPolicies {
    policies: Policies,
    subjects: Mirror<Addr, Subject>,
    peers: Mirror<Addr, u32>,
    blocks: Mirror<Prefix, u32>,
    ports: Mirror<PolicyPort, u32>,
    rules: Mirror<PolicyRule, u32>,
}

/// The tables of network policy.
pub trait PolicyTables:
    Entries<Addr, Subject> + Entries<Addr, u32> + Entries<Prefix, u32> + Entries<PolicyPort, u32> + Entries<PolicyRule, u32>
{
}

impl<T> PolicyTables for T where
    T: Entries<Addr, Subject>
        + Entries<Addr, u32>
        + Entries<Prefix, u32>
        + Entries<PolicyPort, u32>
        + Entries<PolicyRule, u32>
{
}

impl NetworkPolicies {
    /// Without objects, on the node with this name.
    pub(super) fn new(node: &str) -> Self {
        Self {
            policies: Policies::new(node),
            subjects: Mirror::default(),
            peers: Mirror::default(),
            blocks: Mirror::default(),
            ports: Mirror::default(),
            rules: Mirror::default(),
        }
    }

    /// Takes over the tables of an earlier daemon, whose ids are not given to other contents. To be called before the
    /// first objects are applied; the tables stay as they are until [`Self::sync`].
    ///
    /// # Errors
    /// If the tables can't be read.
    pub fn adopt(&mut self, tables: &impl PolicyTables) -> Result<(), TableError> {
        let held = Desired {
            subjects: tables.list()?.into_iter().collect(),
            peers: tables.list()?.into_iter().collect(),
            blocks: tables.list()?.into_iter().collect(),
            ports: tables.list()?.into_iter().collect(),
            rules: tables.list()?.into_iter().collect(),
        };
        self.policies.start_after(&held);
        Ok(())
    }

    /// Applies changes. Returns whether the desired tables may have changed.
    pub(super) fn update(&mut self, changes: Vec<(ObjectKey, Option<Object>)>) -> bool {
        if changes.is_empty() {
            return false;
        }
        for (ObjectKey { kind, name }, object) in changes {
            match (kind, object) {
                (_, Some(Object::NetworkPolicy(policy))) => self.policies.set_policy(&name, Some(policy)),
                (_, Some(Object::Namespace(namespace))) => self.policies.set_namespace(&name.name, Some(&namespace)),
                (_, Some(Object::Pod(pod))) => self.policies.set_pod(&name, Some(&pod)),
                (Kind::NetworkPolicy, None) => self.policies.set_policy(&name, None),
                (Kind::Namespace, None) => self.policies.set_namespace(&name.name, None),
                (Kind::Pod, None) => self.policies.set_pod(&name, None),
                _ => {}
            }
        }
        self.policies.update()
    }

    /// Makes the tables match, in an order in which every packet gets the verdict of before or that of after, and then
    /// takes out what no packet needs any more. Before the sources are synced, the absence of a policy means nothing, so
    /// the tables must stay as they are.
    ///
    /// # Errors
    /// The first operation that fails; the next call continues from there.
    pub fn sync(&mut self, tables: &mut impl PolicyTables) -> Result<(), TableError> {
        loop {
            let desired = self.policies.desired();
            self.rules.sync(&desired.rules, First::Put, tables)?;
            self.ports.sync(&desired.ports, First::Put, tables)?;
            self.peers.sync(&desired.peers, First::Put, tables)?;
            self.blocks.sync(&desired.blocks, First::Put, tables)?;
            self.subjects.sync(&desired.subjects, First::Put, tables)?;
            if !self.policies.written() {
                return Ok(());
            }
        }
    }

    /// The policies: the desired tables, names, and what each of them concerns.
    pub fn policies(&self) -> &Policies {
        &self.policies
    }

    /// The `metadata.uid` of a policy.
    pub(super) fn uid(&self, object: &ObjectKey) -> Option<&str> {
        let policy = self.policies.get(&object.name).filter(|_| object.kind == Kind::NetworkPolicy)?;
        Some(&policy.uid)
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;
    use std::io;

    use super::*;
    use crate::model::{NetworkPolicy, Pod, PolicyPeer, PolicyRule as Rule};

    /// Tables in memory, which fail after a number of writes.
    #[derive(Default)]
    struct Memory {
        tables: Desired,
        left: Option<usize>,
    }

    impl Memory {
        fn write(&mut self) -> Result<&mut Desired, TableError> {
            match &mut self.left {
                Some(0) => {
                    let source = io::Error::from_raw_os_error(libc::EBUSY);
                    Err(TableError::Io { table: "memory", operation: "writing", source })
                }
                left => {
                    left.iter_mut().for_each(|left| *left -= 1);
                    Ok(&mut self.tables)
                }
            }
        }
    }

    macro_rules! entries {
        ($($key:ty, $value:ty, $table:ident;)*) => {$(
            impl Entries<$key, $value> for Memory {
                fn list(&self) -> Result<Vec<($key, $value)>, TableError> {
                    Ok(self.tables.$table.iter().map(|(key, value)| (*key, *value)).collect())
                }

                fn put(&mut self, key: &$key, value: &$value) -> Result<(), TableError> {
                    self.write()?.$table.insert(*key, *value);
                    Ok(())
                }

                fn delete(&mut self, key: &$key) -> Result<(), TableError> {
                    self.write()?.$table.remove(key);
                    Ok(())
                }
            }
        )*};
    }

    entries! {
        Addr, Subject, subjects;
        Addr, u32, peers;
        Prefix, u32, blocks;
        PolicyPort, u32, ports;
        PolicyRule, u32, rules;
    }

    fn policy() -> NetworkPolicy {
        let block = PolicyPeer::Block { cidr: "192.0.2.0/24".parse().unwrap(), except: Vec::new() };
        let pods = PolicyPeer::Pods { namespaces: None, pods: Default::default() };
        let rule = Rule { peers: Some(vec![block, pods]), ports: None };
        NetworkPolicy { uid: "u".into(), ingress: Some(vec![rule]), ..NetworkPolicy::default() }
    }

    fn filled() -> NetworkPolicies {
        let mut room = NetworkPolicies::new("n1");
        let pod = Pod { node: "n1".into(), ips: vec!["10.0.0.1".parse().unwrap()], ..Pod::default() };
        let policy = (ObjectKey::new(Kind::NetworkPolicy, "x", "np"), Some(policy().into()));
        assert!(room.update(vec![policy, (ObjectKey::new(Kind::Pod, "x", "p"), Some(pod.into()))]));
        room
    }

    #[test]
    fn tables_follow_the_policies() {
        let (mut room, mut memory) = (filled(), Memory::default());
        room.sync(&mut memory).unwrap();
        assert_eq!(&memory.tables, room.policies().desired());
        assert_eq!((memory.tables.subjects.len(), memory.tables.rules.len()), (1, 2));
        assert_eq!(room.uid(&ObjectKey::new(Kind::NetworkPolicy, "x", "np")), Some("u"));
        assert!(!room.update(Vec::new()));
        room.update(vec![(ObjectKey::new(Kind::NetworkPolicy, "x", "np"), None)]);
        room.sync(&mut memory).unwrap();
        assert_eq!(memory.tables, Desired::default());
    }

    #[test]
    fn a_failed_write_is_made_up_for() {
        for left in 0..6 {
            let (mut room, mut memory) = (filled(), Memory { left: Some(left), ..Memory::default() });
            let all = room.sync(&mut memory).is_ok();
            memory.left = None;
            room.sync(&mut memory).unwrap();
            assert_eq!(&memory.tables, room.policies().desired(), "{left} writes");
            assert_eq!(all, left >= 5);
        }
    }

    #[test]
    fn an_earlier_daemon_had_other_ids() {
        let mut memory = Memory::default();
        filled().sync(&mut memory).unwrap();
        let before: BTreeMap<_, _> = memory.tables.subjects.clone();
        let mut room = NetworkPolicies::new("n1");
        room.adopt(&memory).unwrap();
        let policy = (ObjectKey::new(Kind::NetworkPolicy, "x", "np"), Some(policy().into()));
        let pod = Pod { node: "n1".into(), ips: vec!["10.0.0.1".parse().unwrap()], ..Pod::default() };
        room.update(vec![policy, (ObjectKey::new(Kind::Pod, "x", "p"), Some(pod.into()))]);
        room.sync(&mut memory).unwrap();
        assert!(memory.tables.subjects.len() == 1 && memory.tables.subjects != before);
    }
}
