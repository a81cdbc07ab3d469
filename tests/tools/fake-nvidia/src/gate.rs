//! What stands before the answers: the limiter and the faults switched on over the control API, with the
//! configuration that both come from. One lock around all of it, held for a decision only.

use std::collections::BTreeMap;

use serde::{Deserialize, Deserializer, Serialize};

use crate::limiter::{Kind, Limiter, Rules};

#[derive(Clone, Debug, Serialize)]
pub struct Config {
    pub limiter: Kind,
    pub rpm: u64,
    pub burst: u64,
    pub window_s: u64,
    pub latency_ms: u64,
    pub retry_after: Option<String>,
    pub error_burst: Option<ErrorBurst>,
    pub throttle_next: u64,
    /// Models with a limit of their own, in requests per minute, counted in rolling windows of `window_s`.
    pub models: BTreeMap<String, u64>,
    /// How many requests of a thousand are refused for no reason.
    pub stray_permille: u64,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            limiter: Kind::None,
            rpm: 40,
            burst: 4,
            window_s: 60,
            latency_ms: 150,
            retry_after: None,
            error_burst: None,
            throttle_next: 0,
            models: BTreeMap::new(),
            stray_permille: 0,
        }
    }
}

/// `count` is what is left of the burst.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ErrorBurst {
    pub count: u64,
    pub status: u16,
}

/// A partial change: what is absent stays as it is, `null` switches off what can be off.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Patch {
    limiter: Option<Kind>,
    rpm: Option<u64>,
    burst: Option<u64>,
    window_s: Option<u64>,
    latency_ms: Option<u64>,
    #[serde(default, deserialize_with = "present")]
    retry_after: Option<Option<TextOrNumber>>,
    #[serde(default, deserialize_with = "present")]
    error_burst: Option<Option<ErrorBurst>>,
    throttle_next: Option<u64>,
    models: Option<BTreeMap<String, u64>>,
    stray_permille: Option<u64>,
}

#[derive(Debug, Deserialize)]
#[serde(untagged)]
enum TextOrNumber {
    Text(String),
    Number(u64),
}

/// serde alone cannot tell an absent member from a `null`; this keeps the two apart.
fn present<'de, D, T>(deserializer: D) -> Result<Option<Option<T>>, D::Error>
where
    D: Deserializer<'de>,
    T: Deserialize<'de>,
{
    Option::deserialize(deserializer).map(Some)
}

impl Config {
    pub fn rules(&self) -> Rules {
        Rules { kind: self.limiter, rpm: self.rpm, burst: self.burst, window_s: self.window_s }
    }

    fn model_limiters(&self, now_us: u64) -> BTreeMap<String, Limiter> {
        let rules = |rpm| Rules { kind: Kind::SlidingWindow, rpm, burst: 1, window_s: self.window_s };
        self.models.iter().map(|(model, rpm)| (model.clone(), Limiter::new(rules(*rpm), now_us))).collect()
    }

    /// The configuration after `patch`, or one sentence why not.
    fn patched(&self, patch: Patch) -> Result<Self, String> {
        let mut new = self.clone();
        new.limiter = patch.limiter.unwrap_or(new.limiter);
        new.rpm = patch.rpm.unwrap_or(new.rpm);
        new.burst = patch.burst.unwrap_or(new.burst);
        new.window_s = patch.window_s.unwrap_or(new.window_s);
        new.latency_ms = patch.latency_ms.unwrap_or(new.latency_ms);
        new.throttle_next = patch.throttle_next.unwrap_or(new.throttle_next);
        new.models = patch.models.unwrap_or(new.models);
        new.stray_permille = patch.stray_permille.unwrap_or(new.stray_permille);
        if let Some(text) = patch.retry_after {
            new.retry_after = text.map(|text| match text {
                TextOrNumber::Text(text) => text,
                TextOrNumber::Number(seconds) => seconds.to_string(),
            });
        }
        if let Some(burst) = patch.error_burst {
            new.error_burst = burst.filter(|burst| burst.count > 0);
        }
        new.check()?;
        Ok(new)
    }

    pub fn check(&self) -> Result<(), String> {
        for (name, value) in [("rpm", self.rpm), ("burst", self.burst), ("window_s", self.window_s)] {
            if !(1..=1_000_000_000).contains(&value) {
                return Err(format!("{name}: must be from 1 to 1000000000, got {value}"));
            }
        }
        for (model, rpm) in &self.models {
            if !(1..=1_000_000_000).contains(rpm) {
                return Err(format!("models.{model}: must be from 1 to 1000000000, got {rpm}"));
            }
        }
        if self.stray_permille > 1_000 {
            return Err(format!("stray_permille: must be at most 1000, got {}", self.stray_permille));
        }
        if let Some(burst) = self.error_burst
            && !(200..=599).contains(&burst.status)
        {
            return Err(format!("error_burst.status: must be from 200 to 599, got {}", burst.status));
        }
        if let Some(text) = &self.retry_after
            && hyper::header::HeaderValue::from_str(text).is_err()
        {
            return Err("retry_after: not allowed in a header".to_owned());
        }
        Ok(())
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    Pass,
    /// 429, as NVIDIA says it.
    Throttle,
    /// A status of the error burst.
    Fail(u16),
}

#[derive(Debug)]
pub struct Gate {
    config: Config,
    limiter: Limiter,
    models: BTreeMap<String, Limiter>,
    random: u64,
}

impl Gate {
    pub fn new(config: Config, now_us: u64) -> Self {
        let limiter = Limiter::new(config.rules(), now_us);
        let models = config.model_limiters(now_us);
        Self { config, limiter, models, random: 1 }
    }

    pub fn config(&self) -> &Config {
        &self.config
    }

    /// A change of the limiter's rules starts it afresh; any other change leaves what it has counted alone.
    pub fn change(&mut self, patch: Patch, now_us: u64) -> Result<(), String> {
        let new = self.config.patched(patch)?;
        if new.rules() != self.config.rules() {
            self.limiter = Limiter::new(new.rules(), now_us);
        }
        if new.models != self.config.models || new.window_s != self.config.window_s {
            self.models = new.model_limiters(now_us);
        }
        self.config = new;
        Ok(())
    }

    /// Whether the model must be known to decide.
    pub fn asks_for_model(&self) -> bool {
        !self.models.is_empty()
    }

    /// Whether a request is refused for no reason: by chance, but in every run alike.
    fn is_stray(&mut self) -> bool {
        // Knuth's linear congruential generator; its upper bits are good enough.
        self.random = self.random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.random >> 33) % 1_000 < self.config.stray_permille
    }

    /// Decides on one metered request. What `throttle_next` refuses costs the limiter nothing, as any refusal;
    /// what the error burst fails has passed the limiter and is counted there, as a failed call to NVIDIA is.
    pub fn decide(&mut self, now_us: u64, model: Option<&str>) -> Verdict {
        if self.config.throttle_next > 0 {
            self.config.throttle_next -= 1;
            return Verdict::Throttle;
        }
        let is_stray = self.is_stray();
        let own = model.and_then(|model| self.models.get_mut(model));
        if is_stray || own.is_some_and(|own| !own.admit(now_us)) {
            return Verdict::Throttle;
        }
        let admitted = self.limiter.admit(now_us);
        if let Some(burst) = &mut self.config.error_burst {
            let status = burst.status;
            burst.count -= 1;
            if burst.count == 0 {
                self.config.error_burst = None;
            }
            return Verdict::Fail(status);
        }
        if admitted { Verdict::Pass } else { Verdict::Throttle }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn patch(json: &str) -> Patch {
        serde_json::from_str(json).expect("a patch")
    }

    fn gate(json: &str) -> Gate {
        let mut gate = Gate::new(Config::default(), 0);
        gate.change(patch(json), 0).expect("a good patch");
        gate
    }

    #[test]
    fn a_patch_changes_what_it_names_and_nothing_else() {
        let mut gate = gate(r#"{"rpm": 7, "retry_after": 5}"#);
        gate.change(patch(r#"{"burst": 2}"#), 0).unwrap();
        assert_eq!((gate.config().rpm, gate.config().burst, gate.config().window_s), (7, 2, 60));
        assert_eq!(gate.config().retry_after.as_deref(), Some("5"));
        gate.change(patch(r#"{"retry_after": null}"#), 0).unwrap();
        assert_eq!(gate.config().retry_after, None);
    }

    #[test]
    fn impossible_values_are_refused_and_leave_everything_as_it_was() {
        for bad in [
            r#"{"rpm": 0}"#,
            r#"{"burst": 0}"#,
            r#"{"window_s": 0}"#,
            r#"{"error_burst": {"count": 1, "status": 100}}"#,
            r#"{"retry_after": "a\nb"}"#,
        ] {
            let mut gate = Gate::new(Config::default(), 0);
            assert!(gate.change(patch(bad), 0).is_err(), "{bad}");
            assert_eq!(gate.config().rpm, 40);
        }
        assert!(serde_json::from_str::<Patch>(r#"{"rmp": 1}"#).is_err());
    }

    #[test]
    fn throttle_next_comes_first_and_costs_no_token() {
        let mut gate = gate(r#"{"limiter": "token-bucket", "rpm": 1, "burst": 1, "throttle_next": 2}"#);
        let verdicts: Vec<_> = (0..4).map(|_| gate.decide(0, None)).collect();
        let (pass, stop) = (Verdict::Pass, Verdict::Throttle);
        assert_eq!(verdicts, [stop, stop, pass, stop]);
    }

    #[test]
    fn a_model_has_its_own_limit_and_is_not_counted_where_that_refuses() {
        let mut gate = gate(r#"{"limiter": "sliding-window", "rpm": 3, "models": {"weak": 1}}"#);
        let verdicts: Vec<_> =
            ["weak", "weak", "weak", "m", "m", "m"].iter().map(|model| gate.decide(0, Some(model))).collect();
        let (pass, stop) = (Verdict::Pass, Verdict::Throttle);
        assert_eq!(verdicts, [pass, stop, stop, pass, pass, stop]);
    }

    #[test]
    fn strays_are_refused_by_their_share() {
        let mut gate = gate(r#"{"stray_permille": 50}"#);
        let refused = (0..10_000).filter(|_| gate.decide(0, None) == Verdict::Throttle).count();
        assert!((400..600).contains(&refused), "{refused} of 10,000");
    }

    #[test]
    fn an_error_burst_is_counted_by_the_limiter_and_ends() {
        let mut gate =
            gate(r#"{"limiter": "token-bucket", "rpm": 1, "burst": 2, "error_burst": {"count": 1, "status": 500}}"#);
        let verdicts: Vec<_> = (0..3).map(|_| gate.decide(0, None)).collect();
        assert_eq!(verdicts, [Verdict::Fail(500), Verdict::Pass, Verdict::Throttle]);
        assert_eq!(gate.config().error_burst, None);
    }

    #[test]
    fn only_new_rules_start_the_limiter_afresh() {
        let mut gate = gate(r#"{"limiter": "token-bucket", "rpm": 1, "burst": 1}"#);
        assert_eq!(gate.decide(0, None), Verdict::Pass);
        gate.change(patch(r#"{"latency_ms": 0, "burst": 1}"#), 0).unwrap();
        assert_eq!(gate.decide(0, None), Verdict::Throttle);
        gate.change(patch(r#"{"rpm": 2}"#), 0).unwrap();
        assert_eq!(gate.decide(0, None), Verdict::Pass);
    }
}
