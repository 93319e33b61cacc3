//! The choices of a scenario, read from bytes: from a fuzzer, a generator or a file.

use arbitrary::Unstructured;

/// Choices in the order of the calls. Once the bytes are used up, each call returns its first option.
pub struct Choices<'a>(Unstructured<'a>);

impl<'a> Choices<'a> {
    pub fn new(bytes: &'a [u8]) -> Self {
        Self(Unstructured::new(bytes))
    }

    /// Whether all bytes are used up.
    pub fn spent(&self) -> bool {
        self.0.is_empty()
    }

    /// A number less than `n`.
    pub fn below(&mut self, n: usize) -> usize {
        self.0.int_in_range(0..=n - 1).unwrap_or(0)
    }

    /// True once in `n` calls on average.
    pub fn once_in(&mut self, n: usize) -> bool {
        self.below(n) == n - 1
    }

    /// One of several.
    pub fn of<T: Clone>(&mut self, choices: &[T]) -> T {
        choices[self.below(choices.len())].clone()
    }

    /// Any number.
    pub fn number(&mut self) -> u32 {
        self.0.arbitrary().unwrap_or(0)
    }
}
