//! `POST /config`: other rules for one limit, while the process runs.
//!
//! A change names one limit, because what all workers agree on is one record for each limit: so a change is in force as
//! a whole, everywhere, or not at all. It lies over the configuration's own rules until those change or the process
//! ends.

use super::reply::Reply;
use crate::config::change::Change;
use crate::ledger::{Ledger, Rules, Snapshot};
use crate::retreat::Transition;
use crate::store::{Store, StoreError};
use crate::units::{Instant, WorkerId};
use serde::Serialize;

/// A change that is in force.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Steered {
    /// Which limit.
    pub limit: String,
    /// The epoch of its rules.
    pub epoch: u32,
    /// Its rules before.
    pub before: Rules,
    /// Its rules now.
    pub after: Rules,
    /// Those of the configuration.
    pub configured: Rules,
    /// The ledger after it.
    pub snapshot: Snapshot,
    /// What the change did to the retreat.
    pub transition: Option<Transition>,
    /// The workers that have someone waiting, who may go sooner now.
    pub waiting_at: Vec<WorkerId>,
}

/// Takes up a change. `names` are the limits there are.
///
/// # Errors
/// The answer that says why nothing was changed.
pub fn steer<S: Store>(body: &[u8], names: &[String], now: Instant, store: &mut S) -> Result<Steered, Reply> {
    let invalid = |path: &str, problem: &str| {
        let param = (!path.is_empty()).then_some(path);
        let message = match param {
            Some(path) => format!("{path}: {problem}"),
            None => problem.to_owned(),
        };
        Reply::refusal(400, "InvalidRequestError", "invalid_change", param, &message)
    };
    let change = Change::parse(body).map_err(|error| invalid(&error.path, &error.problem))?;
    let seen = change.epoch().map_err(|error| invalid(&error.path, &error.problem))?;
    let limit = match (&change.limit, names) {
        (Some(limit), _) => limit,
        (None, [only]) => only,
        (None, _) => {
            return Err(invalid("limit", &format!("is missing; there are {} limits, so name one", names.len())));
        }
    };
    if !names.contains(limit) {
        return Err(Reply::refusal(
            404,
            "NotFoundError",
            "unknown_limit",
            Some("limit"),
            "limit: there is no limit of this name; /status lists those there are",
        ));
    }
    let decided = store.measure_and_replace(&Ledger::key(limit), |present, clock| {
        let now = clock.unwrap_or(now);
        let Some(mut ledger) = present.and_then(Ledger::decode) else {
            return (None, Err(unavailable("the limit has no record that can be read")));
        };
        if seen.is_some_and(|seen| seen != ledger.epoch()) {
            return (None, Err(superseded(ledger.epoch())));
        }
        let passed = ledger.advance(now);
        let (before, configured) = (*ledger.rules(), *ledger.configured());
        let after = match change.apply(&configured, &before) {
            Ok(rules) => rules,
            Err(error) => return (None, Err(invalid(&error.path, &error.problem))),
        };
        let differs = after != before;
        let transition = if differs { ledger.steer(after, now).or(passed) } else { None };
        let steered = Steered {
            limit: limit.clone(),
            epoch: ledger.epoch(),
            before,
            after,
            configured,
            snapshot: ledger.snapshot(now),
            transition,
            waiting_at: ledger.board().slots().iter().map(|slot| slot.worker).collect(),
        };
        (differs.then(|| ledger.encode()), Ok(steered))
    });
    match decided {
        Ok(steered) => steered,
        Err(StoreError::Contended) => Err(unavailable("other workers were busy with the limit all the time")),
        Err(StoreError::Unavailable) => Err(unavailable("Envoy refuses access to shared data")),
    }
}

impl Steered {
    /// Whether anything was changed; the limit may have had these rules already.
    pub fn is_change(&self) -> bool {
        self.before != self.after
    }

    /// The answer.
    pub fn reply(&self) -> Reply {
        #[derive(Serialize)]
        struct Body<'a> {
            limit: &'a str,
            changed: bool,
            rules: Standing,
            note: &'static str,
        }
        Reply::json(
            200,
            &Body {
                limit: &self.limit,
                changed: self.is_change(),
                rules: Standing::of(&self.after, &self.configured, self.epoch),
                note: "In force on all workers, until the configuration's own settings of this limit change or Envoy \
                       restarts. Write what is to stay into the configuration.",
            },
        )
    }
}

fn superseded(epoch: u32) -> Reply {
    Reply::refusal(
        409,
        "ConflictError",
        "superseded",
        Some("epoch"),
        &format!("epoch: other rules have been put in force meanwhile (epoch {epoch}); look at /status and try again"),
    )
}

fn unavailable(why: &str) -> Reply {
    Reply::refusal(
        503,
        "ServiceUnavailableError",
        "unavailable",
        None,
        &format!("Nothing was changed: {why}. Try again."),
    )
    .with("retry-after", "1")
}

/// Rules by the names of the configuration's fields.
#[derive(Serialize)]
pub struct Settings {
    rate_rpm: u32,
    bucket_capacity: u32,
    window_s: u64,
    queue_max_size: u32,
    queue_full_policy: &'static str,
    mode: &'static str,
    low_priority_timeout_s: f64,
    request_timeout_s: f64,
    aging_s: Option<f64>,
    retreat: RetreatSettings,
}

#[derive(Serialize)]
struct RetreatSettings {
    enabled: bool,
    floor_rpm: u32,
    retry_after_max_s: u64,
    obey_503: bool,
    probe_windows: u32,
}

impl From<&Rules> for Settings {
    fn from(rules: &Rules) -> Self {
        Self {
            rate_rpm: rules.retreat.base.as_rpm(),
            bucket_capacity: rules.capacity,
            window_s: rules.window.as_secs_ceil(),
            queue_max_size: rules.queue_max,
            queue_full_policy: if rules.may_fall_back { "passthrough" } else { "reject" },
            mode: if rules.shadow { "shadow" } else { "enforce" },
            low_priority_timeout_s: rules.patience.low.as_secs_f64(),
            request_timeout_s: rules.patience.others.as_secs_f64(),
            aging_s: rules.aging.map(|aging| aging.as_secs_f64()),
            retreat: RetreatSettings {
                enabled: rules.retreat.enabled,
                floor_rpm: rules.retreat.floor.as_rpm(),
                retry_after_max_s: rules.retreat.retry_after_max.as_secs_ceil(),
                obey_503: rules.retreat.obey_503,
                probe_windows: rules.retreat.probe_windows,
            },
        }
    }
}

/// Which rules are in force, and where they come from.
#[derive(Serialize)]
pub struct Standing {
    epoch: u32,
    source: &'static str,
    in_force: Settings,
    configured: Settings,
}

impl Standing {
    /// The rules in force beside those of the configuration.
    pub fn of(in_force: &Rules, configured: &Rules, epoch: u32) -> Self {
        Self {
            epoch,
            source: if in_force == configured { "configuration" } else { "console" },
            in_force: in_force.into(),
            configured: configured.into(),
        }
    }
}

#[cfg(test)]
#[path = "steering/tests.rs"]
mod tests;
