//! The scheduler that knows everything: it sends whenever the upstream would admit a request, and never otherwise.

use crate::demand::{LEVELS, Request, TIMEOUTS};
use crate::engine::{Record, Setting};
use crate::upstream::{Admission, Upstream};
use crate::{SECOND, Time};
use std::collections::{BinaryHeap, VecDeque};

/// How often it looks.
const STEP: Time = SECOND / 20;

/// What is possible at most with this demand before this upstream.
pub fn run(setting: Setting, demand: &[Request], mut upstream: Upstream, rng: &mut fastrand::Rng) -> Record {
    let mut queues: [VecDeque<Request>; LEVELS] = Default::default();
    let mut record = Record::default();
    let mut answers = BinaryHeap::new();
    let mut coming = demand.iter().copied().peekable();
    let mut now = 0;
    let kinds = demand
        .iter()
        .map(|request| (request.model, request.credential))
        .collect::<std::collections::HashSet<_>>()
        .len();
    while now < setting.end {
        while let Some(std::cmp::Reverse((at, model))) = answers.peek().copied()
            && at <= now
        {
            answers.pop();
            upstream.finish(model);
        }
        while let Some(request) = coming.next_if(|request| request.at <= now) {
            queues[request.level].push_back(request);
        }
        upstream.advance(now);
        for level in 0..LEVELS {
            while queues[level].front().is_some_and(|request| request.at + TIMEOUTS[level] <= now) {
                queues[level].pop_front();
                if level == 0 {
                    record.urgent_waits.push(TIMEOUTS[0]);
                }
            }
        }
        let mut refused = std::collections::HashSet::new();
        'levels: for queue in &mut queues {
            let mut place = 0;
            while let Some(request) = queue.get(place).copied() {
                if refused.contains(&(request.model, request.credential)) {
                    place += 1;
                } else if upstream.would_admit(request, now) {
                    let admission = upstream.admit(request, now);
                    debug_assert_eq!(admission, Admission::Admitted);
                    queue.remove(place);
                    record.admitted.push(now);
                    if request.level == 0 {
                        record.urgent_waits.push(now - request.at);
                    }
                    let latency = (setting.latency as f64 * (0.5 + 0.5 * crate::demand::exponential(rng))) as Time;
                    answers.push(std::cmp::Reverse((now + latency, request.model)));
                } else {
                    refused.insert((request.model, request.credential));
                    place += 1;
                }
                if refused.len() == kinds {
                    break 'levels;
                }
            }
        }
        now += STEP;
    }
    record
}
