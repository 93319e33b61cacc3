//! Conversion of table entries from other versions of their layout, older or newer.
//!
//! Pinned tables are self-describing: the kernel keeps the BTF of a map, with the names, offsets and sizes of all
//! fields. Fields are therefore matched by name, and a version can read tables of later versions that it knows nothing
//! about. This requires that a name keeps its meaning in all versions: a field whose meaning or size changes gets a new
//! name.

use bytemuck::Pod;

use super::{
    Affinity, AffinityKey, Backend, Config, CtEntry, FragmentKey, FragmentPorts, Frontend, FrontendKey, Interface,
    Network, Peer, PolicyDenial, PolicyPod, PolicyRule, PolicyVerdict, Prefix, ServiceClient, SockKey, SockPeer,
    SourceRange, Tuple,
};
use crate::addr::{Addr, IfIndex};

/// A field of a layout.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Field<'a> {
    /// Name.
    pub name: &'a str,
    /// Offset in bytes.
    pub offset: usize,
    /// Size in bytes.
    pub size: usize,
}

/// A key or value in the layout of any version.
#[derive(Clone, Copy, Debug)]
pub struct Record<'a> {
    /// Fields of the layout; empty for a plain number.
    pub fields: &'a [Field<'a>],
    /// The bytes.
    pub bytes: &'a [u8],
}

impl Record<'_> {
    /// Value of a field, if the layout has a field of this name and size.
    pub fn get<T: Pod>(&self, name: &str) -> Option<T> {
        let field = self.fields.iter().find(|field| field.name == name && field.size == size_of::<T>())?;
        let bytes = self.bytes.get(field.offset..field.offset.checked_add(field.size)?)?;
        bytemuck::try_pod_read_unaligned(bytes).ok()
    }

    /// The whole record, if it has this size.
    fn whole<T: Pod>(&self) -> Option<T> {
        bytemuck::try_pod_read_unaligned(self.bytes).ok()
    }
}

/// A key or value that can be converted from other versions.
pub trait Migrate: Pod {
    /// Fields of this version's layout.
    const FIELDS: &'static [Field<'static>];

    /// Converts from another version. `None` if that is impossible; the entry is then dropped.
    fn migrate(old: &Record<'_>) -> Option<Self>;
}

/// Converts an entry of another version and writes this version's key and value. Returns false if the entry can't be
/// converted.
pub type Conversion = fn(key: &Record<'_>, value: &Record<'_>, new_key: &mut [u8], new_value: &mut [u8]) -> bool;

/// The [`Conversion`] of a table with these keys and values.
pub(crate) fn entry<K: Migrate, V: Migrate>(
    key: &Record<'_>,
    value: &Record<'_>,
    new_key: &mut [u8],
    new_value: &mut [u8],
) -> bool {
    let (Some(key), Some(value)) = (K::migrate(key), V::migrate(value)) else { return false };
    let (key, value) = (bytemuck::bytes_of(&key), bytemuck::bytes_of(&value));
    if new_key.len() != key.len() || new_value.len() != value.len() {
        return false;
    }
    new_key.copy_from_slice(key);
    new_value.copy_from_slice(value);
    true
}

const fn size_of_field<T, F>(_: fn(&T) -> &F) -> usize {
    size_of::<F>()
}

/// Implements [`Migrate`] field by field; all fields must be listed. An entry that lacks a field can't be converted,
/// unless the field is listed with a default after the semicolon.
macro_rules! migrate {
    ($layout:ident { $($field:ident),* $(; $($new:ident = $default:expr),*)? }) => {
        impl Migrate for $layout {
            const FIELDS: &'static [Field<'static>] = &[
                $(migrate!(@field $layout $field),)*
                $($(migrate!(@field $layout $new),)*)?
            ];

            fn migrate(old: &Record<'_>) -> Option<Self> {
                Some(Self {
                    $($field: old.get(stringify!($field))?,)*
                    $($($new: old.get(stringify!($new)).unwrap_or($default),)*)?
                })
            }
        }
    };
    (@field $layout:ident $field:ident) => {
        Field {
            name: stringify!($field),
            offset: core::mem::offset_of!($layout, $field),
            size: size_of_field(|layout: &$layout| &layout.$field),
        }
    };
}

migrate!(FrontendKey { addr, port, proto, scope });
migrate!(Frontend { service, slot_base, slot_count, flags, affinity; _pad = 0 });
migrate!(Backend { addr, port, proto; _pad = 0 });
migrate!(ServiceClient { service, addr });
migrate!(AffinityKey { client, service });
migrate!(Affinity { addr, port, last_used; _pad = 0 });
migrate!(Tuple { src, dst, sport, dport, proto; _pad = [0; 3] });
#[cfg(not(feature = "later-layouts"))]
migrate!(CtEntry { last_seen, in_ifindex, out_ifindex, out_mtu, flags, out, sport, dport, macs, service, src, dst });
#[cfg(feature = "later-layouts")]
migrate!(CtEntry {
    last_seen, in_ifindex, out_ifindex, out_mtu, flags, out, sport, dport, macs, service, src, dst;
    later = 0
});
migrate!(FragmentKey { src, dst, id, proto; _pad = [0; 3] });
migrate!(FragmentPorts { sport, dport });
migrate!(Network { kind, mac, flags, node });
migrate!(Interface { v4, v6, mtu, flags });
migrate!(Peer { mac; _pad = [0; 2] });
migrate!(Config {
    node_v4,
    node_v6,
    hairpin_v4,
    hairpin_v6,
    podnet0,
    podnet1,
    podnet0_mac,
    podnet1_mac,
    snat_count,
    flags,
    mtu,
    netns_cookie,
    uplinks,
    tunnel,
    tunnel_mtu,
    tunnel_mac,
    route_mtu
});
migrate!(SockKey { cookie, addr, port, proto; _pad = [0; 5] });
migrate!(SockPeer { addr, port; _pad = [0; 6] });

/// Implements [`Migrate`] for the key of a trie, whose BTF has the field names of the object's generic key type.
macro_rules! migrate_trie_key {
    ($key:ident { $len:ident, $data:ident }) => {
        impl Migrate for $key {
            const FIELDS: &'static [Field<'static>] = &[
                Field { name: "prefix_len", ..migrate!(@field $key $len) },
                Field { name: "data", ..migrate!(@field $key $data) },
            ];

            fn migrate(old: &Record<'_>) -> Option<Self> {
                Some(Self { $len: old.get("prefix_len")?, $data: old.get("data")? })
            }
        }
    };
}

migrate_trie_key!(Prefix { len, addr });
migrate!(PolicyDenial { set, rule });
migrate!(PolicyPod { ingress, egress, class_v4, class_v6 });
migrate!(PolicyRule { set, class, ports });
migrate!(PolicyVerdict { admin, network, baseline });
migrate_trie_key!(SourceRange { len, data });

/// Implements [`Migrate`] for plain numbers.
macro_rules! migrate_number {
    ($($number:ty)*) => {
        $(impl Migrate for $number {
            const FIELDS: &'static [Field<'static>] = &[];

            fn migrate(old: &Record<'_>) -> Option<Self> {
                old.whole()
            }
        })*
    };
}

migrate_number!(u32 u64 IfIndex Addr);

#[cfg(all(test, not(feature = "later-layouts")))]
mod tests;
