//! Which configuration's rules are in force.
//!
//! A new configuration puts its rules in force when Envoy hands it to the filter. But Envoy hands over each
//! configuration once: whoever goes back from the second to the first while the first still drains gets its old
//! contexts again, and the filter is told nothing. So each metered request says under which rules it came and on which
//! connection. Envoy numbers its connections in the order in which they are opened, and a configuration that has been
//! replaced gets no new ones. If one does get new ones, and the one in force gets none for [`CONTEST`], it is in use
//! again.
//!
//! An operator may lay other rules over the configured ones while Envoy runs (the console's `POST /config`). These are in
//! force until the configuration's own rules change; a configuration that says what it said before is no change.
//!
//! One new connection alone proves little: it may be old, and have brought nothing yet that had to be metered; and while
//! Envoy moves its workers to a new configuration, one of them may accept a connection under the old one later than
//! another does under the new. It is believed only after [`CONTEST_ALONE`].

use super::Rules;
use crate::units::{Instant, Micros};

/// Where a request comes from.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Origin {
    /// The rules of the configuration under which it came.
    pub rules: Rules,
    /// The number of its connection, greater for newer ones; 0 where the host can't say.
    pub connection: u64,
}

/// A configuration that is not in force, and has had a new connection.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Contender {
    /// Since when it has been known.
    pub since: Instant,
    /// Its connection.
    pub connection: u64,
}

/// The rules in force, and what may come to replace them.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct InForce {
    /// The rules.
    pub rules: Rules,
    configured: Rules,
    epoch: u32,
    newest: u64,
    contender: Option<Contender>,
}

/// What a request's origin means.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Claim {
    /// Nothing new.
    Known,
    /// Something to remember.
    Noted,
    /// Its rules are to be adopted.
    Won,
}

impl InForce {
    /// These rules, and no contender.
    pub fn new(rules: Rules) -> Self {
        Self { rules, configured: rules, epoch: 1, newest: 0, contender: None }
    }

    /// All there is, for the record: the rules, those of the configuration, the epoch, the newest connection's number,
    /// the contender.
    pub fn from_parts(rules: Rules, configured: Rules, epoch: u32, newest: u64, contender: Option<Contender>) -> Self {
        Self { rules, configured, epoch, newest, contender }
    }

    /// The rules of the configuration, which are in force unless an operator laid others over them.
    pub fn configured(&self) -> &Rules {
        &self.configured
    }

    /// How many times rules have been put in force, from 1.
    pub fn epoch(&self) -> u32 {
        self.epoch
    }

    /// The newest connection's number and the contender.
    pub fn parts(&self) -> (u64, Option<Contender>) {
        (self.newest, self.contender)
    }

    /// Puts the rules of a configuration in force, whatever was laid over those before.
    pub fn adopt(&mut self, rules: Rules) {
        self.configured = rules;
        self.contender = None;
        self.steer(rules);
    }

    /// Lays other rules over those of the configuration.
    pub fn steer(&mut self, rules: Rules) {
        self.rules = rules;
        self.epoch = self.epoch.saturating_add(1);
    }

    /// Takes note of a request's origin.
    pub fn claim(&mut self, origin: &Origin, now: Instant) -> Claim {
        let is_new = origin.connection > self.newest;
        self.newest = self.newest.max(origin.connection);
        let noted = if is_new { Claim::Noted } else { Claim::Known };
        let in_use = origin.rules == self.configured;
        match self.contender {
            Some(contender) if in_use && origin.connection > contender.connection => {
                self.contender = None;
                Claim::Noted
            }
            Some(contender) if !in_use && origin.connection >= contender.connection => {
                let contest = if origin.connection > contender.connection { CONTEST } else { CONTEST_ALONE };
                if now >= contender.since.after(contest) { Claim::Won } else { noted }
            }
            None if !in_use && is_new => {
                self.contender = Some(Contender { since: now, connection: origin.connection });
                Claim::Noted
            }
            Some(_) | None => noted,
        }
    }
}

/// How long the configuration in force must go without a new connection, while another gets them, to be replaced. Far
/// longer than Envoy's workers need to follow one another.
pub const CONTEST: Micros = Micros::from_secs(5);

/// The same if the other has had one new connection only.
pub const CONTEST_ALONE: Micros = Micros::from_secs(60);

#[cfg(test)]
mod tests {
    use super::*;
    use crate::queue::Patience;
    use crate::retreat::RetreatRules;
    use crate::units::MilliRpm;
    #[cfg(all(target_arch = "wasm32", target_os = "unknown"))]
    use wasm_bindgen_test::wasm_bindgen_test as test;

    fn rules(capacity: u32) -> Rules {
        Rules {
            capacity,
            queue_max: 1,
            aging: None,
            window: Micros::ZERO,
            patience: Patience { low: Micros::from_secs(1), others: Micros::from_secs(1) },
            may_fall_back: false,
            shadow: false,
            retreat: RetreatRules {
                enabled: true,
                base: MilliRpm::from_rpm(60),
                floor: MilliRpm::from_rpm(1),
                retry_after_max: Micros::ZERO,
                obey_503: false,
                probe_windows: 5,
                window: Micros::from_secs(60),
            },
        }
    }

    fn at(secs: u64) -> Instant {
        Instant::ZERO.after(Micros::from_secs(1_000 + secs))
    }

    /// The rules 2 have replaced the rules 1, under which connection 10 came.
    fn replaced() -> InForce {
        let mut in_force = InForce::new(rules(1));
        assert_eq!(in_force.claim(&Origin { rules: rules(1), connection: 10 }, at(0)), Claim::Noted);
        in_force.adopt(rules(2));
        in_force
    }

    fn claims(in_force: &mut InForce, capacity: u32, connection: u64, secs: u64) -> Claim {
        in_force.claim(&Origin { rules: rules(capacity), connection }, at(secs))
    }

    #[test]
    fn an_old_connection_brings_nothing_back() {
        let mut in_force = replaced();
        for secs in [1, 10, 1_000] {
            assert_eq!(claims(&mut in_force, 1, 10, secs), Claim::Known);
        }
    }

    #[test]
    fn new_connections_alone_bring_a_configuration_back() {
        let mut in_force = replaced();
        assert_eq!(claims(&mut in_force, 1, 11, 1), Claim::Noted);
        assert_eq!(claims(&mut in_force, 1, 12, 5), Claim::Noted);
        assert_eq!(claims(&mut in_force, 1, 12, 6), Claim::Won);
    }

    #[test]
    fn a_single_new_connection_is_believed_late() {
        let mut in_force = replaced();
        assert_eq!(claims(&mut in_force, 1, 11, 1), Claim::Noted);
        assert_eq!(claims(&mut in_force, 1, 11, 60), Claim::Known);
        assert_eq!(claims(&mut in_force, 1, 11, 61), Claim::Won);
    }

    #[test]
    fn a_worker_that_follows_late_brings_nothing_back() {
        let mut in_force = replaced();
        assert_eq!(claims(&mut in_force, 1, 12, 1), Claim::Noted);
        assert_eq!(claims(&mut in_force, 2, 11, 1), Claim::Known);
        assert_eq!(claims(&mut in_force, 2, 13, 2), Claim::Noted);
        assert_eq!(claims(&mut in_force, 1, 12, 60), Claim::Known);
    }

    #[test]
    fn a_configuration_in_use_is_not_replaced() {
        let mut in_force = replaced();
        for connection in 6..30 {
            assert_ne!(claims(&mut in_force, 1, 2 * connection, connection), Claim::Won);
            assert_ne!(claims(&mut in_force, 2, 2 * connection + 1, connection), Claim::Won);
        }
    }

    #[test]
    fn what_an_operator_laid_over_a_configuration_in_use_stays() {
        let mut in_force = replaced();
        in_force.steer(rules(3));
        for connection in 11..30 {
            assert_ne!(claims(&mut in_force, 2, connection, 10 * connection), Claim::Won);
        }
        assert_eq!((in_force.rules, *in_force.configured(), in_force.epoch()), (rules(3), rules(2), 3));
    }

    #[test]
    fn a_host_that_numbers_no_connections_changes_nothing() {
        let mut in_force = replaced();
        assert_eq!(claims(&mut in_force, 1, 0, 1), Claim::Known);
        assert_eq!(claims(&mut in_force, 1, 0, 60), Claim::Known);
    }
}
