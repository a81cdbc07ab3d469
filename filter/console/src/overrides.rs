//! `POST /config`: other rules for one limit, while the process runs.
//!
//! A change names one limit, because what all workers agree on is one record for each limit: so a change becomes active
//! as a whole, on all workers, or not at all. It overrides the configuration's own rules until those change or the
//! process ends.

use super::reply::Reply;
use nimgate_config::change::Change;
use nimgate_core::event::Event;
use nimgate_core::limit::home::{Company, Home, QUIET};
use nimgate_core::limit::ledger::Snapshot;
use nimgate_core::limit::rules::{GROUPS, Rules, knobs_in};
use nimgate_core::store::{Store, StoreError};
use nimgate_core::units::WorkerId;
use serde::Serialize;
use serde::ser::{SerializeMap, Serializer};

/// A change that was applied.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Override {
    pub limit: String,
    pub epoch: u32,
    pub before: Rules,
    pub after: Rules,
    pub configured: Rules,
    pub snapshot: Snapshot,
    /// What the change did besides.
    pub events: Vec<Event>,
    /// The workers that have someone waiting, who may go sooner now.
    pub waiting_at: Vec<WorkerId>,
}

/// Applies a change. `names` are the limits there are.
///
/// # Errors
/// The answer that says why nothing was changed.
pub fn apply<S: Store>(body: &[u8], names: &[String], store: &mut S) -> Result<Override, Reply> {
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
    let limit = match (change.limit(), names) {
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
    let Some(found) = Home::read(limit, store).map_err(refused)? else {
        return Err(unavailable("the limit has no record that can be read"));
    };
    let mut home = Home::new(limit, Company::Mixed(QUIET));
    let decided = home.decide(None, *found.configured(), store, |mut ledger, _, now| {
        if seen.is_some_and(|seen| seen != ledger.epoch()) {
            return (None, Err(superseded(ledger.epoch())));
        }
        let mut events = Vec::new();
        ledger.advance(now, &mut events);
        let (before, configured) = (*ledger.rules(), *ledger.configured());
        let after = match change.apply(&configured, &before) {
            Ok(rules) => rules,
            Err(error) => return (None, Err(invalid(&error.path, &error.problem))),
        };
        let differs = after != before;
        if differs {
            ledger.override_rules(after, now, &mut events);
            let (before, after) = (ledger.shown(), ledger.snapshot(now).shown());
            ledger.show(after);
            events.push(Event::GaugesChanged { before, after, rules: *ledger.rules() });
        } else {
            // What time alone has changed is for whoever writes it.
            events.clear();
        }
        let applied = Override {
            limit: limit.clone(),
            epoch: ledger.epoch(),
            before,
            after,
            configured,
            snapshot: ledger.snapshot(now),
            events,
            waiting_at: ledger.peers().lines().iter().map(|line| line.worker).collect(),
        };
        (differs.then_some(ledger), Ok(applied))
    });
    let mut applied = decided.map_err(refused)?;
    if let Ok(applied) = &mut applied {
        applied.waiting_at.extend(home.take_wakes());
    }
    applied
}

fn refused(error: StoreError) -> Reply {
    unavailable(match error {
        StoreError::Contended => "other workers were busy with the limit all the time",
        StoreError::Unavailable => "Envoy refuses access to shared data",
        StoreError::NotUnderstood => "a newer nimgate wrote what this one does not understand",
    })
}

impl Override {
    /// Whether anything was changed; the limit may have had these rules already.
    pub fn is_change(&self) -> bool {
        self.before != self.after
    }

    /// The answer to `POST /config`.
    pub fn reply(&self) -> Reply {
        #[derive(Serialize)]
        struct Body<'a> {
            limit: &'a str,
            changed: bool,
            rules: RulesView,
            note: &'static str,
        }
        Reply::json(
            200,
            &Body {
                limit: &self.limit,
                changed: self.is_change(),
                rules: RulesView::of(&self.after, &self.configured, self.epoch),
                note: "Active on all workers until the configuration's own settings of this limit change or Envoy \
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
        &format!("epoch: the rules have been changed meanwhile (epoch {epoch}); look at /status and try again"),
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
pub struct Settings(Rules);

impl From<&Rules> for Settings {
    fn from(rules: &Rules) -> Self {
        Self(*rules)
    }
}

impl Serialize for Settings {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut map = serializer.serialize_map(None)?;
        for knob in knobs_in("") {
            map.serialize_entry(knob.path, &knob.value(&self.0))?;
        }
        for group in GROUPS.into_iter().filter(|group| !group.is_empty()) {
            map.serialize_entry(group, &Group { group, rules: &self.0 })?;
        }
        map.end()
    }
}

struct Group<'a> {
    group: &'static str,
    rules: &'a Rules,
}

impl Serialize for Group<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_map(knobs_in(self.group).map(|knob| (knob.place().1, knob.value(self.rules))))
    }
}

/// The active rules, and where they come from.
#[derive(Serialize)]
pub(crate) struct RulesView {
    epoch: u32,
    source: &'static str,
    /// The name that `/status` has had for it from the start.
    #[serde(rename = "in_force")]
    active: Settings,
    configured: Settings,
}

impl RulesView {
    /// The active rules next to those of the configuration.
    pub fn of(active: &Rules, configured: &Rules, epoch: u32) -> Self {
        Self {
            epoch,
            source: if active == configured { "configuration" } else { "console" },
            active: active.into(),
            configured: configured.into(),
        }
    }
}

#[cfg(test)]
#[path = "overrides/tests.rs"]
mod tests;
