//! Supply: what there is to grant, and when there is more.

pub mod bucket;
pub(crate) mod budget;
pub mod reservation;
pub mod window;
