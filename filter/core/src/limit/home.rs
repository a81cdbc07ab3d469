//! Where a limit's ledger lives: under the key of version 1, or under that of version 2.
//!
//! A module of version 1 knows its own key only. A second record beside it would be a second bucket, so as long as such
//! a module may be there the ledger stays in version 1's form at version 1's key, and what that form can't hold is
//! dormant. Only when none has written for [`QUIET`] does the ledger move to version 2's key.
//!
//! # What stands at version 1's key meanwhile
//!
//! A record that version 1 can read, with a *marker*: a line whose time is [`NEVER`], so that version 1 never takes it
//! off, and never changes it. It is one of two:
//!
//! - *closed*: an empty bucket, a full window, and a gate that is closed until the *lease* ends. The marker claims that
//!   an urgent request waits at one of our workers, so whoever waits in a module of version 1 finds that this worker is
//!   due, and wakes it. That is how we learn within a millisecond or two that one is there.
//! - *released*: the ledger as it is. A module of version 1 that comes may take it from there.
//!
//! Grants are made from version 2's record only as long as its lease runs, and the gate is closed for at least as long.
//! So at no time can both grant, whoever stalls or dies, and no clock but the one that all workers share is needed. The
//! lease is renewed by decisions, and not by idle workers: who has had nothing to do for [`LEASE`] costs nothing.
//!
//! # Moves
//!
//! Each step is one compare-and-swap, and whoever finds a move half done goes on with it:
//!
//! ```text
//! to version 2:    1 is live ─▶ 1 is released ─▶ 2 is here, no lease ─▶ 1 is closed ─▶ 2 has a lease
//! to version 1:    2 is here ─▶ 2 is leaving (nobody grants) ─▶ 1 is live ─▶ 2 is away
//! ```
//!
//! Each freeze has a generation, which stands in the marker and in version 2's record, so that nothing is put into the
//! record of a later freeze. Version 1's write is told by [`v1::Record::mark`], which it does not keep: if it is gone,
//! a module of version 1 is there, and the ledger moves back to it. If the gate had opened and that module has granted
//! from the record, that record's bucket and window are what counts.
//!
//! If all VMs of this module vanish at once without a word, a module of version 1 waits for at most [`LEASE`] until its
//! bucket begins to fill from empty, and that long again for the tokens that could have come twice; where there is a
//! window, it counts as many requests in it as the others could have sent.

use super::form::Form;
use super::ledger::Ledger;
use super::record::tlv::{self, Decoded, Kept, Location, MoveState, Origin, Refusal};
use super::record::v1::{self, NEVER, Record};
use super::rules::Rules;
use crate::store::{ATTEMPTS_MAX, Store, StoreError, Swap, Version};
use crate::units::{Instant, Micros, WorkerId};
use frozen::{closed, emptied, marker, released, thawed, unmarked, with_marker};

mod frozen;

/// Who may be at a limit's ledger.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum Company {
    /// Modules of this version only: the ledger needs no lease, and is made by the swap that first writes it. For tests
    /// and simulations of something else.
    #[default]
    Alone,
    /// Modules of version 1 too. The ledger moves to version 2 when none has written for so long.
    Mixed(Micros),
}

/// What is to be known of a ledger beside itself.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Past {
    /// There was none before, and no worker has taken note of it yet.
    pub is_new: bool,
    /// The one before could not be read; the bucket is empty.
    pub was_damaged: bool,
}

impl From<Origin> for Past {
    fn from(origin: Origin) -> Self {
        Self { is_new: origin != Origin::Known, was_damaged: origin == Origin::Lost }
    }
}

/// The two keys of a limit, as one worker sees them.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Home {
    one: String,
    two: String,
    /// Where the ledger was last found.
    form: Form,
    /// When version 1's record was last looked at.
    looked_at: Instant,
    company: Company,
    is_new: bool,
    was_damaged: bool,
    /// Whether this decision took the lease, rather than found it taken.
    has_leased: bool,
    wake: Vec<WorkerId>,
    moved: Option<Form>,
}

impl Home {
    /// The home of a limit, of which nothing is known yet.
    pub fn new(limit: &str, company: Company) -> Self {
        Self {
            one: v1::key(limit),
            two: tlv::key(limit),
            form: Form::Two,
            looked_at: Instant::ZERO,
            company,
            is_new: false,
            was_damaged: false,
            has_leased: false,
            wake: Vec::new(),
            moved: None,
        }
    }

    /// Makes a decision on the ledger and replaces it atomically, wherever it lives.
    ///
    /// `decide` gets the ledger, what is to be known beside it, and the time as it was read after the ledger; it answers
    /// the ledger to be written, or `None` to leave it, and whatever else was decided. It may be called several times and
    /// must have no effect of its own. `rules` are this module's configured ones: those of a ledger that has to be made,
    /// and of one that comes from version 1, which knows less of them.
    ///
    /// # Errors
    /// [`StoreError`], also if a newer module wrote what must be understood and is not. Nothing was decided then.
    pub fn decide<S: Store, T>(
        &mut self,
        me: Option<WorkerId>,
        rules: Rules,
        store: &mut S,
        mut decide: impl FnMut(Ledger, Past, Instant) -> (Option<Ledger>, T),
    ) -> Result<T, StoreError> {
        (self.is_new, self.was_damaged, self.has_leased) = (false, false, false);
        for _ in 0..ATTEMPTS_MAX {
            let mut needs_lease = false;
            let present = store.load(self.key())?;
            let now = store.now();
            let decided = match (self.form, &present) {
                (Form::One, Some((bytes, version))) => match Record::decode(bytes) {
                    Some(record) if marker(&record).is_none() => {
                        let old_at = if record.mark == 0 { now.as_micros() } else { record.mark };
                        let is_quiet = self.is_quiet(Instant::from_micros(old_at), now);
                        let past = Past { is_new: self.is_new, was_damaged: self.was_damaged };
                        let (ledger, decision) = decide(record.into(), past, now);
                        let value = ledger.map(|ledger| Record { mark: old_at, ..Record::from(&ledger) }.encode());
                        Some((value, decision, Some(*version), is_quiet))
                    }
                    _ => None,
                },
                (Form::Two, Some((bytes, version))) => match tlv::decode(bytes) {
                    Ok(Decoded { location, ledger: Some(before), mut kept })
                        if self.may_stay(location, me, now, store)? =>
                    {
                        let epoch = before.epoch();
                        // Another worker may have begun it, and not come to take note.
                        let past = Past::from(location.origin);
                        let (ledger, decision) = decide(before, past, now);
                        let origin = if me.is_some() { Origin::Known } else { location.origin };
                        if ledger.as_ref().is_some_and(|ledger| ledger.epoch() != epoch) {
                            kept.forget_rules();
                        }
                        let leased = now < location.lease;
                        match ledger {
                            // What is to be written needs the lease.
                            Some(_) if !leased => {
                                needs_lease = true;
                                None
                            }
                            ledger => {
                                let value = ledger
                                    .map(|ledger| tlv::encode(Location { origin, ..location }, Some(&ledger), &kept));
                                Some((value, decision, Some(*version), false))
                            }
                        }
                    }
                    Err(Refusal::NotUnderstood) => return Err(StoreError::NotUnderstood),
                    Ok(_) | Err(Refusal::Damaged) => None,
                },
                (_, None) => None,
            };
            let decided = decided.or_else(|| {
                let begin = || {
                    let past = Past { is_new: true, was_damaged: present.is_some() };
                    let (ledger, decision) = decide(first(rules, past.was_damaged, now), past, now);
                    let version = present.as_ref().map(|(_, version)| *version);
                    (ledger.map(|ledger| ledger.encode()), decision, version, false)
                };
                (self.company == Company::Alone).then(begin)
            });
            let Some((value, decision, version, is_quiet)) = decided else {
                self.settle(me, needs_lease, rules, store)?;
                continue;
            };
            let wrote = value.is_some();
            if let Some(value) = value
                && store.swap(self.key(), &value, version)? == Swap::Lost
            {
                continue;
            }
            if is_quiet {
                // If it fails, the next decision goes on with it.
                let _ = self.freeze(me, rules, store);
            }
            if me.is_none() && wrote && self.has_leased {
                // Nobody here will renew the lease or can be woken.
                let _ = self.release(store);
            }
            return Ok(decision);
        }
        Err(StoreError::Contended)
    }

    /// The workers that must be woken because the ledger has moved to where they look for it.
    pub fn take_wakes(&mut self) -> Vec<WorkerId> {
        core::mem::take(&mut self.wake)
    }

    /// Where this worker has moved the ledger since the last call.
    pub fn take_move(&mut self) -> Option<Form> {
        self.moved.take()
    }

    /// Whether there are any.
    pub fn has_wakes(&self) -> bool {
        !self.wake.is_empty()
    }

    /// A module of version 1 woke this worker: the next decision looks at once whether it has come.
    pub fn suspect(&mut self) {
        self.looked_at = Instant::ZERO;
    }

    /// The ledger as it lies in the store, for who only reads. `None` if there is none that can be read.
    ///
    /// # Errors
    /// [`StoreError`] when the store refuses.
    pub fn read<S: Store>(limit: &str, store: &mut S) -> Result<Option<Ledger>, StoreError> {
        let two = match store.load(&tlv::key(limit))?.map(|(bytes, _)| tlv::decode(&bytes)) {
            Some(Ok(Decoded { location, ledger: Some(ledger), .. })) if location.lease > Instant::ZERO => {
                return Ok(Some(ledger));
            }
            Some(Ok(decoded)) => decoded.ledger,
            Some(Err(_)) | None => None,
        };
        let one = store.load(&v1::key(limit))?.and_then(|(bytes, _)| Record::decode(&bytes));
        Ok(match one.map(|record| (marker(&record), record)) {
            // Open to modules of version 1, but none has come: ours says more.
            Some((Some(marker), record)) if record.mark == marker.generation && two.is_some() => two,
            Some((Some(marker), record)) if !marker.is_closed => {
                let (rules, now) = (record.configured, store.now());
                Some(unmarked(record, marker, rules, now))
            }
            Some((None, record)) => Some(record.into()),
            Some((Some(_), _)) | None => two,
        })
    }

    /// This worker goes: who comes after need not wait for the end of the lease. Other workers of this module take it
    /// again with their next decision.
    ///
    /// # Errors
    /// [`StoreError`] when the store refuses, or others were quicker too many times; the lease then ends by itself.
    pub fn release<S: Store>(&mut self, store: &mut S) -> Result<(), StoreError> {
        for _ in 0..ATTEMPTS_MAX {
            let Some((bytes, version)) = store.load(&self.two)? else { return Ok(()) };
            let Ok(Decoded { location, ledger: Some(ledger), kept }) = tlv::decode(&bytes) else { return Ok(()) };
            let Some((bytes, under)) = store.load(&self.one)? else { return Ok(()) };
            let Some(record) = Record::decode(&bytes) else { return Ok(()) };
            let now = store.now();
            if location.state != MoveState::Here
                || marker(&record).is_none_or(|marker| marker.generation != location.generation)
            {
                return Ok(());
            }
            if location.lease > Instant::ZERO {
                let free = Location { lease: Instant::ZERO, ..location };
                // From here on nobody grants from it.
                if store.swap(&self.two, &tlv::encode(free, Some(&ledger), &kept), Some(version))? == Swap::Lost {
                    continue;
                }
            } else if !marker(&record).is_some_and(|marker| marker.is_closed) {
                return Ok(());
            }
            let touched = record.mark != location.generation;
            let open = if touched {
                // One has come: it gets all there is, as in a move.
                thawed(ledger, &record, location.generation, now)
            } else {
                released(&ledger, location.generation)
            };
            if store.swap(&self.one, &open.encode(), Some(under))? == Swap::Replaced {
                return Ok(());
            }
        }
        Err(StoreError::Contended)
    }

    /// Whether no module of version 1 has written for long enough, if the last one did at `old_at`.
    fn is_quiet(&self, old_at: Instant, now: Instant) -> bool {
        matches!(self.company, Company::Mixed(quiet) if now.since(old_at) >= quiet)
    }

    /// The key under which the ledger was last found.
    fn key(&self) -> &str {
        match self.form {
            Form::One => &self.one,
            Form::Two => &self.two,
        }
    }

    /// Whether a decision may be made on version 2's record, in which `location` was read at `now`. From time to time that
    /// takes a look at version 1's, after the other as in [`Home::settle`], which goes on where there is more to do.
    fn may_stay<S: Store>(
        &mut self,
        location: Location,
        me: Option<WorkerId>,
        now: Instant,
        store: &mut S,
    ) -> Result<bool, StoreError> {
        if self.company == Company::Alone {
            return Ok(location.state == MoveState::Here);
        }
        let left = location.lease.since(now);
        if location.state != MoveState::Here || left > LEASE {
            return Ok(false);
        }
        if me.is_none() || now.since(self.looked_at) < LOOK_EVERY && now >= self.looked_at {
            return Ok(true);
        }
        if left < RENEW_BELOW {
            return Ok(false);
        }
        let one = store.load(&self.one)?.and_then(|(bytes, _)| Record::decode(&bytes));
        let is_untouched = one.is_some_and(|record| {
            record.mark == location.generation
                && marker(&record).is_some_and(|marker| marker.generation == location.generation)
        });
        if is_untouched {
            self.looked_at = now;
        }
        Ok(is_untouched)
    }

    /// Begins the move to version 2, if version 1's record is live and nobody of that version has written.
    fn freeze<S: Store>(&mut self, me: Option<WorkerId>, rules: Rules, store: &mut S) -> Result<(), StoreError> {
        let before = match store.load(&self.two)?.map(|(bytes, _)| tlv::decode(&bytes)) {
            Some(Ok(Decoded { location, .. })) if location.state == MoveState::Away => location.generation,
            Some(Err(Refusal::Damaged)) | None => 0,
            _ => return Ok(()),
        };
        let Some((bytes, version)) = store.load(&self.one)? else { return Ok(()) };
        let now = store.now();
        if let Some(record) = Record::decode(&bytes)
            && marker(&record).is_none()
            && record.mark > 0
            && self.is_quiet(Instant::from_micros(record.mark), now)
        {
            let generation = before.saturating_add(1).max(now.as_micros());
            // The lines go along: until the record is closed the next step reads them from there.
            let frozen = with_marker(record, generation, WorkerId(0), false);
            if store.swap(&self.one, &frozen.encode(), Some(version))? == Swap::Replaced {
                self.settle(me, true, rules, store)?;
                self.moved = Some(Form::Two).filter(|_| self.form == Form::Two);
            }
        }
        Ok(())
    }

    /// Finds out where the ledger lives, and goes on with a move that is half done. Takes the lease if it is needed, and
    /// renews one that will end soon.
    fn settle<S: Store>(
        &mut self,
        me: Option<WorkerId>,
        needs_lease: bool,
        rules: Rules,
        store: &mut S,
    ) -> Result<(), StoreError> {
        for _ in 0..STEPS_MAX {
            // In this order: what is read second is what counts if the other has changed since.
            let two = store.load(&self.two)?;
            let one = store.load(&self.one)?;
            let now = store.now();
            let (two, under_two) = match two {
                Some((bytes, version)) => (Some(tlv::decode(&bytes)), Some(version)),
                None => (None, None),
            };
            let (one, under_one) = match one {
                Some((bytes, version)) => (Some(Record::decode(&bytes)), Some(version)),
                None => (None, None),
            };
            let (location, ledger, kept) = match two {
                Some(Err(Refusal::NotUnderstood)) => return Err(StoreError::NotUnderstood),
                Some(Ok(Decoded { location, ledger, kept })) => (location, ledger, kept),
                Some(Err(Refusal::Damaged)) => {
                    self.was_damaged = true;
                    (Location::default(), None, Kept::default())
                }
                None => (Location::default(), None, Kept::default()),
            };
            let two_was_damaged = self.was_damaged && under_two.is_some();
            match (location.state, ledger, one) {
                (MoveState::Here, Some(ledger), Some(Some(record))) => match marker(&record) {
                    None => {
                        // Version 1's record lives although ours does: it was begun again after damage. Theirs counts.
                        self.swap_two(Location { state: MoveState::Away, ..location }, None, &kept, under_two, store)?;
                    }
                    Some(marker) if marker.generation != location.generation => {
                        // It is frozen, but for which ledger is not known. Now it is for this one.
                        let closed = closed(&ledger, location.generation, now.after(LEASE), me);
                        self.swap_one(&closed, under_one, store)?;
                    }
                    Some(_) if record.mark != location.generation => {
                        let leaving = Location { state: MoveState::Leaving, lease: Instant::ZERO, ..location };
                        self.swap_two(leaving, Some(&ledger), &kept, under_two, store)?;
                    }
                    Some(_) => {
                        self.looked_at = now;
                        self.form = Form::Two;
                        let left = location.lease.since(now);
                        let is_due = if needs_lease { left < RENEW_BELOW } else { (SOME..RENEW_BELOW).contains(&left) };
                        if !is_due && left <= LEASE {
                            return Ok(());
                        }
                        let until = now.after(LEASE);
                        let closed = closed(&ledger, location.generation, until, me);
                        if self.swap_one(&closed, under_one, store)? {
                            let leased = Location { lease: until, ..location };
                            if self.swap_two(leased, Some(&ledger), &kept, under_two, store)? {
                                self.has_leased = left == Micros::ZERO;
                                return Ok(());
                            }
                        }
                    }
                },
                (MoveState::Here, Some(ledger), _) => {
                    // Version 1's record is gone or damaged, and a module of version 1 would begin a new one.
                    let closed = closed(&ledger, location.generation, now.after(LEASE), me);
                    self.swap_one(&closed, under_one, store)?;
                }
                (MoveState::Leaving, Some(ledger), one) => {
                    let record = one.flatten();
                    match record.as_ref().map(|record| (record, marker(record))) {
                        Some((record, Some(marker))) if marker.generation == location.generation => {
                            let live = thawed(ledger, record, location.generation, now);
                            if self.swap_one(&live, under_one, store)? {
                                self.wake = live.lines.iter().map(|line| line.worker).collect();
                                self.moved = Some(Form::One);
                            }
                        }
                        Some((_, None)) => {
                            let away = Location { state: MoveState::Away, ..location };
                            self.swap_two(away, None, &kept, under_two, store)?;
                        }
                        Some((_, Some(_))) => {}
                        None => {
                            let live = Record { mark: now.as_micros(), ..Record::from(&ledger) };
                            self.swap_one(&live, under_one, store)?;
                        }
                    }
                }
                (_, _, Some(Some(record))) => match marker(&record) {
                    None => {
                        self.form = Form::One;
                        return Ok(());
                    }
                    Some(marker) => {
                        let lines = record.lines.iter().filter(|line| line.seen_at != NEVER).count();
                        let origin = if two_was_damaged || self.was_damaged {
                            Origin::Lost
                        } else if self.is_new || (marker.served == 0 && lines == 0) {
                            Origin::New
                        } else {
                            Origin::Known
                        };
                        let here = Location {
                            state: MoveState::Here,
                            generation: marker.generation,
                            lease: Instant::ZERO,
                            origin,
                        };
                        let mut ledger = unmarked(record, marker, rules, now);
                        if two_was_damaged || marker.is_closed {
                            // What was granted is not known.
                            ledger = emptied(ledger, now);
                        }
                        self.swap_two(here, Some(&ledger), &Kept::default(), under_two, store)?;
                    }
                },
                (_, _, one) => {
                    // There is none yet, or none that can be read: nothing is known of its past, so it starts empty.
                    self.is_new = true;
                    self.was_damaged |= one.is_some();
                    let ledger = first(rules, self.was_damaged, now);
                    let generation = location.generation.saturating_add(1).max(now.as_micros());
                    self.swap_one(&released(&ledger, generation), under_one, store)?;
                }
            }
        }
        Err(StoreError::Contended)
    }

    fn swap_one<S: Store>(&self, record: &Record, version: Option<Version>, store: &mut S) -> Result<bool, StoreError> {
        Ok(store.swap(&self.one, &record.encode(), version)? == Swap::Replaced)
    }

    fn swap_two<S: Store>(
        &self,
        location: Location,
        ledger: Option<&Ledger>,
        kept: &Kept,
        version: Option<Version>,
        store: &mut S,
    ) -> Result<bool, StoreError> {
        Ok(store.swap(&self.two, &tlv::encode(location, ledger, kept), version)? == Swap::Replaced)
    }
}

/// The first ledger of a limit: full, unless there was one that could not be read.
fn first(rules: Rules, was_damaged: bool, now: Instant) -> Ledger {
    Ledger::new(rules, if was_damaged { 0 } else { rules.capacity }, now)
}

/// How long a module of version 1 must have written nothing before the ledger leaves its key: longer than any drain
/// (Envoy's `--parent-shutdown-time-s` is 900 s unless told otherwise). If one comes after all, the ledger moves back.
pub const QUIET: Micros = Micros::from_secs(900);

/// How long version 1's record is closed at a time.
pub const LEASE: Micros = Micros::from_secs(10);

/// A lease of which less than this is left is renewed.
const RENEW_BELOW: Micros = Micros::from_secs(5);

/// How often a worker that decides looks at version 1's record, should the wake-up from there be lost.
pub const LOOK_EVERY: Micros = Micros::from_secs(2);

/// More steps than any move has.
const STEPS_MAX: usize = 16;

/// Any time at all.
const SOME: Micros = Micros::new(1);

#[cfg(test)]
#[path = "home/tests.rs"]
mod tests;
