//! Which brackets are open: one bit for each, so that a body of nothing but brackets costs no memory.

/// How deep the kind of each open bracket is remembered, below the top-level object. Python's `json`, which runs in
/// most inference servers, gives up near a thousand; real requests stay below twenty.
pub const DEPTH_MAX: usize = 1_024;

const WORDS: usize = DEPTH_MAX.div_ceil(64);

/// The two kinds of brackets.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Bracket {
    /// `{` and `}`.
    Object,
    /// `[` and `]`.
    Array,
}

/// The open brackets, outermost first; a bit is set for an array.
#[derive(Clone, Debug, Default)]
pub(super) struct Nesting {
    depth: usize,
    kinds: [u64; WORDS],
}

impl Nesting {
    /// Opens one; `false`, and nothing done, when [`DEPTH_MAX`] are open already.
    pub(super) fn open(&mut self, bracket: Bracket) -> bool {
        if self.depth >= DEPTH_MAX {
            return false;
        }
        let (word, mask) = Self::place(self.depth);
        if let Some(kinds) = self.kinds.get_mut(word) {
            match bracket {
                Bracket::Object => *kinds &= !mask,
                Bracket::Array => *kinds |= mask,
            }
        }
        self.depth = self.depth.saturating_add(1);
        true
    }

    /// The bracket that must be closed next; none at the level of the top-level object.
    pub(super) fn innermost(&self) -> Option<Bracket> {
        let (word, mask) = Self::place(self.depth.checked_sub(1)?);
        self.kinds.get(word).map(|kinds| if kinds & mask == 0 { Bracket::Object } else { Bracket::Array })
    }

    /// Closes the innermost one.
    pub(super) fn close(&mut self) {
        self.depth = self.depth.saturating_sub(1);
    }

    /// The word and the bit for the bracket with this number.
    fn place(number: usize) -> (usize, u64) {
        // The remainder is below 64 and fits any integer.
        let bit = u32::try_from(number % 64).unwrap_or_default();
        (number / 64, 1_u64.rotate_left(bit))
    }
}
