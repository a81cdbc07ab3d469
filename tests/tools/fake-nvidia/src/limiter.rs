//! The rate limiters the fake can put before its answers. NVIDIA does not say whether its window is fixed, sliding or a bucket,
//! so the tests try nimgate against each. Everything here is pure: `now` comes in as microseconds, integers only,
//! so that a test at a boundary means exactly that boundary.

use std::collections::VecDeque;

use serde::{Deserialize, Serialize};

const MINUTE_US: u64 = 60_000_000;

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Kind {
    None,
    TokenBucket,
    FixedWindow,
    SlidingWindow,
}

/// What a limiter is built from. `rpm` is always per minute: a window of `window_s` seconds admits
/// `rpm * window_s / 60` requests (rounded down, at least one). `burst` is the bucket's capacity and means nothing
/// to the windows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rules {
    pub kind: Kind,
    pub rpm: u64,
    pub burst: u64,
    pub window_s: u64,
}

#[derive(Clone, Debug)]
pub struct Limiter {
    state: State,
    /// Callers on several threads may arrive a few microseconds out of order; time never runs backwards in here.
    last_us: u64,
}

#[derive(Clone, Debug)]
enum State {
    Open,
    /// `level` counts in units of which one token costs `MINUTE_US`, so that each microsecond adds exactly `rpm`.
    Bucket {
        level: u128,
        capacity: u128,
        rpm: u64,
    },
    Fixed {
        start_us: u64,
        window_us: u64,
        used: u64,
        limit: u64,
    },
    Sliding {
        admitted_us: VecDeque<u64>,
        window_us: u64,
        limit: u64,
    },
}

impl Limiter {
    /// A fresh limiter: the bucket is full, and the first fixed window begins at `now_us`.
    pub fn new(rules: Rules, now_us: u64) -> Self {
        let window_us = rules.window_s.saturating_mul(1_000_000);
        let limit = (rules.rpm.saturating_mul(rules.window_s) / 60).max(1);
        let state = match rules.kind {
            Kind::None => State::Open,
            Kind::TokenBucket => {
                let capacity = u128::from(rules.burst) * u128::from(MINUTE_US);
                State::Bucket { level: capacity, capacity, rpm: rules.rpm }
            }
            Kind::FixedWindow => State::Fixed { start_us: now_us, window_us, used: 0, limit },
            Kind::SlidingWindow => State::Sliding { admitted_us: VecDeque::new(), window_us, limit },
        };
        Self { state, last_us: now_us }
    }

    /// Whether a request at `now_us` is let in. A refused request costs nothing.
    pub fn admit(&mut self, now_us: u64) -> bool {
        let now = now_us.max(self.last_us);
        let elapsed = now - self.last_us;
        self.last_us = now;
        match &mut self.state {
            State::Open => true,
            State::Bucket { level, capacity, rpm } => {
                let refill = u128::from(elapsed) * u128::from(*rpm);
                *level = (*level + refill).min(*capacity);
                let price = u128::from(MINUTE_US);
                let enough = *level >= price;
                if enough {
                    *level -= price;
                }
                enough
            }
            State::Fixed { start_us, window_us, used, limit } => {
                let windows = (now - *start_us) / *window_us;
                if windows > 0 {
                    *start_us += windows * *window_us;
                    *used = 0;
                }
                let free = *used < *limit;
                if free {
                    *used += 1;
                }
                free
            }
            State::Sliding { admitted_us, window_us, limit } => {
                // A request exactly one window old has left the window.
                while admitted_us.front().is_some_and(|&then| now - then >= *window_us) {
                    admitted_us.pop_front();
                }
                let free = (admitted_us.len() as u64) < *limit;
                if free {
                    admitted_us.push_back(now);
                }
                free
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: u64 = 1_000_000;

    fn limiter(kind: Kind, rpm: u64, burst: u64, window_s: u64) -> Limiter {
        let rules = Rules { kind, rpm, burst, window_s };
        Limiter::new(rules, 0)
    }

    fn admitted(limiter: &mut Limiter, now_us: u64, tries: usize) -> usize {
        (0..tries).filter(|_| limiter.admit(now_us)).count()
    }

    #[test]
    fn none_lets_everything_in() {
        assert_eq!(admitted(&mut limiter(Kind::None, 1, 1, 1), 0, 10_000), 10_000);
    }

    #[test]
    fn a_bucket_starts_full_and_refills_to_the_microsecond() {
        let mut bucket = limiter(Kind::TokenBucket, 40, 4, 60);
        assert_eq!(admitted(&mut bucket, 0, 10), 4);
        // 40 a minute is one token each 1.5 s.
        assert!(!bucket.admit(1_499_999));
        assert!(bucket.admit(1_500_000));
        assert!(!bucket.admit(2_999_999));
        assert!(bucket.admit(3_000_000));
    }

    #[test]
    fn a_bucket_never_holds_more_than_its_burst() {
        let mut bucket = limiter(Kind::TokenBucket, 40, 4, 60);
        assert_eq!(admitted(&mut bucket, 3_600 * SECOND, 10), 4);
    }

    #[test]
    fn refusals_do_not_slow_a_bucket_down() {
        let mut bucket = limiter(Kind::TokenBucket, 7, 1, 60);
        assert!(bucket.admit(0));
        // 7 a minute does not divide a minute: the token is due after 8571428.57.. microseconds, however often one asks.
        for now in (0..8_571_428).step_by(999) {
            assert!(!bucket.admit(now), "{now}");
        }
        assert!(!bucket.admit(8_571_428));
        assert!(bucket.admit(8_571_429));
    }

    #[test]
    fn a_fixed_window_forgets_all_at_its_boundary() {
        let mut fixed = limiter(Kind::FixedWindow, 40, 4, 60);
        assert_eq!(admitted(&mut fixed, 59_999_999, 50), 40);
        assert_eq!(admitted(&mut fixed, 60_000_000, 50), 40, "79 or 80 within a moment: that is the flaw");
        assert_eq!(admitted(&mut fixed, 119_999_999, 50), 0);
        assert_eq!(admitted(&mut fixed, 120_000_000, 50), 40);
    }

    #[test]
    fn fixed_windows_stay_on_their_grid_over_idle_ones() {
        let mut fixed = Limiter::new(Rules { kind: Kind::FixedWindow, rpm: 60, burst: 1, window_s: 10 }, 5 * SECOND);
        assert_eq!(admitted(&mut fixed, 38 * SECOND, 20), 10);
        assert!(!fixed.admit(45 * SECOND - 1));
        assert!(fixed.admit(45 * SECOND));
    }

    #[test]
    fn a_sliding_window_frees_each_place_one_window_later() {
        let mut sliding = limiter(Kind::SlidingWindow, 60, 1, 2);
        assert!(sliding.admit(0));
        assert!(sliding.admit(SECOND));
        assert!(!sliding.admit(2 * SECOND - 1));
        assert!(sliding.admit(2 * SECOND));
        assert!(!sliding.admit(3 * SECOND - 1));
        assert!(sliding.admit(3 * SECOND));
    }

    #[test]
    fn a_sliding_window_never_holds_more_than_its_limit_in_any_window() {
        let mut sliding = limiter(Kind::SlidingWindow, 40, 1, 60);
        let times: Vec<u64> = (0..400 * SECOND).step_by(333_333).filter(|&now| sliding.admit(now)).collect();
        assert!(times.len() > 200);
        for (index, &first) in times.iter().enumerate() {
            let inside = times[index..].iter().take_while(|&&t| t - first < MINUTE_US).count();
            assert!(inside <= 40, "{inside} from {first}");
        }
    }

    #[test]
    fn a_small_window_admits_at_least_one() {
        assert_eq!(admitted(&mut limiter(Kind::SlidingWindow, 1, 1, 1), 0, 5), 1);
        assert_eq!(admitted(&mut limiter(Kind::FixedWindow, 1, 1, 1), 0, 5), 1);
    }

    #[test]
    fn time_running_backwards_is_taken_as_standing_still() {
        for kind in [Kind::TokenBucket, Kind::FixedWindow, Kind::SlidingWindow] {
            let mut limiter = limiter(kind, 60, 1, 1);
            assert!(limiter.admit(10 * SECOND), "{kind:?}");
            assert!(!limiter.admit(0), "{kind:?}");
            assert!(limiter.admit(11 * SECOND), "{kind:?}");
        }
    }
}
