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
    /// The end of a stream wakes nobody.
    EndWakesNobody,
    /// The end of a stream frees two slots.
    SlotFreedTwice,
    /// A worker forgets which model a request asks for, so it may go whenever that worker looks.
    ForgottenModel,
    /// Of the retries of Envoy's router the last is not charged.
    ForgottenRetry,
    /// A change of the rules by an operator wakes nobody.
    OverrideWakesNobody,
    /// What was granted is not counted in the window.
    WindowForgotten,
    /// In shadow mode requests are held.
    ShadowHolds,
    /// A callback that looks at both limits forgets whom the first wakes.
    WakesOfOneLimit,
    /// A callback reads the time for the first limit that it looks at, and decides on the second by that too.
    OneTimeForAll,
    /// A swap that is lost after another limit's was made is taken for made.
    SecondSwapTakenForMade,
}

impl Bug {
    /// Those that every way of choosing schedules must find.
    pub const PLANTED: [Self; 5] =
        [Self::UnconditionalFirstWrite, Self::StaleRetry, Self::DoubleRefill, Self::ForgottenWake, Self::OldTime];

    /// Those of several limits, which only the explorer plays.
    pub const OF_SEVERAL_LIMITS: [Self; 3] = [Self::WakesOfOneLimit, Self::OneTimeForAll, Self::SecondSwapTakenForMade];

    /// Those of streams, models, retries, windows, operators and shadow mode, which only the explorer plays.
    pub const OF_STREAMS: [Self; 7] = [
        Self::EndWakesNobody,
        Self::SlotFreedTwice,
        Self::ForgottenModel,
        Self::ForgottenRetry,
        Self::OverrideWakesNobody,
        Self::WindowForgotten,
        Self::ShadowHolds,
    ];
}
