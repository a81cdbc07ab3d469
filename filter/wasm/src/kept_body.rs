//! What Envoy keeps of a request's body on this filter's behalf, and how it goes on after a grant.
//!
//! A request goes on as soon as it has its token, whether or not its body has ended: the end of a conversation never comes.
//! Envoys before the fix of envoy#46841 then lose a piece of the body. Such an Envoy remembers that the last piece was
//! paused, puts the next one with what it keeps, and, when the filter lets that one pass, sends nothing of it, since
//! nothing is paused any more. So the first piece after such a resume is paused again, and either the timer resumes the
//! request a moment later, or the next piece comes before that and is let pass while the request is paused, which sends
//! both and makes Envoy forget. The same calls do no harm on an Envoy that has the fix.

use std::cell::Cell;

/// What Envoy keeps of a request's body.
#[derive(Default)]
pub struct KeptBody(Cell<Kept>);

#[derive(Clone, Copy, PartialEq, Eq, Default)]
enum Kept {
    /// Nothing, and it remembers nothing.
    #[default]
    Nothing,
    /// Its beginning; more comes.
    Beginning,
    /// All of it.
    Whole,
    /// Nothing, but it remembers that the last piece was paused.
    Remembered,
}

/// What is to be done with a piece of the body of a request that has its token.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Piece {
    /// Let it pass.
    Passes,
    /// Let it pass. The request needs no resume any more.
    PassesWithKept,
    /// Pause it, and resume the request in a moment.
    Pauses,
}

impl KeptBody {
    /// A piece of the body is paused; `ends` says whether it was the last.
    pub fn pause(&self, ends: bool) {
        self.0.set(if ends { Kept::Whole } else { Kept::Beginning });
    }

    /// The stream's own callback let a piece pass while the request was paused.
    pub fn pass(&self) {
        self.0.set(Kept::Nothing);
    }

    /// The request was resumed from outside its callbacks.
    pub fn resumed(&self) {
        self.0.set(match self.0.get() {
            Kept::Beginning | Kept::Remembered => Kept::Remembered,
            Kept::Nothing | Kept::Whole => Kept::Nothing,
        });
    }

    /// A piece came of a request that has its token.
    pub fn piece(&self, ends: bool) -> Piece {
        match self.0.get() {
            Kept::Nothing => Piece::Passes,
            Kept::Remembered => {
                self.pause(ends);
                Piece::Pauses
            }
            Kept::Beginning | Kept::Whole => {
                self.pass();
                Piece::PassesWithKept
            }
        }
    }
}
