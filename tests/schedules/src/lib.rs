//! Several workers on one ledger, under all schedules and under very many.
//!
//! The workers run the filter's own scheduler, store loop and ledger; only what lies behind the `Store` trait is the
//! test's. There are three ways to choose who goes next:
//!
//! | tests | schedules |
//! | --- | --- |
//! | `tests/exhaustive.rs` | every one, between any two of: a look at the ledger, at the clock, a swap, a step of the clock, a wake-up, a timer; by [`explorer`], which knows a state again when it meets it on another way |
//! | `tests/loom.rs` | every one of a smaller case, run whole from start to end by loom |
//! | `tests/shuttle.rs` | very many of a larger case, drawn at random by shuttle |
//!
//! A test that finds nothing proves something only if it would have found it, so bugs can be planted ([`Bug`]), and
//! each way must find each of them.

pub mod explorer;
pub mod invariants;
pub mod locked;
pub mod record;
pub mod worker;

/// What is planted.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Bug {
    /// Nothing.
    None,
    /// The first write of a key overwrites whatever is there.
    UnconditionalFirstWrite,
    /// After a lost race the old decision is written over the fresh value.
    StaleRetry,
    /// A refill is credited, and the time it was for is credited again.
    DoubleRefill,
    /// A worker that should be woken is not.
    ForgottenWake,
    /// The time is read when a worker's callback begins and not after the ledger.
    OldTime,
}

impl Bug {
    /// All that can be planted.
    pub const PLANTED: [Self; 5] =
        [Self::UnconditionalFirstWrite, Self::StaleRetry, Self::DoubleRefill, Self::ForgottenWake, Self::OldTime];
}
