//! Planted bugs: ways in which the simulated host can be made wrong, so that each check is seen to catch something.

/// A planted bug.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Mutant {
    /// A swap that is reported as lost is in place all the same.
    LostCasApplied,
    /// A swap overwrites whatever is there.
    Overwrite,
    /// Each VM has shared data of its own.
    OwnData,
    /// A value is read that was replaced before, with the version of the present one.
    StaleGet,
    /// A request that the filter lets go stays where it is.
    DropResume,
    /// From some time on every swap is lost.
    LostForever,
    /// A resumed request is sent twice.
    DuplicateResume,
    /// The filter is not told that a client left.
    DropLeave,
    /// A reply never reaches its client.
    DropReply,
    /// The filter reads another priority than the client sent.
    SwapPriority,
    /// The same on one worker only.
    SwapPriorityOfOne,
    /// No wake-up reaches another worker.
    DropWakes,
    /// One worker's timer never fires.
    DropTicks,
    /// The clock runs a tenth too fast.
    FastClock,
    /// One worker's clock is half a second behind.
    SkewedClock,
    /// The clock goes back by a minute at every step back.
    LongStepBack,
    /// Some counters' increments are lost.
    DropCounts,
    /// Some gauges' decrements are lost.
    DropGauge,
    /// A corrupted record is gone instead, so that a new one with a full bucket takes its place.
    CorruptErases,
    /// A reload erases the ledger.
    ReloadErases,
    /// The filter does not see `retry-after`.
    HideRetryAfter,
    /// The rate that the filter is told is ten times the one configured.
    WrongRate,
    /// The filter is told that there is no window.
    NoWindow,
    /// The filter is told a longer timeout than the one configured.
    WrongTimeout,
    /// The filter is told a larger bound of the queue than the one configured.
    WrongQueueMax,
    /// With a worker that crashes the timers of all others stop.
    CrashSpreads,
    /// A crashed worker goes on without its streams.
    Zombie,
    /// Requests that are none of the filter's business look as if they were.
    MeterAll,
}

impl Mutant {
    /// All planted bugs, each with the invariants of which one must be found broken.
    pub const ALL: [(Self, &'static [&'static str]); 28] = [
        (Self::LostCasApplied, &["I5", "I12"]),
        (Self::Overwrite, &["I1", "I2"]),
        (Self::OwnData, &["I1", "I2", "I7", "I12"]),
        (Self::StaleGet, &["I1", "I2", "I12"]),
        (Self::DropResume, &["I3", "I5", "I10"]),
        (Self::LostForever, &["I13"]),
        (Self::DuplicateResume, &["I3"]),
        (Self::DropLeave, &["I4"]),
        (Self::DropReply, &["I3", "I8"]),
        (Self::SwapPriority, &["I6"]),
        (Self::SwapPriorityOfOne, &["I7"]),
        (Self::DropWakes, &["I10"]),
        (Self::DropTicks, &["I8"]),
        (Self::FastClock, &["I1"]),
        (Self::SkewedClock, &["I2", "I9", "I10"]),
        (Self::LongStepBack, &["I17"]),
        (Self::DropCounts, &["I20"]),
        (Self::DropGauge, &["I12"]),
        (Self::CorruptErases, &["I14"]),
        (Self::ReloadErases, &["I15"]),
        (Self::HideRetryAfter, &["I16"]),
        (Self::WrongRate, &["I1", "I2", "I16"]),
        (Self::NoWindow, &["I2"]),
        (Self::WrongTimeout, &["I11"]),
        (Self::WrongQueueMax, &["I12"]),
        (Self::Zombie, &["I4"]),
        (Self::CrashSpreads, &["I18"]),
        (Self::MeterAll, &["I19"]),
    ];
}
