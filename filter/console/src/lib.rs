//! The console: what operators see of the filter, and how they change it.
//!
//! Everything here is made from what the caller hands in: the head of a request, views of the ledgers, counters. No
//! host is called. One question is answered in two steps, because the answer may need what only the host has: first
//! [`request::Console::at_head`] says what was asked, or refuses; then the caller gathers what the answer is made of.
//!
//! | module | what lives there |
//! | --- | --- |
//! | [`request`] | from a request's head to what is asked, or a refusal |
//! | [`reply`] | an answer, with the headers that every answer carries |
//! | `page` | the dashboard's files |
//! | [`view`] | one limit as it is now |
//! | [`status`] | `/status` and `/events` |
//! | [`health`] | `/health` and `/health/ready` |
//! | [`overrides`] | `POST /config` |
//! | [`history`] | what changed lately: the retreat, the rules |
//! | [`registry`] | which limits there are, and since when |

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

pub mod health;
pub mod history;
pub mod overrides;
pub(crate) mod page;
pub mod registry;
pub mod reply;
pub mod request;
pub mod status;
pub mod view;
