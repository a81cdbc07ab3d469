//! nimgate: a proxy-wasm HTTP filter that queues requests to NVIDIA's LLM APIs by priority and lets them through at
//! the pace that the API allows.
//!
//! The crate has two halves. The *core* is plain Rust: it knows no clock, no host and no wasm; inputs and the time come
//! in, actions go out. The *shell* (feature `shell`) turns Envoy's callbacks into inputs and carries the actions out;
//! it knows no rules.
//!
//! | module | what lives there |
//! | --- | --- |
//! | [`units`] | time, rates and identities as types of their own |
//! | [`priority`] | the four levels, and the lanes in which requests wait |
//! | [`config`] | the configuration, valid by construction |
//! | [`console`] | what operators see, and how they steer |
//! | [`classify`] | from headers and body to a verdict; the scanner for `model` |
//! | [`bucket`] | the token bucket, in integers |
//! | [`window_guard`] | no more grants in any window than the quota |
//! | [`attempts`] | how often Envoy's router has sent a request |
//! | [`retreat`] | how fast to go, given what the upstream answered |
//! | [`queue`] | what waits in this worker |
//! | [`ledger`] | what all workers agree on, and the rule by which tokens are granted |
//! | [`store`] | the seam to shared data: decide, then compare and swap |
//! | [`scheduler`] | the heart of one worker |
//! | [`model_names`] | names of models as labels of metrics, bounded |
//! | [`outcome`] | every way in which a request can end |
//! | [`observe`] | what the core reports |
//! | `shell` | Envoy's callbacks and host calls |

#![cfg_attr(not(feature = "shell"), forbid(unsafe_code))]
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
#![warn(missing_docs)]

pub mod attempts;
pub mod bucket;
pub mod classify;
pub mod config;
pub mod console;
pub mod ledger;
pub mod messages;
pub mod model_names;
pub mod models;
pub mod observe;
pub mod outcome;
pub mod pace;
pub mod priority;
pub mod queue;
pub mod retreat;
pub mod retry_after;
pub mod scheduler;
pub mod store;
pub mod units;
pub mod window_guard;

#[cfg(feature = "shell")]
mod shell;
