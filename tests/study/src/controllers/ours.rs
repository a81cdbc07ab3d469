//! The filter's own controller: the very code that runs in Envoy.

use super::{Answer, Controller, capacity};
use nimgate::bucket::Flow;
use nimgate::retreat::{self, Retreat, RetreatRules};
use nimgate::units::{Instant, Micros, MilliRpm};

pub struct Ours {
    rules: RetreatRules,
    account: Retreat,
}

impl Ours {
    pub fn new(base: MilliRpm) -> Self {
        let rules = RetreatRules {
            enabled: true,
            base,
            floor: MilliRpm::from_rpm(1),
            retry_after_max: Micros::from_secs(300),
            window: Micros::from_secs(60),
        };
        Self { rules, account: Retreat::new(rules) }
    }
}

impl Controller for Ours {
    fn advance(&mut self, now: Instant) {
        self.account.advance(self.rules, now);
    }

    fn flow(&self) -> Flow {
        Flow { rate: self.account.rate(), capacity: self.account.burst(self.rules, capacity(self.rules.base)) }
    }

    fn closed_until(&self) -> Instant {
        self.account.closed_until()
    }

    fn granted(&mut self, now: Instant, _: u64) {
        self.account.granted(self.rules, now);
    }

    fn answered(&mut self, now: Instant, answer: &Answer) {
        let core = retreat::Answer {
            granted_at: answer.granted_at,
            throttled: !answer.admitted && !answer.worker_full,
            retry_after: answer.retry_after,
        };
        let before = self.account.rate();
        let transition = self.account.step(self.rules, now, core);
        if core.throttled && std::env::var_os("TRACE").is_some() {
            eprintln!("{:7.2} 429 granted {:5.2} s ago, rate {before} -> {} {:?}", (now.as_micros() - 1_000_000_000_000) as f64 / 60e6,
                now.since(answer.granted_at).as_secs_f64(), self.account.rate(), transition.map(|t| t.reason));
        }
    }
}
