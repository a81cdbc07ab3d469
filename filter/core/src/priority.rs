//! The four levels that a client can ask for, and the lanes in which requests wait.

/// How urgent a request is. Lower values go first.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Default, Hash)]
#[repr(u8)]
pub enum Priority {
    /// Before everything else.
    Urgent = 0,
    /// A person is waiting.
    High = 1,
    /// What a request gets that says nothing.
    #[default]
    Normal = 2,
    /// Batch work: last, and with a shorter timeout.
    Low = 3,
}

impl Priority {
    /// All levels, the most urgent first.
    pub const ALL: [Self; 4] = [Self::Urgent, Self::High, Self::Normal, Self::Low];

    /// Reads a header's value: any case, surrounding white space ignored. `None` for anything that is not exactly one
    /// level's name, lists and very long values included.
    pub fn parse(value: &[u8]) -> Option<Self> {
        let value = value.trim_ascii();
        Self::ALL.into_iter().find(|level| value.eq_ignore_ascii_case(level.name().as_bytes()))
    }

    /// The level's name, as in configuration, headers and metrics.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Urgent => "urgent",
            Self::High => "high",
            Self::Normal => "normal",
            Self::Low => "low",
        }
    }

    /// The level itself, or `ceiling` if the level is more urgent than that.
    pub fn capped(self, ceiling: Self) -> Self {
        self.max(ceiling)
    }
}

/// Where a request waits: in the queue, or outside it after everything queued (`queue_full_policy: passthrough`).
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Lane {
    /// In the queue, at this level.
    Queued(Priority),
    /// Outside the full queue; its own level orders it among its like.
    Fallback(Priority),
}

pub const LANES: usize = 8;

impl Lane {
    /// All lanes in the order in which tokens go to them.
    pub const ALL: [Self; LANES] = [
        Self::Queued(Priority::Urgent),
        Self::Queued(Priority::High),
        Self::Queued(Priority::Normal),
        Self::Queued(Priority::Low),
        Self::Fallback(Priority::Urgent),
        Self::Fallback(Priority::High),
        Self::Fallback(Priority::Normal),
        Self::Fallback(Priority::Low),
    ];

    /// The lane's place in [`Lane::ALL`].
    pub const fn index(self) -> usize {
        match self {
            Self::Queued(priority) => priority as usize,
            Self::Fallback(priority) => (priority as usize).saturating_add(4),
        }
    }

    /// The level of the requests in this lane.
    pub const fn priority(self) -> Priority {
        match self {
            Self::Queued(priority) | Self::Fallback(priority) => priority,
        }
    }

    /// Whether the lane is part of the queue proper, whose length `queue_max_size` bounds.
    pub const fn is_queued(self) -> bool {
        matches!(self, Self::Queued(_))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    #[cfg(all(target_arch = "wasm32", target_os = "unknown"))]
    use wasm_bindgen_test::wasm_bindgen_test as test;

    #[test]
    fn reads_any_case_and_surrounding_space() {
        assert_eq!(Priority::parse(b" \tUrGeNt "), Some(Priority::Urgent));
        assert_eq!(Priority::parse(b"low"), Some(Priority::Low));
    }

    #[test]
    fn refuses_lists_unknown_and_long_values() {
        for value in [&b"urgent, low"[..], b"", b"critical", b"urgent;q=1", &[b'u'; 10_000], b"\xff"] {
            assert_eq!(Priority::parse(value), None);
        }
    }

    #[test]
    fn a_ceiling_only_lowers() {
        assert_eq!(Priority::Urgent.capped(Priority::Normal), Priority::Normal);
        assert_eq!(Priority::Low.capped(Priority::Normal), Priority::Low);
    }

    #[test]
    fn lanes_are_numbered_in_their_order() {
        for (at, lane) in Lane::ALL.into_iter().enumerate() {
            assert_eq!(lane.index(), at);
        }
        assert!(Lane::ALL.is_sorted());
    }
}
