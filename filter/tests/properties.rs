//! Bucket, queue and ledger under any sequence of events, against models that are too simple to be wrong.

use nimgate::bucket::{Bucket, Flow, NotUntil, TOKEN};
use nimgate::ledger::{Arrival, Ledger, Place, Rules};
use nimgate::models::ModelKey;
use nimgate::priority::{Lane, Priority};
use nimgate::queue::{Patience, Queue};
use nimgate::retreat::{Answer, FORGET_WINDOWS, Phase, Retreat, RetreatRules};
use nimgate::units::{Instant, Micros, MilliRpm, RequestId, WorkerId};
use nimgate::window_guard::{CELLS, WindowGuard, WindowRules};
use proptest::prelude::*;

fn cases() -> ProptestConfig {
    ProptestConfig { cases: 500, failure_persistence: None, ..ProptestConfig::default() }
}

fn rules(rpm: u32, capacity: u32, queue_max: u32) -> Rules {
    Rules {
        capacity,
        queue_max,
        aging: None,
        window: Micros::ZERO,
        patience: Patience { low: Micros::from_secs(30), others: Micros::from_secs(120) },
        may_fall_back: queue_max.is_multiple_of(2),
        shadow: false,
        retreat: RetreatRules {
            enabled: true,
            base: MilliRpm::from_rpm(rpm),
            floor: MilliRpm::from_rpm(1),
            retry_after_max: Micros::from_secs(300),
            obey_503: false,
            probe_windows: 5,
            window: Micros::from_secs(60),
        },
    }
}

const START: Instant = Instant::from_micros(1_000_000_000);

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
                    queue.push(RequestId(id), Lane::Queued(priority), ModelKey(u64::from(id % 3)), now);
                }
                4 => queue.set_apart((1..3u64).filter(|model| level as u64 & model > 0).map(ModelKey)),
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
        // Within a lane the order is that of coming into it; the test moves no request out of a lane's order in time.
        let in_order = |lane: &Lane, arrived: &Instant| {
            let climbed = match aging {
                Some(step) if lane.is_queued() => now.since(*arrived).get() / step.get(),
                _ => 0,
            };
            (lane.index() as u64).saturating_sub(climbed)
        };
        let mut cursor = queue.in_order(now, aging, |_| true);
        let served: Vec<_> = std::iter::from_fn(|| cursor.advance()).collect();
        prop_assert_eq!(served.len(), model.len());
        for pair in served.windows(2) {
            prop_assert_eq!(queue.get(pair[0].request), Some(&pair[0]));
            if pair[0].lane.is_queued() && pair[1].lane.is_queued() {
                let before = (in_order(&pair[0].lane, &pair[0].arrived), pair[0].arrived);
                let after = (in_order(&pair[1].lane, &pair[1].arrived), pair[1].arrived);
                prop_assert!(before <= after);
            }
            prop_assert!(pair[0].lane.is_queued() || !pair[1].lane.is_queued());
            // Of several models set apart, those that came at the same moment have no order.
            if pair[0].lane == pair[1].lane && pair[0].model == pair[1].model {
                let place = |id: RequestId| model.iter().find(|(known, ..)| *known == id.0).unwrap().3;
                prop_assert!(place(pair[0].request) < place(pair[1].request));
            }
        }
    }

    /// Several workers on one ledger: no token too many, no better request passed by while its worker is awake, bounds
    /// kept, every record readable.
    #[test]
    fn workers_on_one_ledger_keep_one_bucket_one_order_and_one_bound(
        rpm in 1u32..6_000,
        capacity in 1u32..10,
        queue_max in 0u32..20,
        events in prop::collection::vec((0usize..4, 0u8..8, 0usize..4, 0u64..400_000), 1..150),
    ) {
        let rules = rules(rpm, capacity, queue_max);
        let mut ledger = Ledger::new(rules, capacity, START);
        let mut queues: [Queue; 4] = Default::default();
        let mut granted: Vec<Instant> = Vec::new();
        let mut now = START;
        for (id, (worker, what, level, wait)) in events.into_iter().enumerate() {
            now = now.after(Micros::new(wait));
            let request = RequestId(id as u32);
            let arrival = (what < 5).then(|| {
                let waiting = queues[worker].push(request, Lane::Queued(Priority::ALL[level]), ModelKey::NONE, now);
                Arrival::from(waiting)
            });
            if what == 7 && let Some(left) = Lane::ALL.iter().find_map(|lane| queues[worker].front(*lane).copied()) {
                queues[worker].remove(left.request);
            }
            ledger.advance(now);
            let (turn, _) = ledger.turn(WorkerId(worker as u32 + 1), &queues[worker], arrival, now);
            let served = turn.granted.clone();
            for waiting in &served {
                queues[worker].remove(waiting.request);
                granted.push(now);
            }
            if let Some(arrival) = arrival.filter(|a| served.iter().all(|w| w.request != a.request)) {
                match turn.place {
                    Place::Queued => {}
                    Place::Fallback(lane) => queues[worker].shift(arrival.request, lane),
                    Place::Refused => { queues[worker].remove(arrival.request); }
                }
            }
            let decoded = Ledger::decode(&ledger.encode());
            prop_assert_eq!(decoded.as_ref(), Some(&ledger));
            let total = |queued: bool| queues.iter().flat_map(|queue| queue.in_order(now, None, |_| true).heads().into_iter().zip(Lane::ALL))
                .filter(|(_, lane)| lane.is_queued() == queued).map(|(head, _)| head.count).sum::<u32>();
            // A worker that has just lost someone tells the board with its next turn, so the board may say more.
            prop_assert!(total(true) <= queue_max.max(1) || total(true) <= queue_max);
            prop_assert!(total(false) <= queue_max);
        }
        for (first, from) in granted.iter().enumerate() {
            for (last, to) in granted.iter().enumerate().skip(first) {
                let paid = u128::from(to.since(*from).get()) * u128::from(rpm) * 1_000;
                let given = (last - first + 1) as u128 * u128::from(TOKEN);
                prop_assert!(given <= u128::from(capacity) * u128::from(TOKEN) + paid);
            }
        }
    }

    /// However the window lies, it holds no more grants than the quota, with some room for requests that were slow to
    /// arrive; and when the guard says that there will be room there is, and not before.
    #[test]
    fn no_window_holds_more_than_its_quota(
        window_s in 1u64..200,
        quota in 1u32..60,
        steps in prop::collection::vec((0u64..20_000, 1u32..20), 1..300),
    ) {
        let window = Micros::from_secs(window_s);
        let rules = WindowRules { window, quota };
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
        let slack = window.get() / CELLS as u64 / 5;
        for (last, at) in granted.iter().enumerate() {
            let first = granted[..=last].partition_point(|earlier| earlier + window.get() + slack <= *at);
            prop_assert!(last - first < quota as usize);
        }
    }

    /// Under more demand than the quota the guard wastes little of it.
    #[test]
    fn a_guard_loses_less_than_two_per_cent(window_s in 1u64..200, quota in 1u32..200, gap_us in 1u64..100_000) {
        let rules = WindowRules { window: Micros::from_secs(window_s), quota };
        let mut guard = WindowGuard::new(rules, START);
        let mut now = START;
        let mut granted = 0u64;
        let end = START.after(Micros::from_secs(20 * window_s));
        while now < end {
            guard.advance(rules, now);
            guard.count(1);
            granted += 1;
            now = guard.opens_at(rules, now.after(Micros::new(gap_us.min(window_s * 900_000 / u64::from(quota)))), 1);
        }
        prop_assert!(granted >= u64::from(quota) * 20 * 98 / 100, "{granted} of {}", u64::from(quota) * 20);
    }

    /// Whatever the upstream answers, the rate stays between floor and base, and comes back when it stops refusing.
    #[test]
    fn a_retreat_stays_in_bounds_and_comes_back(
        answers in prop::collection::vec((0u64..20_000_000, 0u64..40_000_000, any::<bool>(), prop::option::of(0u64..1_000_000)), 1..80),
    ) {
        let rules = rules(40, 4, 10).retreat;
        let mut retreat = Retreat::new(rules);
        let mut now = START;
        for (wait, age, throttled, pause_s) in answers {
            now = now.after(Micros::new(wait));
            retreat.advance(rules, now);
            let granted_at = Instant::from_micros(now.as_micros().saturating_sub(age));
            let retry_after = pause_s.map(Micros::from_secs).filter(|_| throttled);
            retreat.step(rules, now, Answer { granted_at, throttled, retry_after });
            prop_assert!(rules.floor <= retreat.rate() && retreat.rate() <= rules.base);
            prop_assert!(retreat.closed_until().since(now) <= rules.retry_after_max);
            prop_assert!(retreat.throttled_permille(now) <= 1_000);
        }
        now = now.after(rules.window.times(FORGET_WINDOWS + 6));
        retreat.advance(rules, now);
        prop_assert_eq!((retreat.phase(), retreat.rate()), (Phase::Normal, rules.base));
    }
}
