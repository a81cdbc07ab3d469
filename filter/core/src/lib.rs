//! nimgate's core: who is next, what there is to grant, and how much there may be.
//!
//! It knows no clock, no host and no wasm: inputs and the time come in, actions go out.
//!
//! | module | what lives there |
//! | --- | --- |
//! | [`units`] | time, rates and identities as types of their own |
//! | [`priority`] | the four levels, and the lanes in which requests wait |
//! | [`request`] | a request: what it costs and how long it may wait |
//! | [`order`] | who is next: the queue of this worker, and what the others have waiting |
//! | [`supply`] | what there is: the token bucket, the window guard, reservations |
//! | [`control`] | how much there may be: what answers mean, whose limit they speak of, how fast to go |
//! | [`limit`] | one limit: rules, the shared ledger and its record |
//! | [`store`] | shared data: decide, then compare and swap |
//! | [`scheduler`] | one worker: inputs in, actions out |
//! | [`model`] | which model a request asks for |
//! | [`model_names`] | names of models as labels of metrics, bounded |
//! | [`outcome`] | every way in which a request can end |
//! | [`messages`] | the sentences that clients read |
//! | [`event`] | everything that happens, for metrics, log and history |

#![forbid(unsafe_code)]
#![cfg_attr(
    not(test),
    deny(
        clippy::unwrap_used,
        clippy::expect_used,
        clippy::panic,
        clippy::unreachable,
        clippy::todo,
        clippy::unimplemented,
        clippy::indexing_slicing,
        clippy::string_slice,
        clippy::arithmetic_side_effects
    )
)]

pub mod control;
pub mod event;
pub mod limit;
pub mod messages;
pub mod model;
pub mod model_names;
pub mod order;
pub mod outcome;
pub mod priority;
pub mod request;
pub mod scheduler;
pub mod store;
pub mod supply;
pub mod units;
