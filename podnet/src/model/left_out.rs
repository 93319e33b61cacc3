//! Invalid elements of an object: they are left out and named, and the rest of the object is in effect.

use podnet_cni::text::on_one_line;

/// Maximum length of one text, in bytes, since objects may contain very long ones.
const TEXT_MAX: usize = 1024;
/// Maximum number of named elements; of further ones only the number is kept.
const NAMED_MAX: usize = 8;

/// The elements left out of an object.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct LeftOut {
    named: Vec<String>,
    unnamed: usize,
}

impl LeftOut {
    /// Adds an element: its name, and the reason.
    pub fn add(&mut self, element: impl FnOnce() -> String) {
        self.add_many(1, element);
    }

    /// Adds several elements that share one line.
    pub fn add_many(&mut self, count: usize, elements: impl FnOnce() -> String) {
        if count == 0 {
        } else if self.named.len() < NAMED_MAX {
            self.named.push(on_one_line(&elements(), TEXT_MAX).into_owned());
        } else {
            self.unnamed += count;
        }
    }

    /// Whether the whole object is in effect.
    pub fn is_empty(&self) -> bool {
        self.named.is_empty()
    }

    /// Number of elements that are left out; several that share a line may count as one.
    pub fn count(&self) -> usize {
        self.named.len() + self.unnamed
    }

    /// A line for each named element, and one for the number of others.
    pub fn lines(&self) -> impl Iterator<Item = String> {
        let others = (self.unnamed > 0).then(|| format!("{} more elements are ignored", self.unnamed));
        self.named.iter().cloned().chain(others)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_long_one_is_shortened() {
        let mut left_out = LeftOut::default();
        left_out.add(|| format!("begin{}\nend", "x".repeat(1 << 20)));
        let line = left_out.lines().next().unwrap();
        assert!(line.len() <= TEXT_MAX && line.starts_with("begin") && line.ends_with("\\nend"), "{line}");
    }

    #[test]
    fn a_few_are_named_and_the_rest_is_counted() {
        let mut left_out = LeftOut::default();
        assert!(left_out.is_empty() && left_out.lines().next().is_none());
        for i in 0..1000 {
            left_out.add(|| format!("element {i}"));
        }
        left_out.add(|| "x".repeat(1 << 20));
        left_out.add_many(0, || unreachable!());
        let lines: Vec<_> = left_out.lines().collect();
        assert_eq!((lines.len(), lines[0].as_str()), (NAMED_MAX + 1, "element 0"));
        assert_eq!(lines[NAMED_MAX], "993 more elements are ignored");
    }
}
