//! Which limits this process has been configured with, and since when it runs.
//!
//! The console runs on a listener of its own, whose configuration names no limits. So each configuration that names some
//! writes them into one record in shared data. A name is never taken out: a limit that has left the configuration may
//! still have requests waiting, and its counters stay.

use nimgate_core::limit::ledger::VERSION;
use nimgate_core::store::{Store, StoreError};
use nimgate_core::units::Instant;

#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Registry {
    /// When the first configuration was taken up.
    pub started: Instant,
    /// The names of all limits, in the order in which they were first named.
    pub names: Vec<String>,
}

impl Registry {
    /// Reads the record.
    ///
    /// # Errors
    /// [`StoreError`] when the store refuses.
    pub fn read<S: Store>(store: &mut S) -> Result<Self, StoreError> {
        Ok(store.load(&key())?.and_then(|(bytes, _)| Self::decode(&bytes)).unwrap_or_default())
    }

    /// Adds the limits of a configuration, and notes the time if it is the first. Past [`NAMES_MAX`] no more are added.
    ///
    /// # Errors
    /// [`StoreError`] when the store refuses, or others were quicker too many times.
    pub fn add<'a, S: Store>(store: &mut S, names: &(impl Iterator<Item = &'a str> + Clone)) -> Result<(), StoreError> {
        store.measure_and_replace(&key(), |present, now| {
            let known = present.and_then(Self::decode);
            let is_new = known.is_none();
            let mut registry = known.unwrap_or_else(|| Self { started: now, names: Vec::new() });
            let count = registry.names.len();
            for name in names.clone() {
                if registry.names.len() < NAMES_MAX && !registry.names.iter().any(|known| known == name) {
                    registry.names.push(name.to_owned());
                }
            }
            ((is_new || registry.names.len() > count).then(|| registry.encode()), ())
        })
    }

    fn encode(&self) -> Vec<u8> {
        let mut bytes = self.started.as_micros().to_le_bytes().to_vec();
        bytes.extend_from_slice(self.names.join("\n").as_bytes());
        bytes
    }

    /// Names of limits hold letters, digits, `-` and `_` only, so a line end parts them.
    fn decode(bytes: &[u8]) -> Option<Self> {
        let (started, names) = bytes.split_first_chunk()?;
        let names = core::str::from_utf8(names).ok()?;
        Some(Self {
            started: Instant::from_micros(u64::from_le_bytes(*started)),
            names: names.split('\n').filter(|name| !name.is_empty()).take(NAMES_MAX).map(str::to_owned).collect(),
        })
    }
}

fn key() -> String {
    format!("nimgate/{VERSION}/limits")
}

/// The most limits that are listed: more than anyone configures, few enough for one page.
const NAMES_MAX: usize = 256;

#[cfg(test)]
mod tests {
    use super::*;
    use nimgate_core::store::MemoryStore;
    #[cfg(all(target_arch = "wasm32", target_os = "unknown"))]
    use wasm_bindgen_test::wasm_bindgen_test as test;

    #[test]
    fn names_are_kept_once_and_the_first_time_stands() {
        let mut store = MemoryStore::at(Instant::from_micros(5));
        assert_eq!(Registry::read(&mut store), Ok(Registry::default()));
        Registry::add(&mut store, &["a", "b"].into_iter()).unwrap();
        store.now = Instant::from_micros(9);
        Registry::add(&mut store, &["b", "c"].into_iter()).unwrap();
        let registry = Registry::read(&mut store).unwrap();
        assert_eq!(registry.started, Instant::from_micros(5));
        assert_eq!(registry.names, ["a", "b", "c"]);
    }

    #[test]
    fn a_configuration_without_limits_still_starts_the_clock() {
        let mut store = MemoryStore::at(Instant::from_micros(5));
        Registry::add(&mut store, &core::iter::empty()).unwrap();
        let registry = Registry::read(&mut store).unwrap();
        assert_eq!((registry.started, registry.names.len()), (Instant::from_micros(5), 0));
    }

    #[test]
    fn the_list_is_bounded() {
        let mut store = MemoryStore::default();
        let names: Vec<String> = (0..NAMES_MAX + 10).map(|number| format!("n{number}")).collect();
        Registry::add(&mut store, &names.iter().map(String::as_str)).unwrap();
        assert_eq!(Registry::read(&mut store).unwrap().names.len(), NAMES_MAX);
    }
}
