//! The stages, by number and name.

use crate::{layout::Hook, verdict::Reason};

/// Declares the stages once: slot number, suffix of the program names, documentation.
macro_rules! stages {
    ($($(#[$doc:meta])* $name:ident = $number:literal, $text:literal;)*) => {
        /// The stages: programs behind the first program of a hook. The number of a stage is its slot for the first
        /// hook; see [`Stage::slot`].
        #[repr(u32)]
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        pub enum Stage { $($(#[$doc])* $name = $number,)* }

        impl Stage {
            /// All stages.
            pub const ALL: &[Self] = &[$(Self::$name,)*];

            /// Suffix of its programs' names, after the name of the hook.
            pub const fn name(self) -> &'static str {
                match self { $(Self::$name => $text,)* }
            }
        }
    };
}

stages! {
    /// [`track`](super::track()).
    Track = 8, "track";
    /// [`reject`](super::reject()).
    Reject = 16, "reject";
    /// [`icmp`](super::icmp()).
    Icmp = 24, "icmp";
    /// [`error`](super::error()).
    Error = 32, "error";
    /// [`begin`](super::begin()).
    Begin = 40, "begin";
    /// [`insert`](super::insert()).
    Insert = 48, "insert";
    /// [`classify`](super::classify()).
    Classify = 56, "classify";
    /// [`sctp`](super::sctp()).
    Sctp = 64, "sctp";
    /// [`send`](super::send()).
    Send = 72, "send";
    // 80 is `Hook::FromRaw`.
    /// [`external`](super::external()).
    External = 88, "external";
    /// [`quotation`](super::quotation()).
    Quotation = 96, "quotation";
}

impl Stage {
    /// Stage that answers packets rejected for `reason`.
    pub const fn answering(reason: Reason) -> Self {
        match reason {
            Reason::TtlExceeded | Reason::TooBig => Self::Error,
            _ => Self::Reject,
        }
    }

    /// Slot of this stage at a hook, relative to the first slot of a generation.
    pub const fn slot(self, hook: Hook) -> u32 {
        self as u32 + hook as u32
    }
}
