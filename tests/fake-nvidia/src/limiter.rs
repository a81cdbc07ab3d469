//! The hidden limit: three ways in which a provider may count. Time comes in, so that the edges can be tested.

use serde::{Deserialize, Serialize};
use std::collections::VecDeque;

/// How requests are counted.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Kind {
    /// Not at all.
    #[default]
    None,
    /// `burst` at once, refilled at `rpm`.
    TokenBucket,
    /// `rpm × window / 60` in each window, counted from the first request on.
    FixedWindow,
    /// `rpm × window / 60` in any window.
    SlidingWindow,
}

/// A limit's numbers.
#[derive(Clone, Copy, PartialEq, Debug)]
pub struct Limits {
    pub kind: Kind,
    pub rpm: f64,
    pub burst: f64,
    pub window_s: f64,
}

/// A limit's state.
#[derive(Debug, Default)]
pub struct Limiter {
    tokens: Option<f64>,
    refilled_us: u64,
    window_began_us: Option<u64>,
    in_window: u64,
    admitted_us: VecDeque<u64>,
}

impl Limiter {
    /// Whether one more request is let in at `now_us`.
    pub fn admit(&mut self, limits: Limits, now_us: u64) -> bool {
        let quota = (limits.rpm * limits.window_s / 60.0).max(0.0) as u64;
        let window_us = (limits.window_s * 1e6) as u64;
        match limits.kind {
            Kind::None => true,
            Kind::TokenBucket => {
                let elapsed_s = now_us.saturating_sub(self.refilled_us) as f64 / 1e6;
                let before = self.tokens.unwrap_or(limits.burst);
                let level = (before + elapsed_s * limits.rpm / 60.0).min(limits.burst);
                self.refilled_us = now_us;
                // A request that comes to the microsecond with its token must not fail by a rounding of floats.
                let admitted = level >= 1.0 - 1e-6;
                self.tokens = Some(if admitted {
                    (level - 1.0).max(0.0)
                } else {
                    level
                });
                admitted
            }
            Kind::FixedWindow => {
                let began = *self.window_began_us.get_or_insert(now_us);
                let passed = now_us.saturating_sub(began) / window_us.max(1);
                if passed > 0 {
                    self.window_began_us = Some(began + passed * window_us);
                    self.in_window = 0;
                }
                let admitted = self.in_window < quota;
                self.in_window += u64::from(admitted);
                admitted
            }
            Kind::SlidingWindow => {
                while self
                    .admitted_us
                    .front()
                    .is_some_and(|at| now_us.saturating_sub(*at) >= window_us)
                {
                    self.admitted_us.pop_front();
                }
                let admitted = (self.admitted_us.len() as u64) < quota;
                if admitted {
                    self.admitted_us.push_back(now_us);
                }
                admitted
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn limits(kind: Kind) -> Limits {
        Limits {
            kind,
            rpm: 60.0,
            burst: 2.0,
            window_s: 3.0,
        }
    }

    fn admitted(kind: Kind, at_ms: &[u64]) -> Vec<bool> {
        let mut limiter = Limiter::default();
        at_ms
            .iter()
            .map(|ms| limiter.admit(limits(kind), 5_000_000 + ms * 1_000))
            .collect()
    }

    #[test]
    fn a_token_bucket_gives_its_burst_and_then_its_rate() {
        assert_eq!(
            admitted(Kind::TokenBucket, &[0, 0, 0, 999, 1_000, 1_001]),
            [true, true, false, false, true, false]
        );
    }

    #[test]
    fn a_fixed_window_forgets_all_at_once() {
        assert_eq!(
            admitted(
                Kind::FixedWindow,
                &[0, 1, 2_998, 2_999, 3_000, 3_001, 3_002, 3_003]
            ),
            [true, true, true, false, true, true, true, false]
        );
    }

    #[test]
    fn a_sliding_window_forgets_one_by_one() {
        assert_eq!(
            admitted(Kind::SlidingWindow, &[0, 1_000, 2_000, 2_999, 3_000, 3_001]),
            [true, true, true, false, true, false]
        );
    }

    #[test]
    fn no_limit_lets_all_in() {
        assert!(
            admitted(Kind::None, &[0; 100])
                .into_iter()
                .all(|admitted| admitted)
        );
    }
}
