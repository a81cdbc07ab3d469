//! Names of models as labels of metrics.
//!
//! Clients choose them, and Envoy never forgets a stat. So they are bounded in number, length and characters, over all
//! workers of the process: what goes beyond is [`OTHER`]. A name gets a label of its own only when the upstream has shown
//! that it knows the model, or whoever invents names could use up all places.

use crate::limit::ledger::VERSION;
use crate::store::{Store, StoreError};

/// The label of requests whose model was not read, since their host or cluster decided, or could not be.
pub const NONE: &str = "none";

/// The label of all names beyond the bounds, and of those that the upstream has not shown to know.
pub(crate) const OTHER: &str = "other";

/// How many names get a label of their own.
pub const NAMES_MAX: usize = 64;

/// The longest name that gets one, in bytes. NVIDIA's longest has some fifty.
pub const NAME_BYTES_MAX: usize = 80;

/// The names that one worker knows to have a label. They are a part of those that all workers agree on.
#[derive(Debug, Default)]
pub struct ModelNames {
    /// They stay as long as the process, as the stats that are called after them do.
    known: Vec<&'static str>,
}

impl ModelNames {
    /// The label for a model. `proven` says that the upstream has just shown that it knows it.
    pub fn label<S: Store>(&mut self, model: Option<&str>, proven: bool, store: &mut S) -> &'static str {
        let Some(model) = model else { return NONE };
        let Some(name) = tidy(model) else { return OTHER };
        if let Some(label) = self.find(&name) {
            return label;
        }
        if self.known.len() >= NAMES_MAX {
            return OTHER;
        }
        // A label that could not be agreed on is no reason to treat the request differently.
        if let Ok(agreed) = agree(&name, proven, store) {
            self.learn(&agreed);
        }
        self.find(&name).unwrap_or(OTHER)
    }

    fn find(&self, name: &str) -> Option<&'static str> {
        self.known.iter().copied().find(|known| *known == name)
    }

    fn learn(&mut self, agreed: &[String]) {
        for name in agreed {
            if self.known.len() < NAMES_MAX && self.find(name).is_none() {
                self.known.push(Box::leak(name.clone().into_boxed_str()));
            }
        }
    }
}

/// Whether an answer shows that the upstream knows the model. Most of 4xx do not: 404 is what NVIDIA says to an invented
/// one, and 401 or 429 may be said before anyone has looked. 410 is for models that there were.
pub const fn proves(status: u16) -> bool {
    !matches!(status, 400..=499) || status == 410
}

/// The names that all workers agree on, with `name` among them if it is to be added and there is room.
fn agree<S: Store>(name: &str, add: bool, store: &mut S) -> Result<Vec<String>, StoreError> {
    let key = format!("nimgate/{VERSION}/models");
    store.measure_and_replace(&key, |present, _| {
        let mut names = present.map(decode).unwrap_or_default();
        let adds = add && names.len() < NAMES_MAX && !names.iter().any(|known| known == name);
        if adds {
            names.push(name.to_owned());
        }
        (adds.then(|| names.join("\n").into_bytes()), names)
    })
}

fn decode(bytes: &[u8]) -> Vec<String> {
    let text = core::str::from_utf8(bytes).unwrap_or_default();
    text.split('\n').filter(|name| tidy(name).as_deref() == Some(*name)).take(NAMES_MAX).map(str::to_owned).collect()
}

/// The name in small letters, as patterns match without regard to case, and with everything but letters, digits and
/// `/ . : - _ @ +` made `_`; `None` if it is empty or too long. One that is cut would be taken for another's.
fn tidy(model: &str) -> Option<String> {
    let fits = !model.is_empty() && model.len() <= NAME_BYTES_MAX;
    fits.then(|| {
        model
            .chars()
            .map(|char| match char {
                'A'..='Z' => char.to_ascii_lowercase(),
                'a'..='z' | '0'..='9' | '/' | '.' | ':' | '-' | '_' | '@' | '+' => char,
                _ => '_',
            })
            .collect()
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::MemoryStore;
    #[cfg(all(target_arch = "wasm32", target_os = "unknown"))]
    use wasm_bindgen_test::wasm_bindgen_test as test;

    #[test]
    fn a_name_has_a_label_once_it_is_proven() {
        let (mut store, mut names) = (MemoryStore::default(), ModelNames::default());
        assert_eq!(names.label(Some("meta/llama-3.1"), false, &mut store), OTHER);
        assert_eq!(names.label(Some("Meta/Llama-3.1"), true, &mut store), "meta/llama-3.1");
        assert_eq!(names.label(Some("meta/llama-3.1"), false, &mut store), "meta/llama-3.1");
        assert_eq!(names.label(None, true, &mut store), NONE);
    }

    #[test]
    fn workers_learn_from_each_other() {
        let mut store = MemoryStore::default();
        let (mut one, mut other) = (ModelNames::default(), ModelNames::default());
        one.label(Some("a"), true, &mut store);
        assert_eq!(other.label(Some("a"), false, &mut store), "a");
    }

    #[test]
    fn names_are_bounded_over_all_workers() {
        let mut store = MemoryStore::default();
        let mut workers = [ModelNames::default(), ModelNames::default(), ModelNames::default()];
        let mut labels = std::collections::BTreeSet::new();
        for number in 0..1_000 {
            let name = format!("model-{number}");
            labels.insert(workers[number % 3].label(Some(&name), true, &mut store));
        }
        assert_eq!(labels.len(), NAMES_MAX + 1);
        assert!(labels.contains(OTHER));
        let late = &mut ModelNames::default();
        assert_eq!(late.label(Some("model-1"), false, &mut store), "model-1");
        assert_eq!(late.label(Some("model-999"), true, &mut store), OTHER);
    }

    #[test]
    fn hostile_names_are_made_harmless() {
        let (mut store, mut names) = (MemoryStore::default(), ModelNames::default());
        for (model, label) in [
            ("a;.;limit=.=b;.;", "a_._limit_._b_._"),
            ("a\"} 1\nnimgate_forged 1", "a___1_nimgate_forged_1"),
            ("nvidia/\u{fc}\u{0}\u{202e}", "nvidia/___"),
            ("", OTHER),
        ] {
            assert_eq!(names.label(Some(model), true, &mut store), label);
        }
        let longest = "x".repeat(NAME_BYTES_MAX);
        assert_eq!(names.label(Some(&longest), true, &mut store), longest);
        assert_eq!(names.label(Some(&format!("{longest}x")), true, &mut store), OTHER);
    }

    #[test]
    fn a_broken_record_starts_empty() {
        let mut store = MemoryStore::default();
        store.swap(&format!("nimgate/{VERSION}/models"), b"\xff\xfe\nA;B", None).unwrap();
        assert_eq!(ModelNames::default().label(Some("a"), true, &mut store), "a");
    }

    #[test]
    fn what_an_answer_proves() {
        for (status, proven) in [(200, true), (302, true), (503, true), (410, true), (404, false), (429, false)] {
            assert_eq!(proves(status), proven, "{status}");
        }
    }
}
