//! The schedulers of several workers on one store, in virtual time, against one naive list for the whole process.
//!
//! The model (`scheduler_model/list.rs`) knows nothing of workers, lines and wake-ups: it is a list of requests, a bucket,
//! a list of grants that a window counts, and the rule that tokens go to the first in order that may go. As long as all
//! workers do what they are told at once, all of them together must do exactly what the model does, to the microsecond.
//! When some of them stall, the others must still get what is left after a grace for each that stalls, and nobody may be
//! lost.

#[path = "scheduler_model/fleet.rs"]
mod fleet;
#[path = "scheduler_model/list.rs"]
mod list;

use fleet::{Fleet, WORKERS, model_key};
use nimgate_core::control::answer::Signal;
use nimgate_core::limit::rules::Rules;
use nimgate_core::limit::rules::Timeouts;
use nimgate_core::priority::{LANES, Priority};
use nimgate_core::supply::bucket::TOKEN;
use nimgate_core::units::{Instant, Micros, MilliRpm};
use proptest::prelude::*;

/// Something that happens, after some time. Numbers that pick one of several are counted round.
#[derive(Clone, Copy, Debug)]
enum Event {
    /// A request for a limit comes to a worker.
    Arrive(usize, usize, Priority),
    /// One of those that wait leaves.
    Leave(usize),
    /// The stream of one that was let go ends, and it was sent, or was not.
    End(usize, bool),
    /// The upstream answers one that was let go, after so many retries of Envoy's router.
    Answer(usize, Signal, u32),
    /// So many retries of which no answer tells, noticed by a worker.
    Charge(usize, usize, u32),
    /// A limit's rules change in this, by a new configuration or by an override.
    Change(usize, Knobs, bool),
    /// The configuration of a limit comes once more.
    Again(usize),
    /// A worker stalls for so long.
    Stall(usize, Micros),
}

/// Knobs that change together.
#[derive(Clone, Copy, Debug)]
enum Knobs {
    Rate(MilliRpm),
    Capacity(u32),
    Window(Micros, Micros),
    Queue(u32, bool),
    Aging(Option<Micros>),
    Timeouts(Timeouts),
    MaxInFlight(u32),
    Retreat { enabled: bool, floor: MilliRpm, retry_after_max: Micros, obey_503: bool, probe_windows: u32 },
    Shadow(bool),
}

impl Knobs {
    fn apply(self, rules: &mut Rules) {
        match self {
            Self::Rate(base) => rules.retreat.base = base,
            Self::Capacity(capacity) => rules.capacity = capacity,
            Self::Window(window, margin) => set_window(rules, window, margin),
            Self::Queue(queue_max, may_fall_back) => {
                (rules.queue_max, rules.may_fall_back) = (queue_max, may_fall_back)
            }
            Self::Aging(aging) => rules.aging = aging,
            Self::Timeouts(timeouts) => rules.timeouts = timeouts,
            // A cap that comes or goes is another matter: what is in flight then is not known to all at once.
            Self::MaxInFlight(cap) => rules.max_in_flight = rules.max_in_flight.map(|_| cap),
            Self::Retreat { enabled, floor, retry_after_max, obey_503, probe_windows } => {
                let retreat = &mut rules.retreat;
                (retreat.enabled, retreat.floor, retreat.retry_after_max) = (enabled, floor, retry_after_max);
                (retreat.obey_503, retreat.probe_windows) = (obey_503, probe_windows);
            }
            Self::Shadow(shadow) => rules.shadow = shadow,
        }
    }
}

fn set_window(rules: &mut Rules, window: Micros, margin: Micros) {
    (rules.window, rules.window_margin) = (window, margin);
    rules.retreat.window = if window == Micros::ZERO { Micros::from_secs(60) } else { window };
}

fn millis(range: std::ops::Range<u64>) -> impl Strategy<Value = Micros> {
    range.prop_map(Micros::from_millis)
}

fn windows() -> impl Strategy<Value = (Micros, Micros)> {
    let windows = prop_oneof![1 => Just(Micros::ZERO), 3 => millis(200..20_000), 1 => Just(Micros::from_secs(60))];
    (windows, millis(0..2_000))
}

fn timeouts() -> impl Strategy<Value = Timeouts> {
    let own = || prop::option::weighted(0.2, millis(50..20_000));
    (millis(50..20_000), millis(50..20_000), own(), own(), own(), own()).prop_map(|all| {
        let (low, others, own_urgent, own_high, own_normal, own_low) = all;
        Timeouts { low, others, own_urgent, own_high, own_normal, own_low }
    })
}

fn agings() -> impl Strategy<Value = Option<Micros>> {
    prop::option::of(millis(100..5_000))
}

/// A limit of which nothing is bounded but the rate.
fn plain() -> impl Strategy<Value = Rules> {
    ((1u32..6_000, 1u32..5, 0u32..12), agings(), timeouts(), any::<bool>()).prop_map(
        |(numbers, aging, timeouts, falls)| {
            let (rpm, capacity, queue_max) = numbers;
            let mut rules = Rules { capacity, queue_max, aging, timeouts, may_fall_back: falls, ..Rules::DEFAULT };
            rules.retreat.base = MilliRpm::from_rpm(rpm);
            set_window(&mut rules, Micros::ZERO, Micros::ZERO);
            rules
        },
    )
}

/// A limit with a window: one in three is the one that most have, 40 requests a minute.
fn windowed() -> impl Strategy<Value = Rules> {
    (plain(), windows(), 0..3).prop_map(|(mut rules, (window, margin), which)| {
        if which == 0 {
            rules = Rules { capacity: 4, queue_max: 40, ..Rules::DEFAULT };
        } else {
            set_window(&mut rules, window, margin);
        }
        rules
    })
}

/// A limit with all there is.
fn full() -> impl Strategy<Value = Rules> {
    let cap = prop::option::of(1u32..6);
    (windowed(), cap).prop_map(|(rules, max_in_flight)| Rules { max_in_flight, ..rules })
}

/// Whether each kind of event is among those drawn.
#[derive(Clone, Copy, Debug, Default)]
struct Kinds {
    limits: usize,
    leaves: bool,
    unsent: bool,
    answers: bool,
    retries: bool,
    changes: bool,
    shadow: bool,
    stalls: bool,
}

fn knobs() -> impl Strategy<Value = Knobs> {
    let rates = || (1u32..6_000).prop_map(MilliRpm::from_rpm);
    prop_oneof![
        rates().prop_map(Knobs::Rate),
        (1u32..6).prop_map(Knobs::Capacity),
        windows().prop_map(|(window, margin)| Knobs::Window(window, margin)),
        (0u32..12, any::<bool>()).prop_map(|(max, falls)| Knobs::Queue(max, falls)),
        agings().prop_map(Knobs::Aging),
        timeouts().prop_map(Knobs::Timeouts),
        (1u32..6).prop_map(Knobs::MaxInFlight),
        (any::<bool>(), rates(), millis(0..9_000), any::<bool>(), 1u32..20).prop_map(|drawn| {
            let (enabled, floor, retry_after_max, obey_503, probe_windows) = drawn;
            Knobs::Retreat { enabled, floor, retry_after_max, obey_503, probe_windows }
        }),
    ]
}

/// Events and the time before each. Times are longer than nothing, so that no two requests come at the same moment:
/// among those, who is first is nobody's business.
fn events(kinds: Kinds) -> impl Strategy<Value = Vec<(Micros, Event)>> {
    let wait = prop_oneof![4 => 1u64..20_000, 2 => 1u64..1_000_000, 1 => 1u64..8_000_000].prop_map(Micros::new);
    let limits = kinds.limits;
    let arrive = (0..WORKERS, 0..limits, 0usize..4)
        .prop_map(|(worker, limit, level)| Event::Arrive(worker, limit, Priority::ALL[level]));
    let end = any::<(usize, bool)>().prop_map(move |(nth, sent)| Event::End(nth, sent || !kinds.unsent));
    let signal = prop_oneof![Just(Signal::Served), Just(Signal::WorkersFull), Just(Signal::Throttled)];
    let retries = prop_oneof![3 => Just(0u32), 1 => 1u32..4].prop_map(move |n| if kinds.retries { n } else { 0 });
    let answer =
        (any::<usize>(), signal, retries).prop_map(|(nth, signal, retries)| Event::Answer(nth, signal, retries));
    let charge = (0..WORKERS, 0..limits, 1u32..4).prop_map(|(at, limit, n)| Event::Charge(at, limit, n));
    let shadow = any::<bool>().prop_map(Knobs::Shadow);
    let knobs = prop_oneof![
        u32::from(kinds.changes) * 8 => knobs(),
        u32::from(kinds.shadow).max(u32::from(!kinds.changes)) * 2 => shadow
    ];
    let change = (0..limits, knobs, any::<bool>()).prop_map(|(limit, knobs, over)| Event::Change(limit, knobs, over));
    let stall = (0..WORKERS, millis(1..3_000)).prop_map(|(worker, time)| Event::Stall(worker, time));
    let of = u32::from;
    let event = prop_oneof![
        6 => arrive,
        2 * of(kinds.leaves) => any::<usize>().prop_map(Event::Leave),
        4 => end,
        3 * of(kinds.answers) => answer,
        of(kinds.retries) => charge,
        of(kinds.changes || kinds.shadow) => change,
        of(kinds.changes) => (0..limits).prop_map(Event::Again),
        of(kinds.stalls) => stall,
    ];
    prop::collection::vec((wait, event), 1..100)
}

/// Lets the events happen to a fleet, and compares it with the lists after each if nobody stalls.
fn play(kinds: Kinds, limits: &[Rules], events: Vec<(Micros, Event)>) -> Fleet {
    let mut fleet = Fleet::new(limits, !kinds.stalls);
    let mut configured = limits.to_vec();
    let mut active = limits.to_vec();
    for (id, (wait, event)) in events.into_iter().enumerate() {
        fleet.pass_to(fleet.now.after(wait));
        let (id, now) = (id as u32, fleet.now);
        let is_awake = |fleet: &Fleet, at: usize| fleet.stalled_until[at] < now;
        let stream = |fleet: &Fleet, nth: usize| {
            let ids: Vec<u32> = fleet.streams.keys().copied().collect();
            let id = *ids.get(nth % ids.len().max(1))?;
            is_awake(fleet, fleet.streams[&id].worker).then_some(id)
        };
        match event {
            Event::Arrive(at, limit, priority) if is_awake(&fleet, at) => fleet.arrive(at, limit, id, priority),
            Event::Leave(nth) if !fleet.waiting.is_empty() => {
                let leaves = *fleet.waiting.keys().nth(nth % fleet.waiting.len()).unwrap();
                fleet.leave(leaves);
            }
            Event::End(nth, was_sent) => {
                if let Some(ends) = stream(&fleet, nth)
                    && let Some((returned, may_go_back)) = fleet.end_stream(ends, was_sent)
                    && !(kinds.retries || kinds.changes || kinds.stalls)
                {
                    assert_eq!(returned, may_go_back, "the token of {ends}, which was never sent");
                }
            }
            Event::Answer(nth, signal, retries) => {
                if let Some(answered) = stream(&fleet, nth) {
                    let of = fleet.streams[&answered];
                    let slowed = fleet.ledger(of.limit);
                    // A 429 may be the account's, and its rate is no matter of this model. That of a slowed one is not.
                    let is_slowed = slowed.models().slowed().iter().any(|slowed| slowed.key == model_key(of.model));
                    let signal = if signal == Signal::Throttled && !is_slowed { Signal::WorkersFull } else { signal };
                    fleet.answer(answered, signal, retries);
                }
            }
            Event::Charge(at, limit, n) if is_awake(&fleet, at) => fleet.charge(at, limit, n),
            Event::Change(limit, knobs, true) => {
                knobs.apply(&mut active[limit]);
                fleet.override_rules(limit, active[limit]);
            }
            Event::Change(limit, knobs, false) => {
                let before = configured[limit];
                knobs.apply(&mut configured[limit]);
                if configured[limit] != before {
                    active[limit] = configured[limit];
                }
                fleet.configure(limit, configured[limit]);
            }
            Event::Again(limit) => fleet.configure(limit, configured[limit]),
            Event::Stall(at, time) => fleet.stalled_until[at] = now.after(time),
            _ => {}
        }
        if !kinds.stalls {
            is_as_listed(&mut fleet);
        }
    }
    fleet.come_to_rest();
    if !kinds.stalls {
        is_as_listed(&mut fleet);
    }
    assert!(fleet.waiting.is_empty(), "{:?} wait at the end", fleet.waiting);
    for limit in &fleet.limits {
        assert_eq!(limit.gauges, [0; LANES]);
    }
    fleet
}

/// Checks that each request has had the end that the lists say, at that time, and that as many wait.
fn is_as_listed(fleet: &mut Fleet) {
    let mut listed = list::Ends::new();
    for limit in &mut fleet.limits {
        listed.extend(&limit.list.ends);
    }
    let differ = |id: &&u32| fleet.ends.get(*id) != listed.get(*id);
    let differing: Vec<u32> = fleet.ends.keys().chain(listed.keys()).filter(differ).copied().collect();
    if let Some(id) = differing.first() {
        let model = model_key(*id as usize % (fleet::MODELS.len() + 1));
        let (is, should) = (fleet.ends.get(id).copied(), listed.get(id).copied());
        let limit = fleet.limits.iter().position(|limit| limit.list.ends.contains_key(id)).unwrap_or(0);
        let ledger = fleet.ledger(limit);
        let (at, opens) = (fleet.waiting.get(id).copied(), ledger.models().open_at(model));
        panic!(
            "{differing:?} differ: {id} has {is:?} and should have {should:?}; {at:?}, its model opens at {opens:?}; {:?}; \
             at {:?}, {:?}, {:?}, next looks {:?}",
            ledger.peers(),
            fleet.now,
            ledger.snapshot(fleet.now),
            ledger.models().openings(),
            [0, 1, 2, 3].map(|at| fleet.next(at)),
        );
    }
    for limit in &mut fleet.limits {
        assert_eq!(limit.gauges, limit.list.lanes(), "those who wait in each lane");
        limit.shadowed.sort();
        limit.list.shadowed.sort();
        assert_eq!(limit.shadowed, limit.list.shadowed);
    }
}

/// Checks that no more requests were sent at any time than capacity and rate allow.
fn is_paid_for(fleet: &Fleet, limit: usize, rules: Rules) {
    let mut sent: Vec<Instant> = fleet.sent.values().filter(|(of, _)| *of == limit).map(|(_, at)| *at).collect();
    sent.sort();
    for (first, from) in sent.iter().enumerate() {
        for (last, to) in sent.iter().enumerate().skip(first) {
            let paid = u128::from(to.since(*from).get()) * u128::from(rules.retreat.base.get());
            let given = (last - first + 1) as u128 * u128::from(TOKEN);
            assert!(given <= u128::from(rules.capacity) * u128::from(TOKEN) + paid, "{from:?} to {to:?}");
            let in_window = to.since(*from) < rules.window;
            assert!(!in_window || last - first < rules.window_rules().quota as usize, "{from:?} to {to:?}");
        }
    }
}

const NONE: Kinds = Kinds {
    limits: 1,
    leaves: false,
    unsent: false,
    answers: false,
    retries: false,
    changes: false,
    shadow: false,
    stalls: false,
};

const TOGETHER: Kinds = Kinds { leaves: true, ..NONE };
const STALLS: Kinds = Kinds { leaves: true, stalls: true, ..NONE };
const RETRIES: Kinds = Kinds { leaves: true, retries: true, ..NONE };
const SLOWED: Kinds = Kinds { leaves: true, answers: true, ..NONE };
const UNSENT: Kinds = Kinds { leaves: true, unsent: true, ..NONE };
const RETRIES_UNSENT: Kinds = Kinds { unsent: true, retries: true, ..NONE };
const CHANGES: Kinds =
    Kinds { limits: 2, leaves: true, unsent: true, answers: true, retries: true, changes: true, ..NONE };
const SHADOW: Kinds = Kinds { answers: true, retries: true, shadow: true, ..NONE };
const ALL_STALL: Kinds = Kinds { leaves: true, unsent: true, answers: true, stalls: true, ..NONE };

proptest! {
    // Not a fixed number of cases, so that `PROPTEST_CASES` counts.
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    /// Workers that are awake do together what one list would do: the same requests get the same end at the same time.
    #[test]
    fn workers_together_are_one_list(rules in plain(), events in events(TOGETHER)) {
        play(TOGETHER, &[rules], events);
    }

    /// Whoever stalls: no token too many, none idle for long while someone who is awake waits for it, and everyone ends
    /// once.
    #[test]
    fn workers_that_stall_cost_the_others_a_grace(rules in plain(), events in events(STALLS)) {
        let rules = Rules { aging: None, ..rules };
        let fleet = play(STALLS, &[rules], events);
        is_paid_for(&fleet, 0, rules);
    }

}

/// Fewer cases than by default, since there are many of these worlds; `PROPTEST_CASES` counts all the same.
fn fewer() -> ProptestConfig {
    let cases = if std::env::var_os("PROPTEST_CASES").is_some() { ProptestConfig::default().cases } else { 1_000 };
    ProptestConfig { failure_persistence: None, cases, ..ProptestConfig::default() }
}

proptest! {
    #![proptest_config(fewer())]

    /// A window counts each grant, and each retry of Envoy's router, from its sub-window's end on; what was retried is
    /// paid for with the next tokens.
    #[test]
    fn a_window_and_retries(rules in windowed(), events in events(RETRIES)) {
        play(RETRIES, &[rules], events);
    }

    /// Requests of slowed models go when their model may, before worse ones and after better ones of all workers, and hold
    /// nobody else up.
    #[test]
    fn models_that_are_slowed(rules in windowed(), events in events(SLOWED)) {
        play(SLOWED, &[rules], events);
    }

    /// With a cap on those in flight; the token of one that was never sent goes back if it would have fitted all the time
    /// since.
    #[test]
    fn streams_that_end(rules in full(), events in events(UNSENT)) {
        let fleet = play(UNSENT, &[rules], events);
        is_paid_for(&fleet, 0, rules);
    }

    /// Both at once.
    #[test]
    fn retries_and_streams_that_end(rules in full(), events in events(RETRIES_UNSENT)) {
        play(RETRIES_UNSENT, &[rules], events);
    }

    /// All of that in two limits at once, while their rules change.
    #[test]
    fn rules_that_change(rules in (full(), full()), events in events(CHANGES)) {
        play(CHANGES, &[rules.0, rules.1], events);
    }

    /// In shadow mode everyone goes at once, and what is said of them is what would have become of them; the mode is
    /// switched on and off.
    #[test]
    fn shadows(rules in windowed(), on in any::<bool>(), events in events(SHADOW)) {
        play(SHADOW, &[Rules { shadow: on, ..rules }], events);
    }

    /// With all there is and workers that stall: no token too many, no more in flight than may be, none before its model
    /// may go, and everyone ends once.
    #[test]
    fn workers_that_stall_with_all_there_is(rules in full(), events in events(ALL_STALL)) {
        let fleet = play(ALL_STALL, &[rules], events);
        is_paid_for(&fleet, 0, rules);
    }
}
