//! A change of one limit's rules while the process runs, as `POST /config` takes it: as strict as the configuration.
//!
//! It names fields by the configuration's names. What it leaves out stays as it is in force; `null` gives a field back
//! to the configuration.

use super::raw::{self, Mode, Number, Object, QueueFullPolicy};
use super::{
    ConfigError, QUEUE_MAX_MAX, TIMEOUT_S_MAX, WINDOW_S_MAX, check_window, counting_window, seconds, whole, wrong,
};
use crate::ledger::Rules;
use crate::retreat::PROBE_WINDOWS_MAX;
use crate::units::{Micros, MilliRpm, RATE_RPM_MAX};
use serde::Deserialize;
use serde::de::Deserializer;

/// A change, read and not yet checked against the rules that it changes.
#[derive(Deserialize, Default)]
#[serde(deny_unknown_fields)]
pub struct Change {
    /// Which limit; may be left out where there is only one.
    pub limit: Option<String>,
    /// The epoch of the rules that the operator saw; if others are in force by now, the change is refused.
    epoch: Option<Number>,
    #[serde(default, deserialize_with = "given")]
    rate_rpm: Given<Number>,
    #[serde(default, deserialize_with = "given")]
    bucket_capacity: Given<Number>,
    #[serde(default, deserialize_with = "given")]
    window_s: Given<Number>,
    #[serde(default, deserialize_with = "given")]
    queue_max_size: Given<Number>,
    #[serde(default, deserialize_with = "given")]
    queue_full_policy: Given<QueueFullPolicy>,
    #[serde(default, deserialize_with = "given")]
    mode: Given<Mode>,
    #[serde(default, deserialize_with = "given")]
    low_priority_timeout_s: Given<Number>,
    #[serde(default, deserialize_with = "given")]
    request_timeout_s: Given<Number>,
    #[serde(default, deserialize_with = "given")]
    aging_s: Given<Number>,
    #[serde(default, deserialize_with = "given")]
    retreat: Given<Object<RetreatChange>>,
}

#[derive(Deserialize, Default, Clone, Copy)]
#[serde(deny_unknown_fields)]
struct RetreatChange {
    #[serde(default, deserialize_with = "given")]
    enabled: Given<bool>,
    #[serde(default, deserialize_with = "given")]
    floor_rpm: Given<Number>,
    #[serde(default, deserialize_with = "given")]
    retry_after_max_s: Given<Number>,
    #[serde(default, deserialize_with = "given")]
    obey_503: Given<bool>,
    #[serde(default, deserialize_with = "given")]
    probe_windows: Given<Number>,
}

/// `None` where a field was left out, `Some(None)` where it was null.
type Given<T> = Option<Option<T>>;

fn given<'de, T: Deserialize<'de>, D: Deserializer<'de>>(deserializer: D) -> Result<Given<T>, D::Error> {
    Option::deserialize(deserializer).map(Some)
}

impl Change {
    /// Reads a change.
    ///
    /// # Errors
    /// [`ConfigError`] with the first thing found wrong in the document's form.
    pub fn parse(json: &[u8]) -> Result<Self, ConfigError> {
        raw::document(json)
    }

    /// The epoch that the operator saw.
    ///
    /// # Errors
    /// [`ConfigError`] if it is no number that an epoch can be.
    pub fn epoch(&self) -> Result<Option<u32>, ConfigError> {
        self.epoch.map(|epoch| whole(Some(epoch), "epoch", 1, u32::MAX, 1)).transpose()
    }

    /// The rules that the change makes of those `in_force`, given those `configured`.
    ///
    /// # Errors
    /// [`ConfigError`] with the first value that is impossible, by itself or beside the others.
    pub fn apply(&self, configured: &Rules, in_force: &Rules) -> Result<Rules, ConfigError> {
        let mut rules = *in_force;
        let mut touched = false;
        let mut set = |given: bool| touched |= given;
        set(self.rate_rpm.is_some());
        if let Some(rate) = self.rate_rpm {
            rules.retreat.base = match rate {
                Some(rate) => MilliRpm::from_rpm(whole(Some(rate), "rate_rpm", 1, RATE_RPM_MAX, 1)?),
                None => configured.retreat.base,
            };
        }
        set(self.bucket_capacity.is_some());
        if let Some(capacity) = self.bucket_capacity {
            rules.capacity = whole(capacity, "bucket_capacity", 1, RATE_RPM_MAX, configured.capacity)?;
        }
        set(self.window_s.is_some());
        if let Some(window) = self.window_s {
            rules.window = match window {
                Some(window) => Micros::from_secs(u64::from(whole(Some(window), "window_s", 0, WINDOW_S_MAX, 0)?)),
                None => configured.window,
            };
            rules.retreat.window = counting_window(rules.window);
        }
        set(self.queue_max_size.is_some());
        if let Some(queue_max) = self.queue_max_size {
            rules.queue_max = whole(queue_max, "queue_max_size", 0, QUEUE_MAX_MAX, configured.queue_max)?;
        }
        set(self.queue_full_policy.is_some());
        if let Some(policy) = self.queue_full_policy {
            rules.may_fall_back =
                policy.map_or(configured.may_fall_back, |policy| policy == QueueFullPolicy::Passthrough);
        }
        set(self.mode.is_some());
        if let Some(mode) = self.mode {
            rules.shadow = mode.map_or(configured.shadow, |mode| mode == Mode::Shadow);
        }
        set(self.low_priority_timeout_s.is_some());
        if let Some(low) = self.low_priority_timeout_s {
            rules.patience.low = time(low, "low_priority_timeout_s", configured.patience.low)?;
        }
        set(self.request_timeout_s.is_some());
        if let Some(others) = self.request_timeout_s {
            rules.patience.others = time(others, "request_timeout_s", configured.patience.others)?;
        }
        set(self.aging_s.is_some());
        if let Some(aging) = self.aging_s {
            // The configuration switches aging off by leaving it out; here that means no change, so 0 does it.
            rules.aging = match aging {
                None => configured.aging,
                Some(secs) if secs.whole() == Some(0) => None,
                Some(secs) => Some(seconds(Some(secs), "aging_s", 0)?),
            };
        }
        set(self.retreat.is_some());
        self.apply_retreat(configured, &mut rules)?;
        if !touched {
            return Err(wrong("", "changes nothing: give at least one field besides limit and epoch"));
        }
        check_window(rules.window, rules.retreat.base, "window_s")?;
        // One sentence for both ways to get there: a lower rate, or a higher floor.
        if rules.retreat.floor > rules.retreat.base {
            return Err(wrong(
                "retreat.floor_rpm",
                &format!(
                    "must not be above rate_rpm ({}), and would be {}",
                    rules.retreat.base.as_rpm(),
                    rules.retreat.floor.as_rpm()
                ),
            ));
        }
        Ok(rules)
    }

    fn apply_retreat(&self, configured: &Rules, rules: &mut Rules) -> Result<(), ConfigError> {
        let retreat = match &self.retreat {
            None => return Ok(()),
            Some(Some(Object(retreat))) => *retreat,
            Some(None) => RetreatChange {
                enabled: Some(None),
                floor_rpm: Some(None),
                retry_after_max_s: Some(None),
                obey_503: Some(None),
                probe_windows: Some(None),
            },
        };
        if let Some(enabled) = retreat.enabled {
            rules.retreat.enabled = enabled.unwrap_or(configured.retreat.enabled);
        }
        if let Some(obey) = retreat.obey_503 {
            rules.retreat.obey_503 = obey.unwrap_or(configured.retreat.obey_503);
        }
        if let Some(probe) = retreat.probe_windows {
            rules.retreat.probe_windows = match probe {
                Some(probe) => whole(Some(probe), "retreat.probe_windows", 1, PROBE_WINDOWS_MAX, 1)?,
                None => configured.retreat.probe_windows,
            };
        }
        if let Some(floor) = retreat.floor_rpm {
            rules.retreat.floor = match floor {
                Some(floor) => MilliRpm::from_rpm(whole(Some(floor), "retreat.floor_rpm", 1, RATE_RPM_MAX, 1)?),
                None => configured.retreat.floor,
            };
        }
        if let Some(pause) = retreat.retry_after_max_s {
            rules.retreat.retry_after_max = match pause {
                Some(pause) => {
                    let secs = whole(Some(pause), "retreat.retry_after_max_s", 0, TIMEOUT_S_MAX, 0)?;
                    Micros::from_secs(u64::from(secs))
                }
                None => configured.retreat.retry_after_max,
            };
        }
        Ok(())
    }
}

fn time(given: Option<Number>, path: &str, configured: Micros) -> Result<Micros, ConfigError> {
    match given {
        Some(secs) => seconds(Some(secs), path, 0),
        None => Ok(configured),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Config;
    #[cfg(all(target_arch = "wasm32", target_os = "unknown"))]
    use wasm_bindgen_test::wasm_bindgen_test as test;

    fn configured() -> Rules {
        Config::parse(b"").unwrap().limits[0].rules
    }

    fn applied(json: &str, in_force: &Rules) -> Result<Rules, String> {
        let change = Change::parse(json.as_bytes()).map_err(|error| error.to_string())?;
        change.apply(&configured(), in_force).map_err(|error| error.to_string())
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
    fn a_floor_in_force_bounds_the_rate() {
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
