//! A frontend as table entries, one for each scope.

use std::net::SocketAddr;
use std::sync::Arc;

use ipnetwork::IpNetwork;
use podnet_common::addr::{Port, Proto};
use podnet_common::layout::{self, Backend, FrontendKey, Prefix};

use super::key;
use crate::frontend::{Frontend, FrontendKind, IfNone, ServicePortName, SourceMode};

/// Desired entry of a key.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Entry<'a> {
    /// The owner; `None` for an [address's entry](FrontendKey::address).
    pub service: Option<&'a Arc<ServicePortName>>,
    /// Flags of [`layout::Frontend`].
    pub flags: u16,
    /// How long a client keeps its backend, in seconds; 0 for no affinity.
    pub affinity: u32,
    /// Which of the service port's affinities apply: see [`ServiceId::with_affinity`](super::ServiceId::with_affinity).
    pub affinity_group: u8,
    /// Which clients may use it, if the flags restrict that; sorted, without duplicates.
    pub source_ranges: &'a [Prefix],
    /// The backends of new connections. The order has no meaning of its own.
    pub backends: &'a [Backend],
    /// Whether the service has room for a Maglev table.
    pub spread: bool,
}

impl Entry<'_> {
    /// Whether nodes must agree on the backend of a flow.
    pub fn spread(&self) -> bool {
        self.spread && self.flags & layout::Frontend::DIRECT_RETURN != 0
    }
}

/// A service's demand for the keys of one frontend, which differ in their scope only. Lists and names are shared with
/// the service's other frontends.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Claim {
    pub(super) kind: FrontendKind,
    pub(super) service: Arc<ServicePortName>,
    affinity: u32,
    source_ranges: Option<Box<[Prefix]>>,
    snat: bool,
    inside: List,
    outside: Option<List>,
    here: Option<Arc<[Backend]>>,
    spread: bool,
}

#[derive(Clone, Debug, PartialEq, Eq)]
struct List {
    backends: Arc<[Backend]>,
    /// Without backends, packets are dropped.
    drop: bool,
}

/// Lists and names that the frontends of a service share.
#[derive(Default)]
pub(super) struct Sharing {
    names: Vec<Arc<ServicePortName>>,
    lists: Vec<Arc<[Backend]>>,
}

impl Sharing {
    fn name(&mut self, name: ServicePortName) -> Arc<ServicePortName> {
        shared(&mut self.names, |known| **known == name).unwrap_or_else(|| {
            let new = Arc::new(name);
            self.names.push(new.clone());
            new
        })
    }

    fn list(&mut self, at: &[SocketAddr], proto: Proto) -> Arc<[Backend]> {
        let backend = |at: &SocketAddr| Backend { addr: at.ip().into(), port: Port::new(at.port()), proto, _pad: 0 };
        let same = |known: &Arc<[Backend]>| {
            known.len() == at.len() && known.iter().zip(at).all(|(known, at)| *known == backend(at))
        };
        shared(&mut self.lists, same).unwrap_or_else(|| {
            let new: Arc<[Backend]> = at.iter().map(backend).collect();
            self.lists.push(new.clone());
            new
        })
    }
}

/// The latest ones are the most likely.
fn shared<T: ?Sized>(known: &mut [Arc<T>], same: impl Fn(&Arc<T>) -> bool) -> Option<Arc<T>> {
    known.iter().rev().take(8).find(|known| same(known)).cloned()
}

impl Claim {
    /// The claim of a frontend, and its key with scope [`FrontendKey::ANY`].
    pub(super) fn new(frontend: Frontend, sharing: &mut Sharing) -> (FrontendKey, Self) {
        let key = key::key(&frontend.key);
        let mut list = |backends: &crate::frontend::Backends| List {
            backends: sharing.list(&backends.list, key.proto),
            drop: backends.list.is_empty() && backends.if_none == IfNone::Drop,
        };
        let (inside, outside) = (list(&frontend.backends), frontend.outside.as_ref().map(&mut list));
        let claim = Self {
            kind: frontend.kind,
            affinity: frontend.affinity,
            source_ranges: frontend.source_ranges.map(|ranges| prefixes(&ranges)),
            snat: frontend.source == SourceMode::Snat,
            inside,
            outside,
            here: frontend.here.map(|here| sharing.list(&here, key.proto)),
            spread: frontend.spread,
            service: sharing.name(frontend.service),
        };
        (key, claim)
    }

    /// Lists of backends of all entries.
    pub(super) fn lists(&self) -> impl Iterator<Item = &Arc<[Backend]>> {
        let lists = [Some(&self.inside.backends), self.outside.as_ref().map(|list| &list.backends), self.here.as_ref()];
        lists.into_iter().flatten()
    }

    /// Scopes that have an entry.
    pub(super) fn scopes(&self) -> impl Iterator<Item = u8> {
        let scopes = [
            Some(FrontendKey::ANY),
            self.outside.as_ref().map(|_| FrontendKey::OUTSIDE),
            self.here.as_ref().map(|_| FrontendKey::PEER),
        ];
        scopes.into_iter().flatten()
    }

    /// The entry for a scope.
    pub(super) fn entry(&self, scope: u8) -> Option<Entry<'_>> {
        use layout::Frontend as Flags;
        let external = self.kind != FrontendKind::ClusterIp;
        let flag = |bit: u16, set: bool| if set { bit } else { 0 };
        let all = flag(Flags::EXTERNAL, external)
            | flag(Flags::NODE_PORT, self.kind == FrontendKind::NodePort)
            | flag(Flags::SOURCE_RANGES, self.source_ranges.is_some());
        let direct = flag(Flags::DIRECT_RETURN, self.here.is_some());
        let (backends, flags, affinity_group) = match scope {
            FrontendKey::ANY => {
                let own = flag(Flags::SNAT, self.snat)
                    | flag(Flags::OUTSIDE_DIFFERS, self.outside.is_some())
                    | flag(Flags::DROP, self.inside.drop);
                (&self.inside.backends, own | direct, u8::from(external))
            }
            // Its backends are on this node, so they see the client's address in every mode.
            FrontendKey::OUTSIDE => {
                let outside = self.outside.as_ref()?;
                (&outside.backends, flag(Flags::DROP, outside.drop) | direct, 2)
            }
            // The node that has forwarded the packet doesn't know yet that there is no backend here: the next attempt
            // finds another.
            FrontendKey::PEER => {
                let here = self.here.as_ref()?;
                (here, flag(Flags::DROP, here.is_empty()), 3)
            }
            _ => return None,
        };
        Some(Entry {
            service: Some(&self.service),
            flags: all | flags,
            affinity: self.affinity,
            affinity_group: if self.affinity == 0 { 0 } else { affinity_group },
            source_ranges: self.source_ranges.as_deref().unwrap_or_default(),
            backends,
            spread: self.spread,
        })
    }

    /// Flags that it adds to the entry of its address.
    pub(super) fn address_flags(&self) -> u16 {
        let external = self.kind != FrontendKind::ClusterIp;
        let lists = [Some(&self.inside.backends), self.outside.as_ref().map(|list| &list.backends)];
        let answers = lists.into_iter().flatten().any(|list| !list.is_empty());
        (if external { layout::Frontend::EXTERNAL } else { 0 })
            | (if answers { layout::Frontend::ANSWERS_ECHO } else { 0 })
    }
}

fn prefixes(ranges: &[IpNetwork]) -> Box<[Prefix]> {
    let mut prefixes: Vec<_> = ranges.iter().map(|range| Prefix::new(range.network(), range.prefix())).collect();
    prefixes.sort_unstable();
    prefixes.dedup();
    prefixes.into()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::compile::tests::{backends, frontend};
    use crate::frontend::FrontendKind::{ClusterIp, ExternalIp, HostPort, LoadBalancer, NodePort};

    /// Scope, names of the flags, affinity group, number of ranges and of backends.
    fn entries(frontend: Frontend) -> Vec<String> {
        let (_, claim) = Claim::new(frontend, &mut Sharing::default());
        let describe = |scope| {
            let entry = claim.entry(scope).unwrap();
            let names = [
                (layout::Frontend::SNAT, "snat"),
                (layout::Frontend::EXTERNAL, "external"),
                (layout::Frontend::OUTSIDE_DIFFERS, "differs"),
                (layout::Frontend::DROP, "drop"),
                (layout::Frontend::DIRECT_RETURN, "direct"),
                (layout::Frontend::SOURCE_RANGES, "ranges"),
                (layout::Frontend::NODE_PORT, "nodeport"),
            ];
            let flags: Vec<_> = names.iter().filter(|(bit, _)| entry.flags & bit != 0).map(|(_, name)| *name).collect();
            format!("{scope} {} {}:{}", flags.join(" "), entry.source_ranges.len(), entry.backends.len())
        };
        claim.scopes().map(describe).collect()
    }

    #[test]
    fn scopes_and_flags() {
        let web = |kind, at| Frontend { kind, ..frontend("web", at, &[1, 2]) };
        let cases = [
            (web(ClusterIp, "10.96.0.1:80"), vec!["0  0:2"]),
            (Frontend { source: SourceMode::Snat, ..web(ClusterIp, "10.96.0.1:80") }, vec!["0 snat 0:2"]),
            (web(NodePort, "0.0.0.0:30080"), vec!["0 external nodeport 0:2"]),
            (web(HostPort, "[::]:8080"), vec!["0 external 0:2"]),
            (web(ExternalIp, "192.0.2.1:80"), vec!["0 external 0:2"]),
            (Frontend { backends: backends(&[], IfNone::Drop), ..web(ClusterIp, "10.96.0.1:80") }, vec!["0 drop 0:0"]),
            // externalTrafficPolicy Local, and a source mode that has no effect there.
            (
                Frontend {
                    outside: Some(backends(&[], IfNone::Drop)),
                    source: SourceMode::Snat,
                    ..web(NodePort, "0.0.0.0:30080")
                },
                vec!["0 snat external differs nodeport 0:2", "1 external drop nodeport 0:0"],
            ),
            // Direct server return, and a load balancer's source ranges, two of them equal.
            (
                Frontend {
                    here: Some(vec![]),
                    source_ranges: Some(["10.0.0.1/8", "10.0.0.0/8"].map(|r| r.parse().unwrap()).into()),
                    ..web(LoadBalancer, "192.0.2.1:80")
                },
                vec!["0 external direct ranges 1:2", "2 external drop ranges 1:0"],
            ),
            (
                Frontend { source_ranges: Some(vec![]), ..web(LoadBalancer, "192.0.2.1:80") },
                vec!["0 external ranges 0:2"],
            ),
        ];
        for (frontend, expected) in cases {
            let case = format!("{frontend:?}");
            assert_eq!(entries(frontend), expected, "{case}");
        }
    }

    #[test]
    fn scopes_with_different_backends_have_separate_affinities() {
        let groups = |kind, affinity| {
            let lists = Some(backends(&[1], IfNone::Drop));
            let here = Some(lists.clone().unwrap().list);
            let frontend =
                Frontend { kind, affinity, outside: lists, here, ..frontend("web", "192.0.2.1:80", &[1, 2]) };
            let (_, claim) = Claim::new(frontend, &mut Sharing::default());
            claim.scopes().map(|scope| claim.entry(scope).unwrap().affinity_group).collect::<Vec<_>>()
        };
        assert_eq!(groups(ClusterIp, 60), [0, 2, 3]);
        assert_eq!(groups(LoadBalancer, 60), [1, 2, 3]);
        assert_eq!(groups(LoadBalancer, 0), [0, 0, 0]);
    }

    #[test]
    fn equal_lists_and_names_are_shared() {
        let mut sharing = Sharing::default();
        let (_, a) = Claim::new(frontend("web", "10.96.0.1:80", &[1, 2]), &mut sharing);
        let (_, b) = Claim::new(frontend("web", "192.0.2.1:80", &[1, 2]), &mut sharing);
        let (_, c) = Claim::new(frontend("web", "192.0.2.2:80", &[1, 3]), &mut sharing);
        assert!(Arc::ptr_eq(&a.service, &b.service) && Arc::ptr_eq(&a.inside.backends, &b.inside.backends));
        assert_eq!(c.inside.backends.len(), 2);
        assert!(!Arc::ptr_eq(&a.inside.backends, &c.inside.backends));
    }
}
