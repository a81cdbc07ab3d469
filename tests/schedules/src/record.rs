//! Where things stand in the record's bytes, found out from the record itself, so that it is free to change its form.

use crate::worker::{at_ms, rules};
use nimgate::ledger::Ledger;
use nimgate::models::ModelKey;
use nimgate::priority::{Lane, Priority};
use nimgate::queue::Queue;
use nimgate::units::{RequestId, WorkerId};
use std::ops::Range;

/// The places in the record that the tests need.
#[derive(Clone, Debug)]
pub struct Form {
    /// The time of the last refill.
    pub updated_at: Range<usize>,
    /// Where the board's lines begin, with which the record ends. Each begins with its worker's number.
    pub lines_at: usize,
    /// The length of a line.
    pub line_len: usize,
}

impl Form {
    /// The form that the core's records have.
    pub fn of_the_record() -> Self {
        // A refill that brings no token changes the level, and the time of the refill.
        let mut ledger = Ledger::new(rules(4), 0, at_ms(0));
        ledger.advance(at_ms(1));
        let (empty, time) = (ledger.encode(), at_ms(1).as_micros().to_le_bytes());
        // The retreat's counts have the time too, behind the bucket.
        let mut places = (0..empty.len() - time.len()).map(|at| at..at + time.len());
        let updated_at =
            places.find(|at| empty[at.clone()] == time).expect("the time of the last refill is in the record");
        let number = 0x1234_5678_u32;
        let mut queue = Queue::default();
        queue.push(RequestId(1), Lane::Queued(Priority::Normal), ModelKey::NONE, at_ms(1));
        ledger.turn(WorkerId(number), &queue, None, at_ms(1));
        let with_one = ledger.encode();
        let lines_at = empty.len();
        assert_eq!(with_one[lines_at..lines_at + 4], number.to_le_bytes(), "a line begins with its worker's number");
        Self { updated_at, lines_at, line_len: with_one.len() - lines_at }
    }
}
