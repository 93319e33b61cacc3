//! Plain data in maps.

/// Plain data as aya wants it, whose trait can't be implemented for types of other crates.
#[repr(transparent)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Plain<T>(pub T);

// SAFETY: transparent over a type that is plain data without padding.
unsafe impl<T: bytemuck::Pod> aya::Pod for Plain<T> {}
