//! The metrics in Envoy's stats.
//!
//! Labels are written into the stat's name, in front, as `key=.=value;.;`, from where `stats_tags` in Envoy's bootstrap
//! take them out again. It is Istio's way of writing, and no label's name is the end of one of Istio's own, so that its
//! `extraStatTags` do the same there. Each metric is defined when it is first needed and its number kept, since defining takes a lock on all of
//! Envoy's stats. Values of labels come from the configuration or from closed lists, so their number is bounded; names of
//! models are bounded by [`ModelNames`]. `docs/metrics.md` explains each metric to operators.

use super::host::{self, MetricKind};
use super::logging::event;
use super::shared_data::SharedData;
use hashbrown::HashMap;
use nimgate_classify::{Occurrence, Unclassifiable};
use nimgate_console::history::{self, Entry};
use nimgate_console::overrides::Settings;
use nimgate_console::view::{ANSWERS, Counters};
use nimgate_core::control::rate::{Phase, Reason, Transition};
use nimgate_core::event::{Event, Happened, Shown};
use nimgate_core::limit::form::Form;
use nimgate_core::limit::rules::Rules;
use nimgate_core::model::ModelName;
use nimgate_core::model_names::{self, ModelNames};
use nimgate_core::outcome::Outcome;
use nimgate_core::priority::{LANES, Lane, Priority};
use nimgate_core::units::{LimitId, Micros};

/// The metrics of this worker; the values are the whole process's.
#[derive(Default)]
pub struct Metrics {
    ids: HashMap<Key, u32>,
    names: Vec<String>,
    models: ModelNames,
    /// Requests that passed through and are not in Envoy's stats yet.
    uncounted: u32,
}

/// Which stat: the metric, the limit (by number, or none), and the place of a further label in its closed list.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
struct Key(Metric, Option<usize>, &'static str, &'static str);

#[derive(Clone, Copy, PartialEq, Eq, Hash)]
enum Metric {
    Requests,
    Shadow,
    Passthrough,
    Fallback,
    Unclassifiable,
    AmbiguousModel,
    DuplicateModel,
    QueueLength,
    FallbackLength,
    QueueTime,
    TokensAvailable,
    TokenCapacity,
    RetreatState,
    EffectiveRpm,
    EstimatedRpm,
    ModelsSlowed,
    Upstream429Permille,
    UpstreamResponses,
    UpstreamErrors,
    UpstreamLatency,
    UpstreamUp,
    UpstreamRetries,
    PauseIgnored,
    ConfigurationEpoch,
    ConfigurationRefused,
    ConfiguredRpm,
    QueueCapacity,
    ShadowMode,
    Health,
    LedgerContended,
    LedgerCorrupt,
}

impl Metric {
    /// Name, kind, and the names of the two further labels, empty where there are none.
    const fn about(self) -> (&'static str, MetricKind, &'static str, &'static str) {
        use MetricKind::{Counter, Gauge, Histogram};
        match self {
            Self::Requests => ("nimgate_requests_total", Counter, "priority", "outcome"),
            Self::Shadow => ("nimgate_shadow_total", Counter, "priority", "outcome"),
            Self::Passthrough => ("nimgate_passthrough_total", Counter, "", ""),
            Self::Fallback => ("nimgate_fallback_total", Counter, "", ""),
            Self::Unclassifiable => ("nimgate_unclassifiable_total", Counter, "reason", ""),
            Self::AmbiguousModel => ("nimgate_ambiguous_model_total", Counter, "", ""),
            Self::DuplicateModel => ("nimgate_duplicate_model_total", Counter, "", ""),
            Self::QueueLength => ("nimgate_queue_length", Gauge, "priority", ""),
            Self::FallbackLength => ("nimgate_fallback_length", Gauge, "", ""),
            Self::QueueTime => ("nimgate_queue_time_milliseconds", Histogram, "priority", ""),
            Self::TokensAvailable => ("nimgate_tokens_available", Gauge, "", ""),
            Self::TokenCapacity => ("nimgate_token_capacity", Gauge, "", ""),
            Self::RetreatState => ("nimgate_retreat_state", Gauge, "", ""),
            Self::EffectiveRpm => ("nimgate_effective_rpm", Gauge, "", ""),
            Self::EstimatedRpm => ("nimgate_estimated_limit_rpm", Gauge, "", ""),
            Self::ModelsSlowed => ("nimgate_models_slowed", Gauge, "", ""),
            Self::Upstream429Permille => ("nimgate_upstream_429_permille", Gauge, "", ""),
            Self::UpstreamRetries => ("nimgate_upstream_retries_total", Counter, "", ""),
            Self::UpstreamResponses => ("nimgate_upstream_responses_total", Counter, "class", ""),
            Self::UpstreamErrors => ("nimgate_upstream_errors_total", Counter, "model", "error"),
            Self::UpstreamLatency => ("nimgate_upstream_latency_milliseconds", Histogram, "model", ""),
            Self::UpstreamUp => ("nimgate_upstream_up", Gauge, "", ""),
            Self::PauseIgnored => ("nimgate_pause_ignored_total", Counter, "", ""),
            Self::ConfigurationEpoch => ("nimgate_configuration_epoch", Gauge, "", ""),
            Self::ConfigurationRefused => ("nimgate_configuration_refused_total", Counter, "", ""),
            Self::ConfiguredRpm => ("nimgate_configured_rpm", Gauge, "", ""),
            Self::QueueCapacity => ("nimgate_queue_capacity", Gauge, "", ""),
            Self::ShadowMode => ("nimgate_shadow_mode", Gauge, "", ""),
            Self::Health => ("nimgate_health", Gauge, "", ""),
            Self::LedgerContended => ("nimgate_ledger_contended_total", Counter, "", ""),
            Self::LedgerCorrupt => ("nimgate_ledger_corrupt_total", Counter, "", ""),
        }
    }
}

impl Metrics {
    /// Tells the name of a limit, to be used as its label.
    pub fn name_limit(&mut self, id: LimitId, name: &str) {
        while self.names.len() <= id.0 {
            self.names.push(String::new());
        }
        if let Some(known) = self.names.get_mut(id.0) {
            name.clone_into(known);
        }
    }

    /// How many limits have a name: their numbers are the ones below.
    pub fn limits(&self) -> usize {
        self.names.len()
    }

    /// Makes the counters and gauges of a limit known, so that they are scraped as 0 before the first request.
    pub fn show_limit(&mut self, id: LimitId) {
        let at = Some(id.0);
        for priority in Priority::ALL {
            for outcome in Outcome::ALL {
                self.id(Key(Metric::Requests, at, priority.name(), outcome.label()));
            }
            for outcome in Outcome::SHADOW {
                self.id(Key(Metric::Shadow, at, priority.name(), outcome.label()));
            }
            self.id(Key(Metric::QueueLength, at, priority.name(), ""));
        }
        for class in ANSWERS {
            self.id(Key(Metric::UpstreamResponses, at, class, ""));
        }
        for metric in [
            Metric::FallbackLength,
            Metric::Fallback,
            Metric::UpstreamRetries,
            Metric::LedgerContended,
            Metric::LedgerCorrupt,
        ] {
            self.id(Key(metric, at, "", ""));
        }
        for metric in [
            Metric::Passthrough,
            Metric::AmbiguousModel,
            Metric::DuplicateModel,
            Metric::PauseIgnored,
            Metric::ConfigurationRefused,
        ] {
            self.id(Key(metric, None, "", ""));
        }
    }

    /// A configuration was refused.
    pub fn refused(&mut self) {
        self.add(Key(Metric::ConfigurationRefused, None, "", ""), 1);
    }

    /// What `/health/ready` has just answered.
    pub fn healthy(&mut self, yes: bool) {
        self.record(Key(Metric::Health, None, "", ""), u64::from(yes));
    }

    /// A metered request ended. `None` for a request that was refused before any limit took it.
    pub fn ended(&mut self, limit: Option<LimitId>, priority: Priority, outcome: Outcome) {
        self.add(Key(Metric::Requests, limit.map(|id| id.0), priority.name(), outcome.label()), 1);
    }

    /// A request passed through. It is in Envoy's stats after the next [`count_passed`](Self::count_passed), since a host
    /// call for each costs more than one for many.
    pub fn passed(&mut self) {
        self.uncounted = self.uncounted.saturating_add(1);
    }

    /// Counts the requests that have passed through since the last time.
    pub fn count_passed(&mut self) {
        let passed = core::mem::take(&mut self.uncounted);
        if passed > 0 {
            self.add(Key(Metric::Passthrough, None, "", ""), i64::from(passed));
        }
    }

    /// A body was classified, or could not be.
    pub fn classified(&mut self, unclassifiable: Option<Unclassifiable>, occurrence: Occurrence) {
        if let Some(reason) = unclassifiable {
            self.add(Key(Metric::Unclassifiable, None, reason.label(), ""), 1);
        }
        match occurrence {
            Occurrence::Single => {}
            Occurrence::Duplicate => self.add(Key(Metric::DuplicateModel, None, "", ""), 1),
            Occurrence::Ambiguous => self.add(Key(Metric::AmbiguousModel, None, "", ""), 1),
        }
    }

    /// The host showed no body for a request that was held at its headers.
    pub fn pause_ignored(&mut self) {
        self.add(Key(Metric::PauseIgnored, None, "", ""), 1);
    }

    /// The upstream answered, so long after the request's token was granted.
    pub fn answered(&mut self, limit: LimitId, model: Option<&str>, status: u16, after: Micros) {
        let class = match status {
            429 => "429",
            200..=299 => "2xx",
            300..=399 => "3xx",
            400..=499 => "4xx",
            500..=599 => "5xx",
            _ => "other",
        };
        let at = Some(limit.0);
        self.add(Key(Metric::UpstreamResponses, at, class, ""), 1);
        self.record(Key(Metric::UpstreamUp, at, "", ""), 1);
        let model = self.models.label(model, model_names::proves(status), &mut SharedData);
        if status < 400 {
            self.record(Key(Metric::UpstreamLatency, at, model, ""), after.as_millis());
        } else {
            self.add(Key(Metric::UpstreamErrors, at, model, error_label(status)), 1);
        }
    }

    /// Envoy answered in place of the upstream.
    pub fn failed(&mut self, limit: LimitId, model: Option<&str>, outcome: Outcome) {
        let why = match outcome {
            Outcome::UpstreamTimeout => "timeout",
            Outcome::UpstreamUnreachable => "unreachable",
            _ => return,
        };
        self.record(Key(Metric::UpstreamUp, Some(limit.0), "", ""), 0);
        let model = self.models.label(model, false, &mut SharedData);
        self.add(Key(Metric::UpstreamErrors, Some(limit.0), model, why), 1);
    }

    /// Envoy's router had sent a request so many times more.
    pub fn retried(&mut self, limit: LimitId, retries: u32) {
        if retries > 0 {
            self.add(Key(Metric::UpstreamRetries, Some(limit.0), "", ""), i64::from(retries));
        }
    }

    /// What all workers have counted of a limit.
    pub fn counters(&mut self, limit: LimitId) -> Counters {
        let at = Some(limit.0);
        let mut counters = Counters { fallbacks: self.value(Key(Metric::Fallback, at, "", "")), ..Counters::default() };
        for (count, outcome) in counters.outcomes.iter_mut().zip(Outcome::ALL) {
            *count = self.over_priorities(Metric::Requests, at, outcome);
        }
        for (count, class) in counters.answers.iter_mut().zip(ANSWERS) {
            *count = self.value(Key(Metric::UpstreamResponses, at, class, ""));
        }
        for (count, outcome) in counters.shadow.iter_mut().zip(Outcome::SHADOW) {
            *count = self.over_priorities(Metric::Shadow, at, outcome);
        }
        counters
    }

    /// How many requests passed through, at all workers.
    pub fn passthrough(&mut self) -> u64 {
        self.value(Key(Metric::Passthrough, None, "", ""))
    }

    fn over_priorities(&mut self, metric: Metric, limit: Option<usize>, outcome: Outcome) -> u64 {
        Priority::ALL
            .into_iter()
            .map(|priority| self.value(Key(metric, limit, priority.name(), outcome.label())))
            .fold(0, u64::saturating_add)
    }

    fn value(&mut self, key: Key) -> u64 {
        self.id(key).map_or(0, host::metric)
    }

    /// Writes a change into the history of a limit, which the console shows.
    fn remember(&self, limit: LimitId, entry: &Entry) {
        if let Some(name) = self.names.get(limit.0) {
            // A history with a gap is no reason to treat a request differently.
            let _ = history::append(name, entry, &mut SharedData);
        }
    }

    fn add(&mut self, key: Key, offset: i64) {
        if let Some(id) = self.id(key) {
            host::add_to_metric(id, offset);
        }
    }

    fn record(&mut self, key: Key, value: u64) {
        if let Some(id) = self.id(key) {
            host::record_metric(id, value);
        }
    }

    fn id(&mut self, key: Key) -> Option<u32> {
        if let Some(id) = self.ids.get(&key) {
            return Some(*id);
        }
        let Key(metric, limit, first, second) = key;
        let (name, kind, first_label, second_label) = metric.about();
        let mut full = String::new();
        let limit = match (limit, metric) {
            (Some(at), _) => self.names.get(at).map(String::as_str),
            // A request that no limit took has the label all the same, so that sums over limits are complete.
            (None, Metric::Requests) => Some("none"),
            (None, _) => None,
        };
        for (label, value) in [("limit", limit), (first_label, Some(first)), (second_label, Some(second))] {
            if let (false, Some(value)) = (label.is_empty(), value) {
                full.push_str(label);
                full.push_str("=.=");
                full.push_str(value);
                full.push_str(";.;");
            }
        }
        full.push_str(name);
        let id = host::define_metric(kind, &full).ok()?;
        self.ids.insert(key, id);
        Some(id)
    }
}

/// An error's status as a label: the ones that mean something by themselves, and the others by their class.
const fn error_label(status: u16) -> &'static str {
    match status {
        400 => "400",
        401 => "401",
        402 => "402",
        403 => "403",
        404 => "404",
        408 => "408",
        410 => "410",
        413 => "413",
        422 => "422",
        429 => "429",
        500 => "500",
        502 => "502",
        503 => "503",
        504 => "504",
        _ if status < 500 => "4xx",
        _ if status < 600 => "5xx",
        _ => "other",
    }
}

impl Metrics {
    /// Takes in what happened: counts it, shows it, writes it into the log and the history.
    pub fn read(&mut self, events: &[Happened]) {
        for (limit, event) in events {
            self.read_one(*limit, event);
        }
    }

    fn read_one(&mut self, limit: LimitId, event: &Event) {
        let at = Some(limit.0);
        match event {
            Event::Granted { level, waited, .. } => {
                self.record(Key(Metric::QueueTime, at, level.name(), ""), waited.as_millis());
            }
            Event::Shadowed { level, outcome, .. } => {
                self.add(Key(Metric::Shadow, at, level.name(), outcome.label()), 1);
            }
            Event::FellBack => self.add(Key(Metric::Fallback, at, "", ""), 1),
            Event::QueueChanged(differences) => {
                for (lane, difference) in Lane::ALL.into_iter().zip(differences) {
                    let key = match lane {
                        Lane::Queued(priority) => Key(Metric::QueueLength, at, priority.name(), ""),
                        Lane::Fallback(_) => Key(Metric::FallbackLength, at, "", ""),
                    };
                    self.add(key, *difference);
                }
            }
            Event::QueueCounted(waiting) => self.queue_counted(limit, waiting),
            Event::GaugesChanged { before, after, rules } => self.show(limit, *before, *after, rules),
            Event::RateChanged(transition) => self.rate_changed(limit, transition),
            Event::RulesConfigured { epoch, rules } => self.rules_configured(limit, *epoch, rules),
            Event::StoreFailed => self.add(Key(Metric::LedgerContended, at, "", ""), 1),
            Event::RecordUnreadable => self.record_unreadable(limit),
            Event::LedgerMoved(form) => self.ledger_moved(limit, *form),
            // Shown by what follows from them: the queue's length, the tokens available.
            Event::PassedOver(_) | Event::WorkerExpired { .. } | Event::Unused { .. } => {}
        }
    }

    fn queue_counted(&mut self, limit: LimitId, waiting: &[u32; LANES]) {
        let mut outside = 0u64;
        for (lane, count) in Lane::ALL.into_iter().zip(waiting) {
            match lane {
                Lane::Queued(priority) => {
                    self.record(Key(Metric::QueueLength, Some(limit.0), priority.name(), ""), u64::from(*count));
                }
                Lane::Fallback(_) => outside = outside.saturating_add(u64::from(*count)),
            }
        }
        self.record(Key(Metric::FallbackLength, Some(limit.0), "", ""), outside);
    }

    /// Writes the gauges that show something else than they should.
    fn show(&mut self, limit: LimitId, before: Option<Shown>, after: Shown, rules: &Rules) {
        let of = |shown: Shown| {
            [
                (Metric::TokensAvailable, shown.available),
                (Metric::RetreatState, shown.phase as u32),
                (Metric::EffectiveRpm, shown.effective_rpm),
                (Metric::EstimatedRpm, shown.estimated_rpm),
                (Metric::ModelsSlowed, shown.models_slowed),
                (Metric::Upstream429Permille, shown.refused_permille),
            ]
        };
        for (at, (metric, value)) in of(after).into_iter().enumerate() {
            let known = before.and_then(|before| of(before).get(at).map(|(_, value)| *value));
            if known != Some(value) {
                self.record(Key(metric, Some(limit.0), "", ""), u64::from(value));
            }
        }
        // What only new rules change.
        if before.map(|before| before.epoch) != Some(after.epoch) {
            for (metric, value) in [
                (Metric::ConfigurationEpoch, after.epoch),
                (Metric::TokenCapacity, rules.capacity),
                (Metric::ConfiguredRpm, rules.retreat.base.as_rpm()),
                (Metric::QueueCapacity, rules.queue_max),
                (Metric::ShadowMode, u32::from(rules.shadow)),
            ] {
                self.record(Key(metric, Some(limit.0), "", ""), u64::from(value));
            }
        }
    }

    fn rate_changed(&mut self, limit: LimitId, transition: &Transition) {
        self.remember(limit, &Entry::of_transition(transition, host::wall_clock_s()));
        let name = self.names.get(limit.0).map_or("", String::as_str);
        event!(
            warn,
            "retreat",
            "limit": name,
            "model": transition.model.as_ref().map(ModelName::as_str),
            "from": transition.from.name(),
            "to": transition.to.name(),
            "reason": transition.reason.words(),
            "effective_rpm": transition.rate.to_string(),
            "message": match transition.to {
                _ if transition.reason == Reason::TestBegins => "nimgate lets fewer requests through for some windows, to see \
                                   whether the upstream then refuses less",
                _ if transition.reason == Reason::TestEnds => "nimgate goes on at the rate from before the trial",
                Phase::Retreat => "nimgate lets fewer requests through, since the upstream refuses some; if this comes \
                                   again and again, lower rate_rpm of the limit or find who else uses the key",
                Phase::Recover => "nimgate raises the rate again step by step",
                Phase::Normal => "nimgate is back at rate_rpm of the limit",
            },
        );
    }

    fn rules_configured(&mut self, limit: LimitId, epoch: u32, rules: &Rules) {
        self.remember(limit, &Entry::of_rules(epoch, rules.retreat.base, "a new configuration", host::wall_clock_s()));
        let name = self.names.get(limit.0).map_or("", String::as_str);
        event!(
            info,
            "rules_in_force",
            "limit": name,
            "epoch": epoch,
            "rules": Settings::from(rules),
            "message": "active on all workers, from the configuration",
        );
    }

    fn ledger_moved(&self, limit: LimitId, form: Form) {
        let name = self.names.get(limit.0).map_or("", String::as_str);
        let (version, message) = match form {
            Form::One => {
                (1, "a module of an older version is in this Envoy, so the ledger is kept in a form that it knows")
            }
            Form::Two => (2, "no module of an older version has used the ledger for as long as a drain takes"),
        };
        event!(info, "ledger_moved", "limit": name, "version": version, "message": message);
    }

    fn record_unreadable(&mut self, limit: LimitId) {
        self.add(Key(Metric::LedgerCorrupt, Some(limit.0), "", ""), 1);
        let name = self.names.get(limit.0).map_or("", String::as_str);
        event!(
            error,
            "ledger_corrupt",
            "limit": name,
            "message": "the limit's shared record could not be read and was replaced by one with an empty bucket; something \
                        else writes to keys that begin with nimgate/ in this vm_id. Give nimgate a vm_id of its own",
        );
    }
}
