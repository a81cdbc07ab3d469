//! A change of one limit's rules while the process runs, as `POST /config` takes it: as strict as the configuration.
//!
//! It names fields by the configuration's names. What it leaves out stays as it is; `null` gives a field back
//! to the configuration.

use super::knobs::{WithKnobs, check_number, check_together};
use super::number::WrittenNumber;
use super::raw;
use super::{ConfigError, wrong};
use nimgate_core::limit::rules::{self, Rules, Unit};
use serde::Deserialize;

/// A change, read and not yet checked against the rules that it changes.
pub struct Change(WithKnobs<ChangeFields>);

#[derive(Deserialize, Default)]
#[serde(deny_unknown_fields)]
struct ChangeFields {
    limit: Option<String>,
    epoch: Option<WrittenNumber>,
}

impl Change {
    /// Reads a change.
    ///
    /// # Errors
    /// [`ConfigError`] with the first thing found wrong in the document's form.
    pub fn parse(json: &[u8]) -> Result<Self, ConfigError> {
        raw::document(json).map(Self)
    }

    /// Which limit is to be changed; may be left out where there is only one.
    pub fn limit(&self) -> Option<&String> {
        self.0.own.limit.as_ref()
    }

    /// The epoch of the rules that the operator saw; if they have changed since, the change is refused.
    ///
    /// # Errors
    /// [`ConfigError`] if it is no number that an epoch can be.
    pub fn epoch(&self) -> Result<Option<u32>, ConfigError> {
        const TAKES: rules::Number =
            rules::Number { unit: Unit::Count, min: 1, max: u32::MAX as u64, zero_is_off: false };
        let Some(epoch) = self.0.own.epoch else { return Ok(None) };
        check_number(epoch, TAKES, "epoch").map(|epoch| u32::try_from(epoch).ok())
    }

    /// The rules that the change makes of the `active` ones, given those `configured`.
    ///
    /// # Errors
    /// [`ConfigError`] with the first value that is impossible, by itself or beside the others.
    pub fn apply(&self, configured: &Rules, active: &Rules) -> Result<Rules, ConfigError> {
        if self.0.knobs.is_empty() {
            return Err(wrong("", "changes nothing: give at least one field besides limit and epoch"));
        }
        let mut rules = *active;
        self.0.knobs.apply(&mut rules, Some(configured), "")?;
        check_together(&rules, "")?;
        Ok(rules)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Config;
    use nimgate_core::units::{Micros, MilliRpm};
    #[cfg(all(target_arch = "wasm32", target_os = "unknown"))]
    use wasm_bindgen_test::wasm_bindgen_test as test;

    fn configured() -> Rules {
        Config::parse(b"").unwrap().limits[0].rules
    }

    fn applied(json: &str, active: &Rules) -> Result<Rules, String> {
        let change = Change::parse(json.as_bytes()).map_err(|error| error.to_string())?;
        change.apply(&configured(), active).map_err(|error| error.to_string())
    }

    #[test]
    fn what_is_left_out_stays_and_null_goes_back() {
        let first = applied(r#"{"rate_rpm": 30, "queue_max_size": 5, "aging_s": 2.5}"#, &configured()).unwrap();
        assert_eq!((first.retreat.base, first.queue_max), (MilliRpm::from_rpm(30), 5));
        assert_eq!(first.aging, Some(Micros::from_millis(2_500)));
        assert_eq!(first.capacity, configured().capacity);
        let second = applied(r#"{"rate_rpm": null, "retreat": {"enabled": false}}"#, &first).unwrap();
        assert_eq!((second.retreat.base, second.queue_max), (MilliRpm::from_rpm(40), 5));
        assert!(!second.retreat.enabled);
        let third = applied(r#"{"queue_max_size": null, "aging_s": 0, "retreat": null}"#, &second).unwrap();
        assert_eq!(third, configured());
    }

    #[test]
    fn each_refusal_names_the_field() {
        for (json, sentence) in [
            (r#"{"rate_rpm": 0}"#, "rate_rpm: must be at least 1, got 0"),
            (r#"{"rate_rpm": 1e308}"#, "rate_rpm: must be a whole number"),
            (r#"{"rate_rpm": "40"}"#, "rate_rpm: invalid type"),
            (r#"{"rate_rpm": 40, "rate_rpm": 41}"#, "duplicate field"),
            (r#"{"rate_rps": 40}"#, "unknown field"),
            (r#"{"models": []}"#, "unknown field `models`"),
            (r#"{"aging_s": true}"#, "aging_s: invalid type"),
            (r#"{"aging_s": -1}"#, "aging_s: must be at least"),
            (r#"{"window_s": 1.5}"#, "window_s: must be a whole number"),
            (
                r#"{"rate_rpm": 4, "window_s": 10}"#,
                "window_s: must be long enough for one request at 4 requests per minute",
            ),
            (r#"{"request_timeout_s": 0}"#, "request_timeout_s: must be at least"),
            (r#"{"queue_full_policy": "drop"}"#, "queue_full_policy: unknown variant"),
            (r#"{"retreat": {"floor_rpm": 41}}"#, "retreat.floor_rpm: must not be above rate_rpm (40)"),
            (r#"{"retreat": {"flor_rpm": 1}}"#, "unknown field `flor_rpm`"),
            (r#"{"limit": "nvidia"}"#, "changes nothing"),
            ("{}", "changes nothing"),
            ("[]", "expected an object"),
            (r#"["nvidia", null, 5]"#, "expected an object"),
            (r#"{"retreat": [false]}"#, "retreat: invalid type: sequence, expected an object"),
            (r#"{"rate_rpm": 1} {}"#, "trailing"),
            ("", "EOF"),
        ] {
            let refusal = applied(json, &configured()).unwrap_err();
            assert!(refusal.contains(sentence), "{json}: {refusal}");
        }
    }

    #[test]
    fn an_active_floor_bounds_the_rate() {
        let floor = applied(r#"{"retreat": {"floor_rpm": 20}}"#, &configured()).unwrap();
        assert!(applied(r#"{"rate_rpm": 10}"#, &floor).unwrap_err().contains("would be 20"));
        assert!(applied(r#"{"rate_rpm": 10, "retreat": {"floor_rpm": 10}}"#, &floor).is_ok());
    }

    #[test]
    fn an_epoch_is_a_positive_number() {
        let epoch = |json: &str| Change::parse(json.as_bytes()).unwrap().epoch();
        assert_eq!(epoch(r#"{"epoch": 3}"#).unwrap(), Some(3));
        assert_eq!(epoch("{}").unwrap(), None);
        assert!(epoch(r#"{"epoch": 0}"#).is_err());
    }
}
