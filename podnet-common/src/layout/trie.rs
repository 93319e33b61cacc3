//! Keys of tries.

/// Key of a [`Kind::LpmTrie`](crate::tables::Kind::LpmTrie): a length in bits, followed by at least as many bits of
/// data.
pub trait TrieKey {
    /// The data after the length.
    type Data;
}
