//! What is arbitrary about a scenario, read from bytes: a fuzzer's, a generator's or a file's.

use arbitrary::Unstructured;

/// Choices in the order in which they are asked for. When the bytes are used up, each is the first of its kind.
pub struct Choices<'a>(Unstructured<'a>);

impl<'a> Choices<'a> {
    pub fn new(bytes: &'a [u8]) -> Self {
        Self(Unstructured::new(bytes))
    }

    /// Whether nothing is left to choose by.
    pub fn spent(&self) -> bool {
        self.0.is_empty()
    }

    /// A number less than `n`.
    pub fn below(&mut self, n: usize) -> usize {
        self.0.int_in_range(0..=n - 1).unwrap_or(0)
    }

    /// Yes once in `n` times.
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
