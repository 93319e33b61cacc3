//! Plain data as keys and values of maps.

/// A wrapper that implements aya's trait for plain data, which cannot be implemented for types of other crates.
#[repr(transparent)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Plain<T>(pub T);

// SAFETY: transparent over a type that is plain data without padding.
unsafe impl<T: bytemuck::Pod> aya::Pod for Plain<T> {}
