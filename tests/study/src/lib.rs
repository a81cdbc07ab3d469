//! A study of the 429 retreat in virtual time: the filter's controller and others that are known, each before the same
//! upstreams with hidden limits and the same demand, compared with a scheduler that knows everything.

pub mod controllers;
pub mod demand;
pub mod engine;
pub mod omniscient;
pub mod report;
pub mod scenario;
pub mod upstream;

/// Virtual time, in microseconds.
pub type Time = u64;

/// A second of virtual time.
pub const SECOND: Time = 1_000_000;

/// The window in which upstreams count, and in which the study counts.
pub const WINDOW: Time = 60 * SECOND;
