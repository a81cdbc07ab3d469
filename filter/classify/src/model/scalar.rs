//! Numbers and words.
//!
//! Words are read exactly, with the three that only Python knows. Numbers are read loosely: whatever is wrong inside one
//! is for the upstream to report, and every parser ends a number at the same place or refuses it.

/// How far a number or a word is read.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub(super) enum Scalar {
    /// After a minus sign.
    #[default]
    Minus,
    Number,
    /// In a word, of which this must still come.
    Word(&'static [u8]),
}

impl Scalar {
    /// What this byte begins, if it begins a number or a word.
    pub(super) fn begin(byte: u8) -> Option<Self> {
        match byte {
            b'-' => Some(Self::Minus),
            b'0'..=b'9' => Some(Self::Number),
            b't' => Some(Self::Word(b"rue")),
            b'f' => Some(Self::Word(b"alse")),
            b'n' => Some(Self::Word(b"ull")),
            b'N' => Some(Self::Word(b"aN")),
            b'I' => Some(Self::Word(b"nfinity")),
            _ => None,
        }
    }

    /// The state after this byte, if it belongs here.
    pub(super) fn next(self, byte: u8) -> Option<Self> {
        match (self, byte) {
            (Self::Minus, b'I') => Some(Self::Word(b"nfinity")),
            (Self::Minus, b'0'..=b'9') => Some(Self::Number),
            (Self::Number, b'0'..=b'9' | b'.' | b'e' | b'E' | b'+' | b'-') => Some(Self::Number),
            (Self::Word([expected, rest @ ..]), _) if *expected == byte => Some(Self::Word(rest)),
            _ => None,
        }
    }

    /// Whether it may end here.
    pub(super) fn is_whole(self) -> bool {
        matches!(self, Self::Number | Self::Word([]))
    }
}

/// Whether numbers and words may contain this byte.
pub(super) const fn may_contain(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || matches!(byte, b'+' | b'-' | b'.')
}
