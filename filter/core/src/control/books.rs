//! The books: of each model how much was served and refused of late. They tell whose limit a refusal is.
//!
//! A 429 does not say that. But where one model's share of refusals is far above that of those who fare better, by more
//! than chance would bring, its limit is its own; and as long as models fare unevenly, refusals say nothing of the
//! account. Streaks would not do: two weak models clear each other's record, and strays make streaks.
//!
//! Counts fade with `exp(-t / 6 windows)`. The evidence is Chernoff's bound in nats: how unlikely it is that at least so
//! many were refused where a known share would have been.

use super::chernoff::chernoff;
use crate::model::ModelKey;
use crate::units::{Instant, Micros};

/// What became of the requests for one model of late.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Book {
    /// The model.
    pub(crate) key: ModelKey,
    /// Thousandths of requests that were served.
    pub(crate) served: u32,
    /// Thousandths of requests that were refused.
    pub(crate) refused: u32,
    /// Up to when the counts have faded.
    pub(crate) at: Instant,
}

/// The books of all models that were asked for of late and are not slowed.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Books {
    pub(crate) books: Vec<Book>,
}

/// What the books say of a refusal.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Finding {
    /// The model has a limit of its own. `others_clean`: less is refused besides, or next to nothing.
    Own { others_clean: bool },
    /// Perhaps it has, or another: nothing against the account.
    Uneven,
    /// Nothing speaks against the account's limit.
    Account,
}

impl Book {
    fn fade(&mut self, window: Micros, now: Instant) {
        let span = window.times(FADE_WINDOWS).get().max(1) as f64;
        let faded = (-(now.since(self.at).get() as f64) / span).exp();
        self.served = (f64::from(self.served) * faded) as u32;
        self.refused = (f64::from(self.refused) * faded) as u32;
        self.at = self.at.max(now);
    }

    fn counts(&self) -> Counts {
        let refused = f64::from(self.refused) / 1e3;
        Counts { all: f64::from(self.served) / 1e3 + refused, refused }
    }
}

#[derive(Clone, Copy, Default)]
struct Counts {
    all: f64,
    refused: f64,
}

impl Counts {
    fn share(self) -> f64 {
        if self.all > 0.0 { self.refused / self.all } else { 0.0 }
    }

    fn sum(counts: impl Iterator<Item = Self>) -> Self {
        counts.fold(Self::default(), |sum, one| Self { all: sum.all + one.all, refused: sum.refused + one.refused })
    }
}

impl Books {
    /// Counts an answer. Names that were never served take the place of each other first, so that invented ones push
    /// nobody out.
    pub fn count(&mut self, window: Micros, now: Instant, key: ModelKey, refused: bool) {
        for book in &mut self.books {
            // Fading little by little would round more and more away.
            if book.key == key || now > book.at.after(window) {
                book.fade(window, now);
            }
        }
        self.books.retain(|book| book.served.saturating_add(book.refused) > FORGOTTEN || book.key == key);
        let found = self.books.iter().position(|book| book.key == key);
        let at = found.unwrap_or_else(|| {
            let new = Book { key, served: 0, refused: 0, at: now };
            if self.books.len() < BOOKS_MAX {
                self.books.push(new);
                return self.books.len().saturating_sub(1);
            }
            let least = self.books.iter().enumerate().min_by_key(|(_, book)| (book.served, book.refused));
            let at = least.map_or(0, |(at, _)| at);
            if let Some(book) = self.books.get_mut(at) {
                *book = new;
            }
            at
        });
        if let Some(book) = self.books.get_mut(at) {
            let count = if refused { &mut book.refused } else { &mut book.served };
            *count = count.saturating_add(1_000);
        }
    }

    /// Closes a model's book: its answers are counted by its own rate controller from now on.
    pub fn close(&mut self, key: ModelKey) {
        self.books.retain(|book| book.key != key);
    }

    /// What to make of the refusal that was just counted for a model; `at_ceiling` says that the account was expected to
    /// refuse about now, and `strays` which share of all requests is refused for no reason of rate.
    pub fn finding(&self, key: ModelKey, at_ceiling: bool, strays: f64) -> Finding {
        let own = self.own_evidence(key, strays);
        if own >= BELIEVED {
            let others = Counts::sum(self.books.iter().filter(|book| book.key != key).map(Book::counts));
            let most = self.book_of(key).map_or(0.0, |own| own.refused) > others.refused;
            let few = others.refused <= CLEAN || others.share() <= CLEAN_SHARE + 1.5 * strays;
            return Finding::Own { others_clean: few || most };
        }
        let suspected = if at_ceiling { SUSPECTED_AT_CEILING } else { SUSPECTED };
        if own >= suspected || self.uneven_evidence() >= UNEVEN { Finding::Uneven } else { Finding::Account }
    }

    fn book_of(&self, key: ModelKey) -> Option<Counts> {
        self.books.iter().find(|book| book.key == key).map(Book::counts)
    }

    /// How many of a model's requests were refused of late.
    pub fn refused(&self, key: ModelKey) -> u32 {
        self.book_of(key).map_or(0, |counts| counts.refused as u32)
    }

    /// The evidence that a model has a limit of its own: its refusals against the share of those that fare clearly better.
    fn own_evidence(&self, key: ModelKey, strays: f64) -> f64 {
        let Some(own) = self.book_of(key) else { return 0.0 };
        if own.refused < REFUSED_LEAST {
            return 0.0;
        }
        let others = self.books.iter().filter(|book| book.key != key).map(Book::counts);
        let better = Counts::sum(others.filter(|other| other.share() <= own.share() / 2.0));
        if better.all < ANSWERS_LEAST {
            return 0.0;
        }
        chernoff(own.refused, own.all * ((better.refused + 0.5) / (better.all + 1.0)).max(strays))
    }

    /// The evidence that not all models fare alike: those that fare well are refused less than the share of all.
    fn uneven_evidence(&self) -> f64 {
        let all = Counts::sum(self.books.iter().map(Book::counts));
        if all.refused < REFUSED_LEAST {
            return 0.0;
        }
        let better = Counts::sum(self.books.iter().map(Book::counts).filter(|one| one.share() <= all.share() / 2.0));
        let expected = better.all * all.share();
        if expected <= better.refused {
            return 0.0;
        }
        let fewer = if better.refused > 0.0 { better.refused * (better.refused / expected).ln() } else { 0.0 };
        expected - better.refused + fewer
    }
}

/// Counts fade to 1/e in so many windows.
const FADE_WINDOWS: u64 = 6;

/// Models of which books are kept.
pub(crate) const BOOKS_MAX: usize = 32;

/// A book of fewer thousandths of requests is thrown away.
const FORGOTTEN: u32 = 20;

/// The evidence from which a model's limit is believed to be its own: chance brings that once in `exp(5)`, 150, times.
const BELIEVED: f64 = 5.0;

/// The evidence from which a refusal does not count against the account.
const SUSPECTED: f64 = 2.5;

/// The same where the account's ceiling was found at the same place twice and is near, so that refusals are no surprise.
const SUSPECTED_AT_CEILING: f64 = 3.5;

/// The same, that models do not fare alike.
const UNEVEN: f64 = 3.5;

/// Fewer refusals tell nothing.
const REFUSED_LEAST: f64 = 1.5;

/// Fewer answers of others tell nothing.
const ANSWERS_LEAST: f64 = 4.0;

/// No more refusals of others than this, or no greater share, and the account is innocent.
const CLEAN: f64 = 1.2;
const CLEAN_SHARE: f64 = 0.02;

#[cfg(test)]
#[path = "books/tests.rs"]
mod tests;
