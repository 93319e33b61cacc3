//! Entries of tables in the layout of another version, older or newer.
//!
//! A pinned table describes itself: the kernel keeps the names, offsets and sizes of the fields with which it was made
//! (BTF). So fields are found by name, and a version can read what a later one, of which it knows nothing, has left. For
//! that a name means the same in all versions: a field of another meaning or size gets another name.

use bytemuck::Pod;

use super::{
    Affinity, AffinityKey, Backend, Config, CtEntry, FragmentKey, FragmentPorts, Frontend, FrontendKey, Interface,
    Network, Peer, Prefix, ServiceClient, SockKey, SockPeer, SourceRange, Tuple,
};
use crate::addr::IfIndex;

/// A field of a layout.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Field<'a> {
    /// Its name.
    pub name: &'a str,
    /// Where it begins, in bytes.
    pub offset: usize,
    /// How long it is, in bytes.
    pub size: usize,
}

/// A key or a value in the layout of some version.
#[derive(Clone, Copy, Debug)]
pub struct Record<'a> {
    /// The fields of that layout; none if it is a number.
    pub fields: &'a [Field<'a>],
    /// The bytes.
    pub bytes: &'a [u8],
}

impl Record<'_> {
    /// A field, if that layout has one of this name and size.
    pub fn get<T: Pod>(&self, name: &str) -> Option<T> {
        let field = self.fields.iter().find(|field| field.name == name && field.size == size_of::<T>())?;
        let bytes = self.bytes.get(field.offset..field.offset.checked_add(field.size)?)?;
        bytemuck::try_pod_read_unaligned(bytes).ok()
    }

    /// All of it, if it has this size.
    fn whole<T: Pod>(&self) -> Option<T> {
        bytemuck::try_pod_read_unaligned(self.bytes).ok()
    }
}

/// A key or a value that can be made from another version's.
pub trait Migrate: Pod {
    /// This version's layout.
    const FIELDS: &'static [Field<'static>];

    /// What another version's comes to in this one. `None`: it can't be used, so its entry is left out.
    fn migrate(old: &Record<'_>) -> Option<Self>;
}

/// Converts an entry: another version's key and value, and where this version's are to be written. Says whether that can
/// be done.
pub type Conversion = fn(key: &Record<'_>, value: &Record<'_>, new_key: &mut [u8], new_value: &mut [u8]) -> bool;

/// The [`Conversion`] of a table with these keys and values.
pub(super) fn entry<K: Migrate, V: Migrate>(
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

/// Implements [`Migrate`] field by field. All fields of the structure must be named. An entry that lacks one of them can't
/// be used, unless it is among the last, which have a value for that.
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

/// Implements [`Migrate`] for the key of a trie. The object names its parts in its own way.
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
migrate_trie_key!(SourceRange { len, data });

/// Implements [`Migrate`] for what has no fields.
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

migrate_number!(u32 u64 IfIndex);

#[cfg(all(test, not(feature = "later-layouts")))]
mod tests;
