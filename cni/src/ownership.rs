//! Ownership of links. A link is identified by its index and its alias, never by its name alone: anything can choose a
//! name.
//!
//! A host end's alias (IFLA_IFALIAS, 255 bytes) is `podnet <state directory> <network> <container>:<interface>`, so it
//! identifies the attachment even if the record is lost. Links of earlier versions, and those whose alias would be too
//! long, have only the first two words.

use std::collections::BTreeMap;

use podnet_common::addr::IfIndex;

use crate::id::{AttachmentId, is_identifier};
use crate::netlink::{Link, Netlink, NetlinkError};
use crate::record::Record;
use crate::store::Store;

/// Maximum length of an alias in bytes (IFALIASZ of linux/if.h includes the terminator).
const ALIAS_MAX: usize = 255;

/// The meaning of an alias.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Mark {
    /// The link does not belong to this store.
    Foreign,
    /// It belongs to this store; the attachment is not named.
    Store,
    /// It belongs to this attachment of the store.
    Of(Owner),
}

/// The attachment to which a link belongs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Owner {
    /// The network's name.
    pub network: String,
    /// Container and interface.
    pub id: AttachmentId,
}

impl Store {
    /// The common beginning of the aliases of all links of this store.
    fn common_alias(&self) -> String {
        let alias = format!("podnet {}", self.state_dir().display());
        let end = (0..=alias.len().min(ALIAS_MAX)).rev().find(|i| alias.is_char_boundary(*i));
        alias[..end.unwrap_or(0)].to_owned()
    }

    /// The alias of an attachment's host end.
    pub fn link_alias(&self, network: &str, id: &AttachmentId) -> String {
        let common = self.common_alias();
        let full = format!("{common} {network} {}:{}", id.container.as_str(), id.ifname.as_str());
        // The name of the network may be unknown; it would be an empty word.
        if full.len() <= ALIAS_MAX && is_identifier(network) { full } else { common }
    }

    /// Parses a link's alias.
    pub fn mark(&self, alias: &str) -> Mark {
        let Some(rest) = alias.strip_prefix(self.common_alias().as_str()) else { return Mark::Foreign };
        if rest.is_empty() {
            return Mark::Store;
        }
        match rest.strip_prefix(' ').and_then(owner) {
            Some(owner) => Mark::Of(owner),
            None => Mark::Foreign,
        }
    }

    /// Finds the host end of an attachment among these links, which are those of the network namespace `own`.
    pub fn host_end<'a>(
        &self,
        links: &'a BTreeMap<IfIndex, Link>,
        id: &AttachmentId,
        record: Option<&Record>,
        own: u64,
    ) -> Option<&'a Link> {
        let marks = || links.values().map(|link| (link, self.mark(&link.alias)));
        let named = marks().find(|(_, mark)| matches!(mark, Mark::Of(owner) if owner.id == *id));
        // In the record's own namespace the index identifies the link, provided that the alias, the name or the MAC
        // agrees. The record of a killed ADD has no index yet: then both name and MAC must agree.
        let record = record.filter(|record| record.host_netns == own);
        let is = |link: &Link, record: &Record| {
            let agrees = link.name == record.host_ifname || link.mac == record.host_mac;
            match self.mark(&link.alias) {
                Mark::Of(_) => false,
                Mark::Store => link.index.0 == record.host_ifindex,
                Mark::Foreign if link.index.0 == record.host_ifindex => agrees,
                Mark::Foreign => link.name == record.host_ifname && link.mac == record.host_mac,
            }
        };
        let recorded = || record.and_then(|record| links.values().find(|link| is(link, record)));
        let unnamed = || {
            let name = id.host_ifname();
            marks().find(|(link, mark)| *mark == Mark::Store && link.name == name).map(|(link, _)| link)
        };
        named.map(|(link, _)| link).or_else(recorded).or_else(unnamed)
    }
}

/// Whether an alias marks a link of any store.
pub fn is_marked(alias: &str) -> bool {
    alias.starts_with("podnet /")
}

/// All links of the socket's namespace, by index.
pub fn links(netlink: &mut Netlink) -> Result<BTreeMap<IfIndex, Link>, NetlinkError> {
    Ok(netlink.links()?.into_iter().map(|link| (link.index, link)).collect())
}

fn owner(text: &str) -> Option<Owner> {
    let (network, id) = text.split_once(' ')?;
    let (container, ifname) = id.split_once(':')?;
    let id =
        AttachmentId { container: container.to_owned().try_into().ok()?, ifname: ifname.to_owned().try_into().ok()? };
    is_identifier(network).then(|| Owner { network: network.to_owned(), id })
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use podnet_common::addr::Mac;

    use super::*;
    use crate::store::tests::{BOOT, id, record};

    fn store(dir: &str) -> Store {
        Store::with_boot_id(Path::new(dir), BOOT)
    }

    #[test]
    fn an_alias_tells_whose_a_link_is() {
        let (store, other) = (store("/var/lib/podnet"), store("/var/lib/podnet2"));
        let alias = store.link_alias("podnet", &id("c1"));
        assert_eq!(alias, "podnet /var/lib/podnet podnet c1:eth0");
        assert_eq!(store.mark(&alias), Mark::Of(Owner { network: "podnet".into(), id: id("c1") }));
        assert_eq!(store.mark("podnet /var/lib/podnet"), Mark::Store);
        assert_eq!(other.mark(&alias), Mark::Foreign);
        for foreign in ["", "podnet", "podnet /var/lib/podnet x", "podnet /var/lib/podnet podnet c1", "veth"] {
            assert_eq!(store.mark(foreign), Mark::Foreign, "{foreign}");
        }
        assert_eq!(store.mark(&other.link_alias("podnet", &id("c1"))), Mark::Foreign);
        let long = "n".repeat(240);
        assert_eq!(store.mark(&store.link_alias(&long, &id("c1"))), Mark::Store, "what doesn't fit is left out");
        let deep = Store::with_boot_id(Path::new(&format!("/{}", "d".repeat(300))), BOOT);
        assert_eq!(deep.link_alias("podnet", &id("c1")).len(), ALIAS_MAX);
    }

    #[test]
    fn a_link_is_found_by_alias_or_index_and_never_by_its_name_alone() {
        let store = store("/s");
        let mut record = record(&id("c1"), vec![]);
        (record.host_ifindex, record.host_mac) = (7, Mac([2, 0, 0, 0, 0, 7]));
        let alias = store.link_alias("podnet", &id("c1"));
        let link = |index: u32, name: &str, alias: &str, last: u8| {
            let link =
                Link { name: name.into(), alias: alias.into(), mac: Mac([2, 0, 0, 0, 0, last]), ..Link::default() };
            Link { index: IfIndex(index), ..link }
        };
        let name = record.host_ifname.clone();
        let found = |link: &Link, record: Option<&Record>| {
            store.host_end(&[(link.index, link.clone())].into(), &id("c1"), record, 1).is_some()
        };
        for (it, with_record, without) in [
            (link(9, "eth7", &alias, 9), true, true),
            (link(7, "eth7", "podnet /s", 9), true, false),
            (link(7, "eth7", "", 7), true, false),
            (link(7, &name, "", 9), true, false),
            (link(7, "eth7", "", 9), false, false),
            (link(9, &name, "", 9), false, false),
            (link(9, &name, "", 7), true, false),
            (link(9, &name, "podnet /s", 9), true, true),
            (link(7, &name, &store.link_alias("podnet", &id("c2")), 7), false, false),
        ] {
            assert_eq!((found(&it, Some(&record)), found(&it, None)), (with_record, without), "{it:?}");
        }
        let elsewhere = Record { host_netns: 2, ..record };
        assert!(!found(&link(7, "eth7", "podnet /s", 7), Some(&elsewhere)), "an index of another namespace");
    }
}
