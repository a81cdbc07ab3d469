//! A request as the core knows it: what it asks for, what it costs, and how long it may wait.

use crate::model::ModelKey;
use crate::priority::Lane;
use crate::units::{Instant, Micros, RequestId};

/// Who a request is for, where requests differ in that: the number of a row in a table of tenants.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Default, Hash)]
pub struct Tenant(pub u32);

impl Tenant {
    /// All requests are one tenant's.
    pub const NONE: Self = Self(0);
}

/// What a request takes from the budgets.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Cost {
    /// Requests; one, unless a budget counts otherwise.
    pub requests: u32,
    /// Estimated model tokens; 0 where no budget counts them.
    pub tokens: u32,
}

impl Cost {
    /// One request.
    pub const ONE: Self = Self { requests: 1, tokens: 0 };
}

/// A request that is complete and needs a token.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Request {
    /// Which it is in this worker.
    pub id: RequestId,
    /// Where it waits: at its level in the queue, or outside a full queue.
    pub lane: Lane,
    /// The model that it asks for.
    pub model: ModelKey,
    /// Whose it is.
    pub tenant: Tenant,
    /// What it takes.
    pub cost: Cost,
    /// When it asked for a token; never earlier than that of a request that asked before it in this worker.
    pub arrived: Instant,
    /// The longest that this one may wait, besides the rules' timeout for its lane; [`Micros::MAX`] where it says nothing.
    pub max_wait: Micros,
    /// When its wait ends without a token.
    pub deadline: Instant,
}

impl Request {
    /// A request without a wish of its own about its wait. Times are set when it joins a queue.
    pub const fn new(id: RequestId, lane: Lane, model: ModelKey) -> Self {
        Self {
            id,
            lane,
            model,
            tenant: Tenant::NONE,
            cost: Cost::ONE,
            arrived: Instant::ZERO,
            max_wait: Micros::MAX,
            deadline: Instant::from_micros(u64::MAX),
        }
    }
}
