//! Namespaces.

use super::labels::Labels;
use super::left_out::LeftOut;

/// Label that every namespace has, with its name as the value (KEP-2161).
pub const NAMESPACE_NAME_LABEL: &str = "kubernetes.io/metadata.name";

/// A Namespace.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Namespace {
    /// Its labels, including [`NAMESPACE_NAME_LABEL`].
    pub labels: Labels,
    /// Elements that are left out as invalid.
    pub left_out: LeftOut,
}
