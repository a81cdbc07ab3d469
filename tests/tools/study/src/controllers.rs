//! The controllers compared. Each sets the rate of the same queue, bucket and window guard.

use crate::demand::Request;
use nimgate_core::control::rate::RetreatRules;
use nimgate_core::supply::bucket::Flow;
use nimgate_core::units::{Instant, Micros, MilliRpm};

mod aimd;
mod aws;
mod fixed_steps;
mod ours;

/// An answer of the upstream.
#[derive(Clone, Copy, Debug)]
pub struct Feedback {
    /// When its request was granted.
    pub granted_at: Instant,
    /// The model it asked for.
    pub model: u64,
    /// Whose credentials it carried.
    pub credential: u64,
    /// Whether it was admitted.
    pub admitted: bool,
    /// Whether it is a 503 that says that the model's workers are busy.
    pub worker_full: bool,
    /// What a 429 says of when to come back.
    pub retry_after: Option<Micros>,
}

/// What sets the rate.
pub trait Controller {
    /// Lets time pass.
    fn advance(&mut self, now: Instant);
    /// The bucket's rate and capacity.
    fn flow(&self) -> Flow;
    /// Until when nothing may be granted.
    fn closed_until(&self) -> Instant {
        Instant::ZERO
    }
    /// From when on requests for a model may be granted.
    fn model_open_at(&mut self, model: u64, now: Instant) -> Instant {
        let _ = (model, now);
        Instant::ZERO
    }
    /// A request was granted.
    fn granted(&mut self, now: Instant, request: &Request) {
        let _ = (now, request);
    }
    /// The upstream answered.
    fn answered(&mut self, now: Instant, answer: &Feedback);
}

/// Which controller to study.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Which {
    /// The filter's own, with so many windows between two probes.
    Nimgate {
        probe_windows: u32,
    },
    /// Always the rate that the upstream allows on average, which nobody can know.
    LimitKnown,
    /// Always the configured rate.
    None,
    FixedSteps,
    Aimd,
    Aws,
}

impl Which {
    /// All of them, in the order of the tables.
    pub const ALL: [Self; 6] = [
        Self::Nimgate { probe_windows: RetreatRules::DEFAULT.probe_windows },
        Self::None,
        Self::FixedSteps,
        Self::Aimd,
        Self::Aws,
        Self::LimitKnown,
    ];

    /// Its name in the tables.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Nimgate { .. } => "nimgate",
            Self::LimitKnown => "limit known",
            Self::None => "no retreat",
            Self::FixedSteps => "fixed steps",
            Self::Aimd => "AIMD",
            Self::Aws => "AWS adaptive",
        }
    }

    /// It, before a limit configured as `rate_rpm` of which the upstream allows `allowed_rpm`.
    pub fn make(self, rate_rpm: u32, allowed_rpm: f64) -> Box<dyn Controller> {
        let base = MilliRpm::from_rpm(rate_rpm);
        match self {
            Self::Nimgate { probe_windows } => Box::new(ours::Ours::new(base, probe_windows)),
            Self::LimitKnown => Box::new(Constant(MilliRpm::new((allowed_rpm * 1e3) as u32))),
            Self::None => Box::new(Constant(base)),
            Self::FixedSteps => Box::new(fixed_steps::FixedSteps::new(base)),
            Self::Aimd => Box::new(aimd::Aimd::new(base)),
            Self::Aws => Box::new(aws::Aws::new(base)),
        }
    }
}

/// The configured burst.
fn capacity(base: MilliRpm) -> u32 {
    (base.as_rpm() / 10).max(1)
}

/// Always one rate.
struct Constant(MilliRpm);

impl Controller for Constant {
    fn advance(&mut self, _: Instant) {}
    fn flow(&self) -> Flow {
        Flow { rate: self.0, capacity: capacity(self.0) }
    }
    fn answered(&mut self, _: Instant, _: &Feedback) {}
}
