//! What changed lately at a limit: states of the retreat, and changes of the active rules.
//!
//! Each change is written by whoever made it, into one record for each limit in shared data, so that the operator who
//! comes after the fact sees what happened, whichever worker answers.

use nimgate_core::control::rate::Transition;
use nimgate_core::limit::ledger::VERSION;
use nimgate_core::store::{Store, StoreError};
use nimgate_core::units::MilliRpm;
use serde::{Deserialize, Serialize};

/// One change.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Entry {
    /// When, in seconds since 1970.
    pub at: u64,
    /// What changed: `retreat` or `rules`.
    pub what: What,
    /// What it was before: a state of the retreat, or the epoch of the rules.
    pub from: String,
    /// What it is since.
    pub to: String,
    /// The model that alone goes slower or faster; left out where it is the whole limit.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub model: Option<String>,
    /// Why, in a few words.
    pub reason: String,
    /// The effective rate since then, in requests per minute.
    pub effective_rpm: u32,
}

/// What an [`Entry`] is about.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum What {
    /// The retreat changed its state.
    Retreat,
    /// Other rules became active.
    Rules,
}

impl Entry {
    /// A change of the retreat's state.
    pub fn of_transition(transition: &Transition, at: u64) -> Self {
        Self {
            at,
            what: What::Retreat,
            from: transition.from.name().to_owned(),
            to: transition.to.name().to_owned(),
            model: transition.model.map(|model| model.as_str().to_owned()),
            reason: transition.reason.words().to_owned(),
            effective_rpm: transition.rate.as_rpm(),
        }
    }

    /// Rules that became active as the `epoch`-th, with the rate that the limit goes at since.
    pub fn of_rules(epoch: u32, rate: MilliRpm, reason: &str, at: u64) -> Self {
        Self {
            at,
            what: What::Rules,
            from: epoch.saturating_sub(1).to_string(),
            to: epoch.to_string(),
            model: None,
            reason: reason.to_owned(),
            effective_rpm: rate.as_rpm(),
        }
    }
}

/// Adds a change to the history of a limit, which keeps the last [`ENTRIES_MAX`].
///
/// # Errors
/// [`StoreError`] when the store refuses, or others were quicker too many times.
pub fn append<S: Store>(limit: &str, entry: &Entry, store: &mut S) -> Result<(), StoreError> {
    store.measure_and_replace(&key(limit), |present, _| {
        let mut entries = present.map(decode).unwrap_or_default();
        let surplus = entries.len().saturating_add(1).saturating_sub(ENTRIES_MAX);
        entries.drain(..surplus.min(entries.len()));
        entries.push(entry.clone());
        (serde_json::to_vec(&entries).ok(), ())
    })
}

/// The history of a limit, the latest last.
pub fn read<S: Store>(limit: &str, store: &mut S) -> Vec<Entry> {
    store.load(&key(limit)).ok().flatten().map(|(bytes, _)| decode(&bytes)).unwrap_or_default()
}

/// A record that can't be read is no history.
fn decode(bytes: &[u8]) -> Vec<Entry> {
    serde_json::from_slice(bytes).unwrap_or_default()
}

fn key(limit: &str) -> String {
    format!("nimgate/{VERSION}/history/{limit}")
}

/// How many changes are kept: a page full, some of the worst hours of a retreat.
const ENTRIES_MAX: usize = 32;

#[cfg(test)]
mod tests {
    use super::*;
    use nimgate_core::store::MemoryStore;
    #[cfg(all(target_arch = "wasm32", target_os = "unknown"))]
    use wasm_bindgen_test::wasm_bindgen_test as test;

    fn rules(epoch: u32) -> Entry {
        Entry::of_rules(epoch, MilliRpm::from_rpm(40), "why", 1_000)
    }

    #[test]
    fn the_latest_are_kept() {
        let mut store = MemoryStore::default();
        assert_eq!(read("a", &mut store), []);
        for epoch in 1..=40 {
            append("a", &rules(epoch), &mut store).unwrap();
        }
        let entries = read("a", &mut store);
        assert_eq!(entries.len(), ENTRIES_MAX);
        assert_eq!((entries[0].to.as_str(), entries[31].to.as_str()), ("9", "40"));
        assert_eq!(read("b", &mut store), []);
    }

    #[test]
    fn what_can_not_be_read_starts_again() {
        let mut store = MemoryStore::default();
        store.swap(&key("a"), b"[{]", None).unwrap();
        assert_eq!(read("a", &mut store), []);
        append("a", &rules(2), &mut store).unwrap();
        assert_eq!(read("a", &mut store).len(), 1);
    }
}
