//! The controllers compared. Each sets the pace of the same queue, bucket and window guard.

use nimgate::bucket::Flow;
use nimgate::units::{Instant, Micros, MilliRpm};

mod aimd;
mod aws;
mod fixed_steps;
mod ours;

/// An answer of the upstream.
#[derive(Clone, Copy, Debug)]
pub struct Answer {
    /// When its request was granted.
    pub granted_at: Instant,
    /// The model it asked for.
    pub model: u64,
    /// Whether it was admitted.
    pub admitted: bool,
    /// Whether it is a 503 that says that the model's workers are busy.
    pub worker_full: bool,
    /// What a 429 says of when to come back.
    pub retry_after: Option<Micros>,
}

/// What sets the pace.
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
    fn granted(&mut self, now: Instant, model: u64) {
        let _ = (now, model);
    }
    /// The upstream answered.
    fn answered(&mut self, now: Instant, answer: &Answer);
}

/// The names of the controllers, in the order of the tables.
pub const NAMES: [&str; 6] = ["nimgate", "limit known", "none", "fixed steps", "AIMD", "AWS adaptive"];

/// The controller called `name`, before a limit configured as `rate_rpm`.
pub fn by_name(name: &str, rate_rpm: u32, allowed_rpm: f64) -> Box<dyn Controller> {
    let base = MilliRpm::from_rpm(rate_rpm);
    match name {
        "limit known" => Box::new(Nothing(MilliRpm::new((allowed_rpm * 1e3) as u32))),
        "nimgate" => Box::new(ours::Ours::new(base)),
        "fixed steps" => Box::new(fixed_steps::FixedSteps::new(base)),
        "AIMD" => Box::new(aimd::Aimd::new(base)),
        "AWS adaptive" => Box::new(aws::Aws::new(base)),
        _ => Box::new(Nothing(base)),
    }
}

/// The configured burst.
fn capacity(base: MilliRpm) -> u32 {
    (base.as_rpm() / 10).max(1)
}

/// No retreat: always the configured rate.
struct Nothing(MilliRpm);

impl Controller for Nothing {
    fn advance(&mut self, _: Instant) {}
    fn flow(&self) -> Flow {
        Flow { rate: self.0, capacity: capacity(self.0) }
    }
    fn answered(&mut self, _: Instant, _: &Answer) {}
}
