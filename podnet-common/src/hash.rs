//! Hashes of addresses.

use crate::addr::Addr;

/// Hash of a pair of addresses.
#[inline(always)]
pub(crate) const fn hash_pair(src: &Addr, dst: &Addr) -> u32 {
    mix(folded(dst) ^ folded(src).rotate_left(16))
}

/// XOR of the words of an address.
#[inline(always)]
pub(crate) const fn folded(addr: &Addr) -> u32 {
    let [a, b, c, d] = addr.0;
    a ^ b.rotate_left(8) ^ c.rotate_left(16) ^ d
}

/// Hash finaliser with full avalanche (Wellons, "hash-prospector", two-round sibling of triple32).
#[inline(always)]
pub(crate) const fn mix(mut h: u32) -> u32 {
    h ^= h >> 16;
    h = h.wrapping_mul(0x7feb_352d);
    h ^= h >> 15;
    h = h.wrapping_mul(0x846c_a68b);
    h ^ (h >> 16)
}
