//! Bucket, queue and ledger under any sequence of events, against models that are too simple to be wrong.

use nimgate_core::control::rate::{FORGET_WINDOWS, Feedback, Phase, Retreat, RetreatRules};
use nimgate_core::limit::ledger::{Admission, GRACE, Held, Ledger};
use nimgate_core::limit::rules::Rules;
use nimgate_core::model::ModelKey;
use nimgate_core::order::key::OrderRule;
use nimgate_core::order::queue::Queue;
use nimgate_core::priority::{Lane, Priority};
use nimgate_core::request::Request;
use nimgate_core::supply::bucket::{Bucket, Flow, NotUntil, TOKEN};
use nimgate_core::supply::window::{WindowGuard, WindowRules};
use nimgate_core::units::{Instant, Micros, MilliRpm, RequestId, WorkerId};
use proptest::prelude::*;

fn cases() -> ProptestConfig {
    ProptestConfig { cases: 5_000, failure_persistence: None, ..ProptestConfig::default() }
}

fn rules(rpm: u32, capacity: u32, queue_max: u32) -> Rules {
    Rules {
        capacity,
        queue_max,
        window: Micros::ZERO,
        may_fall_back: queue_max.is_multiple_of(2),
        retreat: RetreatRules { base: MilliRpm::from_rpm(rpm), ..RetreatRules::DEFAULT },
        ..Rules::DEFAULT
    }
}

const START: Instant = Instant::from_micros(1_000_000_000);

/// The place of a request in the order of all workers, without aging.
fn place(waiting: &Request) -> (usize, Instant) {
    (waiting.lane.index(), waiting.arrived)
}

fn best(queue: &Queue) -> Option<(usize, Instant)> {
    queue.all().map(place).min()
}

/// A bucket in its plainest form, and who has spoken when.
struct NaiveLedger {
    rate: u64,
    full: u64,
    level: u64,
    granted: Vec<Instant>,
    spoke_at: [Instant; 4],
    passed_over: [bool; 4],
}

impl NaiveLedger {
    fn new(rpm: u32, capacity: u32) -> Self {
        let full = u64::from(capacity) * TOKEN;
        let rate = u64::from(rpm) * 1_000;
        Self { rate, full, level: full, granted: Vec::new(), spoke_at: [START; 4], passed_over: [false; 4] }
    }

    fn advance(&mut self, micros: u64) {
        self.level = (self.level + micros * self.rate).min(self.full);
    }

    fn has_token(&self) -> bool {
        self.level >= TOKEN
    }

    fn take(&mut self, now: Instant) -> bool {
        let there = self.has_token();
        self.level = self.level.saturating_sub(TOKEN);
        there && self.granted.last().is_none_or(|last| *last <= now)
    }

    fn spoke(&mut self, worker: usize, now: Instant) {
        self.spoke_at[worker] = now;
        self.passed_over[worker] = false;
    }

    /// Before a turn of `worker`: if the best of the others goes before its own, and a token has been due to that one for
    /// a grace, it may be passed by until its worker speaks. A token can't have been due to it since before it last spoke,
    /// when it would have taken it, nor since before another one was given.
    fn pass_over(&mut self, worker: usize, queues: &[Queue; 4], now: Instant) {
        let others = (0..4).filter(|other| *other != worker && !self.passed_over[*other]);
        let theirs = others.clone().filter_map(|other| best(&queues[other])).min();
        let ahead = theirs.is_some_and(|theirs| best(&queues[worker]).is_some_and(|own| theirs < own));
        for other in others.filter(|_| ahead && self.has_token()).collect::<Vec<_>>() {
            let due_since = self.granted.last().copied().unwrap_or(START).max(self.spoke_at[other]);
            self.passed_over[other] = best(&queues[other]) == theirs && now >= due_since.after(GRACE);
        }
    }

    fn granted_since(&self, now: Instant, span: Micros) -> usize {
        self.granted.iter().filter(|at| at.after(span) > now).count()
    }
}

/// What a worker does: which, what, at which level, and how long after what was before.
type Deed = (usize, u8, usize, u64);

/// The same, with a look by each worker that has been silent for five seconds: one that is silent for ten is taken to be
/// gone, with those who wait there.
fn with_heartbeats(deeds: Vec<Deed>) -> Vec<Deed> {
    const LOOK: u8 = 6;
    let mut silent = [0u64; 4];
    let mut all = Vec::with_capacity(deeds.len());
    for deed @ (worker, _, level, wait) in deeds {
        silent.iter_mut().for_each(|silent| *silent += wait);
        silent[worker] = 0;
        all.push(deed);
        for (other, silent) in silent.iter_mut().enumerate().filter(|(_, silent)| **silent >= 5_000_000) {
            *silent = 0;
            all.push((other, LOOK, level, 0));
        }
    }
    all
}

proptest! {
    #![proptest_config(cases())]

    /// In any window the bucket gives no more than its capacity and what the window's length pays for; and it refuses
    /// strictly before the time it names, and not at it.
    #[test]
    fn a_bucket_never_gives_too_much_and_names_the_right_time(
        milli_rpm in 1u32..2_000_000,
        capacity in 1u32..50,
        steps in prop::collection::vec((0u64..5_000_000, 1u8..5), 1..60),
    ) {
        let flow = Flow { rate: MilliRpm::new(milli_rpm), capacity };
        let mut bucket = Bucket::with_tokens(capacity, START);
        let mut now = START;
        let mut taken: Vec<Instant> = Vec::new();
        for (wait, tries) in steps {
            now = now.after(Micros::new(wait));
            bucket.refill(flow, now);
            for _ in 0..tries {
                match bucket.take(flow) {
                    Ok(()) => taken.push(now),
                    Err(NotUntil { at }) => {
                        prop_assert!(at > now);
                        let mut early = bucket;
                        early.refill(flow, Instant::from_micros(at.as_micros() - 1));
                        prop_assert!(early.take(flow).is_err());
                        let mut then = bucket;
                        then.refill(flow, at);
                        prop_assert!(then.take(flow).is_ok());
                    }
                }
            }
        }
        for (first, from) in taken.iter().enumerate() {
            for (last, to) in taken.iter().enumerate().skip(first) {
                let paid = u128::from(to.since(*from).get()) * u128::from(milli_rpm);
                let given = (last - first + 1) as u128 * u128::from(TOKEN);
                prop_assert!(given <= u128::from(capacity) * u128::from(TOKEN) + paid);
            }
        }
    }

    /// The queue serves in the order of a plain sorted list, whatever comes, leaves and moves.
    #[test]
    fn a_queue_is_a_sorted_list(
        events in prop::collection::vec((0u8..5, 0u32..40, 0usize..4, 0u64..3_000_000), 1..120),
        aging_s in prop::option::of(1u64..5),
    ) {
        let aging = aging_s.map(Micros::from_secs);
        let mut queue = Queue::default();
        // Request, lane, arrival, and a number that settles ties as they came.
        let mut model: Vec<(u32, Lane, Instant, usize)> = Vec::new();
        let mut now = START;
        for (at, (what, id, level, wait)) in events.into_iter().enumerate() {
            now = now.after(Micros::new(wait));
            let priority = Priority::ALL[level];
            match what {
                0 | 1 => {
                    model.retain(|(known, ..)| *known != id);
                    model.push((id, Lane::Queued(priority), now, at));
                    queue.push(Request::new(RequestId(id), Lane::Queued(priority), ModelKey(u64::from(id % 3))), now);
                }
                4 => queue.set_governed((1..3u64).filter(|model| level as u64 & model > 0).map(ModelKey)),
                2 => {
                    model.retain(|(known, ..)| *known != id);
                    queue.remove(RequestId(id));
                }
                _ => {
                    if let Some(entry) = model.iter_mut().find(|(known, ..)| *known == id) {
                        entry.1 = Lane::Fallback(entry.1.priority());
                        entry.3 = at;
                        queue.shift(RequestId(id), entry.1);
                    }
                }
            }
            prop_assert_eq!(queue.len(), model.len());
        }
        // Within a lane the order is that of arrival, and of those that arrived at once that of coming into the lane.
        let in_order = |lane: &Lane, arrived: &Instant| match aging {
            Some(step) => arrived.after(step.times(lane.priority() as u64)).as_micros(),
            None => lane.priority() as u64,
        };
        let mut cursor = queue.in_order(OrderRule::Static { aging }, |_| true);
        let served: Vec<_> = std::iter::from_fn(|| cursor.advance()).collect();
        prop_assert_eq!(served.len(), model.len());
        for pair in served.windows(2) {
            prop_assert_eq!(queue.get(pair[0].id), Some(&pair[0]));
            if pair[0].lane.is_queued() && pair[1].lane.is_queued() {
                let before = (in_order(&pair[0].lane, &pair[0].arrived), pair[0].arrived);
                let after = (in_order(&pair[1].lane, &pair[1].arrived), pair[1].arrived);
                prop_assert!(before <= after);
            }
            prop_assert!(pair[0].lane.is_queued() || !pair[1].lane.is_queued());
            // Of several models set apart, those that came at the same moment have no order.
            if pair[0].lane == pair[1].lane && pair[0].model == pair[1].model {
                let place = |id: RequestId| {
                    let (_, _, arrived, came) = model.iter().find(|(known, ..)| *known == id.0).unwrap();
                    (*arrived, *came)
                };
                prop_assert!(place(pair[0].id) < place(pair[1].id));
            }
        }
    }

    /// Several workers on one ledger, against one list and one bucket of the simplest kind: who goes is the best of all
    /// unless the better one's worker was silent for a grace; a token that is there is given; none is given twice; bounds
    /// are kept; every record can be read.
    #[test]
    fn workers_on_one_ledger_keep_one_bucket_one_order_and_one_bound(
        rpm in 1u32..6_000,
        capacity in 1u32..10,
        queue_max in 0u32..20,
        window_s in prop_oneof![Just(0u64), 1u64..8],
        // Mostly shorter than a grace, so that the workers are awake; now and then long enough for tokens to come.
        events in prop::collection::vec(
            (0usize..4, 0u8..8, 0usize..4, prop_oneof![4 => 0u64..15_000, 1 => 0u64..400_000, 1 => 0u64..2_000_000]),
            1..150,
        ),
    ) {
        let window = Micros::from_secs(window_s);
        let mut rules = Rules { window, window_margin: Micros::from_millis(10), ..rules(rpm, capacity, queue_max) };
        rules.retreat.window = if window_s == 0 { Micros::from_secs(60) } else { window };
        let quota = rules.window_rules().quota as usize;
        let mut ledger = Ledger::new(rules, capacity, START);
        let mut queues: [Queue; 4] = Default::default();
        let mut naive = NaiveLedger::new(rpm, capacity);
        let mut now = START;
        for (id, (worker, what, level, wait)) in with_heartbeats(events).into_iter().enumerate() {
            now = now.after(Micros::new(wait));
            naive.advance(wait);
            let request = RequestId(id as u32);
            let arrival = (what < 5).then(|| {
                queues[worker].push(Request::new(request, Lane::Queued(Priority::ALL[level]), ModelKey::NONE), now)
            });
            if what == 7 && let Some(left) = queues[worker].all().min_by_key(|request| place(request)).copied() {
                queues[worker].remove(left.id);
            }
            naive.pass_over(worker, &queues, now);
            ledger.advance(now, &mut Vec::new());
            let id = WorkerId(worker as u32 + 1);
            let (turn, _) = ledger.turn(id, &queues[worker], Held::default(), arrival.as_ref(), now, &mut Vec::new());
            naive.spoke(worker, now);
            for (waiting, _) in &turn.granted {
                let removed = queues[worker].remove(waiting.id);
                prop_assert_eq!(removed.as_ref(), Some(waiting));
                prop_assert!(naive.take(now), "a token that is not there");
                prop_assert!(best(&queues[worker]).is_none_or(|own| place(waiting) <= own), "its own order");
                for (other, queue) in queues.iter().enumerate().filter(|(other, _)| *other != worker) {
                    let passed = best(queue).is_some_and(|theirs| theirs < place(waiting));
                    prop_assert!(!passed || naive.passed_over[other], "a better request of a worker that is awake");
                }
                naive.granted.push(now);
            }
            let is_best = best(&queues[worker]).is_some_and(|own| {
                queues.iter().enumerate().all(|(other, queue)| other == worker || best(queue).is_none_or(|theirs| own <= theirs))
            });
            // A grant counts for a window and its margin from the end of its sub-window on, of which there are 64.
            let span = window.plus(rules.window_margin);
            let room = window_s == 0
                || naive.granted_since(now, span.plus(Micros::new(span.get().div_ceil(64)))) < quota;
            prop_assert!(!is_best || !room || !naive.has_token(), "a token that is there, and the best one waits");
            if let Some(arrival) = arrival.filter(|a| turn.granted.iter().all(|(granted, _)| granted.id != a.id)) {
                match turn.admission {
                    Admission::Queued => {}
                    Admission::Fallback(lane) => queues[worker].shift(arrival.id, lane),
                    Admission::Refused => { queues[worker].remove(arrival.id); }
                }
            }
            let decoded = Ledger::decode(&ledger.encode());
            prop_assert_eq!(decoded.as_ref(), Some(&ledger));
            let total = |queued: bool| {
                queues.iter().flat_map(Queue::all).filter(|waiting| waiting.lane.is_queued() == queued).count()
            };
            prop_assert!(total(true) <= queue_max as usize);
            prop_assert!(total(false) <= queue_max as usize);
        }
        for (last, at) in naive.granted.iter().enumerate().filter(|_| window_s > 0) {
            let first = naive.granted[..=last].partition_point(|earlier| earlier.after(window) <= *at);
            prop_assert!(last - first < quota, "more than the quota in a window");
        }
    }

    /// However the window lies, it holds no more grants than the quota, and neither does one that is longer by the margin;
    /// and when the guard says that there will be room there is, and not before.
    #[test]
    fn no_window_holds_more_than_its_quota(
        window_s in 1u64..200,
        quota in 1u32..60,
        margin_ms in prop_oneof![Just(0u64), 1u64..2_000, 1u64..60_000],
        steps in prop::collection::vec((0u64..20_000, 1u32..20), 1..300),
    ) {
        let window = Micros::from_secs(window_s).plus(Micros::from_millis(margin_ms));
        let rules = WindowRules { window: Micros::from_secs(window_s), quota, margin: Micros::from_millis(margin_ms) };
        let mut guard = WindowGuard::new(rules, START);
        let mut granted: Vec<u64> = Vec::new();
        let mut now = START;
        for (thousandths, wanted) in steps {
            now = now.after(Micros::new(window.get() * thousandths / 100_000));
            guard.advance(rules, now);
            for _ in 0..wanted.min(guard.room(rules, now)) {
                guard.count(1);
                granted.push(now.as_micros());
            }
            let opens = guard.opens_at(rules, now, wanted);
            let mut later = guard;
            later.advance(rules, opens);
            prop_assert!(wanted > quota || later.room(rules, opens) >= wanted);
            let just_before = Instant::from_micros(opens.as_micros() - 1);
            prop_assert!(opens == now || guard.room(rules, just_before) < wanted);
        }
        for (last, at) in granted.iter().enumerate() {
            let first = granted[..=last].partition_point(|earlier| earlier + window.get() <= *at);
            prop_assert!(last - first < quota as usize);
        }
    }

    /// Under more demand than the quota the guard wastes little of it.
    #[test]
    fn a_guard_loses_its_margin_and_less_than_two_per_cent(
        window_s in 1u64..200,
        quota in 1u32..200,
        margin_ms in 0u64..2_000,
        gap_us in 1u64..100_000,
    ) {
        let margin = Micros::from_millis(margin_ms);
        let rules = WindowRules { window: Micros::from_secs(window_s), quota, margin };
        let mut guard = WindowGuard::new(rules, START);
        let mut now = START;
        let mut granted = 0u64;
        let end = START.after(rules.window.plus(margin).times(20));
        while now < end {
            guard.advance(rules, now);
            guard.count(1);
            granted += 1;
            now = guard.opens_at(rules, now.after(Micros::new(gap_us.min(window_s * 900_000 / u64::from(quota)))), 1);
        }
        prop_assert!(granted >= u64::from(quota) * 20 * 98 / 100, "{granted} of {}", u64::from(quota) * 20);
    }

    /// Whatever the upstream answers, the rate stays between floor and base; a fresh refusal lowers it, `Retry-After` is
    /// obeyed, an old answer opens nothing; and it comes back when the upstream stops refusing.
    #[test]
    fn a_retreat_stays_in_bounds_and_comes_back(
        floor in prop_oneof![Just(1u32), 1u32..=40],
        events in prop::collection::vec(
            // The time since the last event; requests sent then; which of those not yet answered is answered; with what.
            (0u64..8_000_000, 0usize..4, 0usize..8, any::<bool>(), prop::option::weighted(0.2, 0u64..1_000_000)),
            1..120,
        ),
    ) {
        let rules = RetreatRules { floor: MilliRpm::from_rpm(floor), ..rules(40, 4, 10).retreat };
        let mut retreat = Retreat::new(rules);
        let mut now = START;
        let mut sent: Vec<Instant> = Vec::new();
        let mut last_cut = Instant::ZERO;
        for (wait, requests, which, throttled, pause_s) in events {
            now = now.after(Micros::new(wait));
            retreat.advance(rules, now);
            for _ in 0..requests {
                if retreat.closed_until() <= now {
                    retreat.granted(rules, now);
                    sent.push(now);
                }
            }
            if sent.is_empty() {
                continue;
            }
            let granted_at = sent.remove(which % sent.len());
            let retry_after = pause_s.map(Micros::from_secs).filter(|_| throttled);
            let before = retreat;
            let transition = retreat.step(rules, now, Feedback { granted_at, throttled, retry_after });
            let fresh = granted_at >= last_cut;
            if let Some(pause) = retry_after {
                prop_assert!(retreat.closed_until() >= now.after(pause.min(rules.retry_after_max)));
            }
            if throttled && fresh {
                last_cut = now;
                prop_assert!(transition.is_some_and(|transition| transition.to == Phase::Retreat));
                let lower = retreat.rate() < before.rate() || before.rate() == rules.floor;
                prop_assert!(lower || (before.phase() == Phase::Retreat && retreat.rate() == before.rate()));
            } else {
                prop_assert_eq!(transition, None);
                prop_assert!(retreat.rate() == before.rate() || !throttled && fresh);
                prop_assert!(fresh || retreat.closed_until() >= before.closed_until());
            }
            prop_assert!(rules.floor <= retreat.rate() && retreat.rate() <= rules.base);
            prop_assert!(retreat.closed_until().since(now) <= rules.retry_after_max);
            prop_assert!(retreat.throttled_permille(now) <= 1_000);
        }
        now = now.after(rules.window.times(FORGET_WINDOWS + 6));
        retreat.advance(rules, now);
        prop_assert_eq!((retreat.phase(), retreat.rate()), (Phase::Normal, rules.base));
        prop_assert!(retreat.closed_until() <= now);
    }

    /// Whatever is granted, sent or taken back, and when: no span of time holds more requests that were *sent* than the
    /// capacity and what it pays for.
    #[test]
    fn tokens_that_come_back_let_no_more_be_sent(
        capacity in 1u32..12,
        steps in prop::collection::vec((0u64..1_500_000, 0u8..4, 0usize..12), 1..200),
    ) {
        let rules = Rules { window: Micros::ZERO, ..rules(60, capacity, 1_000) };
        let mut ledger = Ledger::new(rules, capacity, START);
        let mut queue = Queue::default();
        let mut open = Vec::new();
        let mut sent: Vec<Instant> = Vec::new();
        let mut now = START;
        let mut events = Vec::new();
        for (id, (wait, what, which)) in steps.into_iter().enumerate() {
            now = now.after(Micros::new(wait));
            ledger.advance(now, &mut events);
            if what == 0 && !open.is_empty() {
                ledger.take_back(&open.swap_remove(which % open.len()), now);
            } else if what == 1 && !open.is_empty() {
                sent.push(open.swap_remove(which % open.len()).granted_at);
            }
            let request = Request::new(RequestId(id as u32), Lane::Queued(Priority::Normal), ModelKey::NONE);
            queue.push(request, now);
            let (turn, _) = ledger.turn(WorkerId(1), &queue, Held::default(), None, now, &mut events);
            for (request, reservation) in turn.granted {
                queue.remove(request.id);
                // Most are sent as they are granted; of the others it shows later.
                if id % 3 == 0 { open.push(reservation) } else { sent.push(now) }
            }
        }
        sent.sort();
        for (first, from) in sent.iter().enumerate() {
            for (last, to) in sent.iter().enumerate().skip(first) {
                let paid = u128::from(to.since(*from).get()) * 60_000;
                prop_assert!((last - first + 1) as u128 * u128::from(TOKEN) <= u128::from(capacity) * u128::from(TOKEN) + paid);
            }
        }
    }
}
