//! The store that holds the ledgers: one value for each key, replaced by compare-and-swap.
//!
//! The decision is a pure function that can be made again; the store owns the loop. After a lost race the decision is made
//! again on the new value, and one that changes nothing writes nothing.

use crate::units::Instant;
use core::num::NonZeroU32;

/// The version of a value: what a later replacement must still find there.
pub type Version = NonZeroU32;

/// What a store answered to a replacement.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Swap {
    /// The value is in place.
    Replaced,
    /// Another worker was quicker.
    Lost,
}

/// The store failed, or other workers were quicker every time.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum StoreError {
    /// [`ATTEMPTS_MAX`] races were lost in a row. Nothing was changed; try again later.
    Contended,
    /// The host refused. Nothing was changed as far as it says.
    Unavailable,
    /// A newer module wrote something that must be understood before anything may be granted. Nothing was changed.
    NotUnderstood,
}

/// A key-value store with compare-and-swap, shared by all workers of the process.
pub trait Store {
    /// The value of `key` and its version; `None` when there is none yet.
    ///
    /// # Errors
    /// [`StoreError::Unavailable`] when the host refuses.
    fn load(&mut self, key: &str) -> Result<Option<(Vec<u8>, Version)>, StoreError>;

    /// Puts `value` in place if `key` still has `version`; with `None`, if it still has no value.
    ///
    /// # Errors
    /// [`StoreError::Unavailable`] when the host refuses.
    fn swap(&mut self, key: &str, value: &[u8], version: Option<Version>) -> Result<Swap, StoreError>;

    /// The time now, by a monotonic clock that is the same for all workers. Nothing else tells the core the time.
    fn now(&mut self) -> Instant;

    /// Makes a decision on the present value and replaces it atomically.
    ///
    /// `decide` gets the present value, and the time as it was read *after* that value; it answers the new value, or
    /// `None` to leave the present one, and whatever else was decided. It may be called several times and must have no
    /// effect of its own.
    ///
    /// The order matters. A worker that reads the clock, is held up, and then decides on a value that others have
    /// written since would take its old time for a step back of the clock. Time that is read after the value is never
    /// older than the times in it; and if others write after that, the swap is lost and everything is read again.
    ///
    /// # Errors
    /// [`StoreError::Contended`] after [`ATTEMPTS_MAX`] lost races, [`StoreError::Unavailable`] when the host refuses.
    fn measure_and_replace<T>(
        &mut self,
        key: &str,
        mut decide: impl FnMut(Option<&[u8]>, Instant) -> (Option<Vec<u8>>, T),
    ) -> Result<T, StoreError>
    where
        Self: Sized,
    {
        for _ in 0..ATTEMPTS_MAX {
            let present = self.load(key)?;
            let now = self.now();
            let (value, decision) = decide(present.as_ref().map(|(bytes, _)| bytes.as_slice()), now);
            let Some(value) = value else {
                return Ok(decision);
            };
            if self.swap(key, &value, present.map(|(_, version)| version))? == Swap::Replaced {
                return Ok(decision);
            }
        }
        Err(StoreError::Contended)
    }
}

/// How often a decision is retried before it is put off. A race is lost only because another worker's was won, so
/// with a handful of workers even a few in a row are rare.
pub const ATTEMPTS_MAX: usize = 16;

/// A store in this process's own memory, for tests and simulations.
#[derive(Debug, Default)]
pub struct MemoryStore {
    /// What its clock shows.
    pub now: Instant,
    values: std::collections::BTreeMap<String, (Vec<u8>, u32)>,
    versions: u32,
}

impl MemoryStore {
    /// An empty store whose clock shows `now`.
    pub fn at(now: Instant) -> Self {
        Self { now, ..Self::default() }
    }
}

impl Store for MemoryStore {
    fn load(&mut self, key: &str) -> Result<Option<(Vec<u8>, Version)>, StoreError> {
        Ok(self.values.get(key).and_then(|(bytes, version)| Some((bytes.clone(), Version::new(*version)?))))
    }

    fn swap(&mut self, key: &str, value: &[u8], version: Option<Version>) -> Result<Swap, StoreError> {
        let present = self.values.get(key).map(|(_, version)| *version);
        if present != version.map(Version::get) {
            return Ok(Swap::Lost);
        }
        self.versions = self.versions.saturating_add(1);
        self.values.insert(key.to_owned(), (value.to_owned(), self.versions));
        Ok(Swap::Replaced)
    }

    fn now(&mut self) -> Instant {
        self.now
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    #[cfg(all(target_arch = "wasm32", target_os = "unknown"))]
    use wasm_bindgen_test::wasm_bindgen_test as test;

    #[test]
    fn two_creators_can_not_both_succeed() {
        let mut store = MemoryStore::default();
        assert_eq!(store.swap("k", b"a", None), Ok(Swap::Replaced));
        assert_eq!(store.swap("k", b"b", None), Ok(Swap::Lost));
        assert_eq!(store.load("k").unwrap().unwrap().0, b"a");
    }

    #[test]
    fn a_lost_race_decides_on_the_fresh_value() {
        struct Racy(MemoryStore, bool);
        impl Store for Racy {
            fn load(&mut self, key: &str) -> Result<Option<(Vec<u8>, Version)>, StoreError> {
                self.0.load(key)
            }
            fn swap(&mut self, key: &str, value: &[u8], version: Option<Version>) -> Result<Swap, StoreError> {
                if !core::mem::replace(&mut self.1, true) {
                    self.0.swap(key, b"other", version)?;
                }
                self.0.swap(key, value, version)
            }
            fn now(&mut self) -> Instant {
                self.0.now
            }
        }
        let mut store = Racy(MemoryStore::default(), false);
        let mut seen = Vec::new();
        let decided = store.measure_and_replace("k", |present, _| {
            seen.push(present.map(<[u8]>::to_vec));
            (Some(b"mine".to_vec()), seen.len())
        });
        assert_eq!(decided, Ok(2));
        assert_eq!(seen, [None, Some(b"other".to_vec())]);
    }

    #[test]
    fn endless_races_end() {
        struct Losing;
        impl Store for Losing {
            fn load(&mut self, _: &str) -> Result<Option<(Vec<u8>, Version)>, StoreError> {
                Ok(None)
            }
            fn swap(&mut self, _: &str, _: &[u8], _: Option<Version>) -> Result<Swap, StoreError> {
                Ok(Swap::Lost)
            }
            fn now(&mut self) -> Instant {
                Instant::ZERO
            }
        }
        assert_eq!(Losing.measure_and_replace("k", |_, _| (Some(Vec::new()), ())), Err(StoreError::Contended));
    }
}
