//! Tests of the tables of network policy, in memory.

use std::collections::BTreeMap;
use std::io;

use super::*;
use crate::model::{NetworkPolicy, Pod, PolicyPeer, PolicyRule as Rule};

/// Tables in memory, which fail after a number of writes.
#[derive(Default)]
struct Memory {
    tables: Desired,
    denials: BTreeMap<PolicyDenial, ()>,
    /// Count of each entry of `denials`.
    packets: u64,
    left: Option<usize>,
    /// Whether there is no room for rules.
    full: bool,
}

impl Counts<PolicyDenial> for Memory {
    fn counts(&self) -> Result<Vec<(PolicyDenial, u64)>, TableError> {
        Ok(self.denials.iter().map(|(key, ())| (*key, self.packets)).collect())
    }
}

impl Entries<PolicyDenial, ()> for Memory {
    fn list(&self) -> Result<Vec<(PolicyDenial, ())>, TableError> {
        Ok(self.denials.iter().map(|(key, ())| (*key, ())).collect())
    }

    fn put(&mut self, key: &PolicyDenial, (): &()) -> Result<(), TableError> {
        self.write()?;
        self.denials.insert(*key, ());
        Ok(())
    }

    fn delete(&mut self, key: &PolicyDenial) -> Result<(), TableError> {
        self.write()?;
        self.denials.remove(key);
        Ok(())
    }
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
                if self.full && stringify!($table) == "rules" {
                    return Err(TableError::Full { table: "rules", advice: "none" });
                }
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
    PolicyRule, PolicyVerdict, rules;
}

fn update(room: &mut NetworkPolicies, changes: Vec<(ObjectKey, Option<Object>)>) -> bool {
    room.update(changes, (&[], &Nodes::new()))
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
    assert!(update(&mut room, vec![policy, (ObjectKey::new(Kind::Pod, "x", "p"), Some(pod.into()))]));
    room
}

#[test]
fn tables_follow_the_policies() {
    let (mut room, mut memory) = (filled(), Memory::default());
    room.sync(&mut memory).unwrap();
    assert_eq!(&memory.tables, room.policies().desired());
    assert_eq!((memory.tables.subjects.len(), memory.tables.rules.len()), (1, 2));
    assert_eq!(room.uid(&ObjectKey::new(Kind::NetworkPolicy, "x", "np")), Some("u"));
    assert!(!update(&mut room, Vec::new()));
    update(&mut room, vec![(ObjectKey::new(Kind::NetworkPolicy, "x", "np"), None)]);
    room.sync(&mut memory).unwrap();
    assert_eq!(memory.tables, Desired::default());
}

#[test]
fn what_a_replaced_set_has_denied_stays_counted() {
    let (mut room, mut memory) = (filled(), Memory::default());
    room.sync(&mut memory).unwrap();
    let totals = |room: &NetworkPolicies| {
        let totals = room.denials().totals();
        totals.map(|(policy, to, packets)| format!("{policy} {}: {packets}", to.name())).collect::<Vec<_>>()
    };
    memory.packets = 3;
    room.count(&memory).unwrap();
    assert_eq!(totals(&room), ["x/np ingress: 3"]);
    memory.packets = 5;
    update(&mut room, vec![(ObjectKey::new(Kind::NetworkPolicy, "x", "np2"), Some(policy().into()))]);
    room.sync(&mut memory).unwrap();
    assert_eq!(totals(&room), ["x/np ingress: 5"], "read before its entry went");
    memory.packets = 2;
    room.count(&memory).unwrap();
    assert_eq!(totals(&room), ["x/np ingress: 7", "x/np2 ingress: 2"], "both isolate the pod");
    update(&mut room, vec![(ObjectKey::new(Kind::NetworkPolicy, "x", "np"), None)]);
    room.sync(&mut memory).unwrap();
    assert_eq!(totals(&room), ["x/np2 ingress: 2"]);
    // Nothing is counted from here on.
    update(&mut room, vec![(ObjectKey::new(Kind::Pod, "x", "p"), None)]);
    room.sync(&mut memory).unwrap();
    assert_eq!(totals(&room).len(), 1, "the policy is still there");
    update(&mut room, vec![(ObjectKey::new(Kind::NetworkPolicy, "x", "np2"), None)]);
    room.sync(&mut memory).unwrap();
    room.count(&memory).unwrap();
    assert_eq!(totals(&room), [""; 0], "deleted after its last subject");
}

#[test]
fn a_failed_write_is_made_up_for() {
    for left in 0..12 {
        let (mut room, mut memory) = (filled(), Memory { left: Some(left), ..Memory::default() });
        let all = room.sync(&mut memory).is_ok();
        memory.left = None;
        room.sync(&mut memory).unwrap();
        assert_eq!(&memory.tables, room.policies().desired(), "{left} writes");
        assert_eq!(all, left >= 6);
        // The same once the tables are known.
        let more = Pod { node: "n2".into(), ips: vec!["10.0.0.2".parse().unwrap()], ..Pod::default() };
        let egress = NetworkPolicy { egress: Some(vec![Rule { peers: None, ports: None }]), ..policy() };
        let egress = (ObjectKey::new(Kind::NetworkPolicy, "x", "np2"), Some(egress.into()));
        update(&mut room, vec![egress, (ObjectKey::new(Kind::Pod, "x", "q"), Some(more.into()))]);
        memory.left = Some(left);
        let all = room.sync(&mut memory).is_ok();
        memory.left = None;
        room.sync(&mut memory).unwrap();
        assert_eq!(&memory.tables, room.policies().desired(), "{left} more writes");
        assert!(memory.denials.keys().eq(room.policies().denials().keys()), "{left} more writes");
        assert_eq!(all, left >= 10);
    }
}

const ADDRESS: &str = "10.0.0.1";

fn attached(pod: &str) -> BTreeMap<ObjectName, BTreeSet<IpAddr>> {
    let name = ObjectName { namespace: "x".into(), name: pod.into() };
    BTreeMap::from([(name, BTreeSet::from([ADDRESS.parse().unwrap()]))])
}

fn subject(memory: &Memory) -> Option<Subject> {
    memory.tables.subjects.get(&ADDRESS.parse::<IpAddr>().unwrap().into()).copied()
}

#[test]
fn without_room_for_its_rules_a_pod_is_closed() {
    let (mut room, mut memory) = (filled(), Memory { full: true, ..Memory::default() });
    assert!(matches!(room.sync(&mut memory), Err(TableError::Full { .. })));
    assert_eq!(subject(&memory), Some(Subject { ingress: Subject::CLOSED, egress: Subject::OPEN }));
    memory.full = false;
    room.sync(&mut memory).unwrap();
    assert_eq!(&memory.tables, room.policies().desired());
    let writes = room.writes();
    room.sync(&mut memory).unwrap();
    assert_eq!(room.writes(), writes, "nothing has changed");
}

#[test]
fn a_pod_has_the_addresses_that_the_plugin_has_given_it() {
    let (mut room, mut memory) = (NetworkPolicies::new("n1"), Memory::default());
    let pod = Pod { node: "n1".into(), ips: vec!["10.0.0.9".parse().unwrap()], ..Pod::default() };
    update(
        &mut room,
        vec![
            (ObjectKey::new(Kind::NetworkPolicy, "x", "np"), Some(policy().into())),
            (ObjectKey::new(Kind::Pod, "x", "p"), Some(pod.into())),
        ],
    );
    assert!(room.set_attached(attached("p")));
    // The plugin has closed it.
    memory.tables.subjects.insert(ADDRESS.parse::<IpAddr>().unwrap().into(), Subject::PENDING);
    room.sync(&mut memory).unwrap();
    assert!(memory.tables.subjects.len() == 1 && subject(&memory) != Some(Subject::PENDING));
    assert!(!room.set_attached(attached("p")), "nothing is new");
}

#[test]
fn a_pod_without_an_object_stays_as_the_plugin_has_left_it() {
    let (mut room, mut memory) = (filled(), Memory::default());
    update(&mut room, vec![(ObjectKey::new(Kind::Pod, "x", "p"), None)]);
    room.set_attached(attached("unknown"));
    room.sync(&mut memory).unwrap();
    assert_eq!(subject(&memory), None, "it has run before there were policies");
    memory.tables.subjects.insert(ADDRESS.parse::<IpAddr>().unwrap().into(), Subject::PENDING);
    room.set_attached(BTreeMap::new());
    room.set_attached(attached("unknown"));
    room.sync(&mut memory).unwrap();
    assert_eq!(subject(&memory), Some(Subject::PENDING), "it has started with policies");
    // No policy selects it.
    let pod = Pod { node: "n1".into(), ..Pod::default() };
    update(
        &mut room,
        vec![
            (ObjectKey::new(Kind::NetworkPolicy, "x", "np"), None),
            (ObjectKey::new(Kind::Pod, "x", "unknown"), Some(pod.into())),
        ],
    );
    room.sync(&mut memory).unwrap();
    assert_eq!(subject(&memory), None);
}

#[test]
fn tables_of_an_earlier_daemon_stay_if_nothing_has_changed() {
    let mut memory = Memory::default();
    filled().sync(&mut memory).unwrap();
    let before = memory.tables.clone();
    // No write is allowed.
    memory.left = Some(0);
    let (mut room, policy) = (NetworkPolicies::new("n1"), policy());
    room.adopt(&memory).unwrap();
    let pod = Pod { node: "n1".into(), ips: vec!["10.0.0.1".parse().unwrap()], ..Pod::default() };
    update(&mut room, vec![(ObjectKey::new(Kind::Pod, "x", "p"), Some(pod.into()))]);
    update(&mut room, vec![(ObjectKey::new(Kind::NetworkPolicy, "x", "np"), Some(policy.clone().into()))]);
    room.sync(&mut memory).unwrap();
    assert_eq!((&memory.tables, room.writes()), (&before, 0));
    // Ids go on meaning the same.
    memory.left = None;
    let other = NetworkPolicy { egress: Some(Vec::new()), ..policy };
    update(&mut room, vec![(ObjectKey::new(Kind::NetworkPolicy, "x", "np2"), Some(other.into()))]);
    room.sync(&mut memory).unwrap();
    assert_eq!(&memory.tables, room.policies().desired());
    assert_ne!(memory.tables, before);
}

#[test]
fn an_earlier_daemon_had_other_ids() {
    let mut memory = Memory::default();
    filled().sync(&mut memory).unwrap();
    let before: BTreeMap<_, _> = memory.tables.subjects.clone();
    let mut room = NetworkPolicies::new("n1");
    room.adopt(&memory).unwrap();
    let changed = NetworkPolicy { egress: Some(Vec::new()), ..policy() };
    let policy = (ObjectKey::new(Kind::NetworkPolicy, "x", "np"), Some(changed.into()));
    let pod = Pod { node: "n1".into(), ips: vec!["10.0.0.1".parse().unwrap()], ..Pod::default() };
    update(&mut room, vec![policy, (ObjectKey::new(Kind::Pod, "x", "p"), Some(pod.into()))]);
    room.sync(&mut memory).unwrap();
    assert!(memory.tables.subjects.len() == 1 && memory.tables.subjects != before);
}
