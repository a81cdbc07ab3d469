//! Version 1's record while the ledger lives elsewhere: what is written there, and what is read from it.

use super::super::form::{Form, known_to_version_1};
use super::super::in_use::InUse;
use super::super::ledger::Ledger;
use super::super::record::v1::{LineV1, NEVER, Record};
use super::super::rules::Rules;
use super::LEASE;
use crate::control::rate::Phase;
use crate::priority::LANES;
use crate::supply::bucket::{Bucket, TOKEN};
use crate::supply::reservation::RecentGrants;
use crate::supply::window::WindowGuard;
use crate::units::{Instant, MilliRpm, WorkerId};

/// What a frozen record of version 1 says of itself.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Marker {
    pub(super) generation: u64,
    pub(super) is_closed: bool,
    /// How many grants the record told of when it was frozen.
    pub(super) served: u64,
}

/// The marker of a frozen record; `None` of a live one.
pub(super) fn marker(record: &Record) -> Option<Marker> {
    record.lines.iter().find(|line| line.seen_at == NEVER).map(|line| {
        let [(count, _), (_, generation), (_, served), ..] = line.lanes;
        Marker { generation: generation.as_micros(), is_closed: count > 0, served: served.as_micros() }
    })
}

/// Version 1 leaves other workers' lines as they are, and reads no time of a lane in which nobody waits.
pub(super) fn with_marker(mut record: Record, generation: u64, worker: WorkerId, is_closed: bool) -> Record {
    let mut lanes = [(0, Instant::ZERO); LANES];
    let [head, generated, served, ..] = &mut lanes;
    head.0 = u32::from(is_closed);
    generated.1 = Instant::from_micros(generation);
    served.1 = Instant::from_micros(served_in(&record));
    record.lines.push(LineV1 { worker, passed_over: false, seen_at: NEVER, lanes });
    record.mark = generation;
    record.due = None;
    record
}

fn served_in(record: &Record) -> u64 {
    record.served.iter().fold(0, |sum, served| sum.saturating_add(served.count))
}

/// Version 1's record when it may go on from there. The requests that wait here are not told of: they can't be granted
/// from it.
pub(super) fn released(ledger: &Ledger, generation: u64) -> Record {
    let record = Record { lines: Vec::new(), ..Record::from(ledger) };
    with_marker(record, generation, WorkerId(0), false)
}

/// Version 1's record when it must not grant before `until`, the end of the lease.
pub(super) fn closed(ledger: &Ledger, generation: u64, until: Instant, me: Option<WorkerId>) -> Record {
    let mut record = Record { lines: Vec::new(), ..Record::from(ledger) };
    let window = record.rules.window_rules();
    let rate = u64::from(record.rules.retreat.base.get());
    let in_a_lease = LEASE.get().saturating_mul(rate).div_ceil(TOKEN);
    let in_a_lease = u32::try_from(in_a_lease).unwrap_or(u32::MAX).saturating_add(1);
    // As if all that we may yet grant had been granted at the last moment.
    let (length, newest) = record.window;
    let mut guard = WindowGuard::from_parts(length, newest, record.counts);
    guard.advance(window, until);
    guard.count(in_a_lease.saturating_add(record.rules.capacity).min(window.quota));
    let (length, newest, counts) = guard.parts();
    (record.window, record.counts) = ((length, newest), *counts);
    record.bucket = (0, until, until);
    // Version 1 refills the bucket from the moment at which it first writes, although the gate is closed. What comes
    // until it opens goes here.
    record.owed = record.owed.saturating_add(in_a_lease);
    record.models = Default::default();
    let account = &mut record.account;
    // At full speed, with every answer taken for stale, nothing that version 1 does opens the gate.
    account.phase = Phase::Normal;
    account.rate = record.rules.retreat.base;
    account.half_open = false;
    account.undo = false;
    account.closed_until = until;
    account.cut_at = until;
    // No configuration says this, so that one that comes is seen when it is taken up.
    record.configured.capacity = u32::MAX;
    record.configured.retreat.base = MilliRpm::new(1);
    with_marker(record, generation, me.unwrap_or(WorkerId(0)), true)
}

fn is_sentinel(rules: &Rules) -> bool {
    rules.capacity == u32::MAX && rules.retreat.base == MilliRpm::new(1)
}

/// The ledger that a frozen record holds, with those of the configured `rules` that it can't hold.
pub(super) fn unmarked(mut record: Record, marker: Marker, rules: Rules, now: Instant) -> Ledger {
    record.lines.retain(|line| line.seen_at != NEVER);
    if marker.is_closed && is_sentinel(&record.configured) {
        record.configured = record.rules;
    }
    if marker.is_closed {
        record.account.closed_until = Instant::ZERO;
        record.account.cut_at = Instant::ZERO;
    }
    let is_overridden = record.rules != record.configured;
    let is_ours = record.configured == known_to_version_1(&rules);
    let mut ledger = Ledger::from(record);
    let (active, configured, epoch) = (*ledger.rules(), *ledger.configured(), ledger.epoch());
    let configured = if is_ours { rules } else { configured };
    ledger.in_use = InUse::from_parts(if is_overridden { active } else { configured }, configured, epoch);
    ledger.form = Form::Two;
    ledger.guard = ledger.guard.as_in_version_2();
    ledger.guard.advance(ledger.rules().window_rules(), now);
    // Tickets of grants that were made before must not be taken for those of later ones.
    ledger.recent = RecentGrants::from_parts(Vec::new(), now.as_micros());
    ledger.freed_at = now;
    ledger
}

/// The same ledger, when nothing is known of what was granted last.
pub(super) fn emptied(ledger: Ledger, now: Instant) -> Ledger {
    Ledger { bucket: Bucket::with_tokens(0, now), ..ledger }
}

/// Version 1's record when the ledger comes back to it. What a module of version 1 has written there meanwhile, its
/// rules and who waits with it, is taken over.
pub(super) fn thawed(mut ledger: Ledger, frozen: &Record, generation: u64, now: Instant) -> Record {
    let Some(marker) = marker(frozen).filter(|marker| marker.generation == generation) else {
        return Record { mark: now.as_micros(), ..Record::from(&ledger) };
    };
    let granted = served_in(frozen).saturating_sub(marker.served);
    let has_adopted = !is_sentinel(&frozen.configured) && frozen.configured != known_to_version_1(ledger.configured());
    let mut live = if marker.is_closed {
        if has_adopted {
            // What that does to the rate is seen with the next decision.
            ledger.adopt(frozen.configured, now, &mut Vec::new());
        }
        let mut live = Record::from(&ledger);
        if granted > 0 {
            // The lease had ended, and the record was that module's alone.
            (live.bucket, live.window, live.counts) = (frozen.bucket, frozen.window, frozen.counts);
            live.owed = live.owed.max(frozen.owed);
            for (served, theirs) in live.served.iter_mut().zip(frozen.served) {
                served.count = served.count.max(theirs.count);
                served.waited = served.waited.max(theirs.waited);
            }
        }
        live
    } else {
        // It was whole, and that module has gone on with it.
        Record { lines: ledger.peers().lines().iter().filter_map(LineV1::of).collect(), ..frozen.clone() }
    };
    (live.newest, live.contender) = (u64::MAX, None);
    let theirs = frozen.lines.iter().filter(|line| line.seen_at != NEVER);
    for line in theirs {
        live.lines.retain(|ours| ours.worker != line.worker);
        live.lines.push(*line);
    }
    live.due = None;
    live.mark = now.as_micros();
    live
}
