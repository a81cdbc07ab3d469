//! When a budget has something to grant.

use crate::units::Instant;

/// Whether there is enough for a request, or when there will be.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Ready {
    /// There is.
    Now,
    /// There will be at this time, if nothing else is taken before.
    At(Instant),
    /// Not before something ends, which no clock tells: whoever ends it wakes whoever is next.
    OnEvent,
}

impl Ready {
    /// Ready for a request that needs both budgets.
    pub fn and(self, other: Self) -> Self {
        match (self, other) {
            (Self::OnEvent, _) | (_, Self::OnEvent) => Self::OnEvent,
            (Self::At(one), Self::At(two)) => Self::At(one.max(two)),
            (Self::At(at), Self::Now) | (Self::Now, Self::At(at)) => Self::At(at),
            (Self::Now, Self::Now) => Self::Now,
        }
    }

    pub(crate) fn is_now(self) -> bool {
        self == Self::Now
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    #[cfg(all(target_arch = "wasm32", target_os = "unknown"))]
    use wasm_bindgen_test::wasm_bindgen_test as test;

    #[test]
    fn a_request_goes_when_all_its_budgets_are_ready() {
        let at = |micros| Ready::At(Instant::from_micros(micros));
        assert_eq!(Ready::Now.and(Ready::Now), Ready::Now);
        assert_eq!((Ready::Now.and(at(5)), at(5).and(Ready::Now)), (at(5), at(5)));
        assert_eq!((at(5).and(at(7)), at(7).and(at(5))), (at(7), at(7)));
        assert_eq!((at(5).and(Ready::OnEvent), Ready::OnEvent.and(Ready::Now)), (Ready::OnEvent, Ready::OnEvent));
        assert!(Ready::Now.is_now() && !at(5).is_now());
    }
}
