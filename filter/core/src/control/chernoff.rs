//! How unlikely a number of refusals is.

/// How unlikely it is that `refused` or more are refused where `expected` are on average, in nats (Chernoff's bound for
/// Poisson's distribution).
pub(crate) fn chernoff(refused: f64, expected: f64) -> f64 {
    if refused <= expected {
        0.0
    } else {
        refused * (refused / expected.max(f64::MIN_POSITIVE)).ln() - (refused - expected)
    }
}
