//! Order: who is next, among those who wait in this worker and in the others.

pub mod key;
pub mod peers;
pub mod queue;
